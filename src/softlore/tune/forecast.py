"""What a training will take: memory, seconds and sizes, by arithmetic on a model's shapes.

An update is drawn as in training, and its first tree run on tensors without data (see
`UnloadedModel`): what autograd would save and what would be multiplied is counted from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from softlore.context import hidden_states
from softlore.lore import Entry
from softlore.lore.styles import blocks_of
from softlore.measure.losses import LOGITS_AT_ONCE, response_nll, teacher_kl
from softlore.model import prompt_shape
from softlore.model.recompute import gradient_checkpointing
from softlore.model.shapes import count_parameters, largest_weight, model_bytes
from softlore.model.unloaded import UnloadedModel
from softlore.settings import TrainingConfig
from softlore.tune.examples import DISTILLED, EntryExamples, continuations_of, pairs_of
from softlore.tune.filler import FillerStore
from softlore.tune.lengths import passage_length, places_beside
from softlore.tune.objective import (
    SHARE,
    TrainingBatch,
    count_saved_bytes,
    measured_part,
    recomputed_bytes,
    smallest_pass,
)
from softlore.tune.passages import Passage
from softlore.tune.training_data import UNRELATED, draw_batch
from softlore.tune.trunk import TrainingData

CARDS = (8, 12, 16, 24, 48, 80)  # GiB
RESERVED = 1 << 30  # of a card, for CUDA itself, its libraries and gaps
# Of the speed of products, what whole updates reach, roughly: estimated from SmolLM2-135M's
# updates in both types on one core with AMX, which other programs shared.
EFFICIENCY = {"float32": 0.7, "bfloat16": 0.25, "float16": 0.25}
STATES = 6  # tensors of a prompt's size: value, best, two gradients, the optimizer's, previous
EXAMPLE = 1  # the token id that stands for those that a teacher will write


@dataclass(frozen=True)
class TrainingForecast:
    """What a training will take. Bytes, unless said otherwise.

    Attributes:
        parameters: of the model.
        weights: of the model in memory, as it would be loaded.
        prompt: of one prompt's file, about.
        entries, passages: to train, and to be written by the teacher and the bare model, at most.
        updates: at most; entries that stop early need fewer.
        update_tokens: tokens of one update, trunks counted once.
        smallest_tokens: of the smallest part an update can be run in: a branch with its trunk.
        per_token: activations of a token.
        per_token_checkpointed: the same with gradient checkpointing.
        workspace: logits, optimizers, and a layer's weights where these are quantized.
        update_flops: floating-point operations of one update, those of attention left out.
        prepare_flops: of writing and reading the passages.
    """

    model: str
    family: str
    dtype: str
    quantize: str | None
    kind: str
    parameters: int
    weights: int
    prompt: int
    entries: int
    passages: int
    updates: int
    update_tokens: int
    smallest_tokens: int
    per_token: int
    per_token_checkpointed: int
    workspace: int
    update_flops: int
    prepare_flops: int

    @property
    def update_bytes(self) -> int:
        """Activations of a whole update at once."""
        return self.update_tokens * self.per_token

    @property
    def least_bytes(self) -> int:
        """The least memory that training can do with: in the smallest parts, checkpointed."""
        return self.weights + self.workspace + self.smallest_tokens * self.per_token_checkpointed

    def seconds(self, speed: float) -> float:
        """Of preparation and all updates, about.

        Args:
            speed: of products of matrices, in floating-point operations a second.
        """
        reached = speed * EFFICIENCY.get(self.dtype, 0.5)
        return (self.prepare_flops + self.updates * self.update_flops) / reached

    def fit(self, memory: int) -> str:
        """How updates run in `memory` bytes: "whole", "parts", "checkpointing" or "no"."""
        free = memory - self.workspace
        room = int(SHARE * max(0, free - self.weights))  # as measure_memory_plan has it
        if room >= self.update_bytes:
            return "whole"
        if room >= self.smallest_tokens * self.per_token:
            return "parts"
        fewer = self.smallest_tokens * self.per_token_checkpointed
        return "checkpointing" if free - self.weights >= fewer else "no"

    def cards(self) -> dict[int, str]:
        """`fit` of GPUs by their size in GiB."""
        return {size: self.fit((size << 30) - RESERVED) for size in CARDS}

    def to_dict(self) -> dict[str, Any]:
        derived = {"update_bytes": self.update_bytes, "least_bytes": self.least_bytes}
        return asdict(self) | derived | {"cards": self.cards()}


def forecast(
    model: UnloadedModel,
    entries: Sequence[Entry],
    config: TrainingConfig,
    quantize: str | None = None,
) -> TrainingForecast:
    """Counts what training prompts for `entries` will take.

    Raises:
        LoreError, ModelError: entries or a model that can't be trained.
    """
    active = entries[: config.max_active]
    with model.mode:
        data = _sample_data(model, active, config)
        prompts = {entry.name: _prompt(model, config) for entry in active}
        batch = draw_batch(model, config, data, prompts, list(prompts), 0)
        part = measured_part(batch)
        # Without attention's products: a forecast has no mask, which hides most of their pairs.
        without = {torch.ops.aten.bmm: lambda *shapes, **_: 0}
        with FlopCounterMode(display=False, custom_mapping=without) as counter:
            plain = count_saved_bytes(model, lambda: _loss(model, part).backward())
        with gradient_checkpointing(model):
            recomputed = count_saved_bytes(model, lambda: _loss(model, part))
    tokens = max(1, part.tokens)
    turns = -(-len(entries) // config.max_active)
    passages = _passages(entries, config)
    written = passages * passage_length(model, config)
    rows = sum(branch.n_rows for tree in batch.trees for branch in tree.branches)
    size, prompt = count_parameters(model.hf), 4 * math.prod(_shape(model, config))
    expanded = largest_weight(model.hf) * model.dtype.itemsize if quantize else 0
    logits = 4 * 4 * min(rows * model.vocab_size, LOGITS_AT_ONCE)
    return TrainingForecast(
        model=model.name,
        family=model.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        quantize=quantize,
        kind=config.kind,
        parameters=size,
        weights=model_bytes(model.hf, quantize),
        prompt=prompt,
        entries=len(entries),
        passages=passages,
        updates=config.max_steps * turns,
        update_tokens=batch.tokens,
        smallest_tokens=smallest_pass(batch),
        per_token=max(1, plain // tokens),
        per_token_checkpointed=recomputed_bytes(model, plain // tokens, recomputed // tokens),
        workspace=logits + expanded + STATES * prompt * len(entries),
        update_flops=counter.get_total_flops() * batch.tokens // tokens,
        prepare_flops=4 * size * written,  # a forward to write each token, and one to read it
    )


def _loss(model: UnloadedModel, batch: TrainingBatch) -> Tensor:
    """The summed loss of a batch, its rows sorted by what they are compared with."""
    hidden = hidden_states(model, batch.trees)
    sizes = [branch.n_rows for tree in batch.trees for branch in tree.branches]
    rows = list(zip(hidden.split(sizes), batch.terms, strict=True))
    ids = [(part, term.target) for part, term in rows if not isinstance(term.target, Tensor)]
    states = [(part, term.target) for part, term in rows if isinstance(term.target, Tensor)]
    total = hidden.new_zeros(())
    if ids:
        targets = torch.tensor([i for _, target in ids for i in target])
        total = total + response_nll(model, torch.cat([part for part, _ in ids]), targets).sum()
    if states:
        teacher = torch.cat([target for _, target in states])
        total = total + teacher_kl(model, torch.cat([part for part, _ in states]), teacher).sum()
    return total


# what is drawn from -------------------------------------------------------------------------------


def _sample_data(
    model: UnloadedModel, entries: Sequence[Entry], config: TrainingConfig
) -> TrainingData:
    """Examples of the entries, with passages of which only the length is known."""
    length = passage_length(model, config)
    states = torch.zeros(length, _hidden_size(model), dtype=model.dtype)
    passage = Passage([EXAMPLE] * length, 0, states)
    examples = {entry.name: _examples(model, entry, config, passage) for entry in entries}
    guard = [passage] * UNRELATED if config.drift_guard > 0 else []
    filler = [passage.ids] * UNRELATED if config.filler == "story" else []
    store = None
    if config.late:
        at = places_beside(model, config)
        longest = max(length, *(example.longest for example in examples.values()))
        store = replace(FillerStore.of(model, config, None, at, longest), story=())
        store.write(model, 0)
    return TrainingData(examples, guard, filler, filler_store=store)


def _examples(
    model: UnloadedModel, entry: Entry, config: TrainingConfig, passage: Passage
) -> EntryExamples:
    blocks = blocks_of(entry, config.style)
    pairs = [p for b in blocks for p in pairs_of(model, b.call, b.responses, config.chat)]
    distilled = bool(entry.text) and config.distil_weight > 0
    copies = min(config.distil_passages, max(DISTILLED.values())) if distilled else 0
    continuations = continuations_of(model, entry, pairs, config)
    if continuations is not None:
        continuations.passages += [passage] * continuations.drawn
    return EntryExamples(entry.name, pairs, [passage] * copies, continuations=continuations)


def _passages(entries: Sequence[Entry], config: TrainingConfig) -> int:
    """Passages to be written, at most: the teachers', and unrelated ones."""
    most = min(config.distil_passages, config.max_steps * max(DISTILLED.values()))
    texts = sum(bool(entry.text) for entry in entries) if config.distil_weight > 0 else 0
    return texts * most + (UNRELATED if config.drift_guard > 0 and config.story is None else 0)


def _shape(model: UnloadedModel, config: TrainingConfig) -> tuple[int, ...]:
    return prompt_shape(model, config.kind, config.n_tokens)


def _prompt(model: UnloadedModel, config: TrainingConfig) -> Tensor:
    return torch.zeros(_shape(model, config), requires_grad=True)


def _hidden_size(model: UnloadedModel) -> int:
    """Columns of the last hidden states."""
    rows = model.embed_ids([EXAMPLE])[None]
    seen = torch.ones(1, 1, 1, dtype=torch.bool)
    return int(model.hidden(rows, torch.zeros(1, 1, dtype=torch.long), seen)[0].shape[-1])
