"""Measures prompts that are trained on texts alone, beside no prompt and the texts themselves.

    python tools/measure_text.py smollm2 --steps 0 30 --out runs/text.jsonl

For each model, seed and number of updates every entry of the demo's lorebook, or of `--lorebook`,
is trained by itself on its text, without its calls, with softlore's defaults; its calls measure.
Prints a table of means with 95 % intervals over the seeds. With --out, an interrupted run resumes.
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


def text(
    models: Annotated[list[str], "short names, folders, hub ids or GGUF files"],
    /,
    *,
    lorebook: Annotated[Path | None, "in place of the demo's"] = None,
    entries: Annotated[int, "of the lorebook, from its beginning"] = 3,
    steps: Annotated[list[int], "updates of each entry; 0: the start in closed form"] = [0, 30],  # noqa: B006 - read only
    n_tokens: Annotated[int, "of each prompt"] = 16,
    seeds: int = 3,
    style: Annotated[str, "makes blocks of the texts; none: they are distilled alone"] = "none",
    distances: Annotated[list[int], "tokens of story before the call"] = [0, 64, 256, 1000],  # noqa: B006 - read only
    stories: Annotated[int, "for each entry"] = 12,
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Annotated[Path | None, "JSON lines; cases in the file are not measured again"] = None,
) -> None:
    """A table for each model: nothing, the text, and soft after so many updates."""
    book = Lorebook.load(lorebook or demo.lorebook_path())
    names = [entry.name for entry in book][:entries]
    load = LatestModel(dtype)

    def case(model: str, seed: int, entry: str, steps: int) -> Iterator[Row]:
        frozen, start = load(model), time.monotonic()
        measured = book.model_copy(update={"entries": [e for e in book if e.name == entry]})
        texts = [e.model_copy(update={"blocks": [], "held_out": []}) for e in measured]
        trainer = WorldInfoTrainer(
            frozen,
            entries=texts,
            seed=seed,
            max_steps=steps,
            n_tokens=n_tokens,
            patience=None,
            style=style,
        )
        prompts = trainer.train()
        seconds = time.monotonic() - start
        result = evaluate(
            frozen, measured, prompts, seed=seed, stories=stories, distances=distances
        )
        for name, measures in result.entries[0].conditionings.items():
            if measures is not None:
                label = f"soft, {steps} updates" if name == "soft" else name
                yield {"label": label, **figures_of(measures), "seconds": seconds}

    cases = grid(model=models, seed=range(seeds), entry=names, steps=steps)
    rows = measure(cases, case, out)
    columns = [*(f"recall_{d}" for d in distances), *FIGURES]
    print_means(rows, columns)


if __name__ == "__main__":
    main(__doc__, text)
