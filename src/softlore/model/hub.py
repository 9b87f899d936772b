"""The Hugging Face hub: models in its cache on this machine, and downloads into it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softlore.errors import ModelError

OnBytes = Callable[[int, int], None]  # bytes so far, bytes in all
ANSWER_SECONDS = 5.0  # that the hub has for its first answer
_POLL_SECONDS = 0.5
_WEIGHTS = (".safetensors", ".bin")
_OTHERS = (".json", ".model", ".txt", ".jinja")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
               "sentencepiece.bpe.model", "tokenizer_config.json")  # fmt: skip


def holds_model(folder: Path) -> bool:
    """Whether a folder has a model's config and all its weights, as transformers reads them."""
    return (folder / "config.json").is_file() and _holds_weights(folder)


def _holds_weights(folder: Path) -> bool:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return True
        index = folder / f"{name}.index.json"
        if index.is_file():
            return all((folder / part).is_file() for part in _parts(index))
    return False


def _parts(index: Path) -> set[str]:
    """The files that an index of weights names; a name that no file has if it can't be read."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return {f"{index.name}.unreadable"}


def cached_folder(hub_id: str, weights: bool = True) -> Path | None:
    """The folder of a model in the hub's cache, if it is complete; needs no network.

    Args:
        weights: False: the tokenizer and config are enough.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except (HFValidationError, OSError):
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return folder if has_tokenizer and (not weights or _holds_weights(folder)) else None


def download(hub_id: str, weights: bool = True, on_bytes: OnBytes | None = None) -> Path:
    """Downloads a model into the hub's cache and returns its folder there.

    A download that was interrupted continues where it ended.

    Args:
        weights: False: only the tokenizer and the config.
        on_bytes: called twice a second with the bytes so far and in all; without it,
            huggingface_hub shows its own bars.

    Raises:
        ModelError: the hub can't be reached, or has no such model that may be read.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Hidden(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})

    with _explained(hub_id):
        info = HfApi().model_info(hub_id, timeout=ANSWER_SECONDS, files_metadata=True)
        sizes = _chosen({file.rfilename: file.size or 0 for file in info.siblings or ()}, weights)
        with _watched(hub_id, sum(sizes.values()), on_bytes):
            return Path(
                snapshot_download(
                    hub_id,
                    revision=None,
                    allow_patterns=list(sizes),
                    tqdm_class=Hidden if on_bytes else None,
                )
            )


def _chosen(sizes: dict[str, int], weights: bool) -> dict[str, int]:
    """The files of a model that transformers reads: of weights, safetensors where there are any."""
    top = {name: size for name, size in sizes.items() if "/" not in name}
    chosen = {name: size for name, size in top.items() if name.endswith(_OTHERS)}
    for suffix in _WEIGHTS if weights else ():
        found = {name: size for name, size in top.items() if name.endswith(suffix)}
        if found:
            return chosen | found
    return chosen


@contextmanager
def _watched(hub_id: str, total: int, on_bytes: OnBytes | None) -> Iterator[None]:
    """Calls `on_bytes` during the block, from a thread that measures the cache's folder."""
    if on_bytes is None:
        yield
        return
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=hub_id, repo_type="model")
    blobs = Path(constants.HF_HUB_CACHE) / name / "blobs"
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            on_bytes(min(total, _size(blobs)), total)

    thread = threading.Thread(target=watch, name="download", daemon=True)
    on_bytes(min(total, _size(blobs)), total)
    thread.start()
    try:
        yield
        on_bytes(total, total)
    finally:
        ended.set()
        thread.join()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which may change meanwhile."""
    total = 0
    try:
        for file in folder.iterdir():
            total += file.stat().st_size
    except OSError:
        pass
    return total


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """Turns errors of the hub into a ModelError that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise _error(hub_id, "its makers must grant access first",
                     "ask for access on its page, then run `hf auth login`") from error  # fmt: skip
    except errors.RepositoryNotFoundError as error:
        raise _error(hub_id, "the hub has no such model, or not without a token",
                     "check the name, or run `hf auth login`") from error  # fmt: skip
    except errors.HFValidationError as error:
        raise _error(hub_id, "that is not a valid hub id", "check the name") from error
    except errors.OfflineModeIsEnabled as error:
        raise _error(hub_id, "HF_HUB_OFFLINE is set",
                     "check the name, or unset HF_HUB_OFFLINE") from error  # fmt: skip
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise _error(hub_id, f"the hub answered {status}",
                     "check the name, try later, or give a folder") from error  # fmt: skip
    except Exception as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise _error(hub_id, f"the hub can't be reached: {why}",
                     "check the name and the network, or give a folder") from error  # fmt: skip


def _error(hub_id: str, why: str, fix: str) -> ModelError:
    return ModelError(
        f"model {hub_id!r} could not be loaded (it is not on this machine, and {why}); expected a "
        "folder, a GGUF file, a hub id that can be reached, or a name that `softlore models` "
        f"lists; {fix}"
    )
