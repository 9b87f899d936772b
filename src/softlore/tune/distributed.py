"""Data parallel training: several processes, each with the model, share each update.

Every process draws the same tree batch and runs its own share of it. Losses and gradients are
gathered and added in the order of ranks, so that all processes have the same bits and make the
same optimizer step; the master prompts need no broadcast. The processes are
torchrun's (`TorchrunRanks`, here), or copies of this one (`forked.ForkedRanks`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softlore.errors import ConfigError, TrainingError
from softlore.model import FrozenModel
from softlore.tune.objective import (
    Losses,
    MemoryPlan,
    TrainingBatch,
    measure,
    run_in_parts,
)
from softlore.tune.trainable_prompt import TrainablePrompt
from softlore.tune.trunk import TrainingData

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # set by torchrun


class SingleProcess:
    """Training in one process, and the interface of `Ranks`.

    Attributes:
        first: whether this process writes files and messages.
        size: number of processes.
        stopping: all processes are to stop now, after the same update.
        interrupted: because of a signal.
    """

    first, size = True, 1
    stopping = interrupted = False

    def request_stop(self) -> bool:
        """Asks all processes to stop; whether this one may stop at once, without the others."""
        return True

    def run(
        self,
        model: FrozenModel,
        batch: TrainingBatch,
        plan: MemoryPlan,
        trainables: Iterable[TrainablePrompt],
    ) -> Losses:
        """Runs a batch, after which every trainable has its gradient.

        Returns:
            Mean losses by owners and name, nats a token.
        """
        return run_in_parts(model, batch, plan)

    def measure(self, model: FrozenModel, batch: TrainingBatch, plan: MemoryPlan) -> Losses:
        """The losses that `run` returns, without a gradient."""
        return measure(model, batch, plan)

    def compute(self, makers: Sequence[Callable[[], Tensor]], shape: Sequence[int]) -> list[Tensor]:
        """What each of `makers` gives, of one shape, float32: made by one of the processes."""
        return [make() for make in makers]

    def broadcast_numbers(self, *numbers: int) -> list[int]:
        """The first process's numbers."""
        return list(numbers)

    def check_same_data(self, data: TrainingData) -> None:
        """Raises TrainingError if processes draw from different data."""

    def joint_stop(self) -> contextlib.AbstractContextManager[None]:
        """Makes signals stop all processes after the same update, to the end of the block."""
        return contextlib.nullcontext()


class Ranks(SingleProcess, ABC):
    """The processes that train together, as seen from this one.

    Attributes:
        rank: of this process, from 0, the first.
        device: that this process computes on.
    """

    def __init__(self, rank: int, size: int, device: str) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.first = self.rank == 0
        # Known to this process alone until the next update: a signal may arrive in mid-update.
        self._stop_requested = self._signalled = False

    def request_stop(self) -> bool:
        self._stop_requested = True  # the next update carries it to the others
        return False

    def run(
        self,
        model: FrozenModel,
        batch: TrainingBatch,
        plan: MemoryPlan,
        trainables: Iterable[TrainablePrompt],
    ) -> Losses:
        """Runs a batch shared by all processes, and exchanges requests to stop with the losses.

        Raises:
            TrainingError: another process has ended.
        """
        share = share_of(batch, self.rank, self.size)
        losses = run_in_parts(model, share, plan) if share.trees else {}
        requests = [float(self._stop_requested), float(self._signalled)]
        means, (stopping, interrupted) = self._means(batch, share, losses, requests)
        for trainable in trainables:
            trainable.reduce_gradient(self.sum)
        self.stopping, self.interrupted = stopping > 0, interrupted > 0
        return means

    def measure(self, model: FrozenModel, batch: TrainingBatch, plan: MemoryPlan) -> Losses:
        share = share_of(batch, self.rank, self.size)
        losses = measure(model, share, plan) if share.trees else {}
        return self._means(batch, share, losses, [0.0, 0.0])[0]

    def _means(
        self, batch: TrainingBatch, share: TrainingBatch, losses: Losses, pair: list[float]
    ) -> tuple[Losses, list[float]]:
        """The mean losses of a batch from those of all shares, and the sum of all pairs."""
        counts = _count_terms(share)
        keys = sorted(_count_terms(batch))
        # Sums and counts, not means: branches of one entry may be in several processes.
        rows = [[losses.get(key, 0.0) * counts[key], counts[key]] for key in keys]
        rows.append(pair)
        summed = self.sum(torch.tensor(rows, dtype=torch.float64, device=self.device)).cpu()
        *sums, pairs = summed.tolist()
        return {key: total / count for key, (total, count) in zip(keys, sums, strict=True)}, pairs

    @abstractmethod
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, added in order of their ranks: the same bits in each."""

    def compute(self, makers: Sequence[Callable[[], Tensor]], shape: Sequence[int]) -> list[Tensor]:
        values: list[Tensor] = []
        for start in range(0, len(makers), self.size):
            together = makers[start : start + self.size]
            made = torch.zeros(len(together), *shape, device=self.device)
            if self.rank < len(together):
                made[self.rank] = together[self.rank]()
            values.extend(self.sum(made))
        return values

    def broadcast_numbers(self, *numbers: int) -> list[int]:
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        return self.sum(tensor if self.first else torch.zeros_like(tensor)).tolist()


# processes of torchrun -------------------------------------------------------------------------


class TorchrunRanks(Ranks):
    """The processes that torchrun has started, in torch's default process group."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size(), str(device))

    def sum(self, tensor: Tensor) -> Tensor:
        first, *others = self._all_gather(tensor)
        for other in others:
            first = first + other
        return first

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _unreachable_processes():
            dist.all_gather(parts, tensor.contiguous())
        return parts

    def check_same_data(self, data: TrainingData) -> None:
        digest = int(_digest(data)[:15], 16)
        digests = self._all_gather(torch.tensor([digest], dtype=torch.int64, device=self.device))
        other = [rank for rank, of_rank in enumerate(digests) if int(of_rank) != int(digests[0])]
        if other:
            raise TrainingError(
                f"process {other[0]} has drawn other passages than process 0 from the same seed; "
                "expected equal ones, as equal devices and libraries give; train on devices of "
                "one kind, or give --story and entries with blocks, which need no drawing"
            )

    @contextlib.contextmanager
    def joint_stop(self) -> Iterator[None]:
        """Ctrl-C, and the SIGTERM that torchrun sends, stop all processes together."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = [signal.getsignal(number) for number in signals]

        def request(*arguments: Any) -> None:
            self._stop_requested = self._signalled = True

        for number in signals:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in zip(signals, handlers, strict=True):
                signal.signal(number, handler)


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and all(v in os.environ for v in VARIABLES)


def device_of_rank(device: str | None) -> str:
    """The device of this process: a GPU of its own, if the machine has any.

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
def process_group(device: str) -> Iterator[TorchrunRanks]:
    """Joins the processes of torchrun to the end of the block; `device`: of this process."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    with _unreachable_processes():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    ranks = TorchrunRanks(torch.device(device))
    completed = False
    try:
        yield ranks
        completed = True
    finally:
        if completed or ranks.interrupted:
            # All processes get here. Gloo closes its sockets when the group is destroyed, and
            # another process may still be reading the last sum from them.
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def _unreachable_processes() -> Iterator[None]:
    """Translates errors of communication: mostly another process has ended."""
    try:
        yield
    except RuntimeError as error:  # torch has no type of its own for gloo's errors
        raise TrainingError(
            f"another process of this training can't be reached ({str(error).strip()[:200]}); "
            "expected all to continue; see its own message; progress is saved: the same command "
            "continues from there"
        ) from error


# shares ----------------------------------------------------------------------------------------


def share_of(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    """The part of a batch that one of several processes runs.

    Whole trees, the largest dealt out first, if there are enough for all processes; else each tree
    with a part of its branches. The loss is a sum over branches, so any split is exact.
    """
    starts = [0]
    for tree in batch.trees:
        starts.append(starts[-1] + len(tree.branches))
    share = TrainingBatch()
    if len(batch.trees) >= size:
        for i in _deal([tree.tokens for tree in batch.trees], size)[rank]:
            share.trees.append(batch.trees[i])
            share.terms.extend(batch.terms[starts[i] : starts[i + 1]])
        return share
    for i, tree in enumerate(batch.trees):
        indices = _deal([len(branch.ids) for branch in tree.branches], size)[rank]
        if indices:
            share.trees.append(replace(tree, branches=[tree.branches[n] for n in indices]))
            share.terms.extend(batch.terms[starts[i] + n] for n in indices)
    return share


def _deal(weights: list[int], size: int) -> list[list[int]]:
    """Indices for each of `size` processes: the heaviest first, to the least loaded process."""
    hands: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        least = loads.index(min(loads))
        hands[least].append(i)
        loads[least] += weights[i]
    return [sorted(hand) for hand in hands]


def _count_terms(batch: TrainingBatch) -> Counter[tuple[tuple[str, ...], str]]:
    return Counter((term.owners, term.loss) for term in batch.terms)


def _digest(data: TrainingData) -> str:
    """A hash of the token ids that updates draw from."""
    ids: list[Any] = [data.filler, [passage.ids for passage in data.guard]]
    for name, examples in sorted(data.examples.items()):
        pairs, passages = examples.pairs, examples.passages
        ids.append([name, [pair.ids for pair in pairs], [passage.ids for passage in passages]])
    return hashlib.sha256(repr(ids).encode()).hexdigest()
