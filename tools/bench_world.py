"""Measures a lorebook of a thousand entries with a prompt each: what lists, loads and plans it.

    python tools/make_world.py --shared DIR --out runs/world.yaml
    python tools/bench_world.py runs/world.yaml

Milliseconds of processor time. `list` reads the header of every prompt, `load` every prompt, `plan`
is the context of a story whose newest turn names so many entries: activation, the choice within the
budget, and the context encoded; `first` with these entries, `again` the median of the turns after
it. The prompts are the keys and values of the entries' texts, so that nothing has to be trained.
Nothing is asserted.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from measuring import Seed, main
from softlore import FrozenModel, Lorebook, PromptLibrary, SoftPrompt
from softlore.compare.harness import Row
from softlore.measure.evaluate import plain_text
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer

TURNS = 5
NEW_TOKENS = 60


def world(
    lorebook: Path,
    /,
    *,
    model: str = "storyteller",
    named: Annotated[list[int], "entries that a turn names"] = [0, 10, 100],  # noqa: B006 - read only
    seed: Seed = 0,
) -> list[Row]:
    """A row for each thing that is done."""
    frozen = FrozenModel.from_pretrained(model)
    book = Lorebook.load(lorebook)
    with tempfile.TemporaryDirectory() as folder:
        library = PromptLibrary(folder)
        prompts = [
            SoftPrompt.from_text(plain_text(entry), frozen, name=entry.name, kind="prefix")
            for entry in book
        ]
        rows = [{"what": "save", "first": timed(lambda: [library.save(p) for p in prompts])}]
        library = PromptLibrary(folder)
        rows.append(
            {"what": "list", "first": timed(library.listing), "again": timed(library.listing)}
        )
        load = lambda: [library[entry.name] for entry in book]  # noqa: E731
        rows.append({"what": "load", "first": timed(load), "again": timed(load)})
        composer = ContextComposer(frozen, book.entries, library)
        draw = random.Random(seed)
        for count in named:
            names = [entry.keys[0] for entry in draw.sample(book.entries, count)]
            text = "The wind went round the house. " + ", ".join(names) + " sat down by the fire."
            times, plan = [], None
            for turn in range(TURNS):
                turns = [text + " Then it rained." * turn]
                start = time.process_time()
                plan = composer.plan(StorySettings(), turns, NEW_TOKENS)
                times.append(1000 * (time.process_time() - start))
            composer.gains.wait()  # measured in the background, and saved in the folder
            assert plan is not None
            rows.append(
                {
                    "what": f"plan, {count} named",
                    "first": times[0],
                    "again": statistics.median(times[1:]),
                    "active": len(plan.activation.active),
                    "chosen": len(plan.lore),
                }
            )
    return [
        {key: round(v) if isinstance(v, float) else v for key, v in row.items()} for row in rows
    ]


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds of processor time."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    main(__doc__, world)
