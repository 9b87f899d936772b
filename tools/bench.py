"""Measures training speed and memory side by side in one run: softlore, PEFT, one pair at a time.

Every way makes the same update: the gradient of the mean response loss of nine call/response pairs
with respect to twenty soft tokens, behind filler. These are embedding rows before the filler; for
"softlore, late", which is softlore's default, a prefix that only the pairs see, behind filler that
was read before the first update. Each runs in a process of its own, so that its peak memory is its
own. Ratios are printed beside seconds; nothing is asserted.

    python tools/bench.py                # GPT-2-small shape, filler 0/128/512, float32 and bfloat16
    python tools/bench.py --filler 128 2000 --ways "softlore, late" "softlore, classic"
    python tools/bench.py --quick        # a tiny model, to see that all of it runs
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAIRS, CALL, RESPONSE, SOFT = 9, 6, 14, 20
LATE = "softlore, late"
WAYS = (LATE, "softlore, classic", "PEFT", "one pair at a time")


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    way: str
    filler: int
    dtype: str
    tiny: bool
    repeats: int


@dataclass(frozen=True)
class Result:
    """Median seconds of an update, peak memory it adds, and the gradient's norm as a check."""

    seconds: float
    megabytes: float
    loss: float
    gradient: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny model, short filler")
    parser.add_argument("--repeats", type=int, default=3, help="updates timed, after a first one")
    parser.add_argument("--filler", type=int, nargs="*", help="filler lengths")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="only these")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--entries", type=int, nargs="*", help="entries at once")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    fillers = options.filler or ([0, 16] if options.quick else [0, 128, 512])
    report = {"updates": [], "entries": []}
    for dtype in options.dtypes:
        peak = _apart(matmul_peak, dtype)
        print(f"\n{dtype}: matmul peak here {peak / 1e12:.2f} TFLOP/s")
        conditioning = f"{'filler':>6}  {'way':<20}{'seconds':>9}{'times ours':>11}{'peak MB':>9}"
        print(f"{conditioning}{'times ours':>11}{'of peak':>9}{'loss':>9}")
        for filler in fillers:
            report["updates"] += _compare(filler, dtype, options, peak)
    counts = options.entries or ([1, 2] if options.quick else [1, 8, 64])
    print(f"\nentries at once, prefix kind, float32\n{'entries':>7}{'s an entry and update':>23}")
    for count in counts:
        seconds = _apart(entries_at_once, count, options.quick)
        print(f"{count:>7}{seconds:>23.3f}")
        report["entries"].append({"entries": count, "seconds_per_entry": seconds})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


def _compare(filler: int, dtype: str, options: Any, peak: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ours: Result | None = None
    for way in options.ways:
        result = _apart(measure, Case(way, filler, dtype, options.quick, options.repeats))
        ours = ours or result
        run = 0 if way == LATE else filler
        share = useful_flops(run, options.quick) / result.seconds / peak
        print(
            f"{filler:>6}  {way:<20}{result.seconds:>9.3f}{result.seconds / ours.seconds:>10.1f}×"
            f"{result.megabytes:>9.0f}{result.megabytes / max(1, ours.megabytes):>10.1f}×"
            f"{share:>9.0%}{result.loss:>9.4f}",
            flush=True,
        )
        rows.append({"way": way, "filler": filler, "dtype": dtype} | vars(result))
    return rows


def useful_flops(filler: int, tiny: bool) -> float:
    """What the tree needs, with so much filler to run.

    4·N·(trunk + branches) + 4·h·V·responses: weights are frozen, so it is 4N a token, not 6N.
    """
    config = _config(tiny)
    body = 12 * config.n_layer * config.n_embd**2
    tokens = SOFT + filler + PAIRS * (CALL + RESPONSE)
    return 4.0 * body * tokens + 4.0 * config.n_embd * config.vocab_size * PAIRS * RESPONSE


def _quiet() -> None:
    import os
    import warnings

    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1, _quiet) as pool:
        return pool.apply(function, arguments)


def matmul_peak(dtype: str, device: str = "cpu", n: int = 2048) -> float:
    """FLOP/s of a large square matrix product."""
    import torch

    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = math.inf
    for _ in range(6):  # the first warms up, and is the slowest
        start = time.perf_counter()
        float((a @ b)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def _config(tiny: bool) -> Any:
    from transformers import GPT2Config

    ends = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}

    if tiny:
        return GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=257, n_positions=2112, **ends)
    return GPT2Config(n_positions=2112, **ends)


def _model(tiny: bool, dtype: str) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(_config(tiny)).to(getattr(torch, dtype)).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)


def _data(vocabulary: int, filler: int) -> tuple[list[int], list[list[int]]]:
    import torch

    drawn = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=drawn).tolist()

    return ids(filler), [ids(CALL + RESPONSE) for _ in range(PAIRS)]


def measure(case: Case) -> Result:
    """Times one way's update and the memory it adds, on a model of GPT-2's shape."""
    return measure_update(_model(case.tiny, case.dtype), case.way, case.filler, case.repeats)


def measure_update(model: Any, way: str, filler_tokens: int, repeats: int) -> Result:
    """Times one way's update, and the memory it adds, on any frozen transformers model."""
    import torch

    filler, pairs = _data(model.config.vocab_size, filler_tokens)
    ways = dict(zip(WAYS, (_late, _ours, _peft, _loop), strict=True))
    update, parameter = ways[way](model, filler, pairs)
    gc.collect()
    before = reset_peak()
    seconds, loss = [], 0.0
    for _ in range(repeats + 1):
        parameter.grad = None
        start = time.perf_counter()
        loss = update()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    megabytes = (peak_memory() - before) / 2**20
    return Result(statistics.median(seconds[1:]), megabytes, loss, float(parameter.grad.norm()))


def _soft(model: Any) -> Any:
    import torch

    rows = model.get_input_embeddings().weight[:SOFT].detach().float()
    return torch.nn.Parameter(rows.clone())


def _ours(model: Any, filler: list[int], pairs: list[list[int]]) -> tuple[Any, Any]:
    from softlore.context import Node, Tree
    from softlore.model import FrozenModel
    from softlore.model.tiny import byte_tokenizer

    frozen, soft = FrozenModel(model, byte_tokenizer()), _soft(model)
    nodes = [Node(soft)] + ([Node(filler, 0)] if filler else [])
    return _update(frozen, Tree(nodes), pairs), soft


def _late(model: Any, filler: list[int], pairs: list[list[int]]) -> tuple[Any, Any]:
    """A prefix that only the pairs see, behind filler that was read before training."""
    import torch

    from softlore.context import Node, Tree, splice
    from softlore.model import FrozenModel
    from softlore.model.tiny import byte_tokenizer

    frozen = FrozenModel(model, byte_tokenizer())
    prefix = torch.nn.Parameter(frozen.keys_values(list(range(SOFT))))
    tree = Tree([], [prefix])
    if filler:
        spliced = splice(frozen, [Tree([Node(filler)], at=SOFT)])
        with torch.no_grad():
            _, kept = frozen.hidden(spliced.embeds, spliced.positions, spliced.visible, keep=True)
        tree = tree.then(spliced.after(kept), sees=())
    return _update(frozen, tree, pairs), prefix


def _update(frozen: Any, trunk: Any, pairs: list[list[int]]) -> Callable[[], float]:
    from softlore.tune import TrainingBatch, run
    from softlore.tune.examples import CallResponse
    from softlore.tune.losses import loss_term

    owners = ("",)
    examples = [CallResponse(pair, CALL) for pair in pairs]

    def update() -> float:
        batch = TrainingBatch()
        terms = [loss_term(example, owners, "response", 1 / PAIRS) for example in examples]
        branches = [example.branch(trunk.end) for example in examples]
        batch.add(trunk, list(zip(branches, terms, strict=True)))
        return run(frozen, batch)[owners, "response"]

    return update


def _peft(model: Any, filler: list[int], pairs: list[list[int]]) -> tuple[Any, Any]:
    import torch
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=SOFT)
    )
    parameter = next(p for p in tuned.parameters() if p.requires_grad)
    parameter.data.copy_(_soft(model).data)
    ids = torch.tensor([filler + pair for pair in pairs], device=model.device)
    labels = ids.clone()
    labels[:, : len(filler) + CALL] = -100

    def update() -> float:
        loss = tuned(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        return float(loss.detach())

    return update, parameter


def _loop(model: Any, filler: list[int], pairs: list[list[int]]) -> tuple[Any, Any]:
    """The way of mkultra: a pair at a time, logits at every position."""
    import torch

    soft = _soft(model)
    embed = model.get_input_embeddings()

    def update() -> float:
        total = 0.0
        for pair in pairs:
            ids = torch.tensor([filler + pair], device=model.device)
            rows = torch.cat([soft.to(model.dtype)[None], embed(ids)], dim=1)
            masked = torch.full((1, SOFT + len(filler) + CALL), -100, device=model.device)
            labels = torch.cat([masked, ids[:, len(filler) + CALL :]], dim=1)
            loss = model(inputs_embeds=rows, labels=labels).loss / PAIRS
            loss.backward()
            total += float(loss.detach())
        return total

    return update, soft


def reset_peak() -> float:
    """Begins the peak of memory anew; returns the bytes in use: of the GPU if there is one."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    try:  # Linux: begin the high-water mark anew
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass
    return float(psutil.Process().memory_info().rss)


def peak_memory() -> float:
    """The most bytes in use since `reset_peak`: of the GPU if there is one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def entries_at_once(count: int, tiny: bool) -> float:
    """Seconds an entry and update, for a set of `count` entries in company."""
    from softlore.lore import Entry
    from softlore.model import FrozenModel
    from softlore.model.tiny import byte_tokenizer
    from softlore.tune import WorldInfoTrainer
    from softlore.tune.objective import run_in_parts

    model = FrozenModel(_model(tiny, "float32"), byte_tokenizer())
    entries = [
        Entry(
            name=f"entry {i}",
            blocks=[(f"Fact {j} of {i}:", [f" it is {i * j} of them"]) for j in range(4)],
        )
        for i in range(count)
    ]
    trainer = WorldInfoTrainer(
        model,
        entries=entries,
        n_tokens=10,
        story="A story of old. " * 40,
        max_spacing=0,  # so that every count of entries has trunks of one length
        company_size=1,
    )
    trainer.prepare()
    assert trainer.plan is not None
    updates = max(1, 8 // count)
    for number in range(updates + 1):
        if number == 1:  # the first one warms up
            start = time.perf_counter()
        run_in_parts(model, trainer.draw(), trainer.plan)
    return (time.perf_counter() - start) / updates / count


if __name__ == "__main__":
    main()
