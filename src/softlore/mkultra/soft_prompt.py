"""mkultra's SoftPrompt: rows with metadata, placed in text by a tag in a plain string."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softlore.mkultra.registry import SOFT_TOKEN, register, registered, vocabularies
from softlore.prompts import SoftPrompt, load_prompt
from softlore.prompts.formats import mkultra
from softlore.prompts.formats.rows import import_name, time_of

PREFIX = f"{mkultra.NAME}."  # of mkultra's metadata in `extra`, see `formats.mkultra`
SHAPE = "shape"  # metadata of tensors with a batch axis


class MkultraSoftPrompt:
    """mkultra's `SoftPrompt`: rows with metadata (`name`, `uuid`, `description`, `epoch`, …).

    In text it is a tag, `<NAME-UUID-@><@><@>…`, with as many tokens as it has rows.
    """

    GENERIC_SOFT_TOKEN_STR = SOFT_TOKEN

    def __init__(self, tensor: Tensor, metadata: Mapping[str, Any] | None = None) -> None:
        """Copies rows `[n_tokens, width]` or `[1, n_tokens, width]`.

        Raises:
            PromptError: another shape, or values that are not finite.
        """
        self._tensor = tensor.detach().clone()
        self._metadata: dict[str, Any] = {
            "name": "Untitled",
            "uuid": str(uuid.uuid4()),
            "description": "No description given.",
            "epoch": datetime.datetime.now().timestamp(),
        } | {key: value for key, value in (metadata or {}).items() if value is not None}
        _ = self.prompt  # checks all values
        self._make_unique()
        register(self)

    def _make_unique(self) -> None:
        """Chooses a new uuid while another prompt with other rows has the same tag."""
        while other := registered(self.token):
            if torch.equal(self._rows(), other._rows()):
                return
            self._metadata["uuid"] = str(uuid.uuid4())

    # constructors ------------------------------------------------------------------------------

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> MkultraSoftPrompt:
        """Reads a soft prompt from a file of any format that softlore knows.

        Raises:
            PromptFileError: any other file; no code in it is run.
        """
        return _of(load_prompt(path))

    @staticmethod
    def from_json(string: str) -> MkultraSoftPrompt:
        """Reads the text of `to_json`.

        Raises:
            PromptFileError: any other text; no code in it is run.
        """
        return _of(mkultra.from_json(string))

    @staticmethod
    def from_inputs_embeds(
        inputs_embeds: Tensor, metadata: Mapping[str, Any] | None = None
    ) -> MkultraSoftPrompt:
        """Makes a soft prompt of embedding rows."""
        return MkultraSoftPrompt(inputs_embeds, metadata)

    @staticmethod
    def from_tuning_model(
        model: Any, metadata: Mapping[str, Any] | None = None
    ) -> MkultraSoftPrompt:
        """Makes a soft prompt of a tuning model's learned embedding."""
        return MkultraSoftPrompt(model.learned_embedding, metadata)

    @staticmethod
    def from_string(
        string: str, model: Any, tokenizer: Any, metadata: Mapping[str, Any] | None = None
    ) -> MkultraSoftPrompt:
        """Makes a soft prompt with the effect of the text itself; no special tokens are added."""
        ids = tokenizer(string, return_tensors="pt", add_special_tokens=False).input_ids
        rows = model.get_input_embeddings()(ids.to(model.device))
        default = {"name": "FromString", "description": f"Created from string '{string}'"}
        return MkultraSoftPrompt(rows, default if metadata is None else metadata)

    @staticmethod
    def from_input_id(input_id: int) -> Any:
        """The soft prompt whose tag begins with this id, or None."""
        for vocabulary in vocabularies():
            if input_id in vocabulary.prompts:
                return vocabulary.prompts[input_id]
        return None

    @staticmethod
    def get_special_token_strs() -> list[str]:
        """All placeholder tokens of tokenizers."""
        return [SOFT_TOKEN, *sorted({t for v in vocabularies() for t in v.tokens})]

    @staticmethod
    def get_special_token_ids() -> list[int]:
        """Ids of all placeholder tokens of tokenizers."""
        return sorted({i for vocabulary in vocabularies() for i in vocabulary.ids})

    # contents ----------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Mkultra's JSON, which may be a string inside another JSON."""
        return mkultra.to_json(self.prompt)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes mkultra's JSON to a file, atomically."""
        mkultra.write(self.prompt, path)

    @property
    def prompt(self) -> SoftPrompt:
        """The same as softlore's SoftPrompt, other metadata in `extra`."""
        metadata = dict(self._metadata)
        name = metadata.pop("name")
        if self._tensor.dim() == 3:
            metadata[SHAPE] = list(self._tensor.shape)  # mkultra's files hold rows of either shape
        return SoftPrompt(
            name=import_name(name),
            kind="embedding",
            tensor=self._rows(),
            uuid=metadata.pop("uuid"),
            description=metadata.pop("description"),
            created=time_of(metadata.pop("epoch")),
            extra={PREFIX + key: json.dumps(value) for key, value in metadata.items()},
        )

    def get_tag_str(self) -> str:
        """Its tag: a unique token, then `<@>` for each further row."""
        return self.token + SOFT_TOKEN * (len(self) - 1)

    @property
    def token(self) -> str:
        """The first token of its tag."""
        return f"<{self._metadata['name']}-{self._metadata['uuid'][:8]}-@>"

    def get_inputs_embeds(self) -> Tensor:
        """Its rows, in the shape in which they were given."""
        return self._tensor

    def get_metadata(self) -> dict[str, Any]:
        """Its metadata."""
        return self._metadata

    def __len__(self) -> int:
        return self._tensor.shape[-2]

    def __add__(self, other: str) -> str:
        return self.get_tag_str() + other

    def __radd__(self, other: str) -> str:
        return other + self.get_tag_str()

    def __str__(self) -> str:
        data = self._metadata
        return (
            f"{data['name']} ({datetime.datetime.fromtimestamp(data['epoch'])})\n"
            f"Length: {len(self)}\n"
            f"UUID:   {data['uuid']}\n"
            f"Description:\n{data['description']}"
        )

    def _unique_token_str(self) -> str:
        return self.token

    def _rows(self) -> Tensor:
        if self._tensor.dim() == 3 and len(self._tensor) == 1:
            return self._tensor[0]
        return self._tensor


def _of(prompt: SoftPrompt) -> MkultraSoftPrompt:
    """Mkultra's form of a softlore SoftPrompt.

    Raises:
        PromptError: a prefix, which has no rows for a text.
    """
    metadata: dict[str, Any] = {"name": prompt.name}
    for key, value in prompt.extra.items():
        if key.startswith(PREFIX):
            metadata[key.removeprefix(PREFIX)] = json.loads(value)
    metadata |= {"uuid": prompt.uuid, "description": prompt.description or None}
    if prompt.created:
        metadata["epoch"] = datetime.datetime.fromisoformat(prompt.created).timestamp()
    batch = metadata.pop(SHAPE, None) == [1, *prompt.embeddings.shape]
    rows = prompt.embeddings[None] if batch else prompt.embeddings
    return MkultraSoftPrompt(rows, metadata)
