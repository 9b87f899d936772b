"""Uploads soft prompts with their model card to the Hugging Face hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softlore.errors import ConfigError, HubError, SoftloreError
from softlore.model.hub import ANSWER_SECONDS
from softlore.prompts.hub_card import LIBRARY, clean_licence, make_card, public_model_name
from softlore.prompts.library import PromptLibrary
from softlore.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_CARD = "README.md"
_WEIGHTS = (".safetensors", ".bin", ".gguf")
# What the hub's status codes say of an upload, and what to do.
_NOT_ALLOWED = "check the owner, and that the token may write (`hf auth login`)"
_REFUSALS = {
    401: ("the token is invalid, or it may not write there", _NOT_ALLOWED),
    403: ("the token may not write there", _NOT_ALLOWED),
    404: ("the hub has no such repository, or not for this token", _NOT_ALLOWED),
    409: ("it exists, but the token may not read it, or it has just changed", _NOT_ALLOWED),
}


@dataclass(frozen=True)
class HubUpload:
    """What a commit to the hub will hold.

    Attributes:
        files: the prompts' native files, by their names in the repository.
        card: the text of README.md.
    """

    repo_id: str
    files: dict[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by file name, README.md included."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return {_CARD: len(self.card.encode()), **sizes}


def check_repo_id(repo_id: str) -> None:
    """Raises ConfigError unless it is a repository's id on the hub, with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        valid = "/" in repo_id
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f"{repo_id!r:.120} is not a valid repository id of the Hugging Face hub; expected "
            "OWNER/NAME of letters, digits and -_. such as ada/harbour-prompts; correct --push"
        )


def prepare_upload(
    prompts: Iterable[SoftPrompt], repo_id: str, folder: Path, licence: str | None = None
) -> HubUpload:
    """Writes the prompts' native files to a folder, and their card; asks nothing of the hub.

    Args:
        prompts: at least one, of different names; one at a time is held.
        folder: an empty one.

    Raises ConfigError for a malformed id or licence, PromptError, StorageError.
    """
    check_repo_id(repo_id)
    if licence is not None:
        clean_licence(licence)
    library = PromptLibrary(folder)
    for prompt in prompts:
        library.save(prompt.replace(base_model=public_model_name(prompt.base_model)))
    headers = library.listing().headers
    files = {header.path.name: header.path for header in headers}
    return HubUpload(repo_id, files, make_card(headers, repo_id, licence))


def push(upload: HubUpload, private: bool = False, force: bool = False) -> str:
    """Uploads everything in one commit, and returns the repository's address.

    Makes the repository if there is none. Files of it that are not in the upload stay.

    Args:
        private: make the repository private, or expect it to be.
        force: also where its card is not softlore's, or it holds weights that the new card would
            not list.

    Raises HubError: no token or network, a repository that may not be written or that `private`
    and `force` forbid to write. No file is changed then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise _error(upload.repo_id, "there is no token for the hub", "run `hf auth login`")
    api = HfApi()
    with _explained(upload.repo_id):
        info = _find(api, upload.repo_id)
        _check_card(upload)  # before anything is made
        if info is None:
            api.create_repo(upload.repo_id, private=private or None)
        else:
            _check_existing(info, upload, private, force)
    count = len(upload.files)
    with _explained(upload.repo_id, created=info is None):
        api.create_commit(
            upload.repo_id,
            [
                CommitOperationAdd(_CARD, upload.card.encode()),
                *(CommitOperationAdd(name, path) for name, path in upload.files.items()),
            ],
            commit_message=f"Upload {count} soft prompt{'s' if count > 1 else ''} with softlore",
        )
    return f"{api.endpoint}/{upload.repo_id}"


def _find(api: HfApi, repo_id: str) -> ModelInfo | None:
    """The repository with its files, or None if there is none that the token may read."""
    from huggingface_hub import errors

    try:
        return api.model_info(repo_id, timeout=ANSWER_SECONDS)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None


def _check_existing(info: ModelInfo, upload: HubUpload, private: bool, force: bool) -> None:
    if private and not info.private:
        raise _error(upload.repo_id, "it is public, and --private was given",
                     "make it private on its settings page, or leave --private out")  # fmt: skip
    if force:
        return
    held = {file.rfilename for file in info.siblings or ()}
    card = info.card_data
    ours = LIBRARY in (info.library_name, card.library_name if card else None)
    if _CARD in held and not ours:
        raise _error(upload.repo_id, "its README.md is not a card of softlore's",
                     "name another repository, or replace the card (--force)")  # fmt: skip
    others = sorted(name for name in held - set(upload.files) if name.endswith(_WEIGHTS))
    if others:
        listed = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        raise _error(
            upload.repo_id,
            f"the new card would not list its {listed}",
            "push the folder of all prompts, or leave them unlisted (--force)",
        )


def _check_card(upload: HubUpload) -> None:
    """Has the hub check the card's front matter, a licence that it knows among it."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(upload.card).validate(repo_type="model")
    except ValueError as error:
        told = " ".join(str(error).split())[:160]
        why = f"the hub refuses the card: {told}"
        raise _error(upload.repo_id, why, "check --license") from error


@contextmanager
def _explained(repo_id: str, created: bool = False) -> Iterator[None]:
    """Turns errors of the hub into a HubError that says what to do."""
    try:
        yield
    except SoftloreError:
        raise
    except Exception as error:  # of the network, of several libraries
        inner = error.__cause__ if isinstance(error, RuntimeError) else None  # of a thread
        why, fix = _reason(inner or error)
        after = "; the repository was made and is empty" if created else ""
        raise _error(repo_id, why + after, fix) from error


def _reason(error: BaseException) -> tuple[str, str]:
    """Why an upload failed, and what to do."""
    from huggingface_hub import errors

    told = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", 0)
        answered = f"the hub answered {status or 'an error'} {error.server_message or ''}".strip()
        return _REFUSALS.get(status, (answered, "try later"))
    return f"the hub can't be reached: {told}", "check the network and try again"


def _error(repo_id: str, why: str, fix: str) -> HubError:
    return HubError(
        f"nothing was uploaded to {repo_id!r} ({why}); expected a repository of the Hugging Face "
        f"hub that can be reached and may be written; {fix}"
    )
