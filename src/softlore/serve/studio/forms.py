"""Request bodies of the studio's API, validated by pydantic; each field documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from softlore.settings import SamplingParams
from softlore.settings.arguments import MAX_STRENGTH
from softlore.settings.sampling import MAX_RANGE
from softlore.story.settings import Form

MAX_TOKENS = 100_000
MAX_MINUTES = 1_000_000
TRAINING = ("kind", "n_tokens", "max_steps", "style", "seed")


def check_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    """Returns `sampling`. Raises ConfigError unless it has settings of samplers."""
    SamplingParams.of(sampling)
    return sampling


Sampling = Annotated[dict[str, Any], AfterValidator(check_sampling)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
# Bodies with one field.
TextField = Annotated[str, Body(embed=True, description="A text by the writer.")]
TurnField = Annotated[int, Body(embed=True, description="The number of a turn of any branch.")]


class StudioForm(BaseModel):
    """A JSON object. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False)


class NewStory(StudioForm):
    """A story to create."""

    name: str = ""
    """Its name, and that of its file; made of the opening's or the card's first words if empty."""
    opening: str = ""
    """Its first turn, by the writer."""
    book: str = ""
    """The studio's lorebook that it uses."""
    greeting: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Begins with the card that the lorebook came from: 1 is its first message, the next ones are
    its alternates. 0: with the opening."""
    form: Form = "prose"
    """How its turns follow each other; see `StorySettings`."""
    user: str = ""
    """The writer's name, for `{{user}}`."""


class ModelChange(StudioForm):
    """The model to go on with."""

    name: str
    """As /models lists it."""


class CodeStrength(StudioForm):
    """A control code or control vector, and its strength."""

    name: str
    """A code of the model, or a soft prompt; or a control vector."""
    strength: Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)] = 1.0
    """1 applies it, 0 does nothing, negative values steer away from it."""


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
    sampling: Sampling = {}
    """Settings of the samplers; they override the story's."""
    codes: Annotated[list[CodeStrength], Field(max_length=16)] = []
    """Control codes to apply."""
    vectors: Annotated[list[CodeStrength], Field(max_length=16)] = []
    """Control vectors to steer by."""
    no_copy: Annotated[int, Field(ge=0, le=MAX_RANGE)] = 0
    """Avoids repeating so many tokens of the lore word for word; 0 is off."""
    samples: Annotated[int, Field(ge=1, le=8)] = 1
    """How many continuations to write side by side; all of them are kept as alternatives."""
    speaker: str = ""
    """Who speaks, in a chat; empty: whom the last line names, or whose turn it is."""


class OtherToken(StudioForm):
    """A token to take in place of the one that was sampled."""

    token: Annotated[int, Field(ge=0)]
    """Its place among the turn's tokens."""
    text: str
    """Which of the alternatives."""


class RewriteForm(StudioForm):
    """A part of a turn to write anew."""

    start: Annotated[int, Field(ge=0)]
    """Its first character."""
    samples: Annotated[int, Field(ge=1, le=8)] = 3
    """How many sentences to choose from."""


class EntryChange(StudioForm):
    """What an entry is from the last turn on."""

    entry: str
    """Its name."""
    text: str = ""
    """Its text from then on."""
    prompt: str = ""
    """The soft prompt that it has from then on."""


class NewTraining(StudioForm):
    """A training to start, with any of the settings TRAINING.

    Settings left out come from the lorebook, or have their defaults.
    """

    model_config = ConfigDict(extra="allow")

    book: str
    """A lorebook of the studio."""
    entries: list[str] | None = None
    """Names of its entries; all of them if left out."""
    overwrite: bool = False
    """Whether to train entries that are trained already."""
    minutes: Annotated[float, Field(gt=0, le=MAX_MINUTES)] | None = None
    """Most minutes, the preparation included: fewer steps are made where they would take longer.
    No limit if left out."""

    @property
    def settings(self) -> dict[str, Any]:
        """The other fields: those of `TrainingConfig` that the API takes."""
        given = self.model_extra or {}
        return {name: given[name] for name in TRAINING if given.get(name) is not None}


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
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed, the same for all methods."""
    samples: Annotated[int, Field(ge=1, le=8)] = 1
    """How many texts of each method, with consecutive seeds."""
    sampling: Sampling = {}
    """Settings of the samplers that differ from a story's."""
