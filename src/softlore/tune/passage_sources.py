"""The sources of passages: about an entry, after its responses, and of unrelated text."""

from __future__ import annotations

import random
from collections.abc import Sequence

from softlore.errors import LoreError
from softlore.lore.study import OPENERS
from softlore.measure.score import first_comparable
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.lengths import passage_length
from softlore.tune.passages import PassageSource
from softlore.tune.topics import Topic, bare_tree

HELD_OUT = 4  # passages of a source that are measured on
TOPIC_FIRST = 4  # of each chunk of a long text, at first
CONTINUATION = 32  # tokens after a response that are compared with the bare model's
CONTINUATIONS, CONTINUATIONS_DRAWN = 24, 2  # of an entry, and of an update


def make_source(
    model: FrozenModel,
    name: str,
    topics: Sequence[Topic],
    config: TrainingConfig,
    drawn: int,
    what: str,
) -> PassageSource:
    """The source of an entry's passages, nothing written yet.

    Args:
        drawn: passages that an update draws.
        what: names what the teacher reads in messages.

    Raises:
        LoreError: that leaves no room for a passage.
    """
    length = passage_length(model, config)
    # All updates use no more; a start in closed form needs some, of each chunk of a long text.
    first = 0 if len(topics) == 1 else TOPIC_FIRST * len(topics)
    limit = max(first, min(config.distil_passages, max(1, config.max_steps) * drawn))
    n_held_out = held_out_count(config)
    source = PassageSource(name, topics, length, limit, drawn, 0, n_held_out, first=first)
    used = source.longest
    if model.context_length is not None and used + length > model.context_length:
        raise LoreError(
            f"{what} of {used} tokens; expected at most "
            f"{model.context_length - length} ({model.name!r} reads {model.context_length}, a "
            f"passage about it takes {length}); shorten the text or split the entry"
        )
    return source


def unrelated_source(
    model: FrozenModel, config: TrainingConfig, limit: int, drawn: int, first: int | None = None
) -> PassageSource:
    """The source of passages for filler and drift guard: the writer's story, or the model's own.

    `first`: see `PassageSource`.
    """
    given, length = None, passage_length(model, config)
    if config.story is not None:
        given = cut_story(model, config.story, limit + HELD_OUT, length, config.seed)
    n_held_out = held_out_count(config) if given is None or len(given) > 2 * HELD_OUT else 0
    return PassageSource(
        "",
        [Topic([(bare_tree(model), 1.0)], OPENERS)],
        length,
        limit,
        drawn,
        min(first_comparable(model), length - 1),
        n_held_out,
        config.drift_guard > 0,
        given,
        first=first,
    )


def continuation_source(
    model: FrozenModel, name: str, texts: Sequence[str], room: int | None
) -> PassageSource | None:
    """The source of what the bare model writes after texts, each a call with its response.

    Args:
        name: of the entry.
        room: most tokens of a text with what follows; None: no limit.

    Returns:
        None where nothing more fits after the longest text.
    """
    length = max(len(model.encode(text)) for text in texts) + CONTINUATION
    if room is not None and length > room:
        return None
    topic = Topic([(bare_tree(model), 1.0)], random.Random(name).sample(texts, len(texts)))
    source = f"{name}\n"  # which is no entry's name
    return PassageSource(source, [topic], length, CONTINUATIONS, CONTINUATIONS_DRAWN, follows=True)


def held_out_count(config: TrainingConfig) -> int:
    """Passages of a source to measure on: none where nothing stops early."""
    return 0 if config.patience is None else HELD_OUT


def cut_story(
    model: FrozenModel, story: str, count: int, length: int, seed: int
) -> list[list[int]]:
    """Passages of `length` tokens at random places of a story; all of a shorter one."""
    ids = model.encode(story)
    if len(ids) <= length:
        return [ids] if len(ids) > 1 else []
    draw = random.Random(f"story/{seed}")
    starts = [draw.randrange(len(ids) - length) for _ in range(count)]
    return [ids[start : start + length] for start in starts]
