"""`write`: a context in, tokens with their text out. `generate`: the same as plain text."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, overload

from softlore.context import compose
from softlore.context.compose import Readable
from softlore.decode.loop import Choose, decode
from softlore.decode.memory import Memory
from softlore.decode.mixing import Mixed, Steering, dosed, with_bare
from softlore.decode.no_copy import no_copy_step
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.sliding import decode_sliding, windows
from softlore.decode.telling import Finish, Observed, Telling, Token
from softlore.errors import ConfigError
from softlore.lore.styles import BRACKETED
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt

Stop = str | Sequence[str]
MOST_LOGPROBS = 1000


class Writing(Iterator[Token]):
    """The tokens of one text as they come; `close()` ends it at once.

    `text`, `ids`, `finish` and `stopped_by` are those of a `Telling`.
    """

    def __init__(self, telling: Telling, steps: Iterator[Token]) -> None:
        self._telling = telling
        self._steps = steps
        self._tokens: Generator[Token] = self._run()

    @property
    def text(self) -> str:
        return self._telling.text

    @property
    def ids(self) -> list[int]:
        return self._telling.ids

    @property
    def finish(self) -> Finish | None:
        return self._telling.finish

    @property
    def stopped_by(self) -> str | None:
        return self._telling.stopped_by

    def __next__(self) -> Token:
        return next(self._tokens)

    def drained(self) -> Self:
        """This writing, once it has come to its end."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Ends the writing where it is."""
        self._tokens.close()

    def _run(self) -> Generator[Token]:
        for step in self._steps:
            yield self._telling.tell(step)
            if self._telling.finish:
                break
        yield from self._telling.rest()


def write(
    model: FrozenModel,
    context: Readable,
    max_new_tokens: int = 80,
    *,
    stop: Stop = (),
    seed: int | None = None,
    check: bool = True,
    head: Steering = "",
    memory: Memory | None = None,
    logprobs: int | None = None,
    no_copy: int = 0,
    **sampling: Any,
) -> Writing:
    """Writes on from a context, a token at a time.

    Args:
        context: text, a SoftPrompt, or a Context of both.
        max_new_tokens: the most tokens to write; the model's own end, a stop string or the
            context's end may come sooner.
        stop: a string, or several, that end the writing; not part of what is told.
        seed: makes the draws repeatable.
        check: refuse prompts of another model.
        head: what stands before the context and stays there: a control code, say; or several with
            a strength each, `[(horror, 1.5), (humor, -0.5)]` (see `decode.mixing`). With one the
            writing goes on past the context's end, the window sliding under the head.
        memory: what was read in earlier turns, and will be of this one; its `reading` says how
            much of the context was known. Not used with a `head`.
        logprobs: how many of the likeliest tokens to tell of at each step, with the chosen one;
            None: nothing of the kind.
        no_copy: steer off what would repeat so many tokens of the prompts' training responses
            word for word; 0 lets them be repeated.
        sampling: fields of `Sampling`; temperature 0 is greedy. What a model is never to write is
            banned in any case (CTRL: unknown words, and links).

    Raises:
        ConfigError: a setting out of range.
        ContextError: nothing to go on from, or more than fits.
        PromptMismatchError: a prompt of another model.
    """
    stops = checked(max_new_tokens, stop, logprobs)
    heads = dosed(head)
    prompts = named(context, heads)
    chooser = Observed(chooser_of(model, prompts, seed, no_copy, sampling), logprobs)
    if heads:
        steps = _headed(model, context, heads, chooser, max_new_tokens, check)
    else:
        tree = compose(model, context, check=check)
        steps = decode(model, [tree], chooser, max_new_tokens, memory)
    telling = Telling(model, stops, max_new_tokens)
    return Writing(telling, (chooser.token(step[0]) for step in steps))


@overload
def generate(
    model: FrozenModel, context: Readable, max_new_tokens: int = ..., *, stream: Literal[True],
    stop: Stop = ..., seed: int | None = ..., check: bool = ..., head: Steering = ...,
    **sampling: Any,
) -> Iterator[str]: ...  # fmt: skip
@overload
def generate(
    model: FrozenModel, context: Readable, max_new_tokens: int = ..., *,
    stream: Literal[False] = ..., stop: Stop = ..., seed: int | None = ..., check: bool = ...,
    head: Steering = ..., **sampling: Any,
) -> str: ...  # fmt: skip
def generate(
    model: FrozenModel,
    context: Readable,
    max_new_tokens: int = 80,
    *,
    stream: bool = False,
    **settings: Any,
) -> str | Iterator[str]:
    """Writes on from a context: the new text, without the context.

    Args:
        stream: return an iterator of text as it comes.
        settings: all that `write` takes.
    """
    writing = write(model, context, max_new_tokens, **settings)
    pieces = (token.text for token in writing if token.text)
    return pieces if stream else "".join(pieces)


def checked(max_new_tokens: int, stop: Stop, logprobs: int | None) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        ConfigError: a setting out of range.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected at least 1; ask for more")
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        raise ConfigError(
            f"logprobs is {logprobs}; expected 0 to {MOST_LOGPROBS}, or None for none; choose "
            "another"
        )
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise ConfigError(f"stop is {stop!r}; expected strings of at least one character; mend it")
    return stops


def named(context: Readable, heads: Sequence[tuple[Readable, float]]) -> list[SoftPrompt]:
    """The soft prompts of a context and its heads."""
    return [p for one in (context, *(head for head, _ in heads)) for p in Context(one).prompts]


def chooser_of(
    model: FrozenModel,
    prompts: Sequence[SoftPrompt],
    seed: int | None,
    no_copy: int,
    sampling: Mapping[str, Any],
) -> Chooser:
    """The chooser of one text: its sampling, and what is never to be written."""
    banned = (*sampling.get("banned", ()), *model.banned_ids)
    if any(p.training.get("style") == BRACKETED for p in prompts):
        banned += model.bracket_ids  # what was learned in brackets is told without them
    before = [no_copy_step(prompts, no_copy)] if no_copy else []
    return Chooser(Sampling.of({**sampling, "banned": banned}), seed, model, before)


def _headed(
    model: FrozenModel,
    context: Readable,
    heads: Sequence[tuple[Readable, float]],
    choose: Choose,
    max_new_tokens: int,
    check: bool,
) -> Iterator[list[int]]:
    """Steps of writing under heads, each a row, and the bare text too where it has a weight."""
    heads = with_bare(heads)
    mixed = choose if len(heads) == 1 else Mixed(choose, [weight for _, weight in heads])
    return decode_sliding(model, windows(model, context, heads, check), mixed, max_new_tokens)
