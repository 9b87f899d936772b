"""Measures of stories, on the storyteller: the figures of docs/results.md, one command each.

    python tools/measure_stories.py turns                  # 200 turns: no overflow, no slower, flat
    python tools/measure_stories.py turns --model smollm2  # with a longer context
    python tools/measure_stories.py lore --shared DIR      # the budget that chooses, against text

`lore` has twenty characters of LIGHT in one lorebook (DIR holds `data/light_characters.json`).
Each story begins with some text, then names six of them; the figure is how many words of their
lore the model then writes. Plain text is chosen by SillyTavern's rules (descending order until the
budget is full), softlore's by its own; the stories and the draws are the same. Intervals are over
the stories.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

from measure_styles import light_characters
from measuring import Keep, Seed, Shared, main, measure, show
from softlore import Entry, FrozenModel, PromptLibrary
from softlore.compare.harness import Row, grid, interval
from softlore.compare.methods import train_method
from softlore.context import ActiveEntry, Tree, activate, compose, place_entries
from softlore.decode import SamplingParams, sample_ids
from softlore.lore import Lorebook
from softlore.lore.keywords import count_keywords, lore_keywords
from softlore.measure.evaluate import plain_text
from softlore.measure.material import gather
from softlore.prompts import Context
from softlore.story import StoryLibrary, StorySettings
from softlore.story.composing import ContextComposer
from softlore.story.session import StorySession

NAMED = 6  # characters that a story names
ROWS_AT_ONCE = 20
Tokens = Annotated[int, "that the model writes at once"]


def turns(
    *,
    model: Annotated[str, "short name, folder, hub id or GGUF file"] = "storyteller",
    turns: int = 200,
    tokens: Tokens = 60,
    seed: Seed = 0,
) -> list[Row]:
    """A long story, a turn of the writer's before each of the model's; a row for every 20 turns.

    Read from the start: a turn for which more than a quarter of the context was read.
    """
    frozen = FrozenModel.from_pretrained(model)
    rows, anew = [], []
    with tempfile.TemporaryDirectory() as home, StoryLibrary(home).create("long") as story:
        story.set(seed=seed, memory="A tale of a house by the sea.", note="Keep it quiet.")
        session = StorySession(story, frozen)
        seconds: list[float] = []
        read: list[int] = []
        for number in range(1, turns + 1):
            start = time.process_time()
            session.add(f" Then, on day {number}, they went out.")
            pieces = sum(1 for _ in session.continue_story(tokens))
            seconds.append(time.process_time() - start)
            read.append(session.cache_usage.read)
            assert session.plan is not None
            assert session.plan.tokens + tokens <= session.plan.limit
            anew.append(read[-1] > max(300, session.plan.tokens // 4))
            if number % 20 == 0:
                rows.append(
                    {
                        "turns": number,
                        "ms a turn": round(1000 * median(seconds[-20:])),
                        "tokens read": round(fmean(read[-20:])),
                        "read from the start": sum(anew[-20:]),
                        "context": session.plan.tokens,
                        "story": len(story.text),
                        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                        "pieces": pieces,
                    }
                )
                show(rows[-1])
    return rows


def lore(
    *,
    shared: Shared,
    prompts: Annotated[Path, "where they are saved and taken from"] = Path("runs/light-prompts"),
    characters: Annotated[int, "of LIGHT"] = 20,
    stories: int = 100,
    budgets: Annotated[list[int], "tokens of the context for lore"] = [64, 128, 256, 512],  # noqa: B006
    tokens: Tokens = 60,
    style: Annotated[str, "makes blocks of the characters' texts"] = "implicit",
    max_steps: int = 150,
    plot: Annotated[Path | None, "draw the rows into this picture"] = None,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """Lore words in what is written, by budget, as plain text and as softlore chooses."""
    model = FrozenModel.from_pretrained("storyteller")
    entries = [
        entry.model_copy(update={"blocks": [], "held_out": []})
        for entry in light_characters(shared / "data", characters)
    ]
    book = Lorebook(name="LIGHT", entries=entries)
    library = PromptLibrary(prompts)
    if not all(entry.name in library for entry in book):
        settings = {"style": style, "max_steps": max_steps, "distil_passages": 128, "seed": seed}
        trained = train_method(model, style, entries=book.entries, **settings)
        for prompt in trained.conditionings.values():
            library.save(prompt)
        print(f"trained in {trained.seconds:.0f} s", file=sys.stderr, flush=True)
    composer = ContextComposer(model, book.entries, library)
    cases = begin_stories(model, book, stories, seed)
    keywords = {entry.name: lore_keywords(entry) for entry in book}

    def case(budget: int) -> list[Row]:
        composed = {
            "text": [compose_text(model, composer, turns, budget) for turns, _ in cases],
            "softlore": [compose_chosen(composer, turns, budget) for turns, _ in cases],
        }
        hits, rows = {}, []
        for method, contexts in composed.items():
            params = SamplingParams(temperature=0.8, top_k=40)
            trees = [(tree, []) for tree, _ in contexts]
            written = sample_ids(model, trees, params, tokens, seed, ROWS_AT_ONCE)
            texts = [model.decode(ids) for ids in written]
            hits[method] = [
                count_keywords(
                    [text], sorted({w for name in names for w in keywords[name]})
                ).a_story
                for text, (_, names) in zip(texts, cases, strict=True)
            ]
            rows.append(
                {
                    "method": method,
                    "lore words": str(interval(hits[method])),
                    "tokens of lore": round(fmean(count for _, count in contexts)),
                    "example": texts[0],
                }
            )
        ahead = [a - b for a, b in zip(hits["softlore"], hits["text"], strict=True)]
        return [*rows, {"method": "softlore ahead by", "lore words": str(interval(ahead))}]

    rows = measure(grid(budget=budgets), case, keep)
    if plot:
        draw_plot(rows, plot)
    return rows


def begin_stories(
    model: FrozenModel, book: Lorebook, count: int, seed: int
) -> list[tuple[list[str], list[str]]]:
    """Beginnings of stories: turns of text, and the characters that the last turn names."""
    draw = random.Random(seed)
    passages = gather(model, 0, seed).unrelated
    stories = []
    for number in range(count):
        names = draw.sample([entry.name for entry in book], NAMED)
        before = [model.decode(passages[(number * 4 + i) % len(passages)]) for i in range(4)]
        company = f"{', '.join(names[1:])} and {names[0]}"
        stories.append(([*before, f"\nThat night {company} sat by the fire. {names[0]}"], names))
    return stories


def compose_text(
    model: FrozenModel, composer: ContextComposer, turns: Sequence[str], budget: int
) -> tuple[Tree, int]:
    """The context with World Info as plain text, by SillyTavern's rules, and its tokens."""

    def cost(entry: Entry) -> int:
        return len(model.encode(plain_text(entry)))

    active = activate(composer.entries, turns, composer.scanning).active
    entered = fill_budget(active, cost, budget)
    placed = place_entries(entered).before_char
    lore = "".join(plain_text(item.entry) for item in placed)
    return compose(model, Context(lore + "".join(turns))), sum(cost(i.entry) for i in entered)


def fill_budget(
    active: Sequence[ActiveEntry], cost: Callable[[Entry], int], budget: int
) -> list[ActiveEntry]:
    """The active entries that SillyTavern lets into a budget of tokens.

    In each round of the scan, entries enter by descending order until one does not fit. After
    that only those of the same round with `ignore_budget` enter, and recursion stops.
    """
    entered: list[ActiveEntry] = []
    spent, last_round = 0, math.inf
    for item in sorted(active, key=lambda item: (item.round, -item.entry.order)):
        fits = math.isinf(last_round) and spent + cost(item.entry) <= budget
        if item.round <= last_round and (item.entry.ignore_budget or fits):
            spent += cost(item.entry)
            entered.append(item)
        else:
            last_round = min(last_round, item.round)
    return entered


def compose_chosen(
    composer: ContextComposer, turns: Sequence[str], budget: int
) -> tuple[Tree, int]:
    """The context with the lore that softlore chooses, and the lore's tokens."""
    plan = composer.plan(StorySettings(budget=budget), turns, 80)
    return compose(composer.model, plan.context), plan.choice.tokens


def draw_plot(rows: Sequence[Row], path: Path) -> None:
    """Lore words by budget, as text and as softlore chooses, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for method, color in (("text", "#888888"), ("softlore", "#5e35b1")):
        of_method = [row for row in rows if row["method"] == method]
        cells = [row["lore words"].partition(" ±") for row in of_method]
        means, halves = [float(mean) for mean, _, _ in cells], [float(h or 0) for *_, h in cells]
        budgets = [row["budget"] for row in of_method]
        axes.errorbar(budgets, means, halves, marker="o", capsize=4, color=color, label=method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xlabel("tokens of the context for lore")
    axes.set_ylabel("lore words in what is written")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(__doc__, turns, lore)
