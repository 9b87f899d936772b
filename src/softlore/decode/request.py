"""What is wanted of a text: a context, how long, how it ends, how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softlore.context.compose import ContextLike
from softlore.decode.conditioning import Conditioning
from softlore.decode.no_copy import no_copy_step
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.errors import ConfigError
from softlore.lore.styles import BRACKETED
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt

Stop = str | Sequence[str]
MOST_LOGPROBS = 1000


@dataclass(frozen=True)
class GenerationRequest:
    """What is wanted of one text; the fields are those of `write`."""

    context: ContextLike
    max_new_tokens: int = 80
    stop: Stop = ()
    seed: int | None = None
    no_copy: int = 0
    logprobs: int | None = None
    conditioning: Conditioning = ""
    check: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        ConfigError: a setting out of range.
    """
    if request.max_new_tokens < 1:
        raise ConfigError(
            f"max_new_tokens is {request.max_new_tokens}; expected at least 1; ask for more"
        )
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise ConfigError(
            f"logprobs is {request.logprobs}; expected 0 to {MOST_LOGPROBS}, or None for none; "
            "another"
        )
    stop = request.stop
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise ConfigError(f"stop is {stop!r}; expected strings of at least one character; mend it")
    return stops


def prompts_in(
    request: GenerationRequest, conditionings: Sequence[tuple[ContextLike, float]]
) -> list[SoftPrompt]:
    """The soft prompts of a request's context, and of its heads as `dosed` has them."""
    read = (request.context, *(conditioning for conditioning, _ in conditionings))
    return [prompt for one in read for prompt in Context(one).prompts]


def make_sampler(
    model: LanguageModel,
    request: GenerationRequest,
    conditionings: Sequence[tuple[ContextLike, float]],
) -> Sampler:
    """The chooser of one text: its sampling, and what is never to be written."""
    prompts = prompts_in(request, conditionings)
    banned = (*request.sampling.get("banned", ()), *model.banned_ids)
    if any(p.training.get("style") == BRACKETED for p in prompts):
        banned += model.bracket_ids  # what was learned in brackets is told without them
    before = [no_copy_step(prompts, request.no_copy)] if request.no_copy else []
    return Sampler(
        SamplingParams.of({**request.sampling, "banned": banned}), request.seed, model, before
    )
