"""Several texts written side by side, each with its own prompts, sampling, seed and stops."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from softlore.context.compose import ContextLike
from softlore.decode.batch import RunningBatch
from softlore.decode.model_runner import ModelRunner, TorchModelRunner
from softlore.decode.output import OutputStream, Token
from softlore.decode.request import GenerationRequest
from softlore.errors import ConfigError
from softlore.model import FrozenModel


def write_batch(
    model: FrozenModel | ModelRunner, wishes: Sequence[GenerationRequest | ContextLike]
) -> tuple[list[OutputStream], Generator[tuple[int, Token]]]:
    """Writes on from several contexts at once, a token each in turn.

    Every text is what `write` would make of it alone with the same seed, up to rounding; one that
    has ended makes room for the others.

    Args:
        model: or what reads one; a reader may have room for so many texts only.

    Returns:
        What each text has come to (filled as it is written), and the tokens as they come, each
        with the number of its text.

    Raises:
        ConfigError: no wishes, or a setting out of range.
        ContextError, PromptMismatchError: as `write` does.
    """
    asked = [
        one if isinstance(one, GenerationRequest) else GenerationRequest(one) for one in wishes
    ]
    if not asked:
        raise ConfigError("nothing was asked for; expected one context at least; give some")
    batch = RunningBatch(model if isinstance(model, ModelRunner) else TorchModelRunner(model))
    texts = [batch.add(one) for one in asked]
    numbers = {text: number for number, text in enumerate(texts)}

    def told() -> Generator[tuple[int, Token]]:
        while len(batch):
            for text, token in batch.step():
                yield numbers[text], token

    return [text.output for text in texts], told()
