"""Every training setting, with its unit and its default."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from softlore.errors import ConfigError
from softlore.lore.styles import STYLES
from softlore.prompts import SoftPrompt

Factory = Callable[..., Any]

# Name, least, most, whether whole.
_NUMBERS: tuple[tuple[str, float, float, bool], ...] = (
    ("n_tokens", 1, 2047, True),
    ("max_spacing", 0, 10**6, True),
    ("max_steps", 1, 10**7, True),
    ("drift_guard", 0, 10**4, False),
    ("distil_weight", 0, 10**4, False),
    ("distil_passages", 1, 10**5, True),
    ("passage_tokens", 2, 4096, True),
    ("company_size", 1, 64, True),
    ("max_active", 1, 10**5, True),
    ("pairs_per_step", 1, 10**5, True),
    ("seed", 0, 2**32 - 1, True),
)


@dataclass(frozen=True)
class TrainingConfig:
    """How soft prompts are trained; the defaults suit models from 3 M parameters up.

    Attributes:
        n_tokens: length of each prompt.
        kind: "prefix" (keys and values) or "embedding" (rows).
        max_spacing: most filler tokens between prompt and call; drawn anew each step.
        filler: "story" (samples of the model itself, or `story`) or "random" (random tokens).
        story: the writer's own text, for filler and drift guard, instead of samples.
        min_loss: stop an entry when its mean response loss (nats a token) is at most this.
        max_steps: most updates of an entry.
        patience: stop an entry after this many updates without progress; None: never.
        optimizer: name of a `torch.optim` class, or a factory `(parameters, lr=…)`.
        learning_rate: relative to the scale of what is trained (the model's embedding rows, or
            the layer's keys and values); None: the kind's default.
        schedule: "cosine", "linear", "constant", or a factory `(optimizer) -> scheduler`.
        drift_guard: weight of the KL to the bare model on unrelated text; 0 for none.
        distil_weight: weight of the distillation loss of entries that have text; 0 for none.
        distil_passages: how many passages the teacher writes about an entry.
        passage_tokens: how long passages are, the teacher's and the unrelated ones.
        initial: "auto", "text", "responses", "vocabulary", a literal text, or a SoftPrompt.
        company_size: most prompts that stand in one trunk; 1 trains each alone.
        max_active: most entries in training at once; others wait.
        pairs_per_step: most call/response pairs of an entry in one update.
        style: authoring style that makes blocks of the text of entries that have none; see
            `lore.styles`.
        chat: put call and response into the model's chat template.
        seed: of every draw.
    """

    n_tokens: int = 16
    kind: Literal["prefix", "embedding"] = "prefix"
    max_spacing: int = 64
    filler: Literal["story", "random"] = "story"
    story: str | None = None
    min_loss: float | None = None
    max_steps: int = 500
    patience: int | None = None
    optimizer: str | Factory = "adam"
    learning_rate: float | None = None
    schedule: str | Factory = "cosine"
    drift_guard: float = 1.0
    distil_weight: float = 1.0
    distil_passages: int = 768
    passage_tokens: int = 48
    initial: str | SoftPrompt = "auto"
    company_size: int = 4
    max_active: int = 64
    pairs_per_step: int = 12
    style: str | None = None
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._among("kind", ("prefix", "embedding"))
        self._among("filler", ("story", "random"))
        self._among("chat", (False, True))
        self._among("style", (None, *STYLES))
        if not callable(self.schedule):
            self._among("schedule", ("cosine", "linear", "constant"))
        for name, low, high, whole in _NUMBERS:
            value = getattr(self, name)
            if not (_is_number(value, whole) and low <= value <= high):
                what = "a whole number" if whole else "a number"
                raise ConfigError(
                    f"{name} is {value!r:.60}; expected {what} from {low} to {high}; change it"
                )
        for name in ("min_loss", "learning_rate", "patience"):
            value, whole = getattr(self, name), name == "patience"
            if value is not None and not (_is_number(value, whole) and 0 < value < math.inf):
                what = "a whole number" if whole else "a number"
                raise ConfigError(
                    f"{name} is {value!r:.60}; expected {what} above 0, or none at all; change it"
                )
        for name, types, what in (
            ("story", str | None, "text"),
            ("optimizer", str | Callable, "a name or a factory"),
            ("initial", str | SoftPrompt, "text or a SoftPrompt"),
        ):
            value = getattr(self, name)
            if not isinstance(value, types):
                raise ConfigError(f"{name} is {value!r:.60}; expected {what}; change it")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The settings given by name, and the defaults for the rest.

        Raises:
            ConfigError: a name that is no setting, or a value that does not fit.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "take it out"
                raise ConfigError(
                    f"there is no setting {name!r}; expected one of {', '.join(known)}; {hint}"
                )
        return cls(**settings)

    def _among(self, name: str, choices: tuple[str | bool | None, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            named = [str(choice) for choice in choices if choice is not None]
            close = difflib.get_close_matches(str(value), named, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "choose one"
            if None in choices:
                hint += " (or leave it out)"
            raise ConfigError(
                f"{name} is {value!r:.60}; expected one of {', '.join(named)}; {hint}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a prompt file carries them; factories by name, the story left out."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings["story"] = self.story is not None
        for name in ("optimizer", "schedule"):
            if callable(settings[name]):
                settings[name] = _name_of(settings[name])
        if isinstance(self.initial, SoftPrompt):
            settings["initial"] = f"prompt {self.initial.uuid}"
        return settings


def _is_number(value: object, whole: bool) -> bool:
    types = int if whole else int | float
    return isinstance(value, types) and not isinstance(value, bool)


def _name_of(factory: Factory) -> str:
    factory = getattr(factory, "func", factory)  # what a functools.partial calls
    return str(getattr(factory, "__name__", type(factory).__name__))
