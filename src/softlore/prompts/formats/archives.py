"""Zip archives of several programs, told apart by what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from softlore.errors import PromptFileError
from softlore.prompts.formats import kobold, mtj
from softlore.prompts.formats.zips import Archive
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt


def takes(path: Path, head: bytes) -> bool:
    """Whether a file begins as a zip archive does, an empty one too."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def parse(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads KoboldAI's zip or a trainer's `.mtjsp` from an open file. Raises PromptFileError."""
    archive = Archive(file, size)
    names = list(archive.members)
    if kobold.TENSOR in names and kobold.META in names:
        return kobold.parse_archive(archive, path)
    if mtj.is_npz(archive):
        return mtj.parse_npz(archive, path)
    if len([name for name in names if name.endswith("/data.pkl")]) == 1:
        return mtj.parse_torch_zip(archive, path)
    some = ", ".join(f"{name!r:.60}" for name in names[:4]) + (" …" if len(names) > 4 else "")
    raise PromptFileError(
        f"the archive holds {some or 'nothing'}; expected tensor.npy with meta.json (KoboldAI) or "
        "with step.npy (mtj-softtuner), or one data.pkl (torch.save); add what is missing, or get "
        "the soft prompt itself",
        reason=Reason.OTHER_FORMAT,
    )
