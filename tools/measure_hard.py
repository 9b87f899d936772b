"""Measures of hard prompts: the figures of docs/results.md, one command each.

    python tools/measure_hard.py search --shared DIR     # Emma: each method, and its baselines
    python tools/measure_hard.py fidelity --shared DIR   # ten texts into 4 to 32 soft tokens
    python tools/measure_hard.py codes --data runs/corpus    # codes of the storyteller distilled

DIR has `models/tinytalk-3m` and `data/`; `--data` is what ``tools/corpus.py`` wrote.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated, Any

from evaluate_storyteller import ATTRIBUTED, read_passages
from measure import HELD_OUT, TinytalkData, light_entries, merge_blocks
from measure_codes import named_right
from measuring import Corpus, Keep, Kinds, Seed, Shared, main, measure
from softlore import FrozenModel
from softlore.compare.harness import Row, grid, interval
from softlore.compare.methods import TrainedMethod, train_method
from softlore.control import Code, codes_of
from softlore.control.search import METHODS, Scorer, Searcher
from softlore.measure import recall
from softlore.measure.conditioning import conditioning_fidelity

HAND_WRITTEN = " Emma is a cold, classy British cyborg assassin in a black pantsuit.\n"
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
    main(__doc__, search, fidelity, codes)
