"""Routes of soft prompts: the library, and what comes in and goes out in any format."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from softlore.errors import PromptError, PromptFileError, UnsupportedModelError
from softlore.model import LanguageModel, require_frozen_model
from softlore.prompts import SoftPrompt
from softlore.prompts.formats import peft, vllm_prefix
from softlore.prompts.formats.zips import Archive
from softlore.prompts.library import slug_of
from softlore.prompts.readers import parse_prompt
from softlore.prompts.responses import KEY
from softlore.prompts.writers import WRITERS
from softlore.serve.studio.attachments import RAW, attached
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.headers import Told, fields_of, mapping, row_of
from softlore.serve.studio.names import file_name, free_name, name_for

CONNECTOR_SUFFIX = ".vllm.safetensors"  # of what vLLM's connector reads: the prefix kind
_UNPACKED = 4  # times the archive that a file in it may be: floats hardly compress


def make_router(bench: StudioContext) -> APIRouter:
    """Everything under /prompts."""
    router = APIRouter(prefix="/prompts")
    library = bench.state.prompts

    @router.get("")
    def names() -> Told:
        """The library's soft prompts, and the files in it that are none."""
        fitting, listing = bench.fitting.headers(), library.listing()
        return {
            "prompts": [row_of(header, header.name in fitting) for header in listing.headers],
            "bad": [
                {"file": file_name(one.path.name), "message": str(one.error)} for one in listing.bad
            ],
        }

    @router.post("/import", openapi_extra=RAW)
    async def import_(request: Request, filename: str = "", name: str = "") -> Told:
        """Brings in a soft prompt of any format; its own name goes before the one given."""
        content = await request.body()
        prompt = await run_in_threadpool(_import, bench, content, filename, name)
        return await run_in_threadpool(_facts, bench, prompt.name)

    @router.get("/{name}")
    def read(name: str) -> Told:
        """All that a soft prompt's file says."""
        return _facts(bench, name)

    @router.delete("/{name}")
    def delete(name: str) -> Told:
        """Removes a soft prompt's file."""
        library.remove(name)
        return {}

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "safetensors") -> Response:
        """A soft prompt as a file of another program's; a folder comes as a zip."""
        content, suffix = _written(library[name], format, bench.model)
        return attached(content, slug_of(name) + suffix)

    return router


def _facts(bench: StudioContext, name: str) -> Told:
    header = bench.state.prompts.header(name)
    fields = fields_of(header)
    training = mapping(fields.pop("training", {}))
    if KEY in training:
        training = training | {KEY: "hashes, for no_copy"}
    for big in ("fingerprint", "name"):
        fields.pop(big, None)
    more = {"training": training, "shape": list(header.shape), "dtype": header.dtype}
    return row_of(header, header.name in bench.fitting.headers()) | fields | more


def _import(bench: StudioContext, content: bytes, filename: str, name: str) -> SoftPrompt:
    """Keeps a soft prompt under its name, a number after it where another has that name."""
    library = bench.state.prompts
    prompt = _parsed(content, filename, name_for(name, filename, "prompt"))
    if not prompt.fingerprint:
        try:  # other programs' files do not say for which model they are
            bench.model.check_prompt(prompt, any_model=True)
            prompt = prompt.made_for(
                require_frozen_model(bench.model, "knowing for which model a prompt is")
            )
        except (PromptError, UnsupportedModelError):
            pass  # of another model's shape: kept, and shown as such
    with bench.importing:
        headers = library.listing().headers
        if prompt.name in library and library[prompt.name].digest == prompt.digest:
            return prompt  # it is there already
        free = free_name(prompt.name, {header.name.casefold() for header in headers})
        prompt = prompt if free == prompt.name else prompt.replace(name=free)
        library.save(prompt)
        return prompt


def _parsed(content: bytes, filename: str, name: str) -> SoftPrompt:
    """A prompt from a file's bytes; `name` is for files that carry none."""
    label = file_name(filename)
    path = Path(name + Path(label).suffix.lower())
    try:
        if content.startswith(b"PK\x03\x04") and (adapter := _adapter(content)):
            with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
                inside = Path(folder) / name
                inside.mkdir()
                for part, data in adapter.items():
                    (inside / part).write_bytes(data)
                return peft.read_adapter(inside)
        return parse_prompt(io.BytesIO(content), len(content), path)
    except PromptFileError as error:
        message = f"cannot read {label or 'the file'!r}: {error}"
        raise PromptFileError(message, reason=error.reason) from None


def _adapter(content: bytes) -> dict[str, bytes]:
    """The files of a PEFT adapter that a zip holds, in whichever folder; none for another zip."""
    try:
        archive = Archive(io.BytesIO(content), len(content))
    except PromptFileError:
        return {}  # what is wrong with it, its reader says
    found = {
        Path(member).name: member
        for member in archive.members
        if Path(member).name in (peft.CONFIG, peft.TENSORS)
    }
    if peft.CONFIG not in found:
        return {}
    most = 2**20 + _UNPACKED * len(content)
    return {name: archive.read(member, most) for name, member in found.items()}


def _written(prompt: SoftPrompt, format: str, model: LanguageModel) -> tuple[bytes, str]:
    """A prompt in a format, and what the file's name ends in.

    Raises:
        PromptError: no such format, or one that has no place for it.
    """
    if format not in WRITERS:
        raise PromptError(
            f"there is no format {format!r:.80}; expected one of {', '.join(WRITERS)}; choose one"
        )
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        path = Path(folder) / "prompt"
        if format == "vllm" and prompt.kind == "prefix":
            model.check_prompt(prompt)
            vllm_prefix.write(prompt, require_frozen_model(model, "writing for vLLM"), path)
            return path.read_bytes(), CONNECTOR_SUFFIX
        writer = WRITERS[format]
        writer.write(prompt, path)
        if path.is_dir():
            return _zipped(path, slug_of(prompt.name) + writer.suffix), f"{writer.suffix}.zip"
        return path.read_bytes(), writer.suffix


def _zipped(folder: Path, name: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{name}/{path.name}")
    return packed.getvalue()
