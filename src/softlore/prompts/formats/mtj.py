"""mtj-softtuner's `.mtjsp` files of both kinds: NumPy's archive, and a dict by torch.save.

The same trainer's successors call theirs `.mkusp`; they are the second kind. The optimizer's
state lies beside the tensor and is never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from softlore.errors import PromptFileError
from softlore.prompts.formats.imported import import_prompt
from softlore.prompts.formats.npy import MAX_NPY_BYTES, read_npy
from softlore.prompts.formats.torch_files import (
    TensorView,
    describe,
    load_zipped,
    read_legacy,
    read_zipped,
)
from softlore.prompts.formats.values import MAX_BYTES
from softlore.prompts.formats.zips import Archive
from softlore.prompts.opening import read_all
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "mtj"
TENSOR = "tensor.npy"
# Beside the tensor; any of them tells the file from a mere array or tensor.
_BESIDE = ("step", "opt_state", "loss")
_FIGURES = ("step", "loss", "last_loss", "grad_norm", "grad_norm_micro")
# Both trainers use Adafactor, whose state is next to nothing; Adam's is twice the tensor.
_MAX_FILE_BYTES = MAX_BYTES * 3 // 2


def is_npz(archive: Archive) -> bool:
    """Whether NumPy's archive holds what the trainer writes."""
    names = archive.members
    return TENSOR in names and any(f"{name}.npy" in names for name in _BESIDE)


def parse_npz(archive: Archive, path: Path) -> SoftPrompt:
    """Reads `tensor` from NumPy's archive, and nothing else. Raises PromptFileError."""
    return import_prompt(read_npy(archive.read(TENSOR, MAX_NPY_BYTES)), NAME, (path.stem,))


def parse_torch_zip(archive: Archive, path: Path) -> SoftPrompt:
    """Reads torch.save's newer form, a zip. Raises PromptFileError."""
    found = read_zipped(archive)
    return _prompt(load_zipped(archive, _tensor_of(found)), found, path)


def takes_legacy(path: Path, head: bytes) -> bool:
    """Whether a file begins as a pickle does, as torch.save's older form does."""
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def parse_legacy(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads torch.save's older form, pickles and numbers. Raises PromptFileError."""
    data = read_all(file, size, _MAX_FILE_BYTES, "a soft prompt by torch.save")
    found = read_legacy(memoryview(data))
    return _prompt(_tensor_of(found), found, path)


def _tensor_of(found: Any) -> TensorView:
    """The tensor of a trainer's dict; what else torch.save may have written is refused."""
    trained = isinstance(found, dict) and any(key in found for key in _BESIDE)
    if trained and isinstance(found.get("tensor"), TensorView):
        return found["tensor"]
    raise PromptFileError(
        f"torch.save wrote {describe(found)}; expected an .mtjsp trainer's dict of tensor, step "
        "and opt_state; a bare tensor does not say what it is: if it is soft prompt rows "
        "[n_tokens, width], load it where it was made and save it with SoftPrompt(name=…, "
        "kind='embedding', tensor=…).save(…), or with numpy.save as .npy",
        reason=Reason.BARE_TENSOR,
    )


def _prompt(view: TensorView, found: dict[Any, Any], path: Path) -> SoftPrompt:
    figures = {key: found[key] for key in _FIGURES if isinstance(found.get(key), int | float)}
    return import_prompt(view.rows(), NAME, (path.stem,), figures)
