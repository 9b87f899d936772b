"""mtj-softtuner's `.mtjsp` files, read: a NumPy archive, or a dict by torch.save.

`.mkusp` files of the same trainer's successors are dicts by torch.save, too. The optimizer's state
beside the tensor is never read.
"""

from __future__ import annotations

from typing import Any

from softlore.prompts.formats.npy import MAX_NPY_BYTES, parse_npy
from softlore.prompts.formats.rows import MAX_BYTES, import_prompt
from softlore.prompts.formats.safe.torch_files import (
    TensorView,
    describe,
    is_torch_zip,
    load_storage,
    read_torch_legacy,
    read_torch_zip,
)
from softlore.prompts.formats.safe.zips import Archive, is_zip
from softlore.prompts.opening import PromptFile
from softlore.prompts.reasons import Reason, refuse
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "mtj"
TENSOR = "tensor.npy"
# Beside the tensor; any of them distinguishes the file from a mere array or tensor.
_BESIDE = ("step", "opt_state", "loss")
_FIGURES = ("step", "loss", "last_loss", "grad_norm", "grad_norm_micro")
# Both trainers use Adafactor, whose state is next to nothing; Adam's is twice the tensor.
_MAX_FILE_BYTES = MAX_BYTES * 3 // 2


def matches(file: PromptFile) -> bool:
    """Whether it is a zip of either kind, or begins with a pickle (torch.save's older form)."""
    if is_zip(file):
        archive = Archive(file)
        return _is_npz(archive) or is_torch_zip(archive)
    return file.start[:1] == b"\x80" and file.start[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read(file: PromptFile) -> SoftPrompt:
    """Reads the tensor and the figures of its training. Raises PromptFileError."""
    if not is_zip(file):
        data = memoryview(file.read_all(_MAX_FILE_BYTES, "a soft prompt by torch.save"))
        saved = read_torch_legacy(data)
        return _prompt(_tensor_of(saved), saved, file)
    archive = Archive(file)
    if _is_npz(archive):
        rows = parse_npy(archive.read(TENSOR, MAX_NPY_BYTES))
        return import_prompt(rows, NAME, (file.path.stem,))
    saved = read_torch_zip(archive)
    return _prompt(load_storage(archive, _tensor_of(saved)), saved, file)


def _is_npz(archive: Archive) -> bool:
    names = archive.members
    return TENSOR in names and any(f"{name}.npy" in names for name in _BESIDE)


def _tensor_of(saved: Any) -> TensorView:
    """The tensor of a trainer's dict; anything else that torch.save wrote is rejected."""
    trained = isinstance(saved, dict) and any(key in saved for key in _BESIDE)
    if not trained or not isinstance(saved.get("tensor"), TensorView):
        refuse(
            Reason.BARE_TENSOR,
            f"torch.save wrote {describe(saved)}; expected an .mtjsp trainer's dict of tensor, "
            "step and opt_state; a bare tensor does not say what it is: if it is soft prompt rows "
            "[n_tokens, width], load it where it was made and save it with SoftPrompt(name=…, "
            "kind='embedding', tensor=…).save(…), or with numpy.save as .npy",
        )
    return saved["tensor"]


def _prompt(view: TensorView, saved: dict[Any, Any], file: PromptFile) -> SoftPrompt:
    figures = {key: saved[key] for key in _FIGURES if isinstance(saved.get(key), int | float)}
    return import_prompt(view.rows(), NAME, (file.path.stem,), figures)
