"""mkultra's SoftPrompt: rows with free metadata, which join text as a tag in a plain string."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softlore import prompts
from softlore.mkultra.registry import SOFT_TOKEN, register, registered, vocabularies
from softlore.prompts.formats import mkultra
from softlore.prompts.formats.rows import import_name, time_of

PREFIX = f"{mkultra.NAME}."  # of mkultra's metadata in `extra`, as softlore's reader has it
SHAPE = "shape"  # metadata that tells of a batch axis


class SoftPrompt:
    """Rows, and metadata: `name`, `uuid`, `description`, `epoch`, and what a trainer adds.

    In a text it is a tag, `<NAME-UUID-@><@><@>…`, of as many tokens as it has rows.
    """

    GENERIC_SOFT_TOKEN_STR = SOFT_TOKEN

    def __init__(self, tensor: Tensor, metadata: Mapping[str, Any] | None = None) -> None:
        """Takes rows `[n_tokens, width]` or `[1, n_tokens, width]`, which are copied.

        Raises:
            PromptError: when they are none, or hold what is no finite number.
        """
        self._tensor = tensor.detach().clone()
        self._metadata: dict[str, Any] = {
            "name": "Untitled",
            "uuid": str(uuid.uuid4()),
            "description": "No description given.",
            "epoch": datetime.datetime.now().timestamp(),
        } | {key: value for key, value in (metadata or {}).items() if value is not None}
        _ = self.prompt  # raises what is wrong with it
        self._keep_apart()
        register(self)

    def _keep_apart(self) -> None:
        """Takes a new uuid if another prompt with other rows has this one's tag."""
        while other := registered(self._unique_token_str()):
            if torch.equal(self._rows(), other._rows()):
                return
            self._metadata["uuid"] = str(uuid.uuid4())

    # what it is made from ----------------------------------------------------------------------

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> SoftPrompt:
        """Reads a soft prompt from a file of any format that softlore knows.

        Raises:
            PromptFileError: what is no such file; nothing in it is ever run.
        """
        return _of(prompts.load_prompt(path))

    @staticmethod
    def from_json(string: str) -> SoftPrompt:
        """Reads what `to_json` has given.

        Raises:
            PromptFileError: what is no such text; nothing in it is ever run.
        """
        return _of(mkultra.from_json(string))

    @staticmethod
    def from_inputs_embeds(
        inputs_embeds: Tensor, metadata: Mapping[str, Any] | None = None
    ) -> SoftPrompt:
        """Makes one of embedding rows."""
        return SoftPrompt(inputs_embeds, metadata)

    @staticmethod
    def from_tuning_model(model: Any, metadata: Mapping[str, Any] | None = None) -> SoftPrompt:
        """Takes what a tuning model has learned."""
        return SoftPrompt(model.learned_embedding, metadata)

    @staticmethod
    def from_string(
        string: str, model: Any, tokenizer: Any, metadata: Mapping[str, Any] | None = None
    ) -> SoftPrompt:
        """Makes one that does what the text itself would do; no special tokens are added."""
        ids = tokenizer(string, return_tensors="pt", add_special_tokens=False).input_ids
        rows = model.get_input_embeddings()(ids.to(model.device))
        told = {"name": "FromString", "description": f"Created from string '{string}'"}
        return SoftPrompt(rows, told if metadata is None else metadata)

    @staticmethod
    def from_input_id(input_id: int) -> Any:
        """The soft prompt whose tag begins with this id in some tokenizer, or None."""
        for vocabulary in vocabularies():
            if input_id in vocabulary.prompts:
                return vocabulary.prompts[input_id]
        return None

    @staticmethod
    def get_special_token_strs() -> list[str]:
        """All placeholder tokens that tokenizers know."""
        return [SOFT_TOKEN, *sorted({t for v in vocabularies() for t in v.tokens})]

    @staticmethod
    def get_special_token_ids() -> list[int]:
        """Ids of all placeholder tokens, in any tokenizer."""
        return sorted({i for vocabulary in vocabularies() for i in vocabulary.ids})

    # what it gives -----------------------------------------------------------------------------

    def to_json(self) -> str:
        """Gives mkultra's JSON, which may stand inside another JSON."""
        return mkultra.to_json(self.prompt)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes mkultra's JSON to a file, whole or not at all."""
        mkultra.write(self.prompt, path)

    @property
    def prompt(self) -> prompts.SoftPrompt:
        """The same as softlore's own SoftPrompt: what no field is for is in `extra`."""
        told = dict(self._metadata)
        name = told.pop("name")
        if self._tensor.dim() == 3:
            told[SHAPE] = list(self._tensor.shape)  # mkultra's files hold rows of either shape
        return prompts.SoftPrompt(
            name=import_name(name),
            kind="embedding",
            tensor=self._rows(),
            uuid=told.pop("uuid"),
            description=told.pop("description"),
            created=time_of(told.pop("epoch")),
            extra={PREFIX + key: json.dumps(value) for key, value in told.items()},
        )

    def get_tag_str(self) -> str:
        """Its tag: a token of its own, then `<@>` for each further row."""
        return self._unique_token_str() + SOFT_TOKEN * (len(self) - 1)

    def get_inputs_embeds(self) -> Tensor:
        """Its rows, in the shape they were given."""
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
        told = self._metadata
        return (
            f"{told['name']} ({datetime.datetime.fromtimestamp(told['epoch'])})\n"
            f"Length: {len(self)}\n"
            f"UUID:   {told['uuid']}\n"
            f"Description:\n{told['description']}"
        )

    def _unique_token_str(self) -> str:
        return f"<{self._metadata['name']}-{self._metadata['uuid'][:8]}-@>"

    def _rows(self) -> Tensor:
        if self._tensor.dim() == 3 and len(self._tensor) == 1:
            return self._tensor[0]
        return self._tensor


def _of(prompt: prompts.SoftPrompt) -> SoftPrompt:
    """A SoftPrompt of mkultra's from softlore's.

    Raises:
        PromptError: a prefix, which has no rows to stand in a text.
    """
    kept = {key: value for key, value in prompt.extra.items() if key.startswith(PREFIX)}
    told = {key.removeprefix(PREFIX): json.loads(value) for key, value in kept.items()}
    told |= {"uuid": prompt.uuid, "description": prompt.description or None}
    if prompt.created:
        told["epoch"] = datetime.datetime.fromisoformat(prompt.created).timestamp()
    batch = told.pop(SHAPE, None) == [1, *prompt.embeddings.shape]
    rows = prompt.embeddings[None] if batch else prompt.embeddings
    return SoftPrompt(rows, {"name": prompt.name} | told)
