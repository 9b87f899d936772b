"""The same opening written on without and with a soft prompt, side by side."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from softlore.context.compose import ContextLike
from softlore.measure.stories import write_stories
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt

MARK = "bold reverse"  # how lore words stand out in a terminal


@dataclass(frozen=True)
class Sample:
    """What the model wrote after an opening; the first draw, not picked.

    Attributes:
        prompt: name of the soft prompt.
        opening: how both texts begin.
        without: how the bare model went on.
        soft: how it went on with the soft prompt, by the same draws.
        lore_words: words of the lore, to be marked in both.
    """

    prompt: str
    opening: str
    without: str
    soft: str
    lore_words: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_samples(
    model: FrozenModel,
    openings: Sequence[tuple[SoftPrompt, str]],
    lore_words: Mapping[str, Sequence[str]],
    tokens: int,
    seed: int,
) -> list[Sample]:
    """Writes on from each (prompt, opening) without and with the prompt.

    Args:
        lore_words: by the name of the prompt.
    """
    ids = [model.encode(opening) for _, opening in openings]
    told: list[list[str]] = []
    for soft in (False, True):
        conditionings: list[ContextLike] = [prompt if soft else "" for prompt, _ in openings]
        jobs = [
            (conditioning, [begun]) for conditioning, begun in zip(conditionings, ids, strict=True)
        ]
        written = write_stories(model, jobs, tokens, seed)
        told.append([_readable(model.decode(texts[0])) if texts else "" for texts in written])
    return [
        Sample(prompt.name, opening, without, soft_text, list(lore_words.get(prompt.name, ())))
        for (prompt, opening), without, soft_text in zip(openings, *told, strict=True)
    ]


def _readable(text: str) -> str:
    """A text without control characters, which a weak model may write and no page can hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def marked(text: str, lore_words: Collection[str]) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a lore word."""
    if not lore_words:
        return [(text, False)] if text else []
    longest_first = sorted(lore_words, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    pieces = [(piece, i % 2 == 1) for i, piece in enumerate(pattern.split(text))]
    return [(piece, is_lore) for piece, is_lore in pieces if piece]


def first_of_each(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.prompt, sample)
    return list(first.values())


def side_by_side(samples: Sequence[Sample]) -> Table:
    """Samples for the terminal: the opening, and under it both ways it went on."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_edge=False)
    table.add_column("without a prompt", ratio=1, style="dim")
    table.add_column("with the soft prompt", ratio=1)
    for sample in samples:
        table.add_row("", Text(f"[[soft:{sample.prompt}]]", style="bold magenta"))
        begun = Text(sample.opening, style="italic")
        table.add_row(
            begun + _styled(sample.without, sample.lore_words),
            begun + _styled(sample.soft, sample.lore_words),
        )
        table.add_section()
    return table


def _styled(text: str, lore_words: Collection[str]) -> Text:
    styled = Text()
    for piece, is_lore in marked(" ".join(text.split("\n")), lore_words):
        styled.append(piece, style=f"not dim {MARK}" if is_lore else "not italic")
    return styled
