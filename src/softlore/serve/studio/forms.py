"""What the page sends, checked: each field with what it means."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_TOKENS = 100_000
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, le=10**9)]


class StudioForm(BaseModel):
    """A JSON body; what it does not know is ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False)


class NewStory(StudioForm):
    """A story to begin."""

    name: str
    """What it is called; its file is named by it."""
    opening: str = ""
    """Its first turn, the writer's."""
    book: str = ""
    """The lorebook that it reads with, of the studio's own."""


class Renamed(StudioForm):
    """Another name."""

    name: str


class WrittenTurn(StudioForm):
    """A text of the writer's."""

    text: str


class PickedLines(StudioForm):
    """A turn of any branch."""

    turn: int
    """Its number."""


class Marked(PickedLines):
    """Whether the writer accepts a turn."""

    kept: bool = True


class StorySet(StudioForm):
    """Settings to change; those left out stay."""

    memory: str | None = None
    """Text that always heads what the model reads."""
    note: str | None = None
    """The author's note, near the end of it."""
    note_depth: Count | None = None
    """How many turns from the end the note stands."""
    note_template: str | None = None
    """What is put around the note; `<|>` stands for it."""
    book: str | None = None
    """The lorebook to read with, of the studio's own; empty for none."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Of every draw; null draws anew each time."""
    sampling: dict[str, Any] | None = None
    """Settings of the samplers by name; what is left out has its default."""
    context_tokens: Count | None = None
    """Most tokens that the model reads at once; 0: all it can."""
    budget: Count | None = None
    """Most tokens of them for lore; 0: a quarter."""


class CodeStrength(StudioForm):
    """A control code, and how strong it is."""

    name: str
    """A code of the model's, or a soft prompt."""
    strength: Annotated[float, Field(ge=-100, le=100)] = 1.0
    """1 is the code as it is, 0 nothing, below 0 away from it."""


class WriteForm(StudioForm):
    """How the model is to write on."""

    text: str = ""
    """A turn of the writer's, which is added first."""
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 80
    """How many to write at most."""
    retry: bool = False
    """Whether the model's last turn is to be written once more."""
    stop: Annotated[list[Stop], Field(max_length=256)] = []
    """Strings before which the writing ends."""
    sampling: dict[str, Any] = {}
    """Settings of the samplers, which win over the story's own."""
    codes: Annotated[list[CodeStrength], Field(max_length=16)] = []
    """Control codes to write under."""
    no_copy: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Steers off so many tokens repeated from lore; 0 is off."""


class NewBook(StudioForm):
    """A lorebook to begin."""

    name: str


class NewTraining(StudioForm):
    """What is to be trained, and how; what is left out is as the lorebook has it, or usual."""

    book: str
    """A lorebook of the studio's."""
    entries: list[str] | None = None
    """Names of its entries; all of them if left out."""
    kind: str | None = None
    """`prefix` or `embedding`."""
    n_tokens: int | None = None
    """The length of each soft prompt."""
    max_steps: int | None = None
    """Most updates of an entry."""
    style: str | None = None
    """Authoring style that makes pairs of the text of entries that have none."""
    seed: int | None = None
    """Of every draw."""
    again: bool = False
    """Whether to train what is trained already."""


class Stopping(StudioForm):
    """How a training is to be stopped."""

    keep: bool = False
    """Whether soft prompts that were still in training are kept as they are."""


class Comparing(StudioForm):
    """An opening to be gone on with in several ways."""

    text: str = ""
    """The opening."""
    names: Annotated[list[str], Field(max_length=64)] = []
    """Entries of the lorebook, or soft prompts of the library."""
    book: str = ""
    """A lorebook of the studio's; empty for none."""
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 80
    """How many to write at most, each way."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every draw, the same for all ways."""
    samples: Annotated[int, Field(ge=1, le=8)] = 1
    """How many of each way, with seeds that follow one another."""
    sampling: dict[str, Any] = {}
    """Settings of the samplers."""
