"""Several texts written side by side, each with its own prompts, sampling, seed and stops."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softlore.context import compose
from softlore.context.compose import Readable
from softlore.decode.loop import decode
from softlore.decode.mixing import Steering
from softlore.decode.samplers import RowChoosers
from softlore.decode.telling import Observed, Telling, Token
from softlore.decode.writing import Stop, checked, chooser_of
from softlore.errors import ConfigError
from softlore.model import FrozenModel
from softlore.prompts import Context


@dataclass(frozen=True)
class Wish:
    """What is wanted of one text of several; the fields are those of `write`."""

    context: Readable
    max_new_tokens: int = 80
    stop: Stop = ()
    seed: int | None = None
    no_copy: int = 0
    logprobs: int | None = None
    head: Steering = ""
    check: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)


def write_together(
    model: FrozenModel, wishes: Sequence[Wish | Readable], check: bool = True
) -> tuple[list[Telling], Generator[tuple[int, Token]]]:
    """Writes on from several contexts at once, a token each in turn.

    Every text is what `write` would make of it alone with the same seed, up to rounding. The batch
    ends where the longest of them meets the context's end. A text that has ended is told no
    further; it costs its place in the batch until all have.

    Returns:
        What each text has come to (filled as it is written), and the tokens as they come, each
        with the number of its text.

    Raises:
        ConfigError: no wishes, or a setting out of range.
        ContextError, PromptMismatchError: as `write` does.
    """
    asked = [one if isinstance(one, Wish) else Wish(one) for one in wishes]
    if not asked:
        raise ConfigError("nothing was asked for; expected one context at least; give some")
    tellings, choosers, trees = [], [], []
    for one in asked:
        stops = checked(one.max_new_tokens, one.stop, one.logprobs)
        prompts = Context(one.context).prompts
        chooser = chooser_of(model, prompts, one.seed, one.no_copy, one.sampling)
        tellings.append(Telling(model, stops, one.max_new_tokens))
        choosers.append(Observed(chooser, one.logprobs))
        trees.append(compose(model, one.context, check=check))
    most = max(one.max_new_tokens for one in asked)

    def told() -> Generator[tuple[int, Token]]:
        for step in decode(model, trees, RowChoosers(choosers), most):
            for row, telling in enumerate(tellings):
                if not telling.finish:
                    yield row, telling.tell(choosers[row].token(step[row]))
            if all(telling.finish for telling in tellings):
                break
        for row, telling in enumerate(tellings):
            yield from ((row, rest) for rest in telling.rest())

    return tellings, told()
