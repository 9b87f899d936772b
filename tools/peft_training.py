"""PEFT's prompt tuning and prefix tuning, trained on an entry's pairs for a given time.

What is trained is read back as softlore's soft prompts, so that one code measures both. PEFT gets
what its own documentation advises: a start from the lore's text, Adam, a falling learning rate, all
pairs in each update, the loss on responses only.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import (
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_text,
)
from torch import Tensor

from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt, load_prompt
from softlore.tune.examples import CallResponse, pairs_of
from softlore.tune.losses import SMOOTH

# Times the root mean square of what a prompt starts from. On the storyteller (times 0.21 and 1.55),
# these were the best of five rates from 1e-2 to 0.3, and of four from 5e-3 to 0.25.
LEARNING_RATES = {"embedding": 0.3, "prefix": 0.15}
IGNORED = -100  # a label without loss


@dataclass(frozen=True)
class Batch:
    """All pairs of an entry, padded at the end: `[pairs, longest]` each."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, pairs: Sequence[CallResponse], before: Sequence[int], device: torch.device
    ) -> Batch:
        """Pairs with `before` (a BOS, or nothing) in front of each."""
        rows = [[*before, *pair.ids] for pair in pairs]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            start = len(before) + pair.response_start
            labels[i, start : len(row)] = ids[i, start : len(row)]
        return cls(ids, mask, labels)


@dataclass(frozen=True)
class PeftResult:
    """A prompt that PEFT trained.

    Attributes:
        seconds: of making the adapter and training it.
        loss: PEFT's own at the last update: mean over the tokens of all responses.
        to_recall: seconds until the mean loss of the last updates was at most the given recall.
    """

    prompt: SoftPrompt
    seconds: float
    updates: int
    loss: float
    to_recall: float | None


def train_peft(
    model: FrozenModel,
    entry: Entry,
    kind: str,
    n_tokens: int,
    seconds: float,
    seed: int = 0,
    recall: float = 0.4,
    learning_rate: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    examples: Sequence[CallResponse] | None = None,
    in_update: int | None = None,
) -> PeftResult:
    """Trains a prompt of an entry with PEFT: `"embedding"` is prompt tuning, `"prefix"` prefix
    tuning.

    Args:
        examples: what is trained on, in place of the entry's pairs.
        in_update: how many of these are drawn for each update; None: all.

    PEFT puts rows in front of a BOS, softlore behind it: where a model has one, it is the first of
    the rows here, not trained, and no row of the result.
    """
    torch.manual_seed(seed)
    start = clock()
    leading = len(model.bos) if kind == "embedding" else 0
    adapted = _adapted(model, entry, kind, n_tokens + leading)
    (parameter,) = (p for p in adapted.parameters() if p.requires_grad)
    if leading:
        with torch.no_grad():
            parameter[:leading] = model.embed_ids(model.bos).float()
        parameter.register_hook(lambda gradient: _without_first(gradient, leading))
    pairs = [p for block in entry.blocks for p in pairs_of(model, block.call, block.responses)]
    pairs = pairs if examples is None else list(examples)
    before, draw = [] if leading else model.bos, random.Random(seed)
    batch = Batch.of(pairs, before, model.device)
    scale = float(parameter.detach().pow(2).mean().sqrt())
    rate = learning_rate or LEARNING_RATES[kind] * scale
    optimizer = torch.optim.Adam([parameter], lr=rate)
    recent: deque[float] = deque(maxlen=SMOOTH)
    updates, to_recall = 0, None
    while not updates or clock() - start < seconds:
        optimizer.param_groups[0]["lr"] = rate * _left(clock() - start, seconds)
        if in_update is not None and in_update < len(pairs):
            batch = Batch.of(draw.sample(pairs, in_update), before, model.device)
        optimizer.zero_grad()
        out = adapted(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels)
        out.loss.backward()
        optimizer.step()
        updates += 1
        recent.append(float(out.loss.detach()))
        if to_recall is None and fmean(recent) <= recall:
            to_recall = clock() - start
    taken = clock() - start
    prompt = _read_back(adapted, model, entry, leading)
    return PeftResult(prompt, taken, updates, recent[-1], to_recall)


def joined(prompts: Sequence[SoftPrompt]) -> SoftPrompt:
    """Prompts of one kind one after another as one, as PEFT's `compose_cartridge_adapters` does."""
    first = prompts[0]
    tensor = torch.cat([p.tensor for p in prompts], dim=3 if first.kind == "prefix" else 0)
    name = f"{len(prompts)} prompts"
    return SoftPrompt(name, first.kind, tensor, first.fingerprint, base_model=first.base_model)


def _left(elapsed: float, seconds: float) -> float:
    return max(0.0, 1 - elapsed / seconds)


def _without_first(gradient: Tensor, count: int) -> Tensor:
    changed = gradient.clone()
    changed[:count] = 0
    return changed


def _adapted(model: FrozenModel, entry: Entry, kind: str, n_tokens: int) -> Any:
    """The model with a new adapter, which starts from the entry's text."""
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": n_tokens}
    text = entry.text or " ".join(r for block in entry.blocks for r in block.responses)
    while len(model.encode(text)) < n_tokens:
        text += " " + text
    if kind == "prefix":
        adapted = get_peft_model(model.hf, PrefixTuningConfig(**options))
        initialize_kv_prefix_from_text(adapted, model.tokenizer, text=text, use_chat_template=False)
        return adapted.eval()
    adapted = get_peft_model(model.hf, PromptTuningConfig(**options))
    (parameter,) = (p for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():  # as PEFT's own start from text, which wants a folder of the tokenizer
        parameter.copy_(model.embed_ids(model.encode(text)[:n_tokens]).float())
    return adapted.eval()


def _read_back(adapted: Any, model: FrozenModel, entry: Entry, leading: int) -> SoftPrompt:
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        prompt = load_prompt(Path(folder))
    return prompt.replace(name=entry.name, tensor=prompt.tensor[leading:]).made_for(model)
