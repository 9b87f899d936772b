"""Measures what a story remembers of its first chapter after that has left the context.

    python tools/measure_chapters.py --model MODEL --tales DIR --names peerifool magic-apples

DIR is FairytaleQA's folder with `section-stories` and `questions`. The first sections of a tale are
its chapter; questions about them are asked after later sections, as the story went on. The figure
is the loss of the right answers, nats a token (less is better): with nothing, with the chapter's
summary, with its soft prompt of as many tokens in closed form and trained, and with its full text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from benchmarks.readers import Tale, read_fairytaleqa
from measuring import Keep, Seed, main, measure
from softlore import FrozenModel
from softlore.compare.harness import Row, grid
from softlore.errors import ConfigError
from softlore.lore import Block
from softlore.measure.score import recall
from softlore.story.condensing import UPDATES, chapter_prompt, summarize

Tokens = Annotated[int, "of the tale: of its chapter, and of what comes between"]


def chapters(
    *,
    model: str = "smollm2",
    tales: Path = Path("fairytaleqa"),
    names: list[str],
    seeds: list[Seed] = [0],  # noqa: B006
    tokens: Tokens = 700,
    updates: int = UPDATES,
    keep: Keep = None,
) -> list[Row]:
    """A row for each tale, seed and form."""
    frozen = FrozenModel.from_pretrained(model)
    by_name = {tale.name.casefold().replace(" ", "-"): tale for tale in read_fairytaleqa(tales)}
    if unknown := sorted(set(names) - set(by_name)):
        raise ConfigError(
            f"{str(tales)!r} has no tale {unknown[0]!r}; expected some of {', '.join(by_name)}; "
            "name one of these"
        )

    def case(tale: str, seed: int) -> Iterator[Row]:
        chapter, later, blocks = _first_chapter(frozen, by_name[tale], tokens)
        started = time.monotonic()
        summary = summarize(frozen, chapter)
        length = len(frozen.encode(summary))
        forms = {
            "nothing": lambda: "",
            "summary": lambda: summary,
            "closed form": lambda: chapter_prompt(frozen, chapter, 0, length, seed),
            "trained": lambda: chapter_prompt(frozen, chapter, updates, length, seed),
            "full text": lambda: chapter,
        }
        for form, make in forms.items():
            conditioning = make()
            seconds = time.monotonic() - started
            loss = recall(frozen, conditioning, blocks, min(tokens, len(later)), [later])
            row = {"tale": tale, "seed": seed, "form": form, "tokens": length}
            yield row | {"loss": round(loss, 3), "n": len(blocks), "seconds": round(seconds)}
            started = time.monotonic()

    return measure(grid(tale=names, seed=seeds), case, keep)


def _first_chapter(
    model: FrozenModel, tale: Tale, tokens: int
) -> tuple[str, list[int], list[Block]]:
    """The first chapter of a tale, tokens of what follows it, and the questions about it."""
    texts = [" ".join(section.text.split()) for section in tale.sections]
    count = 1
    while count < len(texts) // 2 and len(model.encode(" ".join(texts[:count]))) < tokens:
        count += 1
    later = model.encode("\n" + " ".join(texts[count:]), inside=True)[:tokens]
    blocks = [
        Block(call=f"\n{question.call}", responses=[f" {question.answers[0]}"])
        for section in tale.sections[:count]
        for _, question in section.questions
    ]
    return " ".join(texts[:count]), later, blocks


if __name__ == "__main__":
    main(__doc__, chapters)
