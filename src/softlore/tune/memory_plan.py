"""How an update is run: tree form, and how many tokens at once fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from softlore.context import TreeBatch, TreeLayout
from softlore.model import FrozenModel
from softlore.tune.objective import Losses, TrainingBatch, run

SHARE = 0.5  # of the memory that a step's activations may take
# Tokens; below, one pass is quicker than two, however much it masks. So many keep a processor
# busy: trunks are put together up to there, and what is more only leaves its cache.
WORTH_A_PASS = 1024


@dataclass(frozen=True)
class MemoryPlan:
    """Choices made once, kept in checkpoints so that a resumed run makes the same sums.

    Attributes:
        tokens_at_once: most tokens in one forward and backward.
        bytes_per_token: what one token's activations were measured to take.
    """

    tokens_at_once: int
    bytes_per_token: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def measure_memory_plan(
    model: FrozenModel, batch: TrainingBatch, memory: int | None = None
) -> MemoryPlan:
    """Measures a step's activations on the first trunk and sees how many tokens fit.

    What autograd keeps is counted exactly, so the result is the same on every run on a machine.

    Args:
        memory: bytes to share; None: all that this machine (its GPU, if the model is there) has.
    """
    first = _part(batch, 0, 1)
    kept = count_saved_bytes(lambda: run(model, first))
    each = max(1, kept // max(1, first.tokens))
    return MemoryPlan(max(256, int(SHARE * (memory or machine_memory(model))) // each), each)


def count_saved_bytes(step: Callable[[], Any]) -> int:
    """Bytes of all distinct tensors that autograd keeps for the backward pass of `step`."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def machine_memory(model: FrozenModel) -> int:
    """Bytes that the machine has, or the GPU that the model is on."""
    if model.device.type == "cuda":
        return int(torch.cuda.get_device_properties(model.device).total_memory)
    return int(psutil.virtual_memory().total)


def run_in_parts(model: FrozenModel, batch: TrainingBatch, plan: MemoryPlan) -> Losses:
    """`objective.run`, in parts that fit: whole trunks together, or one trunk's leaves in parts."""
    losses: Losses = {}
    most = plan.tokens_at_once
    if model.device.type == "cpu":
        most = min(most, WORTH_A_PASS)
    for part in _parts(batch, most):
        form, micro_batch = choose_layout(part.branchings, plan.tokens_at_once)
        losses |= run(model, part, form, micro_batch)
    return losses


def choose_layout(branchings: list[TreeBatch], most: int) -> tuple[TreeLayout, int | None]:
    """Packed while its mask is mostly seen; else the trunk once, and as many leaves as fit.

    A packed row looks at every pair of its tokens, and hides most where many branches stand side
    by side. Running the trunk apart costs a second pass, which pays from `WORTH_A_PASS` tokens on.
    """
    trunks = [b.trunk.length for b in branchings]
    leaves = [[len(leaf.ids) for leaf in b.leaves] for b in branchings]
    tokens = sum(trunks) + sum(map(sum, leaves))
    longest_row = max(t + sum(ls) for t, ls in zip(trunks, leaves, strict=True))
    packed = len(branchings) * longest_row**2
    apart = sum(t * t + sum(n * (t + n) for n in ls) for t, ls in zip(trunks, leaves, strict=True))
    if tokens <= most and (tokens < WORTH_A_PASS or packed <= 3 * apart):
        return "packed", None
    return "expanded", max(1, most // (max(map(max, leaves)) + max(trunks)))


def _parts(batch: TrainingBatch, most: int) -> Iterator[TrainingBatch]:
    start, tokens = 0, 0
    for i in range(len(batch.branchings)):
        more = _part(batch, i, i + 1).tokens
        if i > start and tokens + more > most:
            yield _part(batch, start, i)
            start, tokens = i, 0
        tokens += more
    yield _part(batch, start, len(batch.branchings))


def _part(batch: TrainingBatch, start: int, stop: int) -> TrainingBatch:
    counts = [len(b.leaves) for b in batch.branchings]
    first, last = sum(counts[:start]), sum(counts[:stop])
    return TrainingBatch(batch.branchings[start:stop], batch.terms[first:last])
