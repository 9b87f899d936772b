"""OutputStream: the tokens of one text with their text, and why it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from softlore.decode.detokenizer import Detokenizer
from softlore.model import LanguageModel

FinishReason = Literal["end", "stop", "length", "context", "grammar"]


@dataclass(frozen=True)
class Token:
    """A sampled token, and the text that became certain with it.

    Attributes:
        text: may be empty (half a character, or what may begin a stop string), and may hold text
            of earlier tokens.
        id: None for text that was held back until the end.
        logprob: of the token after all soft prompts and before any sampler; None unless requested,
            and for a token that nothing precedes.
        top: the likeliest ids with theirs, likeliest first.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    top: dict[int, float] = field(default_factory=dict)


class OutputStream:
    """Converts the sampled ids of one text to tokens with their text.

    Attributes:
        text: all text so far.
        ids: all ids so far, the model's own end included.
        prompt: the tokens of the context, without text, once it is read; empty unless their
            log-probabilities are requested.
        finish: why it ended: the model's own "end" or that of its grammar, a "stop" string,
            "length" (`max_new_tokens`), "context" (no room left) or "grammar" (which could not be
            followed further); None while it runs.

    Args:
        model: for its tokenizer; None: ids only, and no id ends the text.
        stops: strings that end the text.
        max_new_tokens: ids, at most; with 0 it ends when its context is read.
        skipped: text of the context that the first ids repeat.
    """

    def __init__(
        self,
        model: LanguageModel | None,
        stops: Sequence[str],
        max_new_tokens: int,
        skipped: str = "",
    ) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.prompt: Sequence[Token] = ()
        self.finish: FinishReason | None = None
        self._eos_ids = model.eos_ids if model is not None else frozenset()
        self._detokenizer = Detokenizer(model, stops, skipped) if model is not None else None
        self._max_new_tokens = max_new_tokens

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self._detokenizer.stopped_by if self._detokenizer is not None else None

    def append(self, token: Token) -> Token:
        """Adds a sampled token and returns it with its text; sets `finish` if it is the last."""
        assert token.id is not None
        self.ids.append(token.id)
        if token.id in self._eos_ids:
            self.finish = "end"
            return token
        text = self._detokenizer.add(token.id) if self._detokenizer is not None else ""
        if self.stopped_by is not None:
            self.finish = "stop"
        elif len(self.ids) == self._max_new_tokens:
            self.finish = "length"
        self.text += text
        return Token(text, token.id, token.logprob, token.top)

    def skip(self, token: int) -> None:
        """Takes a token of the context that was generated again, which is not of the new text."""
        if self._detokenizer is not None:
            self._detokenizer.add(token)

    def complete(self) -> None:
        """Ends the text as its grammar allows no more; a stop string ended it before."""
        if self.finish != "stop":
            self.finish = "end"

    def begin(self, prompt: Sequence[Token]) -> None:
        """Takes the tokens of the context, which is read; sets `finish` if nothing follows."""
        self.prompt = prompt
        if not self._max_new_tokens:
            self.finish = "length"

    def flush(self) -> Iterator[Token]:
        """The text that was held back, once no more ids come; sets `finish` if nothing has."""
        self.finish = self.finish or "context"
        if self._detokenizer is not None and (rest := self._detokenizer.flush()):
            self.text += rest
            yield Token(rest)


class OutputView:
    """Read access to a text that is being generated.

    Attributes:
        output: the text.
    """

    def __init__(self, output: OutputStream) -> None:
        self.output = output

    @property
    def text(self) -> str:
        """All text so far."""
        return self.output.text

    @property
    def ids(self) -> list[int]:
        return self.output.ids

    @property
    def prompt(self) -> Sequence[Token]:
        """The tokens of the context with their log-probabilities, where these are requested."""
        return self.output.prompt

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        return self.output.stopped_by


def tokens_with_logprobs(logits: Tensor, ids: Sequence[int], logprobs: int) -> list[Token]:
    """Tokens with their log-probabilities, and those of the `logprobs` likeliest ids.

    `logits`: `[tokens, vocab]`, before any sampler.
    """
    logp = logits.log_softmax(dim=-1)
    own = logp[range(len(ids)), list(ids)].tolist()
    top = logp.topk(min(logprobs, logp.shape[1]), dim=-1)
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Token("", i, logprob, dict(zip(*found, strict=True)))
        for i, logprob, found in zip(ids, own, likeliest, strict=True)
    ]
