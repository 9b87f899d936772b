"""Trains on one GPU for a few minutes, and writes seconds, share of the peak, memory and the ratio
to PEFT as JSON. Run it by tools/gpu_check.sh, which sets the environment up.

Parts, each in the report as soon as it is done:

- `demo`: the demo's lorebook on SmolLM2 (or, where that can't be had, random weights in its shape);
- `lorebook`: 64 entries in company on random weights in the shape of a Llama of 1B, in bfloat16;
- `peft`: one update with nine pairs behind filler on the same model, by softlore and by PEFT;
- `quantized`: three entries on random weights in the shape of a Llama of 7B, saved as a folder,
  loaded in nf4 and trained where no more than 24 GB can be had, beside what the dry run foretells.

Shares of the peak are by arithmetic: 4 FLOPs for each weight of the body and token that is run
(forward, and backward to activations only), and for each weight of the output layer and row with a
loss, over the seconds; beside a large matrix product on the same card, and the maker's figure.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench import LATE, matmul_peak, measure_update, peak_memory, reset_peak
from softlore import demo
from softlore.errors import SoftloreError
from softlore.lore import Entry, Lorebook
from softlore.measure import evaluate
from softlore.model import FrozenModel
from softlore.model.loading import load_tokenizer
from softlore.model.memory import total_memory
from softlore.model.shapes import weight_bytes
from softlore.model.unloaded import UnloadedModel
from softlore.settings import TrainingConfig
from softlore.tune import Execution, TrainingBatch, WorldInfoTrainer
from softlore.tune.forecast import forecast
from softlore.tune.training_data import draw_batch

# Dense bfloat16 products, FLOP/s, by the makers' data sheets; the name of a card contains the key.
DATA_SHEETS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "A10G": 70e12, "4090": 165e12, "3090": 71e12, "T4": 65e12,
}  # fmt: skip
SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
    "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_1B = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
    "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_7B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 8192,
    "max_position_embeddings": 1024,
}  # fmt: skip
PARTS = ("demo", "lorebook", "peft", "quantized")
CARD = 24 << 30  # bytes
Report = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    demo_seconds: float = 90.0
    demo_shape: dict[str, int] | None = None  # None: SmolLM2 itself
    demo_entries: int = 7
    lorebook_seconds: float = 120.0
    lorebook_shape: dict[str, int] | None = None  # None: 1B
    lorebook_entries: int = 64
    fillers: Sequence[int] = (0, 128, 512, 2000)
    quantized_seconds: float = 60.0
    quantized_shape: dict[str, int] | None = None  # None: 7B
    quantized_entries: int = 3
    matmul: int = 8192
    passages: int = 32  # of the teacher, for each entry: enough for a few minutes of updates


QUICK = Sizes(0.5, TINY, 2, 0.5, TINY, 3, (0, 16), 0.5, TINY, 1, 256, 4)


def random_model(shape: dict[str, int], dtype: str, device: str) -> FrozenModel:
    """Random weights in a shape of Llama, with the storyteller's tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**{"tie_word_embeddings": True} | shape)
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return FrozenModel(hf, load_tokenizer("storyteller"), "random")


def flops_of(model: FrozenModel, batch: TrainingBatch) -> float:
    """What an update needs, without attention's products, masked work and recomputation."""
    embedding = model.hf.get_input_embeddings().weight
    body = sum(p.numel() for p in model.hf.get_decoder().parameters()) - embedding.numel()
    rows = sum(len(term.target) for term in batch.terms)
    return 4.0 * (body * batch.tokens + embedding.numel() * rows)


def train(
    model: FrozenModel,
    entries: list[Entry],
    seconds: float,
    passages: int,
    peaks: Report,
    memory: int | None = None,
) -> Report:
    """Trains entries in company with the defaults, and reports what it took.

    Args:
        memory: bytes that may be used; None: all of the device.
    """
    before = reset_peak()
    start = time.monotonic()
    trainer: WorldInfoTrainer[Any] = WorldInfoTrainer(
        model, entries=entries, distil_passages=passages, execution=Execution(seconds, memory)
    )
    trainer.prepare()
    prepared = time.monotonic()
    prompts = trainer.train()
    ended = time.monotonic()
    an_update = (ended - prepared) / max(1, trainer.step)
    batches = _some_batches(trainer)
    flops = fmean(flops_of(model, batch) for batch in batches)
    return {
        "prompts": prompts,
        "entries": len(entries),
        "preparing_seconds": prepared - start,
        "training_seconds": ended - prepared,
        "updates": trainer.step,
        "seconds_per_update": an_update,
        "seconds_per_update_and_entry": an_update / len(entries),
        "tokens_per_update": fmean(batch.tokens for batch in batches),
        "teraflops": flops / an_update / 1e12,
        "share_of_peak": {name: flops / an_update / peak for name, peak in peaks.items()},
        "peak_megabytes": peak_memory() / 2**20,
        "added_megabytes": (peak_memory() - before) / 2**20,
    }


def _some_batches(trainer: WorldInfoTrainer[Any]) -> list[TrainingBatch]:
    """The batches of the first updates, to count what is in them."""
    assert trainer.data is not None
    values = {name: trainable.value() for name, trainable in trainer.trainables.items()}
    return [
        draw_batch(trainer.model, trainer.config, trainer.data, values, list(values), step)
        for step in range(min(8, max(1, trainer.step)))
    ]


# the parts -------------------------------------------------------------------------------------


def check_machine(sizes: Sizes, dtype: str, device: str) -> Report:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    peaks = {"matrix product here": matmul_peak(dtype, device, sizes.matmul)}
    listed = next((peak for key, peak in DATA_SHEETS.items() if key in name), None)
    peaks |= {"data sheet": listed} if listed else {}
    return {"device": name, "torch": torch.__version__, "dtype": dtype, "peaks": peaks}


def check_demo(sizes: Sizes, model_name: str, dtype: str, device: str, peaks: Report) -> Report:
    start = time.monotonic()
    model, weights = _demo_model(sizes, model_name, dtype, device)
    loaded = time.monotonic() - start
    book = Lorebook.load(demo.lorebook_path())
    book = book.model_copy(update={"entries": book.entries[: sizes.demo_entries]})
    report = train(model, book.entries, sizes.demo_seconds, sizes.passages, peaks)
    prompts = report.pop("prompts")
    evaluation = evaluate(model, book, prompts, stories=0, distances=(0, 64))
    figures = {
        name: {
            "recall": measures.recall,
            "held_out": measures.held_out,
            "drift": measures.drift,
            "fidelity": measures.fidelity,
        }
        for name, measures in evaluation.total().items()
        if measures
    }
    return {"weights": weights, "loading_seconds": loaded, **report, "measures": figures}


def _demo_model(sizes: Sizes, name: str, dtype: str, device: str) -> tuple[FrozenModel, str]:
    """The model that is asked for; random weights in SmolLM2's shape where it can't be had."""
    if sizes.demo_shape is None:
        try:
            return FrozenModel.from_pretrained(name, dtype=dtype, device=device), name
        except SoftloreError as error:
            print(f"{error}; random weights instead", flush=True)
    return random_model(sizes.demo_shape or SMOLLM2, dtype, device), "random"


def check_lorebook(sizes: Sizes, model: FrozenModel, peaks: Report) -> Report:
    known = Lorebook.load(demo.lorebook_path()).entries
    entries = [
        (entry := known[i % len(known)]).model_copy(update={"name": f"{entry.name} {i}"})
        for i in range(sizes.lorebook_entries)
    ]
    report = train(model, entries, sizes.lorebook_seconds, sizes.passages, peaks)
    del report["prompts"]
    return report


def check_peft(sizes: Sizes, model: FrozenModel) -> list[Report]:
    """An update by softlore and by PEFT at each length of filler, and the ratios of PEFT."""
    rows = []
    for filler in sizes.fillers:
        late, ours, peft = (
            measure_update(model.hf, way, filler, 3) for way in (LATE, "softlore, classic", "PEFT")
        )
        rows.append(
            {
                "filler": filler,
                "softlore, late": asdict(late),
                "softlore": asdict(ours),
                "PEFT": asdict(peft),
                "times_seconds": peft.seconds / late.seconds,
                "times_memory": peft.megabytes / max(1.0, late.megabytes),
            }
        )
    return rows


def check_quantized(sizes: Sizes, dtype: str, device: str, peaks: Report) -> Report:
    """Trains a large model in nf4 on a card of 24 GB, or on what there is, cut to that."""
    config, entries = TrainingConfig(), Lorebook.load(demo.lorebook_path()).entries
    entries = entries[: sizes.quantized_entries]
    quantize = "nf4" if device == "cuda" else None
    with tempfile.TemporaryDirectory() as folder:
        made = random_model(sizes.quantized_shape or LLAMA_7B, dtype, device)
        made.hf.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        del made
        planned = UnloadedModel.of(folder, getattr(torch, dtype))
        foretold = forecast(planned, entries, config, quantize)
        with only(CARD, device):
            start = time.monotonic()
            model = FrozenModel.from_pretrained(folder, dtype, device, quantize)
            loaded = time.monotonic() - start
            report = train(model, entries, sizes.quantized_seconds, sizes.passages, peaks, CARD)
    # Operations can't be counted from weights that are packed.
    report = {k: v for k, v in report.items() if k not in ("prompts", "teraflops", "share_of_peak")}
    return {
        "parameters": foretold.parameters,
        "weights_megabytes": weight_bytes(model.hf) / 2**20,
        "foretold": {
            "weights_megabytes": foretold.weights / 2**20,
            "least_megabytes": foretold.least_bytes / 2**20,
            "whole_update_megabytes": (
                foretold.weights + foretold.workspace + foretold.update_bytes
            ) / 2**20,
            "on_24_GB": foretold.cards()[24],
        },
        "loading_seconds": loaded,
        **report,
    }  # fmt: skip


@contextlib.contextmanager
def only(memory: int, device: str) -> Iterator[None]:
    """Lets this process have no more of a GPU's memory: a larger card behaves as a smaller one."""
    if device != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(memory / total_memory(torch.device(device)))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def run(
    sizes: Sizes, model_name: str, device: str, path: Path, parts: Sequence[str] = PARTS
) -> Report:
    """These parts; the report is written after each."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    report: Report = {}

    def add(name: str, part: Callable[[], Any]) -> Any:
        start = time.monotonic()
        report[name] = part()
        report.setdefault("seconds", {})[name] = time.monotonic() - start
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(report[name])}", flush=True)
        return report[name]

    peaks = add("machine", lambda: check_machine(sizes, dtype, device))["peaks"]
    if "demo" in parts:
        add("demo", lambda: check_demo(sizes, model_name, dtype, device, peaks))
    if "lorebook" in parts or "peft" in parts:
        model = random_model(sizes.lorebook_shape or LLAMA_1B, dtype, device)
        if "lorebook" in parts:
            add("lorebook", lambda: check_lorebook(sizes, model, peaks))
        if "peft" in parts:
            add("peft", lambda: check_peft(sizes, model))
        del model
    if "quantized" in parts:
        add("quantized", lambda: check_quantized(sizes, dtype, device, peaks))
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="smollm2", help="of the demo: name, folder or GGUF file")
    parser.add_argument("--share", type=float, default=1.0, help="of the seconds of each training")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the report")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; expected one; use --device cpu --quick to try the script")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu_check.json"
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(
        sizes,
        demo_seconds=sizes.demo_seconds * options.share,
        lorebook_seconds=sizes.lorebook_seconds * options.share,
        quantized_seconds=sizes.quantized_seconds * options.share,
    )
    run(sizes, options.model, options.device, path, options.parts)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
