"""Finds a model by short name, folder, GGUF file or hub id, without loading it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softlore import storyteller
from softlore.disk import user_folder
from softlore.errors import ModelError
from softlore.model.catalog import KNOWN_MODELS, KnownModel, similar_name
from softlore.model.gguf.header import read_header
from softlore.model.hub import OnBytes, cached_folder, download, holds_model
from softlore.settings.arguments import PATH, expecting

FOLDER_VARIABLE = "SOFTLORE_MODELS"


@dataclass(frozen=True)
class FoundModel:
    """Where a model is.

    Attributes:
        name: as it was asked for.
        path: its folder or GGUF file; None: on the hub only.
        where: "included", "package", "cache", "models folder", "path" or "hub".
        known: its entry in the table of known models.
        hub_id: where `fetch` gets it.
    """

    name: str
    path: Path | None
    where: str
    known: KnownModel | None = None
    hub_id: str = ""

    @property
    def display_name(self) -> str:
        """A name without the folders of this machine, for prompts and clients."""
        return display_name(self.name)

    @property
    def bytes(self) -> int:
        """The size of its files; of the weights on the hub, if it is not on this machine."""
        if self.path is None:
            return self.known.hub_bytes if self.known else 0
        if self.path.is_file():
            return self.path.stat().st_size
        files = [file for file in self.path.iterdir() if file.suffix in (".safetensors", ".bin")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def fetch(self, weights: bool = True, on_bytes: OnBytes | None = None) -> FoundModel:
        """The model on this machine: downloaded from the hub if it is there only.

        Args:
            weights: False: only the tokenizer and the config.
            on_bytes: called with the bytes so far and in all.

        Raises:
            ModelError: it can't be downloaded.
        """
        if self.path is not None:
            return self
        try:
            folder = download(self.hub_id, weights, on_bytes)
        except ModelError as error:
            if self.known is None:
                raise
            raise ModelError(
                f"model {self.name!r} could not be loaded ({_reason(error)}); expected "
                f"{_ways(self.known)}; check the network"
            ) from error
        return replace(self, path=folder, where="cache")


def _reason(error: ModelError) -> str:
    """The reason in parentheses of an error of `hub`."""
    text = str(error)
    return text[text.find("(") + 1 : text.rfind("); expected")]


def _ways(known: KnownModel) -> str:
    """How to get a known model."""
    hub = f"a download of {known.hub_id} from the hub (`softlore models get {known.name}`)"
    return hub if known.package is None else f"`{known.package.command}`, or {hub}"


def models_folder() -> Path:
    """The folder of the user's own models, which need not exist.

    `$SOFTLORE_MODELS` if set, else `models` in the user's data folder
    (`~/.local/share/softlore/models` on Linux).
    """
    return user_folder("models", FOLDER_VARIABLE)


@expecting(ModelError, name=PATH)
def find_model(name: str | os.PathLike[str], weights: bool = True) -> FoundModel:
    """Finds a model without loading it, importing its package or using the network.

    In this order: a folder or file of this name; a model in the models folder; a known model,
    which is included, or in an installed package, or in the hub's cache; a hub id in the cache.
    Whatever else may be a hub id comes back without a path.

    Args:
        weights: False: the tokenizer is enough.

    Raises:
        ModelError: the path is missing, or the name is unknown and resembles a known one.
    """
    name = os.fspath(name)
    path = Path(name).expanduser()
    if name and path.exists() and (name not in KNOWN_MODELS or holds_model(path)):
        return FoundModel(name, path, "path")
    for own in own_models():
        if name in (own.name, own.path and own.path.name):
            return replace(own, name=name)
    if not name or _is_path(name):
        kind = "file" if name.lower().endswith(".gguf") else "folder or file"
        raise ModelError(
            f"model {name!r} could not be loaded (there is no such {kind}); expected a folder with "
            "config.json, weights and tokenizer, a GGUF file, a hub id, or a name that "
            "`softlore models` lists; check the name"
        )
    return _find_name(name, weights)


def _is_path(name: str) -> bool:
    """Whether a name can only be that of a folder or file: hub ids are NAME or OWNER/NAME."""
    separators = name.count("/") + name.count(os.sep) * (os.sep != "/")
    return separators > 1 or name[0] in "./~\\" or name.lower().endswith(("/", ".gguf"))


def _find_name(name: str, weights: bool) -> FoundModel:
    if name in KNOWN_MODELS:
        return _find_known(KNOWN_MODELS[name], weights)
    if (folder := cached_folder(name, weights)) is not None:
        return FoundModel(name, folder, "cache", hub_id=name)
    if "/" not in name and (similar := similar_name(name)):
        raise ModelError(
            f"model {name!r} could not be loaded (no model of this name is known); expected a "
            "folder, a GGUF file, a hub id, or a name that `softlore models` lists; check the "
            f"name: did you mean {similar!r}?"
        )
    return FoundModel(name, None, "hub", hub_id=name)


def _find_known(known: KnownModel, weights: bool = True) -> FoundModel:
    if not known.hub_id:
        return FoundModel(known.name, storyteller.path(), "included", known)
    if (file := _packaged_file(known)) is not None:
        return FoundModel(known.name, file, "package", known, known.hub_id)
    folder = cached_folder(known.hub_id, weights)
    return FoundModel(known.name, folder, "cache" if folder else "hub", known, known.hub_id)


def _packaged_file(known: KnownModel) -> Path | None:
    """A known model's file in its installed package, which is not imported."""
    if known.package is None:
        return None
    try:
        package = importlib.metadata.distribution(known.package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(package.locate_file(known.package.file)))
    return file if file.is_file() else None


def known_models() -> list[FoundModel]:
    """All known models, those on this machine with their path."""
    return [_find_known(known) for known in KNOWN_MODELS.values()]


def own_models() -> Iterator[FoundModel]:
    """Folders and GGUF files in the models folder; files also one folder down."""
    folder = models_folder()
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        if path.is_dir() and holds_model(path):
            yield FoundModel(path.name, path, "models folder")
        else:
            files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
            for file in files:
                if file.suffix.lower() == ".gguf" and file.is_file():
                    yield FoundModel(file.stem, file, "models folder")


def describe_own(found: FoundModel) -> dict[str, Any]:
    """What a model in the models folder says of itself: parameters, context, licence, use.

    A file that can't be read has its error as its use.
    """
    facts: dict[str, Any] = dict.fromkeys(("parameters", "context", "licence"))
    assert found.path is not None
    try:
        if found.path.is_dir():
            config = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
            context = config.get("max_position_embeddings", config.get("n_positions"))
            return facts | {"context": context, "use": f"{config.get('model_type')}, a folder"}
        header = read_header(found.path)
    except (ModelError, OSError, ValueError, AttributeError) as error:
        return facts | {"use": f"can't be read: {error}"}
    return {
        "parameters": header.text("general.size_label") or None,
        "context": header.number("context_length"),
        "licence": header.text("general.license") or None,
        "use": f"{header.architecture}, a GGUF file",
    }


def display_name(name: str | os.PathLike[str]) -> str:
    """A model's name for prompts and clients: of a path the last part, without `.gguf`."""
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text.lower().endswith(".gguf"):
        return path.stem
    if text in KNOWN_MODELS or not text or not path.exists():
        return text
    return path.resolve().name


def lasting_name(name: str) -> str:
    """The name under which a model is found from every folder: paths become absolute.

    Raises:
        ModelError: as `find_model`.
    """
    found = find_model(name)
    return str(found.path.resolve()) if found.where == "path" and found.path else name


def locate(name: str, weights: bool = True) -> str:
    """The folder or GGUF file of a model, downloaded from the hub if need be.

    Args:
        weights: False: the tokenizer is enough.

    Raises:
        ModelError: there is no such model, or it can't be downloaded.
    """
    return str(find_model(name, weights).fetch(weights).path)
