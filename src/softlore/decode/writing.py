"""`write`: a context in, tokens with their text out. `generate`: the same as plain text."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, overload

from torch import Tensor

from softlore.context import compose
from softlore.context.compose import Readable, heading
from softlore.decode.detokenizer import Detokenizer
from softlore.decode.loop import Choose, decode
from softlore.decode.memory import Memory
from softlore.decode.mixing import Mixed, Steering, dosed, with_bare
from softlore.decode.no_copy import no_copy_step
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.sliding import Headed, decode_sliding
from softlore.errors import ConfigError
from softlore.lore.styles import BRACKETED
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt

Finish = Literal["end", "stop", "length", "context"]
Stop = str | Sequence[str]
MOST_LOGPROBS = 1000


@dataclass(frozen=True)
class Token:
    """A token that was chosen, and the text that became sure by it.

    Attributes:
        text: may be empty (half a character, or what may begin a stop string), and may hold text
            of earlier tokens.
        id: None for text that was held back, and is let go at the end.
        logprob: of the token after all soft prompts and before any sampler; None unless asked for.
        top: the likeliest ids with theirs, likeliest first.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    top: dict[int, float] = field(default_factory=dict)


class Writing(Iterator[Token]):
    """The tokens of one text as they come; `close()` ends it at once.

    Attributes:
        text: what was told so far.
        ids: the ids that were chosen so far, the model's own end among them.
        finish: why it ended: the model's own "end", a "stop" string, "length" (as many tokens as
            were asked for) or "context" (no room left); None while it goes on.
    """

    def __init__(
        self, model: FrozenModel, steps: Iterator[Token], stops: Sequence[str], most: int
    ) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._eos = model.eos_ids
        self._detokenizer = Detokenizer(model, stops)
        self._steps = steps
        self._most = most
        self._tokens: Generator[Token] = self._run()

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self._detokenizer.stopped_by

    def __next__(self) -> Token:
        token = next(self._tokens)
        self.text += token.text
        return token

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
            token, ended = self._told(step)
            yield token
            if ended:
                break
        else:
            self.finish = self.finish or "context"
        if rest := self._detokenizer.rest():
            yield Token(rest)

    def _told(self, step: Token) -> tuple[Token, bool]:
        """A step with its text, and whether it is the last."""
        assert step.id is not None
        self.ids.append(step.id)
        if step.id in self._eos:
            self.finish = "end"
            return step, True
        text = self._detokenizer.feed(step.id)
        if self.stopped_by is not None:
            self.finish = "stop"
        elif len(self.ids) == self._most:
            self.finish = "length"
        return Token(text, step.id, step.logprob, step.top), self.finish is not None


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
    stops = _checked(max_new_tokens, stop, logprobs)
    heads = dosed(head)
    prompts = [p for one in [context, *(h for h, _ in heads)] for p in Context(one).prompts]
    chooser = _Told(_chooser(model, prompts, seed, no_copy, sampling), logprobs)
    if heads:
        steps = _headed(model, context, heads, chooser, max_new_tokens, check)
    else:
        tree = compose(model, context, check=check)
        steps = decode(model, [tree], chooser, max_new_tokens, memory)
    return Writing(model, (chooser.token(step[0]) for step in steps), stops, max_new_tokens)


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


class _Told:
    """A chooser that remembers what the model thought of its last choice."""

    def __init__(self, choose: Choose, logprobs: int | None) -> None:
        self._choose = choose
        self._logprobs = logprobs
        self._last: tuple[float | None, dict[int, float]] = (None, {})

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        chosen = self._choose(logits, texts)
        if self._logprobs is not None:
            logp = logits[0].log_softmax(dim=-1)
            top = logp.topk(self._logprobs)
            likeliest = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self._last = float(logp[chosen[0]]), likeliest
        return chosen

    def token(self, chosen: int) -> Token:
        return Token("", chosen, *self._last)


def _checked(max_new_tokens: int, stop: Stop, logprobs: int | None) -> tuple[str, ...]:
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


def _chooser(
    model: FrozenModel,
    prompts: Sequence[SoftPrompt],
    seed: int | None,
    no_copy: int,
    sampling: dict[str, Any],
) -> Chooser:
    banned = (*sampling.pop("banned", ()), *model.banned_ids)
    if any(p.training.get("style") == BRACKETED for p in prompts):
        banned += model.bracket_ids  # what was learned in brackets is told without them
    before = [no_copy_step(prompts, no_copy)] if no_copy else []
    return Chooser(Sampling(**sampling, banned=banned), seed, model, before)


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
    rows = [
        Headed(compose(model, context, check=check, head=head), heading(model, head))
        for head, _ in heads
    ]
    mixed = choose if len(rows) == 1 else Mixed(choose, [weight for _, weight in heads])
    return decode_sliding(model, rows, mixed, max_new_tokens)
