"""`write`: a context in, tokens with their text out. `generate`: the same as plain text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal, Self, overload

from softlore.context import compose
from softlore.context.compose import ContextLike
from softlore.decode.conditioning import Conditioning, MixedSampler, weighted, with_bare_model
from softlore.decode.loop import decode
from softlore.decode.memory import TextCache
from softlore.decode.output import FinishReason, ObservedSampler, OutputStream, OutputView, Token
from softlore.decode.request import GenerationRequest, Stop, make_sampler, stop_strings
from softlore.decode.sliding import decode_sliding, windows
from softlore.model import FrozenModel


class TextStream(OutputView, Iterator[Token]):
    """The tokens of one text as they come; `close()` ends it at once."""

    def __init__(self, output: OutputStream, steps: Iterator[Token]) -> None:
        super().__init__(output)
        self._steps = steps
        self._tokens: Generator[Token] = self._run()

    @property
    def finish(self) -> FinishReason | None:
        """How it ended; None while it goes on."""
        return self.output.finish

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
            yield self.output.append(step)
            if self.output.finish:
                break
        yield from self.output.flush()


def write(
    model: FrozenModel,
    context: ContextLike,
    max_new_tokens: int = 80,
    *,
    stop: Stop = (),
    seed: int | None = None,
    check: bool = True,
    conditioning: Conditioning = "",
    memory: TextCache | None = None,
    logprobs: int | None = None,
    no_copy: int = 0,
    **sampling: Any,
) -> TextStream:
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
    wish = GenerationRequest(
        context, max_new_tokens, stop, seed, no_copy, logprobs, conditioning, check, sampling
    )
    return write_request(model, wish, memory)


def write_request(
    model: FrozenModel, wish: GenerationRequest, memory: TextCache | None = None
) -> TextStream:
    """`write`, for what is wanted in one piece. Raises as it does."""
    stops, conditionings = stop_strings(wish), weighted(wish.conditioning)
    chooser = ObservedSampler(make_sampler(model, wish, conditionings), wish.logprobs)
    steps: Iterator[list[int]]
    if conditionings:
        conditionings = with_bare_model(conditionings)
        several = len(conditionings) > 1
        choose = (
            MixedSampler(chooser, [weight for _, weight in conditionings]) if several else chooser
        )
        rows = windows(model, wish.context, conditionings, wish.check)
        steps = decode_sliding(model, rows, choose, wish.max_new_tokens)
    else:
        tree = compose(model, wish.context, check=wish.check)
        steps = decode(model, [tree], chooser, wish.max_new_tokens, memory)
    output = OutputStream(model, stops, wish.max_new_tokens)
    return TextStream(output, (chooser.token(step[0]) for step in steps))


@overload
def generate(
    model: FrozenModel, context: ContextLike, max_new_tokens: int = ..., *, stream: Literal[True],
    stop: Stop = ..., seed: int | None = ..., check: bool = ..., conditioning: Conditioning = ...,
    **sampling: Any,
) -> Iterator[str]: ...  # fmt: skip
@overload
def generate(
    model: FrozenModel, context: ContextLike, max_new_tokens: int = ..., *,
    stream: Literal[False] = ..., stop: Stop = ..., seed: int | None = ..., check: bool = ...,
    conditioning: Conditioning = ..., **sampling: Any,
) -> str: ...  # fmt: skip
def generate(
    model: FrozenModel,
    context: ContextLike,
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
