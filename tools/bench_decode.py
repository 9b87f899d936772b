"""Measures decoding side by side in one run: softlore's `write`, and transformers' `generate`.

Greedy, without soft prompts, the same model and the same tokens out (checked): one long turn, and
a story of many turns, which transformers reads from the start each time and softlore does not.
Then many texts at once without control vectors and with one for each. Ratios are printed beside
tokens a second; nothing is asserted about speed.

    python tools/bench_decode.py                     # the storyteller, and GPT-2-small's shape
    python tools/bench_decode.py smollm2             # other models
    python tools/bench_decode.py --quick             # a tiny model, to see that all of it runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from softlore import ControlVector, FrozenModel, runner_for, write
from softlore.decode import GenerationRequest
from softlore.decode.batch import RunningBatch
from softlore.decode.model_runner import TorchModelRunner
from softlore.model.tiny import byte_tokenizer, tiny_model

OPENING = "Once upon a time there was an old house by the sea, and in it lived"


def models(names: list[str], quick: bool) -> dict[str, FrozenModel]:
    if names:
        return {name: FrozenModel.from_pretrained(name) for name in names}
    if quick:
        return {"tiny": tiny_model("gpt2")}
    torch.manual_seed(0)
    shape = GPT2Config(bos_token_id=0, eos_token_id=0)
    return {
        "storyteller": FrozenModel.from_pretrained("storyteller"),
        "GPT-2 small, random": FrozenModel(GPT2LMHeadModel(shape), byte_tokenizer(), "gpt2-shape"),
    }


def theirs(model: FrozenModel, ids: list[int], count: int) -> list[int]:
    """New ids by transformers' generate."""
    given = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        out = model.hf.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()


def one_turn(model: FrozenModel, count: int) -> dict[str, Callable[[], list[int]]]:
    """The two ways of writing `count` tokens after an opening."""
    ids = model.bos + model.encode(OPENING)
    return {
        "transformers": lambda: theirs(model, ids, count),
        "softlore": lambda: write(model, OPENING, count, temperature=0).drained().ids,
    }


def many_turns(model: FrozenModel, turns: int, count: int) -> dict[str, Callable[[], list[int]]]:
    """A story in turns: a line of the writer's, then `count` tokens, again and again."""

    def told(read: Callable[[str], list[int]]) -> list[int]:
        text, found = OPENING, []
        for number in range(turns):
            text += f" {number}."
            new = read(text)
            text += model.decode(new, inside=True)
            found += new
        return found

    def with_cache() -> list[int]:
        runner = runner_for(model)  # its cache lives on from turn to turn
        return told(lambda t: write(runner, t, count, temperature=0).drained().ids)

    return {
        "transformers": lambda: told(lambda t: theirs(model, model.bos + model.encode(t), count)),
        "softlore": with_cache,
    }


def compared(ways: dict[str, Callable[[], list[int]]], repeats: int) -> dict[str, Any]:
    """Tokens a second of each way, the ratio, and whether both wrote the same."""
    ids = {name: way() for name, way in ways.items()}  # the first run warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    count = len(ids["transformers"])
    speed = {name: count / statistics.median(times) for name, times in seconds.items()}
    same = ids["softlore"] == ids["transformers"][: len(ids["softlore"])]
    return {
        **{name: round(value, 1) for name, value in speed.items()},
        "ratio": round(speed["softlore"] / speed["transformers"], 2),
        "same tokens": same and len(ids["softlore"]) == count,
    }


def many_at_once(model: FrozenModel, texts: int, count: int, steered: bool) -> Callable[[], None]:
    """Writes texts side by side, with a control vector each or without."""
    generator = torch.Generator().manual_seed(0)
    vectors = [
        ControlVector(f"v{i}", 0.01 * torch.randn(model.layers, model.width, generator=generator))
        for i in range(texts)
    ]

    def write_all() -> None:
        batch = RunningBatch(TorchModelRunner(model))
        for i, vector in enumerate(vectors):
            given = [(vector, 1.0)] if steered else []
            batch.add(GenerationRequest(OPENING, count, seed=i, vectors=given))
        while len(batch):
            batch.step()

    return write_all


def with_vectors(model: FrozenModel, texts: int, count: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of many texts at once without and with vectors, and the ratio."""
    ways = {steered: many_at_once(model, texts, count, steered) for steered in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats + 1):  # the first run warms up
        for steered, way in ways.items():
            start = time.process_time()
            way()
            seconds[steered].append(time.process_time() - start)
    without, steered = (texts * count / statistics.median(seconds[key][1:]) for key in ways)
    return {
        "without": round(without, 1),
        "with": round(steered, 1),
        "ratio": round(steered / without, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help="in place of the two")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few tokens")
    parser.add_argument("--repeats", type=int, default=3, help="runs timed, after a first one")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    chosen = models(options.models, options.quick)
    count, turns = (12, 3) if options.quick else (150, 12)
    rows = []
    print(f"{'model':<22}{'what':<14}{'transformers':>13}{'softlore':>10}{'ratio':>7}  same tokens")
    for name, model in chosen.items():
        for what, ways in (
            ("one turn", one_turn(model, count)),
            ("many turns", many_turns(model, turns, max(4, count // 5))),
        ):
            row = compared(ways, options.repeats)
            rows.append({"model": name, "what": what, **row})
            print(
                f"{name:<22}{what:<14}{row['transformers']:>9} t/s{row['softlore']:>7} t/s"
                f"{row['ratio']:>6}×  {row['same tokens']}",
                flush=True,
            )
    texts = 4 if options.quick else 64
    print(f"\n{'model':<22}{'texts at once':<14}{'no vectors':>13}{'one each':>10}{'ratio':>7}")
    for name, model in chosen.items():
        row = with_vectors(model, texts, 8 if options.quick else 40, options.repeats)
        rows.append({"model": name, "what": f"{texts} at once", **row})
        print(
            f"{name:<22}{texts:<14}{row['without']:>9} t/s{row['with']:>7} t/s{row['ratio']:>6}×",
            flush=True,
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
