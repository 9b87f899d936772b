"""The same soft prompts on a model in transformers and on GGUF files of it, side by side.

    python tools/measure_gguf.py runs/gguf/storyteller-f16.gguf runs/gguf/storyteller-Q4_K.gguf \\
        --prompts runs/gguf/prefix --prompts runs/gguf/embedding

Errors are of log-probabilities against transformers in float32, after plain text and after prompts:
compare them, since the file's rounding alone makes the first. Recall is nats a token of the
responses (lower is better), drift KL in nats a token to the same file without the prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from measuring import main, measure
from softlore import FrozenModel, Lorebook, SoftPrompt, demo
from softlore.compare.harness import Row, grid
from softlore.context.compose import ContextLike
from softlore.decode import ModelRunner, TorchModelRunner, sample_passages
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.lore import Block
from softlore.lore.study import OPENERS
from softlore.measure.score import trunk
from softlore.model.gguf import CacheTypes, GGUFModel
from softlore.prompts import PromptLibrary

SEED = 7_000_000


def logprobs(runner: ModelRunner, conditioning: ContextLike, text: Sequence[int]) -> Tensor:
    """`[len(text), vocab]`: for each token of a text but the first, after a conditioning."""
    tree = trunk(runner.model, conditioning).then(list(text[:1]))
    sequence = runner.start(tree)
    while sequence.logits is None:
        runner.prefill([sequence], 512)
    rows = [sequence.logits[None]]
    rows += [runner.step([sequence], [token]) for token in text[1:-1]]
    runner.remove(sequence)
    return torch.cat(rows).log_softmax(1)


def recall(runner: ModelRunner, conditioning: ContextLike, blocks: Sequence[Block]) -> float:
    losses = []
    for block in blocks:
        call = runner.model.encode(block.call)
        for response in block.responses:
            ids = runner.model.encode(response, inside=True)
            predicted = logprobs(runner, conditioning, [*call, *ids])[len(call) - 1 :]
            losses.append(float(-predicted.gather(1, torch.tensor(ids)[:, None]).mean()))
    return fmean(losses)


def drift(
    runner: ModelRunner, conditioning: ContextLike, passages: Sequence[Sequence[int]]
) -> float:
    return fmean(_kl(logprobs(runner, "", p), logprobs(runner, conditioning, p)) for p in passages)


def _kl(teacher: Tensor, student: Tensor) -> float:
    return float((teacher.exp() * (teacher - student)).sum(1).mean())


def measure_model(
    runner: ModelRunner,
    book: Lorebook,
    prompts: dict[str, dict[str, SoftPrompt]],
    passages: Sequence[list[int]],
    reference: dict[tuple[str, str, int], Tensor],
) -> Iterator[Row]:
    """A row for each kind of prompt.

    Args:
        reference: log-probabilities by kind, entry and passage; the first model, transformers,
            fills it, and the others are compared with it.
    """
    for kind, of_kind in {"none": {}, **prompts}.items():
        conditionings = [(of_kind.get(entry.name, ""), entry) for entry in book]
        errors, divergences = [], []
        for conditioning, entry in conditionings:
            for number, passage in enumerate(passages[:6]):
                predicted = logprobs(runner, conditioning, passage)
                expected = reference.setdefault((kind, entry.name, number), predicted)
                errors.append(float((predicted - expected).abs().mean()))
                divergences.append(_kl(expected, predicted))
        yield {
            "prompt": kind,
            "error": round(fmean(errors), 4),
            "kl": round(fmean(divergences), 5),
            "recall": round(fmean(recall(runner, c, e.blocks) for c, e in conditionings), 3),
            "held_out": round(fmean(recall(runner, c, e.held_out) for c, e in conditionings), 3),
            "drift": round(fmean(drift(runner, c, passages) for c, _ in conditionings), 3),
        }


def gguf(
    files: list[Path],
    /,
    *,
    model: str = "storyteller",
    lorebook: Path | None = None,
    prompts: Annotated[list[Path], "folders, one for each kind"] = [],  # noqa: B006 - read only
    cache_type: Annotated[list[str], "of keys and values"] = ["f16"],  # noqa: B006
    json: Annotated[Path | None, "write the rows here"] = None,
) -> None:
    """Errors, recall and drift on transformers and on each file with each cache type."""
    frozen = FrozenModel.from_pretrained(model, dtype="float32", device="cpu")
    book = Lorebook.load(lorebook or demo.lorebook_path())
    by_kind = {}
    for folder in prompts:
        library = PromptLibrary(folder)
        kind = next(iter(library.values())).kind
        by_kind[kind] = {entry.name: library[entry.name] for entry in book}
    passages = sample_passages(frozen, trunk(frozen, ""), OPENERS, 12, 48, SEED)
    runners: dict[str, Callable[[], ModelRunner]] = {
        "transformers, float32": lambda: TorchModelRunner(frozen)
    }
    for file, cache in itertools.product(files, cache_type):
        runners[f"{file.stem}, cache {cache}"] = partial(_llama, file, cache)
    reference: dict[tuple[str, str, int], Tensor] = {}

    def case(run_by: str) -> list[Row]:
        runner = runners[run_by]()
        rows = list(measure_model(runner, book, by_kind, passages, reference))
        runner.close()
        return rows

    rows = measure(grid(run_by=runners), case)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if json:
        json.write_text(dumps(rows, indent=1))


def _llama(file: Path, kind: str) -> ModelRunner:
    return LlamaCppModelRunner(GGUFModel(file), 1, CacheTypes(kind, kind))


if __name__ == "__main__":
    main(__doc__, gguf)
