"""Data parallel training: processes that torchrun began, each with the model, share out an update.

Every process draws the same tree batch and runs its own part of it. What they found is added up in
the same order everywhere, so that all of them make the same step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softlore.context import TreeBatch
from softlore.errors import ConfigError, TrainingError
from softlore.model import FrozenModel
from softlore.tune.memory_plan import MemoryPlan, run_in_parts
from softlore.tune.objective import Losses, TrainingBatch
from softlore.tune.trainable_prompt import TrainablePrompt
from softlore.tune.training_data import TrainingData

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun tells a process


def of_torchrun() -> bool:
    """Whether this process is one of several that torchrun has begun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and all(v in os.environ for v in VARIABLES)


def device_of_rank(device: str | None) -> str:
    """The device of this process: each has a GPU of its own, where there are enough.

    Raises:
        ConfigError: fewer GPUs than processes.
    """
    if device not in (None, "cuda") or not torch.cuda.is_available():
        return device or "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} "
            "are there); expected one each; give torchrun fewer by --nproc-per-node, or train on "
            "the processor by --device cpu"
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among the others, to the end of the block; `device` is what it computes on."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    with _of_others():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(torch.device(device))
    finally:
        dist.destroy_process_group()


class Alone:
    """Training in one process: what `Ranks` is where there are several."""

    first = True
    size = 1
    stopping = interrupted = False

    def ask_to_stop(self) -> bool:
        """Whether it is time to stop at once: there is nobody to wait for."""
        return True

    def run(
        self,
        model: FrozenModel,
        batch: TrainingBatch,
        plan: MemoryPlan,
        trainables: Iterable[TrainablePrompt],
    ) -> Losses:
        """Runs a batch; the gradients are in `trainables` by themselves."""
        return run_in_parts(model, batch, plan)

    def part(self, batch: TrainingBatch) -> TrainingBatch:
        """What the first process runs of a batch."""
        return batch

    def of_first(self, tensor: Tensor) -> Tensor:
        """The tensor as the first process has it."""
        return tensor

    def agreed(self, *numbers: int) -> list[int]:
        """The first process's numbers."""
        return list(numbers)

    def check_alike(self, data: TrainingData) -> None:
        """Sees that all processes draw from the same."""

    def stopping_together(self) -> contextlib.AbstractContextManager[None]:
        """Signals do what they do."""
        return contextlib.nullcontext()


class Ranks:
    """The processes that train together, seen from this one.

    Attributes:
        rank: this process, from 0; process 0 writes files and speaks.
        size: how many there are.
        device: what this process computes on.
        stopping: all processes are to stop now: they are at the same update.
        interrupted: a signal was why.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.stopping = self.interrupted = False
        # What this process alone knows so far. A signal may come in the middle of an update.
        self._asked = self._signalled = False
        self.device = str(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def ask_to_stop(self) -> bool:
        """All processes stop after the next update, when the others have heard of it."""
        self._asked = True
        return False

    # an update ---------------------------------------------------------------------------------

    def run(
        self,
        model: FrozenModel,
        batch: TrainingBatch,
        plan: MemoryPlan,
        trainables: Iterable[TrainablePrompt],
    ) -> Losses:
        """Runs a batch between all processes; every trainable then has the whole gradient.

        Any process that is to stop is heard by all.

        Returns:
            Mean losses by owner and kind, nats a token.

        Raises:
            TrainingError: another process has ended.
        """
        own = share_of(batch, self.rank, self.size)
        found = run_in_parts(model, own, plan) if own.branchings else {}
        counts = _counts(own)
        keys = sorted(_counts(batch))
        # Losses are added up as sums with counts: one entry's leaves may be with several processes.
        told = [[found.get(key, 0.0) * counts.get(key, 0), counts.get(key, 0)] for key in keys]
        told.append([float(self._asked), float(self._signalled)])
        whole = self._sum(torch.tensor(told, dtype=torch.float64, device=self.device)).cpu()
        for trainable in trainables:
            trainable.gather(self._sum)
        *sums, (stopping, interrupted) = whole.tolist()
        self.stopping, self.interrupted = stopping > 0, interrupted > 0
        return {key: total / count for key, (total, count) in zip(keys, sums, strict=True)}

    def part(self, batch: TrainingBatch) -> TrainingBatch:
        """What the first process runs of a batch."""
        return share_of(batch, 0, self.size)

    def _sum(self, mine: Tensor) -> Tensor:
        """The sum over all processes, added in order of their ranks: the same bits for all."""
        parts = self._gathered(mine)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        """What every process has, by rank."""
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with _of_others():
            dist.all_gather(parts, mine.contiguous())
        return parts

    # what all must agree on --------------------------------------------------------------------

    def of_first(self, tensor: Tensor) -> Tensor:
        """The tensor as process 0 has it."""
        told = tensor.contiguous().clone()
        with _of_others():
            dist.broadcast(told, src=0)
        return told

    def agreed(self, *numbers: int) -> list[int]:
        """Process 0's numbers, for all."""
        told = self.of_first(torch.tensor(numbers, dtype=torch.int64, device=self.device))
        return [int(number) for number in told.tolist()]

    def check_alike(self, data: TrainingData) -> None:
        """Sees that all processes draw from the same.

        Raises:
            TrainingError: the processes would learn different things.
        """
        digest = int(_digest(data)[:15], 16)
        found = self._gathered(torch.tensor([digest], dtype=torch.int64, device=self.device))
        odd = [rank for rank, one in enumerate(found) if int(one) != int(found[0])]
        if odd:
            raise TrainingError(
                f"process {odd[0]} has drawn other passages than process 0 from the same seed; "
                "expected equal ones, as equal devices and libraries give; train on devices of "
                "one kind, or give --story and entries with blocks, which need no drawing"
            )

    @contextlib.contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Ctrl-C, and torchrun's own signal, stop all processes after the same update."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(kind) for kind in kinds]

        def heard(*what: Any) -> None:
            self._asked = self._signalled = True

        for kind in kinds:
            signal.signal(kind, heard)
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)


@contextlib.contextmanager
def _of_others() -> Iterator[None]:
    """Says so where words with other processes fail: mostly one of them has ended."""
    try:
        yield
    except RuntimeError as error:  # torch has no type of its own for gloo's
        raise TrainingError(
            f"another process of this training can't be reached ({str(error).strip()[:200]}); "
            "expected all to go on together; see what it said; progress is kept: the same command "
            "goes on from there"
        ) from error


def share_of(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    """The part of a batch that one of several processes runs.

    Whole trunks, where there are enough for all, the largest dealt out first; else every trunk
    with a part of its leaves: a sum over leaves is what the loss is, however they are shared out.
    """
    starts = [0]
    for branching in batch.branchings:
        starts.append(starts[-1] + len(branching.leaves))
    own = TrainingBatch()
    if len(batch.branchings) >= size:
        for i in _dealt([_tokens(b) for b in batch.branchings], size)[rank]:
            own.branchings.append(batch.branchings[i])
            own.terms.extend(batch.terms[starts[i] : starts[i + 1]])
        return own
    for i, branching in enumerate(batch.branchings):
        mine = _dealt([len(leaf.ids) for leaf in branching.leaves], size)[rank]
        if mine:
            own.branchings.append(replace(branching, leaves=[branching.leaves[n] for n in mine]))
            own.terms.extend(batch.terms[starts[i] + n] for n in mine)
    return own


def _dealt(weights: list[int], size: int) -> list[list[int]]:
    """Indices for each of `size` processes: the heaviest first, to whoever has the least."""
    hands: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        least = loads.index(min(loads))
        hands[least].append(i)
        loads[least] += weights[i]
    return [sorted(hand) for hand in hands]


def _tokens(branching: TreeBatch) -> int:
    return branching.trunk.length + sum(len(leaf.ids) for leaf in branching.leaves)


def _counts(batch: TrainingBatch) -> dict[Any, int]:
    """How many leaves there are by owner and kind."""
    counts: dict[Any, int] = {}
    for term in batch.terms:
        counts[term.owner, term.kind] = counts.get((term.owner, term.kind), 0) + 1
    return counts


def _digest(data: TrainingData) -> str:
    """A hash of the token ids that updates draw from."""
    drawn: list[Any] = [data.filler, [p.ids for p in data.guard]]
    for name, examples in sorted(data.examples.items()):
        drawn.append([name, [p.ids for p in examples.pairs], [p.ids for p in examples.passages]])
    return hashlib.sha256(repr(drawn).encode()).hexdigest()
