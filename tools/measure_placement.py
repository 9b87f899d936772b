"""Measures late prefixes beside classic ones after equal numbers of updates.

    python tools/measure_placement.py storyteller smollm2 --max-steps 150 --out runs/placement.jsonl

For each model, seed and placement the demo's lorebook, or `--lorebook`, is trained with softlore's
defaults (one number of updates for all) and evaluated: each prompt alone, and in company. Prints a
table of means with 95 % intervals over the seeds. With --out, an interrupted run resumes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from measuring import LatestModel, main, measure
from real_tables import FIGURES, figures_of, print_means
from softlore import WorldInfoTrainer, demo
from softlore.compare.harness import Row, grid
from softlore.lore import Lorebook
from softlore.measure import evaluate

SETTINGS = {"soft": "alone", "company": "in company"}


def placement(
    models: Annotated[list[str], "short names, folders, hub ids or GGUF files"],
    /,
    *,
    lorebook: Annotated[Path | None, "in place of the demo's"] = None,
    entries: Annotated[int, "of the lorebook, from its beginning"] = 7,
    max_steps: Annotated[int, "updates of each entry, all of which are made"] = 150,
    seeds: int = 3,
    distances: Annotated[list[int], "tokens of story before the call"] = [0, 64, 256, 1000],  # noqa: B006 - read only
    stories: Annotated[int, "for each entry"] = 8,
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Annotated[Path | None, "JSON lines; cases in the file are not measured again"] = None,
) -> None:
    """A table for each model: late and classic, alone and in company."""
    book = Lorebook.load(lorebook or demo.lorebook_path())
    book = book.model_copy(update={"entries": book.entries[:entries]})
    load = LatestModel(dtype)

    def case(model: str, seed: int, placement: str, steps: int) -> Iterator[Row]:
        frozen, start = load(model), time.monotonic()
        trainer = WorldInfoTrainer(
            frozen,
            entries=list(book),
            seed=seed,
            max_steps=steps,
            patience=None,
            placement=placement,
        )
        prompts = trainer.train()
        seconds = time.monotonic() - start
        result = evaluate(frozen, book, prompts, seed=seed, stories=stories, distances=distances)
        for entry in result.entries:
            for name, setting in SETTINGS.items():
                if (measures := entry.conditionings.get(name)) is None:
                    continue
                yield {
                    "setting": setting,
                    "entry": entry.name,
                    **figures_of(measures),
                    "seconds": seconds,
                }

    cases = grid(model=models, seed=range(seeds), placement=["late", "classic"], steps=[max_steps])
    rows = measure(cases, case, out)
    columns = [*(f"recall_{d}" for d in distances), *FIGURES]
    print_means([r | {"label": f"{r['placement']}, {r['setting']}"} for r in rows], columns)


if __name__ == "__main__":
    main(__doc__, placement)
