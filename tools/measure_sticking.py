"""Whether lore shows when it wakes late in a story: what a writer sees, from a lorebook of texts.

    python tools/measure_sticking.py src/softlore/demo/lorebook.yaml --model smollm2 --entries 3

The entries' texts alone, without calls, are saved as a SillyTavern lorebook and trained by
`softlore train` with its defaults, in the time given. Then each entry is named by a writer's turn
after 400 tokens of other stories, and the model writes the next turn as `softlore story` does, lore
chosen by its own rules: ten draws each, the same for all ways. A draw shows lore if a keyword of
the entry is written that was not in the story before; others' words are those of the other entries
alone. Perplexity is the bare model's, of what it writes in three turns; `distinct` is the share of
different runs of three tokens in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

from measuring import Keep, main, measure
from real_tables import print_means
from softlore import Entry, FrozenModel, Lorebook, PromptLibrary
from softlore.compare.harness import Row, grid
from softlore.decode import runner_for
from softlore.lore.keywords import lore_keywords, words
from softlore.measure import distinct, perplexity
from softlore.measure.material import gather
from softlore.story import StoryLibrary
from softlore.story.session import StorySession

PASSAGE = 40  # tokens of a passage, at least
# Like none of the lines with which texts are studied (softlore.lore.styles, softlore.lore.study).
OPENER = "That afternoon {name} was at the market, and as always {name}"
RUN = 3  # tokens of a run that is counted as repeated
FIGURES = ["shown", "lore words", "others' words", "perplexity", "distinct"]
Way = Literal["nothing", "text", "softlore"]


def sticking(
    lorebook: Annotated[Path, "in any format that softlore reads"],
    /,
    *,
    model: Annotated[str, "short name, folder, hub id or GGUF file"] = "smollm2",
    entries: Annotated[int, "the first ones of the book"] = 3,
    time_budget: Annotated[float, "seconds of training, loading and saving included"] = 600,
    settings: Annotated[list[str], "of `softlore train`, such as style=none"] = [],  # noqa: B006
    prompts: Annotated[Path, "saved in and taken from a folder each seed"] = Path("runs/sticking"),
    ways: list[Way] = ["nothing", "text", "softlore"],  # noqa: B006 - read only
    draws: int = 10,
    before: Annotated[int, "tokens of story before the entry is named"] = 400,
    tokens: Annotated[int, "that the model writes in a turn"] = 60,
    turns: Annotated[int, "that it writes; lore is counted in the first"] = 3,
    seed: Annotated[list[int], "of training and of draws"] = [0],  # noqa: B006
    keep: Keep = None,
) -> None:
    """The share of draws that show lore, for nothing, the texts and what softlore chooses."""
    book = texts_of(Lorebook.load(lorebook), entries)
    libraries = {number: PromptLibrary(prompts / str(number)) for number in seed}
    for number, library in libraries.items():
        if not all(entry.name in library for entry in book):
            options = [*settings, f"time-budget={time_budget:g}", f"seed={number}"]
            train(book, model, library.folder, options)
    frozen = FrozenModel.from_pretrained(model)
    runner = runner_for(frozen)
    stories = {number: list(beginnings(frozen, draws, before, number)) for number in seed}
    as_text = [entry.model_copy(update={"use": "text"}) for entry in book]
    books: dict[Way, Lorebook | None] = {
        "nothing": None,
        "text": book.model_copy(update={"entries": as_text}),
        "softlore": book,
    }

    def case(model: str, seed: int, label: Way, entry: str) -> Row:
        keywords = set(lore_keywords(book[entry]))
        others = {word for one in book for word in lore_keywords(one)} - keywords
        counts, foreign, forms, pairs = [], [], Counter[str](), []
        opener = OPENER.format(name=entry)
        with tempfile.TemporaryDirectory() as home:
            for number, text in enumerate(stories[seed]):
                with StoryLibrary(home).create(f"{number}") as story:
                    story.set(seed=draws * seed + number)
                    session = StorySession(story, runner, books[label], libraries[seed])
                    story.add(f"{text}\n\n")
                    session.add(opener)
                    written = ["".join(session.continue_story(tokens)) for _ in range(turns)]
                    assert session.plan is not None
                    forms.update(session.plan.lore.values())
                    new = {*words(written[0])} - {*words(text)}
                    counts.append(len(keywords & new))
                    foreign.append(len(others & new))
                    pairs.append((frozen.encode(opener), frozen.encode("".join(written))))
        return {
            "draws": draws,
            "shown": sum(map(bool, counts)),
            "lore words": fmean(counts),
            "others' words": fmean(foreign),
            "perplexity": perplexity(frozen, pairs),
            "distinct": distinct([ids for _, ids in pairs], RUN),
            "as": ", ".join(f"{form} {n}" for form, n in sorted(forms.items())) or "nothing",
            "written": [frozen.decode(ids).strip() for _, ids in pairs],
        }

    cases = grid(model=[model], seed=seed, label=ways, entry=[entry.name for entry in book])
    print_means(measure(cases, case, keep), FIGURES)


def texts_of(book: Lorebook, count: int) -> Lorebook:
    """The first entries with their texts and keys alone, as of a character card."""
    entries = [
        Entry(name=entry.name, text=entry.text, keys=entry.keys)
        for entry in book.entries[:count]
        if entry.text
    ]
    return Lorebook(name=book.name, entries=entries)


def train(book: Lorebook, model: str, prompts: Path, settings: Sequence[str]) -> None:
    """`softlore train` of a lorebook in SillyTavern's format."""
    world = {
        "entries": {
            str(number): {"uid": number, "comment": e.name, "key": e.keys, "content": e.text}
            for number, e in enumerate(book)
        }
    }
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, f"{book.name}.json")
        path.write_text(json.dumps(world), encoding="utf-8")
        command = [sys.executable, "-m", "softlore", "train", str(path), "--model", model]
        command += ["--out", str(prompts), *(f"--{setting}" for setting in settings)]
        subprocess.run(command, check=True)


def beginnings(model: FrozenModel, count: int, tokens: int, seed: int) -> Iterator[str]:
    """The beginnings of stories: unrelated passages, one after another."""
    passages = gather(model, 0, seed, unrelated=count * (tokens // PASSAGE + 1)).unrelated
    at = 0
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < tokens:
            ids += [int(i) for i in passages[at % len(passages)]]
            at += 1
        yield model.decode(ids[:tokens])


if __name__ == "__main__":
    main(__doc__, sticking)
