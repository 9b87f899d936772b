"""Settings of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import field_validator

from softlore.settings.table import Settings, setting

Factory = Callable[..., Any]
Style = Literal[
    "auto", "none", "sentences", "noun", "pronoun", "mixed", "implicit", "cloud", "bracketed"
]
# Defaults, by kind. A prefix is in every layer, so that its effect adds up over these: its rate is
# divided by a root of their number. Muon's is the fourth root (a rate of 0.17 for 6 layers, 0.12
# for 30), that of other optimizers the square root (0.15, 0.068).
LEARNING_RATES = {"prefix": 0.37, "embedding": 1.0}
MUON_RATE = 0.27  # of a prefix


class TrainingConfig(Settings):
    """How soft prompts are trained; the defaults suit models from 3 M parameters up."""

    # fmt: off
    n_tokens: int = setting(16, "Length of each prompt.", ge=1, le=2047, unit="tokens")
    kind: Literal["prefix", "embedding"] = setting("prefix",
        "Keys and values for every layer (prefix), or rows among those of the text (embedding).")
    placement: Literal["late", "classic"] = setting("late",
        "What sees a prefix: new text only, so that the text before it is never read again (late), "
        "or everything (classic).")
    max_spacing: int | None = setting(None, "Maximum filler before a call, drawn log-uniformly for "
        "each step; none: 2000 for late prefixes, as far as the context reaches, else 64.",
        ge=0, le=10**6, unit="tokens")
    filler: Literal["story", "random"] = setting("story",
        "What the filler is: samples of the model (or `story`), or random tokens.")
    story: str | None = setting(None, "Text for filler and drift guard, in place of samples.")
    min_loss: float | None = setting(None, "Stop an entry when its mean response loss is at most "
        "this.", gt=0, unit="nats a token")
    max_steps: int = setting(500, "Maximum updates of an entry; 0 keeps what it starts from.", ge=0,
        le=10**7)
    patience: int | None = setting(40, "Stop an entry that has gained nothing for this many "
        "updates on what it is not trained on; none: train it to the end.", gt=0)
    optimizer: str | Factory = setting("muon", "Muon, or a class of torch.optim by name, or in "
        "Python a factory `(parameters, lr=…)`.", expected="a name or a factory")
    learning_rate: float | None = setting(None, "Relative to the scale of what is trained: the "
        "model's embedding rows (default 1, a third for texts alone), or the layer's keys and "
        "values (default 0.27 over the fourth root of the layers' number, and 0.37 over the "
        "square root for other optimizers than muon).", gt=0)
    schedule: Literal["cosine", "linear", "constant"] | Factory = setting("cosine",
        "How the learning rate falls, or in Python a factory `(optimizer) -> scheduler`.")
    drift_guard: float = setting(1.0, "Weight of the KL to the bare model on unrelated text; 0 for "
        "none.", ge=0, le=10**4)
    continuation_guard: float = setting(0.0, "Weight of the KL to the bare model on what follows a "
        "response, so that a fact is told and the story goes on; 0 for none.", ge=0, le=10**4)
    distil_weight: float = setting(1.0, "Weight of the distillation loss of entries that have "
        "text; 0 for none.", ge=0, le=10**4)
    distil_passages: int = setting(768, "Maximum passages that the teacher writes about an entry.",
        ge=1, le=10**5)
    passage_tokens: int = setting(48, "Length of the teacher's passages and of unrelated ones.",
        ge=2, le=4096, unit="tokens")
    initial: Any = setting("auto", "What a prompt starts from: auto (texts, calls and "
        "responses in closed form), text, responses, vocabulary, a literal text, or in Python a "
        "SoftPrompt.", expected="text or a SoftPrompt")
    company_size: int = setting(4, "Maximum prompts in one trunk; 1 trains each alone.",
        ge=1, le=64)
    max_active: int = setting(64, "Maximum entries in one update; more take turns.",
        ge=1, le=10**5)
    pairs_per_step: int = setting(12, "Maximum calls with a response of an entry in one update.",
        ge=1, le=10**5)
    style: Style = setting("auto",
        "Authoring style that makes blocks of the text of entries that have none: none; or auto, "
        "which is implicit for English texts of some sentences, and none for others.")
    chat: bool = setting(False, "Put call and response into the model's chat template.")
    seed: int = setting(0, "Seed of all random draws.", ge=0, le=2**32 - 1)
    # fmt: on

    @field_validator("initial")
    @classmethod
    def _text_or_prompt(cls, value: Any) -> Any:
        if not isinstance(value, str) and not hasattr(value, "tensor"):  # a SoftPrompt
            raise ValueError
        return value

    @property
    def late(self) -> bool:
        """Whether late prefixes are trained: rows among those of the text are never late."""
        return self.kind == "prefix" and self.placement == "late"

    def to_dict(self) -> dict[str, Any]:
        """The settings as a prompt file carries them; factories by name, the story left out."""
        settings = super().to_dict() | {"story": self.story is not None}
        for name in ("optimizer", "schedule"):
            if callable(settings[name]):
                settings[name] = _name_of(settings[name])
        if not isinstance(self.initial, str):
            settings["initial"] = f"prompt {self.initial.uuid}"
        return settings


def _name_of(factory: Factory) -> str:
    factory = getattr(factory, "func", factory)  # what a functools.partial calls
    return str(getattr(factory, "__name__", type(factory).__name__))
