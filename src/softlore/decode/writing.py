"""`write` generates tokens with their text after a context, `generate` plain text."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, Self, overload

from softlore.context.compose import ContextLike
from softlore.decode.batch import RunningBatch
from softlore.decode.conditioning import Conditioning, weighted
from softlore.decode.model_runner import ModelRunner, TorchModelRunner
from softlore.decode.output import FinishReason, OutputView, Token
from softlore.decode.prefix_cache import CacheUsage, PrefixCache
from softlore.decode.request import GenerationRequest, Stop
from softlore.decode.sequence_group import SequenceGroup
from softlore.errors import ConfigError, UnsupportedModelError
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import ControlVector
from softlore.settings.arguments import COUNT, FLAG, expecting

Runnable = LanguageModel | ModelRunner


@expecting(n_sequences=COUNT, cached=FLAG)
def runner_for(model: Runnable, n_sequences: int = 1, cached: bool = True) -> ModelRunner:
    """The runner of a model, which `write` and others accept in place of a model.

    Passed to `write` turn after turn, it caches what was run, so that only new text is prefilled.

    Args:
        model: of transformers, or in a GGUF file; a runner is returned as it is.
        n_sequences: generated at once at most (llama.cpp), and cached.
        cached: whether to cache keys and values (transformers).

    Raises:
        UnsupportedModelError: another kind of model.
    """
    if isinstance(model, ModelRunner):
        return model
    if isinstance(model, FrozenModel):
        cache = PrefixCache(max_sequences=n_sequences) if cached else None
        return TorchModelRunner(model, cache)
    from softlore.decode.llamacpp import LlamaCppModelRunner
    from softlore.model.gguf import GGUFModel

    if isinstance(model, GGUFModel):
        return LlamaCppModelRunner(model, n_sequences)
    raise UnsupportedModelError(
        f"{model!r} cannot be run here; expected a FrozenModel or a GGUFModel; load it as one"
    )


class TextStream(OutputView, Iterator[Token]):
    """The tokens of one text as they are generated; `close()` ends it at once."""

    def __init__(self, batch: RunningBatch, group: SequenceGroup, close_runner: bool) -> None:
        super().__init__(group.output)
        self._group = group
        self._tokens = _run(batch, group, close_runner)

    @property
    def finish(self) -> FinishReason | None:
        """Why it ended; None while it runs."""
        return self.output.finish

    @property
    def cache_usage(self) -> CacheUsage | None:
        """How much of the context was cached; None before the first token."""
        return self._group.cache_usage

    def __next__(self) -> Token:
        return next(self._tokens)

    def drained(self) -> Self:
        """Generates the text to its end."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Ends the text where it is."""
        self._tokens.close()


def _run(batch: RunningBatch, group: SequenceGroup, close_runner: bool) -> Generator[Token]:
    try:
        while len(batch):
            for _, token in batch.step():
                yield token
        if group.error is not None:
            raise group.error
    finally:
        batch.remove(group)
        if close_runner:
            batch.runner.close()


def write(
    model: Runnable,
    context: ContextLike,
    max_new_tokens: int = 80,
    *,
    stop: Stop = (),
    seed: int | None = None,
    check: bool = True,
    conditioning: Conditioning = "",
    logprobs: int | None = None,
    vectors: Sequence[tuple[ControlVector, float]] = (),
    **sampling: Any,
) -> TextStream:
    """Generates text after a context, a token at a time.

    Args:
        model: or a runner (`runner_for`), which caches the contexts of earlier texts.
        sampling: fields of `SamplingParams`; temperature 0 is greedy. What a model is never to
            write is banned in any case (CTRL: unknown words, and links).

    For the others see `GenerationRequest`.

    Raises:
        ConfigError: a setting out of range.
        ContextError: nothing to go on from, or more than fits.
        PromptMismatchError: a prompt of another model.
    """
    return write_request(
        model,
        GenerationRequest(
            context,
            max_new_tokens,
            stop,
            seed,
            logprobs,
            conditioning,
            check,
            sampling,
            vectors=vectors,
        ),
    )


def write_request(model: Runnable, request: GenerationRequest) -> TextStream:
    """`write` with all that is requested in one object. Raises as it does."""
    n_sequences = len(weighted(request.conditioning)) + 1
    batch = RunningBatch(runner_for(model, n_sequences, cached=False))
    return TextStream(batch, batch.add(request), close_runner=batch.runner is not model)


@overload
def generate(
    model: Runnable, context: ContextLike, max_new_tokens: int = ..., *, stream: Literal[True],
    stop: Stop = ..., seed: int | None = ..., check: bool = ..., conditioning: Conditioning = ...,
    vectors: Sequence[tuple[ControlVector, float]] = ..., **sampling: Any,
) -> Iterator[str]: ...  # fmt: skip
@overload
def generate(
    model: Runnable, context: ContextLike, max_new_tokens: int = ..., *,
    stream: Literal[False] = ..., stop: Stop = ..., seed: int | None = ..., check: bool = ...,
    conditioning: Conditioning = ..., vectors: Sequence[tuple[ControlVector, float]] = ...,
    **sampling: Any,
) -> str: ...  # fmt: skip
def generate(
    model: Runnable,
    context: ContextLike,
    max_new_tokens: int = 80,
    *,
    stream: bool = False,
    **settings: Any,
) -> str | Iterator[str]:
    """Generates text after a context: the new text, without the context.

    Args:
        stream: return an iterator of text as it comes.
        settings: all that `write` takes.
    """
    if not isinstance(stream, bool):
        raise ConfigError(f"stream is {stream!r:.60}; expected True or False; pass one of them")
    pieces = (t.text for t in write(model, context, max_new_tokens, **settings) if t.text)
    return pieces if stream else "".join(pieces)
