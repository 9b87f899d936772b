"""Routes under /prompts: list, show, import, export and delete soft prompts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from softlore.errors import PromptError, PromptFileError, UnsupportedModelError
from softlore.model import LanguageModel, require_frozen_model
from softlore.prompts import (
    FORMATS,
    WRITABLE,
    PromptFile,
    PromptHeader,
    SoftPrompt,
    load_prompt,
    read_prompt,
    slug_of,
    write_prompt,
)
from softlore.prompts.formats import peft, vllm
from softlore.prompts.formats.safe.zips import Archive
from softlore.prompts.responses import KEY
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.files import RAW_BODY, attachment, base_name, free_name, name_for
from softlore.serve.studio.training_job import rounded
from softlore.tune.losses import last_loss

CONNECTOR_SUFFIX = ".vllm.safetensors"  # of the files that vLLM's connector reads: prefix kind
_UNPACKED = 4  # largest ratio of a member's size to the archive's: floats hardly compress


def make_router(context: StudioContext) -> APIRouter:
    """Everything under /prompts."""
    router = APIRouter(prefix="/prompts")
    library = context.state.prompts

    @router.get("")
    def names() -> dict[str, Any]:
        """The library's soft prompts, and the files in it that cannot be read."""
        fitting, listing = context.prompt_store.compatible(), library.listing()
        return {
            "prompts": [prompt_row(header, header.name in fitting) for header in listing.headers],
            "bad": [
                {"file": base_name(bad.path.name), "message": str(bad.error)} for bad in listing.bad
            ],
        }

    @router.post("/import", openapi_extra=RAW_BODY)
    async def import_(request: Request, filename: str = "", name: str = "") -> dict[str, Any]:
        """Imports a soft prompt of any format; a name in the file takes precedence over `name`."""
        content = await request.body()
        prompt = await run_in_threadpool(_import, context, content, filename, name)
        return await run_in_threadpool(_details, context, prompt.name)

    @router.get("/{name}")
    def read(name: str) -> dict[str, Any]:
        """A soft prompt's metadata."""
        return _details(context, name)

    @router.delete("/{name}")
    def delete(name: str) -> dict[str, Any]:
        """Deletes a soft prompt's file."""
        library.remove(name)
        return {}

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "safetensors") -> Response:
        """A soft prompt as a file of another program; a folder is sent as a zip archive."""
        content, suffix = _encode(library[name], format, context.model)
        return attachment(content, slug_of(name) + suffix)

    return router


def prompt_row(header: PromptHeader, fits: bool) -> dict[str, Any]:
    """A soft prompt in a list. `fits`: whether it can be used with the server's model."""
    return {
        "name": header.name,
        "kind": header.kind,
        "n_tokens": header.n_tokens,
        "model": header.metadata.get("base_model", ""),
        "bytes": header.data_bytes,
        "fits": fits,
        "trained": _training_summary(header),
    }


def header_fields(header: PromptHeader) -> dict[str, Any]:
    """A header's metadata; an empty mapping if they are damaged."""
    try:
        return header.fields()
    except PromptFileError:
        return {}


def _training_summary(header: PromptHeader) -> dict[str, Any]:
    """Updates, last loss and recall (nats a token), as far as the file holds them."""
    fields = header_fields(header)
    training, metrics = (_mapping(fields.get(name)) for name in ("training", "metrics"))
    summary = {
        "steps": training.get("steps"),
        "loss": last_loss(metrics),
        "recall": rounded(_mapping(metrics.get("recall")).get("soft")),
    }
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _details(context: StudioContext, name: str) -> dict[str, Any]:
    header = context.state.prompts.header(name)
    fields = header_fields(header)
    training = _mapping(fields.pop("training", {}))
    if KEY in training:
        training = training | {KEY: "hashes, for no_copy"}
    for large in ("fingerprint", "name"):
        fields.pop(large, None)
    more = {"training": training, "shape": list(header.shape), "dtype": header.dtype}
    return prompt_row(header, header.name in context.prompt_store.compatible()) | fields | more


def _import(context: StudioContext, content: bytes, filename: str, name: str) -> SoftPrompt:
    """Saves a soft prompt under its name, with a number appended where that is taken."""
    library = context.state.prompts
    prompt = _parse(content, filename, name_for(name, filename, "prompt"))
    if not prompt.fingerprint:
        try:  # other programs' files do not name the model they were made for
            context.model.check_prompt(prompt, any_model=True)
            prompt = prompt.made_for(context.model)
        except (PromptError, UnsupportedModelError):
            pass  # made for a model of another shape: saved, and listed as not fitting
    with context.importing:
        if prompt.name in library and library[prompt.name].digest == prompt.digest:
            return prompt  # imported before
        taken = {header.name.casefold() for header in library.listing().headers}
        name = free_name(prompt.name, taken)
        prompt = prompt if name == prompt.name else prompt.replace(name=name)
        library.save(prompt)
        return prompt


def _parse(content: bytes, filename: str, name: str) -> SoftPrompt:
    """A prompt from a file's content; `name` is for formats that store none."""
    label = base_name(filename)
    path = Path(name + Path(label).suffix.lower())
    try:
        if content.startswith(b"PK\x03\x04") and (adapter := _adapter_files(content)):
            with tempfile.TemporaryDirectory(prefix="softlore-") as parent:
                folder = Path(parent) / name
                folder.mkdir()
                for part, data in adapter.items():
                    (folder / part).write_bytes(data)
                return load_prompt(folder)
        return read_prompt(PromptFile.of_bytes(content, path))
    except PromptFileError as error:
        message = f"cannot read {label or 'the file'!r}: {error}"
        raise PromptFileError(message, reason=error.reason) from None


def _adapter_files(content: bytes) -> dict[str, bytes]:
    """The files of a PEFT adapter anywhere in a zip archive; empty for any other archive."""
    try:
        archive = Archive(PromptFile.of_bytes(content, Path("adapter.zip")))
    except PromptFileError:
        return {}  # its own reader reports what is wrong
    members = {Path(member).name: member for member in archive.members}
    if peft.CONFIG not in members:
        return {}
    limit = 2**20 + _UNPACKED * len(content)
    names = [name for name in (peft.CONFIG, peft.TENSORS) if name in members]
    return {name: archive.read(members[name], limit) for name in names}


def _encode(prompt: SoftPrompt, format: str, model: LanguageModel) -> tuple[bytes, str]:
    """A prompt's file in a format, and the suffix of the file's name.

    Raises:
        PromptError: an unknown format, or one that cannot hold this prompt.
    """
    if format not in WRITABLE:
        raise PromptError(
            f"there is no format {format!r:.80}; expected one of {', '.join(WRITABLE)}; choose one"
        )
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        path = Path(folder) / (slug_of(prompt.name) + FORMATS[format].suffix)
        if format == "vllm" and prompt.kind == "prefix":
            model.check_prompt(prompt)
            vllm.write_prefix(prompt, require_frozen_model(model, "writing for vLLM"), path)
            return path.read_bytes(), CONNECTOR_SUFFIX
        write_prompt(prompt, format, path)
        if path.is_file():
            return path.read_bytes(), FORMATS[format].suffix
        archive = shutil.make_archive(str(path), "zip", folder, path.name)
        return Path(archive).read_bytes(), f"{FORMATS[format].suffix}.zip"
