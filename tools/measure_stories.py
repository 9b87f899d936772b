"""Measures of stories, on the storyteller: the figures of docs/results.md, one command each.

    python tools/measure_stories.py turns                  # 200 turns: no overflow, no slower, flat
    python tools/measure_stories.py lore --shared DIR      # the budget that chooses, against text

`lore` has twenty characters of LIGHT in one lorebook (DIR holds `data/light_characters.json`).
Each story goes on from some text, then names six of them; what is counted is how many words of
their lore the model then writes. Plain text enters by SillyTavern's rules (descending order until
the budget is full), softlore's by its own; the same stories, the same draws. Intervals are over
the stories.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from measure_styles import characters
from softlore import Entry, FrozenModel, PromptLibrary, WorldInfoTrainer
from softlore.compare.harness import interval
from softlore.context import Tree, activate, compose, place_entries
from softlore.decode import SamplingParams, sample_ids
from softlore.lore import Lorebook
from softlore.lore.keywords import count_keywords, lore_keywords
from softlore.measure.evaluate import plain_text
from softlore.measure.material import gather
from softlore.prompts import Context
from softlore.story import StoryLibrary, StorySettings
from softlore.story.composing import ContextComposer
from softlore.story.session import StorySession

BUDGETS = (64, 128, 256, 512)
NAMED = 6  # characters that a story names
ROWS = 20


def told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def turns(options: Any) -> list[dict[str, Any]]:
    """A long story, a turn of the writer's before each of the model's."""
    model = FrozenModel.from_pretrained("storyteller")
    rows = []
    with StoryLibrary(tempfile.mkdtemp()).create("long") as story:
        story.set(seed=options.seed, memory="A tale of a house by the sea.", note="Keep it quiet.")
        session = StorySession(story, model)
        seconds: list[float] = []
        read: list[int] = []
        for number in range(1, options.turns + 1):
            start = time.process_time()
            session.say(f" Then, on day {number}, they went out.")
            told_tokens = sum(1 for _ in session.go_on(options.tokens))
            seconds.append(time.process_time() - start)
            read.append(session.cache_usage.read)
            assert session.plan is not None
            assert session.plan.tokens + options.tokens <= session.plan.limit
            if number % 20 == 0:
                rows.append(
                    told(
                        {
                            "turns": number,
                            "ms a turn": round(1000 * statistics.median(seconds[-20:])),
                            "tokens read": round(statistics.mean(read[-20:])),
                            "read from the start": sum(r > 300 for r in read[-20:]),
                            "context": session.plan.tokens,
                            "story": len(story.text),
                            "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                            "pieces": told_tokens,
                        }
                    )
                )
    return rows


def lore(options: Any) -> list[dict[str, Any]]:
    """Lore words in what is written, by budget, as plain text and as softlore chooses."""
    model = FrozenModel.from_pretrained("storyteller")
    book = Lorebook(
        name="LIGHT",
        entries=[
            entry.model_copy(update={"blocks": [], "held_out": []})
            for entry in characters(options.shared / "data", options.characters)
        ],
    )
    prompts = trained(model, book, options)
    composer = ContextComposer(model, book.entries, prompts)
    stories = begun(model, book, options)
    keywords = {entry.name: lore_keywords(entry) for entry in book}
    rows = []
    for budget in options.budgets:
        ways = {
            "text": [as_text(model, composer, text, budget) for text, _ in stories],
            "softlore": [as_chosen(composer, text, budget) for text, _ in stories],
        }
        hits = {}
        for way, made in ways.items():
            texts = written(model, [tree for tree, _ in made], options)
            hits[way] = [
                count_keywords(
                    [text], sorted({word for name in names for word in keywords[name]})
                ).a_story
                for text, (_, names) in zip(texts, stories, strict=True)
            ]
            tokens = [count for _, count in made]
            rows.append(
                told(
                    {
                        "budget": budget,
                        "way": way,
                        "lore words": str(interval(hits[way])),
                        "tokens of lore": round(statistics.mean(tokens)),
                        "example": texts[0],
                    }
                )
            )
        ahead = [a - b for a, b in zip(hits["softlore"], hits["text"], strict=True)]
        rows.append(
            told({"budget": budget, "way": "softlore ahead by", "lore words": str(interval(ahead))})
        )
    return rows


def trained(model: FrozenModel, book: Lorebook, options: Any) -> PromptLibrary:
    """Prompts of the book; those that the folder holds already are taken as they are."""
    library = PromptLibrary(options.prompts)
    if not all(entry.name in library for entry in book):
        start = time.perf_counter()
        trainer = WorldInfoTrainer(
            model,
            entries=book.entries,
            style=options.style,
            max_steps=options.max_steps,
            distil_passages=128,
            seed=options.seed,
        )
        for prompt in trainer.train().values():
            library.save(prompt)
        print(f"trained in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return library


def begun(model: FrozenModel, book: Lorebook, options: Any) -> list[tuple[list[str], list[str]]]:
    """Stories as far as they go: turns of text, and whom the last turn names."""
    draw = random.Random(options.seed)
    passages = gather(model, 0, options.seed).unrelated
    found = []
    for number in range(options.stories):
        names = draw.sample([entry.name for entry in book], NAMED)
        before = [model.decode(passages[(number * 4 + i) % len(passages)]) for i in range(4)]
        company = f"{', '.join(names[1:])} and {names[0]}"
        found.append(([*before, f"\nThat night {company} sat by the fire. {names[0]}"], names))
    return found


def as_text(
    model: FrozenModel, composer: ContextComposer, texts: Sequence[str], budget: int
) -> tuple[Tree, int]:
    """The context with World Info as plain text, by SillyTavern's rules, and its tokens."""

    def cost(entry: Entry) -> int:
        return len(model.encode(plain_text(entry)))

    found = activate(composer.entries, texts, composer.scanning, cost=cost, budget=budget)
    conditioning = "".join(plain_text(one.entry) for one in place_entries(found.active).before_char)
    return compose(model, Context(conditioning + "".join(texts))), found.cost


def as_chosen(composer: ContextComposer, texts: Sequence[str], budget: int) -> tuple[Tree, int]:
    plan = composer.plan(StorySettings(budget=budget), texts, 80)
    return compose(composer.model, plan.context), plan.mix.tokens


def written(model: FrozenModel, trees: Sequence[Tree], options: Any) -> list[str]:
    params, contexts = SamplingParams(temperature=0.8, top_k=40), [(tree, []) for tree in trees]
    new = sample_ids(model, contexts, params, options.tokens, options.seed, ROWS)
    return [model.decode(ids) for ids in new]


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Lore words by budget, as text and as softlore chooses, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for way, colour in (("text", "#888888"), ("softlore", "#5e35b1")):
        mine = [row for row in rows if row["way"] == way]
        means, halves = zip(
            *(map(float, row["lore words"].split(" ±")) for row in mine), strict=True
        )
        budgets = [row["budget"] for row in mine]
        axes.errorbar(budgets, means, halves, marker="o", capsize=4, color=colour, label=way)
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xlabel("tokens of the context for lore")
    axes.set_ylabel("lore words in what is written")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["turns", "lore"])
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--prompts", type=Path, default=Path("runs/light-prompts"))
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=60, help="that the model writes at once")
    parser.add_argument("--characters", type=int, default=20)
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    parser.add_argument("--style", default="implicit", help="makes blocks of the characters' texts")
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--plot", type=Path, help="draw what `lore` found into this picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = globals()[options.what](options)
    print(json.dumps(rows, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
