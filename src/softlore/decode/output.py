"""Telling: tokens with their text, as one text comes to be, and why it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from softlore.decode.detokenizer import Detokenizer
from softlore.decode.loop import SampleFunction
from softlore.model import LanguageModel

FinishReason = Literal["end", "stop", "length", "context"]


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


class OutputStream:
    """From the ids of one text to tokens with their text, and when it has ended.

    Attributes:
        text: what was told so far.
        ids: the ids that were chosen so far, the model's own end among them.
        finish: why it ended: the model's own "end", a "stop" string, "length" (as many tokens as
            were asked for) or "context" (no room left); None while it goes on.
    """

    def __init__(self, model: LanguageModel, stops: Sequence[str], most: int) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.finish: FinishReason | None = None
        self._eos = model.eos_ids
        self._detokenizer = Detokenizer(model, stops)
        self._most = most

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self._detokenizer.stopped_by

    def append(self, step: Token) -> Token:
        """A token that was chosen, with its text; `finish` is set if it is the last."""
        assert step.id is not None
        self.ids.append(step.id)
        if step.id in self._eos:
            self.finish = "end"
            return step
        text = self._detokenizer.feed(step.id)
        if self.stopped_by is not None:
            self.finish = "stop"
        elif len(self.ids) == self._most:
            self.finish = "length"
        self.text += text
        return Token(text, step.id, step.logprob, step.top)

    def flush(self) -> Iterator[Token]:
        """What was held back, once no more ids come."""
        self.finish = self.finish or "context"
        if rest := self._detokenizer.flush():
            self.text += rest
            yield Token(rest)


class OutputView:
    """A text as those see it who read it while it is told."""

    def __init__(self, output: OutputStream) -> None:
        self.output = output

    @property
    def text(self) -> str:
        """What has come so far."""
        return self.output.text

    @property
    def ids(self) -> list[int]:
        return self.output.ids

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self.output.stopped_by


def token_with_logprobs(logits: Tensor, chosen: int, logprobs: int | None) -> Token:
    """A token that was chosen, with what the model thought of it: logits `[vocab]` before samplers.

    `logprobs`: how many of the likeliest tokens to tell of; None tells nothing.
    """
    if logprobs is None:
        return Token("", chosen)
    logp = logits.log_softmax(dim=-1)
    top = logp.topk(logprobs)
    likeliest = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token("", chosen, float(logp[chosen]), likeliest)


class ObservedSampler:
    """A chooser that remembers what the model thought of its last choice."""

    def __init__(self, choose: SampleFunction, logprobs: int | None) -> None:
        self._choose = choose
        self._logprobs = logprobs
        self._last = Token("")

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        chosen = self._choose(logits, texts)
        self._last = token_with_logprobs(logits[0], int(chosen[0]), self._logprobs)
        return chosen

    def token(self, chosen: int) -> Token:
        return replace(self._last, id=chosen)
