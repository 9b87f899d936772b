"""GenerationRequest: a context, how long to generate, where to stop, how to sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import Tensor

from softlore.context import Tree, compose
from softlore.context.compose import ContextLike
from softlore.decode.conditioning import Conditioning
from softlore.decode.grammar import Grammar, GrammarLogitsProcessor, compile_grammar
from softlore.decode.healing import Healing, HealingLogitsProcessor
from softlore.decode.no_copy import no_copy_step
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.decode.samplers.steps import Step
from softlore.errors import ConfigError
from softlore.lore.styles import BRACKETED
from softlore.model import LanguageModel
from softlore.prompts import Context, ControlVector, SoftPrompt

Stop = str | Sequence[str]
MAX_LOGPROBS = 1000
SEEDS = (-(2**63), 2**64 - 1)  # what torch takes


@dataclass(frozen=True)
class GenerationRequest:
    """A request to generate one text.

    Attributes:
        context: text, a SoftPrompt, or a Context of both.
        max_new_tokens: the most tokens to generate; the model's own end, a stop string or the
            context's end may come sooner. With `prompt_logprobs` it may be 0.
        stop: a string, or several, that end the text; not part of it.
        seed: makes the draws repeatable.
        logprobs: how many of the likeliest tokens to report at each step, with the sampled one;
            None reports none.
        prompt_logprobs: the same for each token of the context, which is then read from its
            beginning, nothing cached.
        conditioning: what stays before the context, such as a control code; or several with a
            strength each, `[(horror, 1.5), (humor, -0.5)]` (see
            `decode.conditioning`). With one the text may be longer than the model's context.
        check: refuse prompts and control vectors of another model.
        sampling: fields of `SamplingParams`.
        tree: the context as `compose` encodes it, where that has been done.
        vectors: control vectors with a strength each, `[(dark, 0.8)]`.
    """

    context: ContextLike
    max_new_tokens: int = 80
    stop: Stop = ()
    seed: int | None = None
    logprobs: int | None = None
    conditioning: Conditioning = ""
    check: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tree: Tree | None = None
    prompt_logprobs: int | None = None
    vectors: Sequence[tuple[ControlVector, float]] = ()

    def compose(self, model: LanguageModel, conditioning: ContextLike = "") -> Tree:
        """The context after a conditioning, encoded. Raises as `softlore.context.compose` does."""
        if self.tree is not None and conditioning == "":
            return self.tree
        return compose(model, self.context, self.check, conditioning, self.reserved)

    @property
    def reserved(self) -> int:
        """Places kept free before the text for prefixes: those of the tree, if there is one."""
        return self.tree.start if self.tree is not None else 0


def stop_strings(request: GenerationRequest) -> tuple[str, ...]:
    """The stop strings of a request, whose numbers are checked, too.

    Raises:
        ConfigError: a setting out of range.
    """
    length, seed, stop = request.max_new_tokens, request.seed, request.stop
    if not _is_whole(length, 1 if request.prompt_logprobs is None else 0):
        raise ConfigError(f"max_new_tokens is {length!r:.60}; expected at least 1; ask for more")
    for name in ("logprobs", "prompt_logprobs"):
        logprobs = getattr(request, name)
        if logprobs is not None and not _is_whole(logprobs, 0, MAX_LOGPROBS):
            raise ConfigError(
                f"{name} is {logprobs!r:.60}; expected 0 to {MAX_LOGPROBS}, or None for none; "
                "choose another"
            )
    if seed is not None and not _is_whole(seed, *SEEDS):
        raise ConfigError(
            f"seed is {seed!r:.60}; expected a whole number of at most 64 bits, or None for a "
            "random one; choose another"
        )
    strings: tuple[Any, ...] = (stop,)
    if isinstance(stop, Iterable) and not isinstance(stop, str | Tensor):
        strings = tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise ConfigError(
            f"stop is {stop!r:.60}; expected strings of at least one character, or () for none; "
            "fix it"
        )
    return strings


def _is_whole(value: object, low: int, high: float = math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return low <= int(value) <= high


def prompts_in(
    request: GenerationRequest, conditionings: Sequence[tuple[ContextLike, float]]
) -> list[SoftPrompt]:
    """The soft prompts of a request's context, and of its conditionings."""
    contexts = (request.context, *(conditioning for conditioning, _ in conditionings))
    return [prompt for context in contexts for prompt in Context(context).prompts]


def heals(request: GenerationRequest) -> bool:
    """Whether the seam after its context is healed; a grammar begins at the seam as it is."""
    params = SamplingParams.of(request.sampling)
    return params.heal and params.constraint is None and request.prompt_logprobs is None


def make_sampler(
    model: LanguageModel,
    request: GenerationRequest,
    conditionings: Sequence[tuple[ContextLike, float]],
    healing: Healing | None = None,
) -> tuple[Sampler, Grammar | None]:
    """The sampler of one text, which never samples the ids that its model bans, and its grammar.

    Raises:
        ConfigError: a setting out of range, or a grammar that cannot be used.
    """
    prompts = prompts_in(request, conditionings)
    params = SamplingParams.of(request.sampling)
    banned = (*params.banned, *model.banned_ids)
    if any(p.training.get("style") == BRACKETED for p in prompts):
        banned += model.bracket_ids  # its training responses were in brackets, its text is not
    params = params.changed(banned=banned)
    before = [no_copy_step(prompts, params.no_copy)] if params.no_copy else []
    if params.constraint is None:
        if healing is None:
            return Sampler(params, request.seed, model, before), None
        before.insert(0, Step("heal", HealingLogitsProcessor(healing), own=True))
        return Sampler(params, request.seed, model, before, healing.advance), None
    grammar = compile_grammar(model, *params.constraint)
    # First of all: what other steps ban is spared where it is all that the grammar allows.
    before = [Step("grammar", GrammarLogitsProcessor(grammar), own=True), *before]
    return Sampler(params, request.seed, model, before, grammar.advance), grammar
