"""The gain of an entry in a context, as soft prompt and as text: recall compared with nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from softlore.context.budget import LoreForm
from softlore.errors import SoftloreError, UnsupportedModelError
from softlore.lore import Block, Entry
from softlore.lore.styles import style_blocks
from softlore.measure.evaluate import plain_text
from softlore.measure.score import fits, recall
from softlore.model import FrozenModel, LanguageModel, require_frozen_model
from softlore.prompts import SoftPrompt

MAX_CHARACTERS = 20_000  # characters; a longer text is a corpus
METRIC = "recall"  # its name among a prompt's metrics


@dataclass(frozen=True)
class EntryGain:
    """Recall of an entry's responses after each of its forms, nats a token; lower is better.

    Attributes:
        none: after nothing.
        text: after the entry's text; None if it has none, or it does not fit.
        soft: after its soft prompt; None if there is none.
    """

    none: float
    text: float | None = None
    soft: float | None = None

    def gain(self, form: LoreForm) -> float:
        """Nats a token that a form reduces the loss by; 0 if it was not measured."""
        after = getattr(self, form)
        return 0.0 if after is None else self.none - float(after)

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def assumed(cls, entry: Entry, prompt: SoftPrompt | None) -> Self:
        """For a model that can't be measured on: each form that exists gains a nat a token."""
        return cls(1.0, 0.0 if entry.text else None, 0.0 if prompt is not None else None)

    @classmethod
    def of_prompt(cls, prompt: SoftPrompt) -> Self | None:
        """The gain in a prompt's metrics, measured when it was trained; None if there is none."""
        saved = prompt.metrics.get(METRIC)
        if not isinstance(saved, dict):
            return None
        known = {k: saved[k] for k in ("none", "text", "soft") if _is_number(saved.get(k))}
        return cls(**known) if "none" in known else None


def gain_blocks(entry: Entry) -> list[Block]:
    """The blocks that an entry's gain is measured on: its own, or its text's sentences."""
    blocks = [*entry.held_out, *entry.blocks]
    return blocks or (style_blocks(entry, "noun") if len(entry.text) <= MAX_CHARACTERS else [])


def measure_gain(model: LanguageModel, entry: Entry, prompt: SoftPrompt | None = None) -> EntryGain:
    """Measures an entry's forms, on its held-out calls too.

    A model whose weights can't be had can't be measured on: see `EntryGain.assumed`.

    Raises:
        PromptMismatchError: a prompt of another model.
    """
    try:
        model = require_frozen_model(model, "measuring what an entry gains")
    except UnsupportedModelError:
        return EntryGain.assumed(entry, prompt)
    blocks = gain_blocks(entry)
    if not blocks or not fits(model, "", blocks):
        return EntryGain(0.0)
    text = plain_text(entry) if entry.text else None
    soft = prompt is not None and fits(model, prompt, blocks)
    return EntryGain(
        none=recall(model, "", blocks),
        text=recall(model, text, blocks) if text and _fits(model, text, blocks) else None,
        soft=recall(model, prompt, blocks) if soft and prompt is not None else None,
    )


def _fits(model: FrozenModel, text: str, blocks: list[Block]) -> bool:
    try:
        return fits(model, text, blocks)
    except SoftloreError:  # the text alone is longer than the context
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
