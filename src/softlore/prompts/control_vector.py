"""ControlVector: a direction in the hidden states of a model's layers, which steers its texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softlore.errors import ConfigError, PromptError, PromptMismatchError
from softlore.model import fingerprint as sketches
from softlore.prompts.fields import (
    check_tensor,
    clean_created,
    clean_json,
    clean_name,
    clean_text,
    now,
)
from softlore.prompts.native import parse_object
from softlore.prompts.opening import PromptFile, open_prompt
from softlore.prompts.reasons import Reason, as_file_error, refuse
from softlore.prompts.safetensors_file import (
    read_safetensors_header,
    read_tensors,
    write_tensor,
)
from softlore.settings import arguments as args

if TYPE_CHECKING:
    from softlore.model import LanguageModel

FORMAT = "softlore-vector"
FORMAT_VERSION = "1"
DIRECTIONS = "directions"
MAX_LAYERS, MAX_WIDTH = 1024, 262_144
MAX_VECTORS = 16  # of one text


@dataclass(frozen=True, eq=False, repr=False)
class ControlVector:
    """A direction for each layer of a model, added to what the layer puts out.

    Strength 1 is the vector as it was trained, 0 nothing, below 0 away from it. Several add up. It
    takes no tokens of the context.

    Attributes:
        name: letters, digits, space and `-_.'`.
        directions: `[layers, width]`, float32; rows of layers that it leaves alone are 0. Row i is
            added to the output of layer i, counted from 0.
        fingerprint: a numeric sketch of the model, as a soft prompt carries it; empty where it
            comes from another program.
        base_model: the name of the model.
        training: how it was made, JSON.
        created: ISO 8601 in UTC, or empty.

    Raises PromptError for values that a file could not hold, and for NaN and infinity.
    """

    name: str
    directions: Tensor
    fingerprint: dict[str, Any] = field(default_factory=dict)
    base_model: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=now)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("name", clean_name(self.name))
        put("directions", check_tensor(f"control vector {self.name!r}", self.directions))
        check_shape(self.directions.shape)
        put("fingerprint", clean_json("fingerprint", self.fingerprint))
        put("training", clean_json("training", self.training))
        clean_text("base_model", self.base_model)
        clean_created(self.created)

    def __repr__(self) -> str:
        layers, width = self.directions.shape
        made_for = f", for {self.base_model!r}" if self.base_model else ""
        return f"ControlVector({self.name!r}, {layers} layers × {width}{made_for})"

    @property
    def layers(self) -> list[int]:
        """The layers that it changes."""
        changed: list[int] = self.directions.any(dim=1).nonzero()[:, 0].tolist()
        return changed

    @property
    def digest(self) -> str:
        """A hash of its directions, which tells it from another vector of its name."""
        return hashlib.sha256(self.directions.numpy().tobytes()).hexdigest()

    @classmethod
    @args.expecting(path=args.PATHLIKE)
    def load(cls, path: str | os.PathLike[str]) -> ControlVector:
        """Reads a file; no code in it is run. Raises PromptFileError or StorageError."""
        with open_prompt(path) as file:
            return cls.read(file)

    @classmethod
    def read(cls, file: PromptFile) -> ControlVector:
        """Reads an open file. Raises PromptFileError."""
        header = read_safetensors_header(file, (DIRECTIONS,))
        metadata = header.metadata or {}
        if metadata.get("format") != FORMAT or metadata.get("format_version") != FORMAT_VERSION:
            refuse(
                Reason.NOT_SOFTLORE,
                f"its metadata has the format {metadata.get('format')!r:.40} in version "
                f"{metadata.get('format_version')!r:.40}; expected {FORMAT!r} in version "
                f"{FORMAT_VERSION!r}; get it in that format, or update softlore",
            )
        with as_file_error(Reason.SHAPE):
            check_shape(header.tensors[DIRECTIONS].shape)
        objects = {
            key: parse_object(metadata.get(key, "{}"), key) for key in ("fingerprint", "training")
        }
        tensor = read_tensors(file.stream, header)[DIRECTIONS]
        with as_file_error(Reason.METADATA_VALUE):
            return cls(
                metadata.get("name", ""),
                tensor,
                base_model=metadata.get("base_model", ""),
                created=metadata.get("created", ""),
                **objects,
            )

    @args.expecting(PromptError, path=args.PATH)
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file atomically; equal vectors give equal bytes. Raises StorageError."""
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "base_model": self.base_model,
            "created": self.created,
            "fingerprint": json.dumps(self.fingerprint, sort_keys=True),
            "training": json.dumps(self.training, ensure_ascii=False, sort_keys=True),
        }
        write_tensor(path, self.directions, metadata, DIRECTIONS)

    @args.expecting(model=args.MODEL, any_model=args.FLAG)
    def check(self, model: LanguageModel, any_model: bool = False) -> None:
        """Raises PromptMismatchError for a vector of another model.

        Args:
            any_model: check the shape only.

        Raises:
            UnsupportedModelError: what runs the model can't add it.
        """
        expected = (model.layers, model.width)
        if tuple(self.directions.shape) != expected:
            made_for = f", and was made for {self.base_model!r}" if self.base_model else ""
            raise PromptMismatchError(
                f"control vector {self.name!r} has shape {tuple(self.directions.shape)}{made_for}; "
                f"expected {expected}, layers and width of {model.name!r}; load the model that it "
                "was made for, or train one for this model"
            )
        model.check_steered(self.layers)
        if self.fingerprint and not any_model:
            own = model.fingerprint("embedding")
            sketches.check(own, self.fingerprint, self.name, model.name, self.base_model)


Strengths = Iterable[tuple[ControlVector, float]]


def sum_vectors(model: LanguageModel, vectors: Strengths, check: bool = True) -> Tensor | None:
    """The sum of vectors by their strengths, `[layers, width]`; None if there are none.

    Args:
        check: refuse those of another model, and not only those of another shape.

    Raises:
        ConfigError: too many, or a strength out of range.
        PromptMismatchError: a vector of another model.
    """
    pairs = checked_strengths(vectors)
    for vector, _ in pairs:
        vector.check(model, any_model=not check)
    parts = [strength * vector.directions for vector, strength in pairs if strength]
    return torch.stack(parts).sum(dim=0) if parts else None


def checked_strengths(vectors: Any) -> Sequence[tuple[ControlVector, float]]:
    """Vectors with their strengths. Raises ConfigError for anything else, and for too many."""
    try:
        pairs = [(vector, strength) for vector, strength in vectors]
        fit = all(isinstance(vector, ControlVector) for vector, _ in pairs)
    except (TypeError, ValueError):
        fit = False
    if not fit:
        raise ConfigError(
            f"vectors is {vectors!r:.60}; expected control vectors with a strength each, such as "
            "[(dark, 0.8)]; change it"
        )
    if len(pairs) > MAX_VECTORS:
        raise ConfigError(
            f"{len(pairs)} control vectors were given; expected at most {MAX_VECTORS}; leave some "
            "out"
        )
    for vector, strength in pairs:
        if not args.STRENGTH.fits(strength):
            raise ConfigError(
                f"control vector {vector.name!r} has strength {strength!r:.40}; expected "
                f"{args.STRENGTH.words}, with 1 for the vector as it was trained; change it"
            )
    return pairs


def check_shape(shape: Sequence[int]) -> None:
    """Raises PromptError unless a shape is `[layers, width]`, within the limits."""
    sizes = list(shape)
    if len(sizes) != 2 or not (1 <= sizes[0] <= MAX_LAYERS and 1 <= sizes[1] <= MAX_WIDTH):
        raise PromptError(
            f"the directions of a control vector have shape {sizes}; expected [layers, width], up "
            f"to {MAX_LAYERS} and {MAX_WIDTH}; give a row for each layer"
        )
