"""Request bodies of the studio's API, validated by pydantic; each field with its meaning."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TOKENS = 100_000
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class StudioForm(BaseModel):
    """A JSON object. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False)


class NewStory(StudioForm):
    """A story to create."""

    name: str
    """Its name, and that of its file."""
    opening: str = ""
    """Its first turn, by the writer."""
    book: str = ""
    """The studio's lorebook that it uses."""


class NewName(StudioForm):
    """A new name of a story."""

    name: str


class TurnText(StudioForm):
    """A text by the writer."""

    text: str


class TurnNumber(StudioForm):
    """A turn of any branch."""

    turn: int
    """Its number."""


class MarkedTurn(TurnNumber):
    """Whether the writer marks a turn to learn from."""

    kept: bool = True


class SettingsChange(StudioForm):
    """Settings of a story to change; those left out stay."""

    memory: str | None = None
    """Text at the start of every context."""
    note: str | None = None
    """The author's note, near the end of the context."""
    note_depth: Count | None = None
    """How many turns before the end the note stands."""
    note_template: str | None = None
    """Text around the note, which replaces `<|>`."""
    book: str | None = None
    """The studio's lorebook to use; empty for none."""
    seed: Seed | None = None
    """Random seed; null for a new one each time."""
    sampling: dict[str, Any] | None = None
    """Settings of the samplers by name; the others have their defaults."""
    context_tokens: Count | None = None
    """Length of the context in tokens; 0 for the model's own."""
    budget: Count | None = None
    """Most tokens of the context for lore; 0 for a quarter."""


class CodeStrength(StudioForm):
    """A control code and its strength."""

    name: str
    """A code of the model, or a soft prompt."""
    strength: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """1 applies the code, 0 does nothing, negative values steer away from it."""


class WriteForm(StudioForm):
    """How the model writes its next turn."""

    text: str = ""
    """A turn by the writer, added first."""
    tokens: Tokens = 80
    """Most tokens to write."""
    retry: bool = False
    """Whether to write the model's last turn again."""
    stop: Annotated[list[Stop], Field(max_length=256)] = []
    """Strings before which the text ends."""
    sampling: dict[str, Any] = {}
    """Settings of the samplers; they override the story's."""
    codes: Annotated[list[CodeStrength], Field(max_length=16)] = []
    """Control codes to apply."""
    no_copy: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Avoids repeating so many tokens of the lore word for word; 0 is off."""


class NewBook(StudioForm):
    """A lorebook to create."""

    name: str


class NewTraining(StudioForm):
    """A training to start. Settings left out come from the lorebook, or have their defaults."""

    book: str
    """A lorebook of the studio."""
    entries: list[str] | None = None
    """Names of its entries; all of them if left out."""
    overwrite: bool = False
    """Whether to train entries that are trained already."""
    kind: str | None = None
    """`prefix` or `embedding`."""
    n_tokens: int | None = None
    """Length of each soft prompt in tokens."""
    max_steps: int | None = None
    """Most updates of an entry."""
    style: str | None = None
    """Authoring style that makes pairs from the text of entries without any."""
    seed: int | None = None
    """Random seed."""


class StopTraining(StudioForm):
    """How to stop a training."""

    save: bool = False
    """Whether to save soft prompts that have not finished."""


class CompareForm(StudioForm):
    """An opening to continue by several methods."""

    text: str = ""
    """The opening."""
    names: Annotated[list[str], Field(max_length=64)] = []
    """Entries of the lorebook, or soft prompts of the library."""
    book: str = ""
    """A lorebook of the studio; empty for none."""
    tokens: Tokens = 80
    """Most tokens to write by each method."""
    seed: Seed = 0
    """Random seed, the same for all methods."""
    samples: Annotated[int, Field(ge=1, le=8)] = 1
    """How many texts of each method, with consecutive seeds."""
    sampling: dict[str, Any] = {}
    """Settings of the samplers."""
