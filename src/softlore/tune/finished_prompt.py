"""The file of a prompt that is trained: its tensor with its settings, company and last losses."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Sequence

from softlore.lore import Entry
from softlore.lore.styles import blocks_of
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.prompts.responses import KEY, HashedResponses
from softlore.tune.losses import LOSSES
from softlore.tune.trainable_prompt import TrainablePrompt

MAX_COMPANY = 64  # names of others that a file lists
MAX_CHARACTERS = 20_000  # of a text whose repetition counts as a copy; longer ones are corpora


def entry_hash(entry: Entry) -> str:
    """SHA-256 of what an entry is trained on: name, text and blocks, not its activation fields."""
    data = [entry.name, entry.text, [[b.call, list(b.responses)] for b in entry.blocks]]
    return "sha256:" + hashlib.sha256(json.dumps(data).encode()).hexdigest()


def finished_prompt(
    model: FrozenModel, entry: Entry, trainable: TrainablePrompt, company: Sequence[str]
) -> SoftPrompt:
    """The trainable's tensor with its settings, company and last losses.

    The uuid follows from lore, settings and tensor: the same training gives the same one.
    """
    config, value = trainable.config, trainable.value()
    others = [name for name in company if name != entry.name] if config.company_size > 1 else []
    measured = {f"last_{name}": trainable.history.recent(name) for name in LOSSES}
    if math.isfinite(trainable.best):
        measured["held_out"] = trainable.best
    data_hash = entry_hash(entry)
    training = config.to_dict() | {
        "steps": trainable.steps,
        "best_step": trainable.best_step,
        "stopped": trainable.stopped,
        "in_company": others[:MAX_COMPANY],
        "alone": not others,
    }
    identity = f"{data_hash}/{json.dumps(training, sort_keys=True)}/{value.sum().item()!r}"
    return SoftPrompt(
        name=entry.name,
        kind=config.kind,
        tensor=value,
        fingerprint=model.fingerprint(config.kind),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, identity)),
        base_model=model.name,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        training=training | {KEY: _hashed_responses(model, entry, config.style).as_text()},
        metrics={key: round(value, 6) for key, value in measured.items() if value is not None},
        data_hash=data_hash,
    )


def _hashed_responses(model: FrozenModel, entry: Entry, style: str) -> HashedResponses:
    """Hashes of what was trained on, responses or text, so that generation can avoid copies."""
    blocks = blocks_of(entry, style)
    texts = [response for block in blocks for response in block.responses] or [entry.text]
    short = [text for text in texts if len(text) <= MAX_CHARACTERS]
    return HashedResponses.of(model.encode(text, inside=True) for text in short)
