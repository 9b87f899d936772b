"""What a finished trainable leaves: a SoftPrompt that says how it came to be."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence

from softlore.lore import Entry
from softlore.lore.styles import style_blocks
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.prompts.responses import KEY, HashedResponses
from softlore.tune.trainable_prompt import TrainablePrompt

LONGEST = 20_000  # characters


def entry_hash(entry: Entry) -> str:
    """SHA-256 of what an entry teaches: name, text and blocks, not when it wakes."""
    taught = [entry.name, entry.text, [[b.call, list(b.responses)] for b in entry.blocks]]
    return "sha256:" + hashlib.sha256(json.dumps(taught).encode()).hexdigest()


def finished_prompt(
    model: FrozenModel, entry: Entry, trainable: TrainablePrompt, company: Sequence[str]
) -> SoftPrompt:
    """The trainable's tensor with its settings, company and last losses.

    The uuid follows from lore, settings and tensor, so that the same training gives the same one.
    """
    config = trainable.config
    value = trainable.value()
    others = [name for name in company if name != entry.name] if config.company_size > 1 else []
    history = {kind: trainable.history.recent(kind) for kind in ("response", "guard", "distil")}
    data_hash = entry_hash(entry)
    training = config.to_dict() | {
        "steps": trainable.steps,
        "stopped": trainable.stopped,
        "in_company": others,
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
        training=training | {KEY: _hashed(model, entry, config.style).as_text()},
        metrics={f"last_{kind}": round(v, 6) for kind, v in history.items() if v is not None},
        data_hash=data_hash,
    )


def _hashed(model: FrozenModel, entry: Entry, style: str | None) -> HashedResponses:
    """What an entry was trained to say: its responses, or the text that it was distilled from."""
    blocks = entry.blocks or (style_blocks(entry, style) if style else [])
    told = [response for block in blocks for response in block.responses] or [entry.text]
    short = [text for text in told if len(text) <= LONGEST]  # a corpus is a manner, not a saying
    return HashedResponses.of(model.encode(text, inside=True) for text in short)
