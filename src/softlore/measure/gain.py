"""The gain of an entry in a context, as soft prompt and as text: recall compared with nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from softlore.context.budget import LoreForm
from softlore.disk import write_atomically
from softlore.errors import SoftloreError, StorageError, UnsupportedModelError
from softlore.lore import Block, Entry
from softlore.lore.styles import style_blocks
from softlore.measure.evaluate import plain_text
from softlore.measure.score import fits, recall
from softlore.model import FrozenModel, LanguageModel, require_frozen_model
from softlore.prompts import SoftPrompt

MAX_SENTENCES = 64  # of a text without blocks that its gain is measured on
METRIC = "recall"  # its name among a prompt's metrics
GAINS_FILE = "gains.json"  # in the folder of the prompts
MAX_GAINS = 4096  # gains in that file; the oldest are left out
MAX_FILE = 2**20  # bytes of it

# Of a text's gain, where a late prompt is the other form: a text stands at the context's beginning,
# and loses a twentieth of its gain over 256 tokens of story and a third over 1,000 (SmolLM2).
FAR = 0.85

_Key = tuple[str, str, SoftPrompt | None]  # an entry's name, its text and its soft prompt

_log = logging.getLogger(__name__)


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
        """Nats a token that a form reduces the loss by; 0 if it was not measured.

        A text that has a soft prompt counts for less, since it is left behind as the story goes on.
        """
        after = getattr(self, form)
        gain = 0.0 if after is None else self.none - float(after)
        return FAR * gain if form == "text" and self.soft is not None else gain

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def assumed(cls, entry: Entry, prompt: SoftPrompt | None) -> Self:
        """Until it is measured, or where it can't be: a form that exists gains a nat a token.

        A text that has a soft prompt gains half of that, so that what was trained is used.
        """
        if prompt is None:
            return cls(1.0, text=0.0 if entry.text else None)
        return cls(1.0, text=0.5 if entry.text else None, soft=0.0)

    @classmethod
    def of_prompt(cls, prompt: SoftPrompt) -> Self | None:
        """The gain in a prompt's metrics, measured when it was trained; None if there is none."""
        return cls.of_dict(prompt.metrics.get(METRIC))

    @classmethod
    def of_dict(cls, saved: Any) -> Self | None:
        """The inverse of `to_dict`; None for other data."""
        if not isinstance(saved, dict):
            return None
        known = {k: saved[k] for k in ("none", "text", "soft") if _is_number(saved.get(k))}
        return cls(**known) if "none" in known else None


def gain_blocks(entry: Entry) -> list[Block]:
    """The blocks that an entry's gain is measured on: its own, or sentences of its text.

    Those of a long text are evenly spaced.
    """
    if blocks := [*entry.held_out, *entry.blocks]:
        return blocks
    sentences = style_blocks(entry, "noun")
    return sentences[:: -(-len(sentences) // MAX_SENTENCES) or 1]


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


class MeasuredGains:
    """The gains of a lorebook's entries, measured in a thread of its own, each once.

    They are read from the prompts' metrics, and from a file in the prompts' folder, where those
    that were measured here are saved. Until a gain is measured, `EntryGain.assumed` stands for it.

    Args:
        folder: of the prompts; None: gains are not saved.
    """

    def __init__(self, model: LanguageModel, folder: Path | None = None) -> None:
        self._model = model
        self._path = None if folder is None else folder / GAINS_FILE
        self._known: dict[_Key, EntryGain] = {}
        self._measuring: dict[_Key, Future[None]] = {}
        self._worker: ThreadPoolExecutor | None = None

    def gain(self, entry: Entry, prompt: SoftPrompt | None) -> EntryGain:
        """The gain of an entry's forms; if it is not known, it is measured from now on."""
        key = entry.name, entry.text, prompt
        if key in self._known:
            return self._known[key]
        saved = EntryGain.of_prompt(prompt) if prompt is not None else None
        if saved is not None:
            self._known[key] = saved
            return saved
        if key not in self._measuring:
            self._worker = self._worker or ThreadPoolExecutor(1, "gains")
            self._measuring[key] = self._worker.submit(self._measure, entry, prompt)
        return EntryGain.assumed(entry, prompt)

    def is_known(self, entry: Entry, prompt: SoftPrompt | None) -> bool:
        """Whether the gain of an entry was measured, or could not be."""
        return (entry.name, entry.text, prompt) in self._known

    def wait(self) -> None:
        """Waits until what is being measured is measured."""
        for measuring in list(self._measuring.values()):
            measuring.result()

    # in the thread of its own ------------------------------------------------------------------

    def _measure(self, entry: Entry, prompt: SoftPrompt | None) -> None:
        if not threading.main_thread().is_alive():  # the program ends
            return
        try:
            name = self._name(entry, prompt) if self._path else ""
            gain = EntryGain.of_dict(self._saved().get(name)) if name else None
            if gain is None:
                gain = measure_gain(self._model, entry, prompt)
                self._save(name, gain)
        except Exception as error:  # noqa: BLE001 - a story goes on without it
            _log.warning("the gain of entry %r can't be measured: %s", entry.name, error)
            gain = EntryGain.assumed(entry, prompt)
        self._known[entry.name, entry.text, prompt] = gain

    def _name(self, entry: Entry, prompt: SoftPrompt | None) -> str:
        """What a gain depends on, hashed: the model, the entry's text and blocks, the prompt."""
        model = self._model
        blocks = [block.model_dump() for block in gain_blocks(entry)]
        parts = [model.fingerprint("embedding"), model.tokenizer_fingerprint, str(model.dtype)]
        text = json.dumps([*parts, entry.name, entry.text, blocks], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
        if prompt is not None:
            digest.update(prompt.tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _saved(self) -> dict[str, Any]:
        """The gains in the file; none where it is missing, too large or no JSON object."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if self._path is not None and self._path.is_file():
                with self._path.open("rb") as file:
                    content = file.read(MAX_FILE + 1)
                data = json.loads(content) if len(content) <= MAX_FILE else None
                return data if isinstance(data, dict) else {}
        return {}

    def _save(self, name: str, gain: EntryGain) -> None:
        if self._path is None or not self._path.parent.is_dir():
            return
        gains = {k: v for k, v in self._saved().items() if EntryGain.of_dict(v) and k != name}
        newest = [*gains.items(), (name, gain.to_dict())][-MAX_GAINS:]
        with contextlib.suppress(StorageError):  # measured again next time
            write_atomically(self._path, json.dumps(dict(newest)).encode())


def _fits(model: FrozenModel, text: str, blocks: list[Block]) -> bool:
    try:
        return fits(model, text, blocks)
    except SoftloreError:  # the text alone is longer than the context
        return False


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
