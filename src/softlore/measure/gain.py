"""What an entry is worth in a context, as soft prompt and as text: recall gained over nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from softlore.context.budget import LoreForm
from softlore.errors import SoftloreError
from softlore.lore import Block, Entry
from softlore.lore.styles import style_blocks
from softlore.measure.evaluate import plain_text
from softlore.measure.score import fits, recall
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import SoftPrompt

LONGEST = 20_000  # characters; a longer text is a corpus
METRIC = "recall"  # what a prompt file calls it, among its metrics


@dataclass(frozen=True)
class EntryGain:
    """Recall of an entry's responses, nats a token, by what stands before them; lower is better.

    Attributes:
        none: after nothing.
        text: after the entry's text; None where it has none, or it does not fit.
        soft: after its soft prompt; None where there is none.
    """

    none: float
    text: float | None = None
    soft: float | None = None

    def gain(self, form: LoreForm) -> float:
        """Nats a token that a form takes off; 0 where it was not measured."""
        after = getattr(self, form)
        return 0.0 if after is None else self.none - float(after)

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def supposed(cls, entry: Entry, prompt: SoftPrompt | None) -> Self:
        """Where nothing can be measured: each form that there is gains a nat a token."""
        return cls(1.0, 0.0 if entry.text else None, 0.0 if prompt is not None else None)

    @classmethod
    def of_prompt(cls, prompt: SoftPrompt) -> Self | None:
        """What was measured when the prompt was trained, if its file says."""
        told = prompt.metrics.get(METRIC)
        if not isinstance(told, dict):
            return None
        known = {k: told[k] for k in ("none", "text", "soft") if _is_number(told.get(k))}
        return cls(**known) if "none" in known else None


def gain_blocks(entry: Entry) -> list[Block]:
    """The calls that an entry's worth is measured by: its own, or its text's sentences."""
    own = [*entry.held_out, *entry.blocks]
    return own or (style_blocks(entry, "noun") if len(entry.text) <= LONGEST else [])


def measure_gain(model: LanguageModel, entry: Entry, prompt: SoftPrompt | None = None) -> EntryGain:
    """Measures an entry's forms; held-out calls count with the others.

    A model that another program runs is not asked: see `Worth.supposed`.

    Raises:
        PromptMismatchError: a prompt of another model.
    """
    if not isinstance(model, FrozenModel):
        return EntryGain.supposed(entry, prompt)
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
    except SoftloreError:  # longer than the context by itself
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
