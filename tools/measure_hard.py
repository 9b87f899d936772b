"""Measures of hard prompts: the figures of docs/results.md, one command each.

    python tools/measure_hard.py search --shared DIR     # Emma: each method, and its baselines
    python tools/measure_hard.py fidelity --shared DIR   # ten texts into 4 to 32 soft tokens
    python tools/measure_hard.py lore smollm2            # the demo's entries: text, each method
    python tools/measure_hard.py codes --data runs/corpus    # codes of the storyteller distilled

DIR has `models/tinytalk-3m` and `data/`; `--data` is what ``tools/corpus.py`` wrote.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from evaluate_storyteller import ATTRIBUTED, read_passages
from measure import HELD_OUT, TinytalkData, light_entries, merge_blocks
from measure_codes import named_right
from measuring import Corpus, Keep, Kinds, LatestModel, Seed, Shared, main, measure
from real_tables import print_means
from softlore import Entry, FrozenModel, Lorebook, demo
from softlore.compare.harness import Row, grid, interval
from softlore.compare.methods import TrainedMethod, train_method
from softlore.control import Code, codes_of
from softlore.control.search import METHODS, Scorer, Searcher
from softlore.measure import drift, perplexity, recall
from softlore.measure.conditioning import conditioning_fidelity
from softlore.measure.material import gather

HAND_WRITTEN = " Emma is a cold, classy British cyborg assassin in a black pantsuit.\n"
EDITS = "reflect, edits only"
Lengths = Annotated[list[int], "tokens of the soft prompts"]
Passages = Annotated[int, "that the teacher writes"]


def search(
    *,
    shared: Shared,
    seconds: Annotated[float, "of each search"] = 120.0,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """Sixteen tokens by each method, beside nothing, a hand-written line and random prompts."""
    data = TinytalkData(shared)
    model, blocks, held_out = data.model, data.emma.blocks, merge_blocks(HELD_OUT)
    texts = {"nothing": "", "hand-written": HAND_WRITTEN}
    methods = [*texts, "best of 100 random", *(name for name in METHODS if name != "random")]

    def case(method: str) -> Row:
        text, spent, more = texts.get(method, ""), 0.0, {}
        if method not in texts:
            random = method == "best of 100 random"
            budget = {"passes": 100} if random else {"seconds": seconds}
            name = "random" if random else method
            result = Searcher(Scorer(model, blocks), name, 16, seed=seed, **budget).search()
            text, spent = result.text + "\n", result.seconds
            more = {} if random else {"steps": result.steps, "passes": result.passes}
        return {
            "recall": round(recall(model, text, blocks), 3),
            "held-out calls": round(recall(model, text, held_out), 3),
            "tokens": len(model.encode(text)),
            "seconds": round(spent),
            "text": text.strip(),
            **more,
        }

    return measure(grid(method=methods), case, keep)


def lore(
    models: Annotated[list[str], "short names, folders, hub ids or GGUF files"],
    /,
    *,
    methods: Annotated[list[str], f"also {EDITS!r}"] = ["gcg", "beam", "reflect"],  # noqa: B006
    tokens: Annotated[int, "of a prompt; 0: as many as the entry's text has"] = 32,
    passes: Annotated[int, "of each search"] = 200,
    entries: Annotated[int, "of the lorebook, from its beginning"] = 4,
    seeds: int = 3,
    lorebook: Annotated[Path, "in place of the demo's"] = demo.lorebook_path(),  # noqa: B008
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Keep = None,
) -> None:
    """The entries of a lorebook by each method, beside nothing and the writer's own text.

    Held-out calls are measured, not chosen by.
    """
    load = LatestModel(dtype)
    unrelated = lru_cache(maxsize=1)(lambda frozen: gather(frozen, 0, 0).unrelated)
    book = list(Lorebook.load(lorebook).resolved())[:entries]

    def case(model: str, seed: int, entry: str, label: str) -> Row:
        frozen = load(model)
        chosen = next(one for one in book if one.name == entry)
        most = tokens or len(frozen.encode(chosen.text))
        told: dict[str, Any] = {}
        if label in methods:
            edits = label == EDITS
            method = "reflect" if edits else label
            start = chosen.text if method == "reflect" else None
            budget = {"passes": passes, "seed": seed, "writer": NobodyWrites() if edits else None}
            scorer = Scorer(frozen, chosen.blocks)
            found = Searcher(scorer, method, most, initial=start, **budget).search()
            text = found.text
            told = {"passes": found.passes, "seconds": found.seconds, "text": text}
        else:
            text = {"nothing": "", "text": chosen.text}.get(label, fitting(frozen, chosen, most))
        line = text + "\n" if text else ""
        ids = frozen.encode(text)
        own = [(ids[:1], ids[1:])] if len(ids) > 1 else []
        return {
            "tokens": len(ids),
            "recall": recall(frozen, line, chosen.blocks),
            "held_out": recall(frozen, line, chosen.held_out),
            "drift": drift(frozen, line, unrelated(frozen)) if line else 0.0,
            "perplexity": perplexity(frozen, own) if own else None,
            "passes": None,
            "seconds": None,
            **told,
        }

    labels = ["nothing", "text", f"text, {tokens} tokens" if tokens else "text", *methods]
    names = [entry.name for entry in book]
    cases = grid(model=models, seed=range(seeds), entry=names, label=dict.fromkeys(labels))
    rows = measure(cases, case, out)
    print_means(rows, ["tokens", "recall", "held_out", "drift", "perplexity", "seconds"])


class NobodyWrites:
    """A writer that writes nothing: only edits are tried."""

    name = "nobody"

    def write(
        self, instruction: str, count: int, max_tokens: int, seed: int
    ) -> tuple[list[str], int]:
        return [], 0


def fitting(model: FrozenModel, entry: Entry, tokens: int) -> str:
    """The first words of an entry's text, `tokens` tokens at most."""
    words = entry.text.split()
    while len(words) > 1 and len(model.encode(" ".join(words))) > tokens:
        words.pop()
    return " ".join(words)


def distilled(
    model: FrozenModel, conditionings: dict[str, Any], distil_passages: int, **settings: Any
) -> TrainedMethod:
    """Soft prompts distilled from conditionings, none in company."""
    settings |= {"distil_passages": distil_passages, "company_size": 1}
    return train_method(model, "", conditionings=conditionings, **settings)


def fidelity(
    *,
    shared: Shared,
    texts: Annotated[int, "personas that are distilled"] = 10,
    kinds: Kinds = ["prefix", "embedding"],  # noqa: B006 - read only
    n_tokens: Lengths = [4, 8, 16, 32],  # noqa: B006
    max_steps: int = 200,
    passages: Passages = 256,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """Personas distilled as they are, all of one kind and length in a run."""
    data = TinytalkData(shared)
    model = data.model
    personas = {
        entry.name: " ".join(r.strip() for block in entry.blocks for r in block.responses) + "\n"
        for entry in light_entries(data.folder, texts)
    }
    text_tokens = round(fmean(len(model.encode(text)) for text in personas.values()))

    def case(kind: str, n_tokens: int) -> Row:
        settings = {"kind": kind, "n_tokens": n_tokens, "max_steps": max_steps, "seed": seed}
        trained = distilled(model, personas, passages, **settings)
        values = [
            conditioning_fidelity(model, text, trained.conditionings[name])
            for name, text in personas.items()
        ]
        return {
            "fidelity": str(interval(values)),
            "least": round(min(values), 3),
            "texts": len(values),
            "text tokens": text_tokens,
            "seconds": round(trained.seconds),
        }

    return measure(grid(kind=kinds, n_tokens=n_tokens), case, keep)


def codes(
    *,
    data: Corpus,
    kinds: Kinds = ["prefix", "embedding"],  # noqa: B006 - read only
    n_tokens: Lengths = [4, 8, 16, 32],  # noqa: B006
    max_steps: int = 200,
    passages: Passages = 256,
    attributed: Annotated[int, "passages of each genre"] = 100,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """The storyteller's codes distilled, and how often they still attribute a passage right."""
    model = FrozenModel.from_pretrained("storyteller")
    known = {name: code for name, code in codes_of(model).items() if name != "Quest"}
    held_out = read_passages(data, attributed, 8 * ATTRIBUTED)

    def case(kind: str, n_tokens: int) -> Row:
        tried = known
        if kind != "the codes":
            settings = {"kind": kind, "n_tokens": n_tokens, "max_steps": max_steps, "seed": seed}
            conditionings = {name: code.conditioning for name, code in known.items()}
            trained = distilled(model, conditionings, passages, **settings)
            tried = {name: Code(name, one) for name, one in trained.conditionings.items()}
        right = [
            right
            for genre, texts in held_out.items()
            for right in named_right(model, texts, genre, tried)
        ]
        return {"named right": round(fmean(right), 3), "passages": len(right)}

    cases = [{"kind": "the codes", "n_tokens": 1}, *grid(kind=kinds, n_tokens=n_tokens)]
    return measure(cases, case, keep)


if __name__ == "__main__":
    main(__doc__, search, lore, fidelity, codes)
