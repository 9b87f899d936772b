"""The objective: runs the tree batches of an update and adds their gradient, in parts that fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from softlore.context import Branch, Tree, TreeBatch, TreeLayout, backward, hidden_states
from softlore.model import FrozenModel
from softlore.model.memory import total_memory
from softlore.model.recompute import gradient_checkpointing
from softlore.model.shapes import weight_bytes
from softlore.tune.losses import LossTerm, row_losses

SHARE = 0.5  # of the memory, for the activations of one pass
# Tokens. Fewer run faster in one packed pass than in two, however much of it is masked, and are
# enough to keep a processor busy; a longer pass does not fit its cache.
EFFICIENT_PASS = 768

Losses = dict[tuple[tuple[str, ...], str], float]  # by owners and loss, nats a token


@dataclass
class TrainingBatch:
    """Tree batches, and a loss term for each of their branches in order."""

    trees: list[TreeBatch] = field(default_factory=list)
    terms: list[LossTerm] = field(default_factory=list)

    def add(self, trunk: Tree, branches: Sequence[tuple[Branch, LossTerm]]) -> None:
        """Adds a trunk with its branches and their terms."""
        self.trees.append(TreeBatch(trunk, [branch for branch, _ in branches]))
        self.terms.extend(term for _, term in branches)

    @property
    def tokens(self) -> int:
        """Tokens to run, trunks counted once."""
        return sum(tree.tokens for tree in self.trees)

    def by_length(self) -> TrainingBatch:
        """The same trees, shortest first: those that run together are padded to their longest."""
        batch = TrainingBatch()
        for i in sorted(range(len(self.trees)), key=lambda i: self.trees[i].tokens):
            one = self.part(i, i + 1)
            batch.trees += one.trees
            batch.terms += one.terms
        return batch

    def part(self, start: int, stop: int) -> TrainingBatch:
        """The trees from `start` to `stop` with their terms."""
        counts = [len(tree.branches) for tree in self.trees]
        first, last = sum(counts[:start]), sum(counts[:stop])
        return TrainingBatch(self.trees[start:stop], self.terms[first:last])


def run(
    model: FrozenModel,
    batch: TrainingBatch,
    layout: TreeLayout = "packed",
    micro_batch: int | None = None,
) -> Losses:
    """Adds the gradient of a batch's weighted losses to its soft prompts.

    Returns:
        Mean losses by owners and name, nats a token.
    """
    return _mean_losses(batch, _run(model, batch, layout, micro_batch))


def _run(
    model: FrozenModel, batch: TrainingBatch, layout: TreeLayout, micro_batch: int | None
) -> list[Tensor]:
    """`run`, returning the loss of each branch."""
    values: dict[int, Tensor] = {}

    def loss(hidden: Tensor, indices: Sequence[int]) -> Tensor:
        means = _branch_losses(model, batch, hidden, indices)
        values.update(zip(indices, means.detach(), strict=True))
        weights = torch.tensor([batch.terms[i].weight for i in indices], device=hidden.device)
        return (means * weights).sum()

    backward(model, batch.trees, loss, layout, micro_batch)
    return [values[i] for i in range(len(values))]


@torch.no_grad()
def measure(model: FrozenModel, batch: TrainingBatch, plan: MemoryPlan) -> Losses:
    """The losses that `run` returns, without a gradient."""
    means: list[Tensor] = []
    batch = batch.by_length()
    for part in _parts(batch, _tokens_at_once(model, plan)):
        hidden = hidden_states(model, part.trees, choose_layout(part.trees, plan.tokens_at_once)[0])
        means += _branch_losses(model, part, hidden, range(len(part.terms)))
    return _mean_losses(batch, means)


def _branch_losses(
    model: FrozenModel, batch: TrainingBatch, hidden: Tensor, indices: Sequence[int]
) -> Tensor:
    """The mean loss of each branch in `indices`, `[len(indices)]`, from their hidden states."""
    branches = [branch for tree in batch.trees for branch in tree.branches]
    terms = [batch.terms[i] for i in indices]
    lengths = torch.tensor([branches[i].n_rows for i in indices], device=hidden.device)
    rows = row_losses(model, hidden, terms)  # [R]
    term_of_row = torch.repeat_interleave(torch.arange(len(terms), device=hidden.device), lengths)
    return torch.zeros(len(terms), device=hidden.device).index_add(0, term_of_row, rows) / lengths


def _mean_losses(batch: TrainingBatch, means: Sequence[Tensor]) -> Losses:
    grouped: dict[tuple[tuple[str, ...], str], list[float]] = defaultdict(list)
    for term, value in zip(batch.terms, torch.stack(list(means)).tolist(), strict=True):
        grouped[term.owners, term.loss].append(value)
    return {key: sum(values) / len(values) for key, values in grouped.items()}


def losses_of(losses: Losses, name: str) -> dict[str, float]:
    """An entry's losses by name, those of its trunk included: the drift of all prompts in it."""
    return {loss: value for (owners, loss), value in losses.items() if name in owners}


# memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """Limits of a pass: measured once and kept in checkpoints, as rounding depends on them.

    Attributes:
        tokens_at_once: most tokens in one forward and backward pass.
        bytes_per_token: measured size of one token's activations.
        gradient_checkpointing: 1 where layers are run again for the backward pass, else 0.
    """

    tokens_at_once: int
    bytes_per_token: int
    gradient_checkpointing: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def measure_memory_plan(
    model: FrozenModel,
    batch: TrainingBatch,
    memory: int | None = None,
    checkpointing: bool | None = None,
    sharing: int = 1,
) -> MemoryPlan:
    """Measures the activations of part of a batch, and how many tokens fit the memory.

    The tensors that autograd saves are counted, so the result is the same on every run.

    Args:
        memory: bytes to share, the model's weights included; None: all that its device has.
        checkpointing: whether to use gradient checkpointing; None: where one branch with its trunk
            does not fit without it.
        sharing: how many processes, which have the weights in common, run such a pass at a time.
    """
    first = measured_part(batch)
    saved = count_saved_bytes(model, lambda: run(model, first))
    total = total_memory(model.device) if memory is None else memory
    room = int(SHARE * max(0, total - weight_bytes(model.hf)) / sharing)
    plain = max(1, saved // max(1, first.tokens))
    if checkpointing is None:
        checkpointing = room // plain < smallest_pass(batch)
    if not checkpointing:
        return MemoryPlan(max(256, room // plain), plain)
    with gradient_checkpointing(model):
        outside = count_saved_bytes(model, lambda: run(model, first)) // max(1, first.tokens)
    fewer = recomputed_bytes(model, plain, outside)
    return MemoryPlan(max(256, room // fewer), fewer, 1)


def measured_part(batch: TrainingBatch) -> TrainingBatch:
    """The first tree with as many of its branches as make an efficient pass, at least one."""
    tree, tokens, count = batch.trees[0], batch.trees[0].trunk.n_rows, 0
    for branch in tree.branches:
        tokens += len(branch.ids)
        if count and tokens > EFFICIENT_PASS:
            break
        count += 1
    return TrainingBatch([TreeBatch(tree.trunk, tree.branches[:count])], batch.terms[:count])


def smallest_pass(batch: TrainingBatch) -> int:
    """Tokens that must run at once: the longest branch with its trunk."""
    return max(
        tree.trunk.n_rows + max((len(branch.ids) for branch in tree.branches), default=0)
        for tree in batch.trees
    )


def recomputed_bytes(model: FrozenModel, plain: int, outside: int) -> int:
    """Bytes of a token's activations with gradient checkpointing, at their peak.

    These are each layer's input, keys and values; what one layer needs while it is run again; and
    what lies outside the layers.

    Args:
        plain: without gradient checkpointing.
        outside: of `plain`, outside the layers.
    """
    width = int(getattr(model.hf.config.get_text_config(), "hidden_size", model.width))
    kept = (width + 2 * model.kv_heads * model.head_dim) * model.dtype.itemsize
    return model.layers * kept + max(0, plain - outside) // model.layers + outside


def count_saved_bytes(model: FrozenModel, step: Callable[[], Any]) -> int:
    """Bytes of all distinct tensors that autograd saves for the backward pass of `step`.

    The model's weights are among what it saves, and are not counted.
    """
    weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in model.hf.parameters()}
    seen: dict[StorageWeakRef, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in weights:
            seen[key] = storage  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in seen.values())


def run_in_parts(model: FrozenModel, batch: TrainingBatch, plan: MemoryPlan) -> Losses:
    """Runs a training batch in parts that fit into memory; returns the mean losses.

    A part is several trees of at most `plan.tokens_at_once` tokens, or one tree, whose branches
    run in micro-batches.
    """
    means: list[Tensor] = []
    batch, max_tokens = batch.by_length(), _tokens_at_once(model, plan)
    with gradient_checkpointing(model, bool(plan.gradient_checkpointing)):
        for part in _parts(batch, max_tokens):
            means += _run(model, part, *choose_layout(part.trees, plan.tokens_at_once))
    return _mean_losses(batch, means)


def _tokens_at_once(model: FrozenModel, plan: MemoryPlan) -> int:
    """Tokens that are run at once: as many as fit into memory, on a processor also its cache."""
    most = EFFICIENT_PASS if model.device.type == "cpu" else plan.tokens_at_once
    return min(most, plan.tokens_at_once)


def choose_layout(trees: list[TreeBatch], max_tokens: int) -> tuple[TreeLayout, int | None]:
    """The cheaper layout of trees under a limit of tokens, and its micro-batch.

    Attention in a packed row is over all pairs of its tokens, most of them masked where many
    branches hang side by side. The expanded layout costs a second pass, and a copy of the trunk's
    keys and values for each branch, which pays from `EFFICIENT_PASS` tokens on.
    """
    rows = [(tree.trunk, [len(branch.ids) for branch in tree.branches]) for tree in trees]
    tokens = sum(tree.tokens for tree in trees)
    longest = max(tree.tokens for tree in trees)
    packed = len(trees) * longest * (longest + max(t.length - t.n_rows for t, _ in rows))
    expanded = sum(
        trunk.n_rows * trunk.length + sum(n * (trunk.length + n) for n in lengths)
        for trunk, lengths in rows
    )
    read = not any(trunk.n_rows for trunk, _ in rows)
    if tokens <= max_tokens and (read or tokens < EFFICIENT_PASS or packed <= 3 * expanded):
        return "packed", None
    longest_branch = max(max(lengths) for _, lengths in rows)
    return "expanded", max(1, max_tokens // (longest_branch + max(t.length for t, _ in rows)))


def _parts(batch: TrainingBatch, max_tokens: int) -> Iterator[TrainingBatch]:
    """The trees of a batch, as many at once as fit."""
    batch = _divided(batch, max_tokens)
    start, tokens = 0, 0
    for i, tree in enumerate(batch.trees):
        if i > start and tokens + tree.tokens > max_tokens:
            yield batch.part(start, i)
            start, tokens = i, 0
        tokens += tree.tokens
    yield batch.part(start, len(batch.trees))


def _divided(batch: TrainingBatch, max_tokens: int) -> TrainingBatch:
    """The same branches on more trees: where a trunk was read already, it costs nothing twice."""
    trees: list[TreeBatch] = []
    for tree in batch.trees:
        if tree.trunk.n_rows or tree.tokens <= max_tokens:
            trees.append(tree)
            continue
        part: list[Branch] = []
        for branch in tree.branches:
            if part and sum(len(b.ids) for b in part) + len(branch.ids) > max_tokens:
                trees.append(TreeBatch(tree.trunk, part))
                part = []
            part.append(branch)
        trees.append(TreeBatch(tree.trunk, part))
    return TrainingBatch(trees, batch.terms)
