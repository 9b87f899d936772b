"""Texts that prompts are measured on: story text, unrelated passages, passages about the lore.

None is trained on: they are sampled with other seeds than training's, or given by the writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

from softlore.decode import draw_seed, sample_openings, sample_passages
from softlore.errors import ConfigError
from softlore.lore import Entry
from softlore.lore.keywords import words
from softlore.lore.study import OPENERS, openers
from softlore.measure.score import fits_after, trunk
from softlore.model import FrozenModel

HELD_OUT = 7_000_000  # added to seeds, so that no draw is one of training's
PASSAGE = 48  # tokens
UNRELATED = 24  # passages that drift is measured on
FILLERS = 2  # texts to put between conditioning and call
FIDELITY = 24  # passages an entry
Ids = list[int]


@dataclass(frozen=True)
class Material:
    """Text that has nothing to do with the lore.

    Attributes:
        fillers: token ids to put between conditioning and call.
        unrelated: passages that drift is measured on.
        known: words in them, which are not lore keywords.
    """

    fillers: list[Ids]
    unrelated: list[Ids]
    known: frozenset[str]


def passage_tokens(model: FrozenModel) -> int:
    """Tokens of a passage: `PASSAGE`, or fewer if the context is short."""
    return PASSAGE if model.context_length is None else min(PASSAGE, model.context_length // 4)


def gather(
    model: FrozenModel,
    farthest: int,
    seed: int,
    story: str | None = None,
    unrelated: int = UNRELATED,
) -> Material:
    """Fillers and unrelated passages, sampled from the bare model or cut from a `story`.

    Args:
        unrelated: how many passages.

    Raises:
        ConfigError: the story is too short to cut passages from.
    """
    length = passage_tokens(model)
    farthest = min(farthest, model.context_length or farthest)  # more is never read
    count = unrelated + FILLERS * -(-farthest // length)
    if story is None:
        passages = sample_passages(model, trunk(model, ""), OPENERS, count, length, HELD_OUT + seed)
        passages = [ids for ids in passages if len(ids) > 1]
    else:
        passages = _cut(model.encode(story), count, length)
    rest = passages[unrelated:] or passages
    fillers = [list(chain.from_iterable(rest[i::FILLERS])) for i in range(FILLERS)]
    known = frozenset(word for ids in passages for word in words(model.decode(ids)))
    return Material([ids for ids in fillers if ids], passages[:unrelated], known)


def _cut(ids: Ids, count: int, length: int) -> list[Ids]:
    """Passages at evenly spaced places of a text; they overlap if it is short."""
    if len(ids) < 2 * length:
        raise ConfigError(
            f"the story has {len(ids)} tokens; expected at least {2 * length} to measure on; give "
            "a longer one, or none for samples of the model"
        )
    starts = [i * (len(ids) - length) // max(1, count - 1) for i in range(count)]
    return [ids[start : start + length] for start in starts]


def lore_passages(
    model: FrozenModel, texts: Sequence[tuple[Entry, str]], seed: int, count: int = FIDELITY
) -> list[list[Ids]]:
    """`count` passages that the model samples after each entry's text, for fidelity.

    None where an entry has no text, or one that does not fit the context. The draws of an entry do
    not depend on the others.
    """
    length = passage_tokens(model)
    fitting = [
        (number, trunk(model, text), list(islice(cycle(openers(entry)), count)))
        for number, (entry, text) in enumerate(texts)
        if text and fits_after(model, text, length)
    ]
    written = iter(
        sample_openings(
            model,
            [(before, opener) for _, before, of_entry in fitting for opener in of_entry],
            length,
            [draw_seed(HELD_OUT + seed, i) for _ in fitting for i in range(count)],
        )
    )
    passages: list[list[Ids]] = [[] for _ in texts]
    for number, _, _ in fitting:
        passages[number] = [ids for ids in islice(written, count) if len(ids) > 1]
    return passages
