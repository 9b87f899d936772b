"""The same soft prompts on a model as it was trained, and on GGUF files of it, side by side.

    python tools/measure_gguf.py --prompts runs/gguf/prefix --prompts runs/gguf/embedding \\
        runs/gguf/storyteller-f16.gguf runs/gguf/storyteller-Q4_K.gguf

Errors are of log-probabilities against transformers in float32, after plain text and after prompts:
what a prompt adds to what the file's own rounding makes is what counts. Recall is nats a token of
the responses (lower is better), drift KL in nats a token to the same file without the prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from softlore import FrozenModel, Lorebook, SoftPrompt, demo
from softlore.decode import OPENERS, ModelRunner, TorchModelRunner, sample_passages
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.lore import Block
from softlore.measure.score import trunk
from softlore.model.gguf import CacheTypes, GGUFModel
from softlore.prompts import PromptLibrary

Head = SoftPrompt | str
SEED = 7_000_000


def logprobs(runner: ModelRunner, conditioning: Head, text: Sequence[int]) -> Tensor:
    """`[len(text), vocab]`: after a head and each token of a text but the last, what comes next."""
    tree = trunk(runner.model, conditioning).then(list(text[:1]))
    sequence = runner.start(tree)
    while sequence.logits is None:
        runner.prefill([sequence], 512)
    rows = [sequence.logits[None]]
    rows += [runner.step([sequence], [token]) for token in text[1:-1]]
    runner.remove(sequence)
    return torch.cat(rows).log_softmax(1)


def recall(runner: ModelRunner, conditioning: Head, blocks: Sequence[Block]) -> float:
    losses = []
    for block in blocks:
        call = runner.model.encode(block.call)
        for response in block.responses:
            ids = runner.model.encode(response, inside=True)
            told = logprobs(runner, conditioning, [*call, *ids])[len(call) - 1 :]
            losses.append(float(-told.gather(1, torch.tensor(ids)[:, None]).mean()))
    return mean(losses)


def drift(runner: ModelRunner, conditioning: Head, passages: Sequence[Sequence[int]]) -> float:
    return mean(_kl(logprobs(runner, "", p), logprobs(runner, conditioning, p)) for p in passages)


def _kl(teacher: Tensor, student: Tensor) -> float:
    return float((teacher.exp() * (teacher - student)).sum(1).mean())


def measure(
    runner: ModelRunner,
    book: Lorebook,
    prompts: dict[str, dict[str, SoftPrompt]],
    passages: Sequence[list[int]],
    whole: dict[Any, Tensor],
) -> list[dict[str, Any]]:
    """A row a kind of prompt; `whole` takes, or gives, what transformers says of each passage."""
    rows = []
    for kind, of_kind in {"none": {}, **prompts}.items():
        conditionings = [(entry, of_kind.get(entry.name, "")) for entry in book]
        errors = []
        for entry, conditioning in conditionings:
            for number, passage in enumerate(passages[:6]):
                told = logprobs(runner, conditioning, passage)
                known = whole.setdefault((kind, entry.name, number), told)
                errors.append((float((told - known).abs().mean()), _kl(known, told)))
        rows.append(
            {
                "prompt": kind,
                "error": round(mean(one for one, _ in errors), 4),
                "kl": round(mean(two for _, two in errors), 5),
                "recall": round(mean(recall(runner, h, e.blocks) for e, h in conditionings), 3),
                "held_out": round(mean(recall(runner, h, e.held_out) for e, h in conditionings), 3),
                "drift": round(mean(drift(runner, h, passages) for _, h in conditionings), 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="storyteller")
    parser.add_argument("--lorebook", type=Path, default=demo.lorebook_path())
    parser.add_argument("--prompts", action="append", type=Path, default=[])
    parser.add_argument("--cache-type", action="append", help="default: f16")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = FrozenModel.from_pretrained(given.model, dtype="float32", device="cpu")
    book = Lorebook.load(given.lorebook)
    prompts = {}
    for folder in given.prompts:
        library = PromptLibrary(folder)
        kind = next(iter(library.values())).kind
        prompts[kind] = {entry.name: library[entry.name] for entry in book}
    passages = sample_passages(model, trunk(model, ""), OPENERS, 12, 48, SEED)
    runners: dict[str, Callable[[], ModelRunner]] = {
        "transformers, float32": lambda: TorchModelRunner(model)
    }
    for file in given.files:
        for kind in given.cache_type or ["f16"]:
            runners[f"{file.stem}, cache {kind}"] = _llama(file, kind)
    found, whole = [], {}
    for name, make in runners.items():
        runner = make()
        found += [
            {"run by": name, **row} for row in measure(runner, book, prompts, passages, whole)
        ]
        runner.close()
    columns = ["run by", "prompt", "error", "kl", "recall", "held_out", "drift"]
    table = Table(*columns)
    for row in found:
        table.add_row(*(str(row[one]) for one in columns))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def _llama(file: Path, kind: str) -> Callable[[], ModelRunner]:
    return lambda: LlamaCppModelRunner(GGUFModel(file), 1, CacheTypes(kind, kind))


if __name__ == "__main__":
    main()
