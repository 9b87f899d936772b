"""The table of prompt formats: recognizes a file by its bytes, and reads or writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from softlore.errors import ConfigError
from softlore.prompts import native
from softlore.prompts.formats import kobold, mkultra, mtj, npy, peft, vllm
from softlore.prompts.formats.safe.zips import Archive, is_zip
from softlore.prompts.opening import PromptFile, looks_like, open_prompt
from softlore.prompts.reasons import Reason, refuse
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.settings.arguments import COUNT, PATHLIKE, expecting


@dataclass(frozen=True)
class PromptFormat:
    """A file format of soft prompts, read or written or both.

    Attributes:
        label: its name in messages.
        matches: whether a file or folder is of this format. May raise PromptFileError.
        read: reads one that matches. Raises PromptFileError or StorageError.
        write: writes a prompt to a path, atomically. Raises PromptError (a kind that the format
            does not support) or StorageError.
        suffix: of the names of files that are written.
    """

    label: str
    matches: Callable[[PromptFile], bool] | None = None
    read: Callable[[PromptFile], SoftPrompt] | None = None
    write: Callable[[SoftPrompt, str | os.PathLike[str]], None] | None = None
    suffix: str = ""


# By the name that `softlore convert --to` takes. A file is read by the first format that matches.
FORMATS: dict[str, PromptFormat] = {
    "safetensors": PromptFormat(
        "softlore", native.matches, SoftPrompt.read, SoftPrompt.save, native.SUFFIX
    ),
    "kobold": PromptFormat("KoboldAI's zip", kobold.matches, kobold.read, kobold.write, ".zip"),
    "peft": PromptFormat("PEFT's adapter folder", peft.matches, peft.read, peft.write, "-peft"),
    "mtj": PromptFormat("mtj-softtuner's .mtjsp", mtj.matches, mtj.read),
    "npy": PromptFormat("google-research's .npy", npy.matches, npy.read),
    "mkultra": PromptFormat(
        "mkultra's JSON", mkultra.matches, mkultra.read, mkultra.write, ".json"
    ),
    "vllm": PromptFormat("vLLM's request body", write=vllm.write, suffix=".vllm.json"),
}
WRITABLE = tuple(name for name, format in FORMATS.items() if format.write)


def write_prompt(prompt: SoftPrompt, format: str, path: str | os.PathLike[str]) -> None:
    """Writes a prompt in one of the `WRITABLE` formats. Raises PromptError or StorageError."""
    write = FORMATS[format].write
    assert write is not None
    write(prompt, path)


@expecting(path=PATHLIKE, task=COUNT.optional)
def load_prompt(path: str | os.PathLike[str], task: int | None = None) -> SoftPrompt:
    """Reads a soft prompt from a file or folder of any known format; no code in it is run.

    A prompt of another program comes without its model's fingerprint.

    Args:
        task: which prompt of a folder that holds those of several tasks, from 0.

    Raises PromptFileError, which says what the file looks like if it is of no known format,
    StorageError, and ConfigError for a task that does not exist.
    """
    location = Path(path)
    if os.path.isdir(location):
        return read_prompt(PromptFile.of_folder(location, task))
    if task is not None:
        raise ConfigError(
            f"task is {task}, but {str(location)!r} is no adapter folder of several tasks; "
            "expected none; leave it out (--task)"
        )
    with open_prompt(location) as file:
        return read_prompt(file)


def read_prompt(file: PromptFile) -> SoftPrompt:
    """Reads a soft prompt of any known format. Raises PromptFileError."""
    for format in FORMATS.values():
        if format.matches and format.read and format.matches(file):
            break
    else:
        _refuse_unknown(file)
    return format.read(file)


def _refuse_unknown(file: PromptFile) -> NoReturn:
    if is_zip(file):
        names = list(Archive(file).members)
        listed = ", ".join(f"{name!r:.60}" for name in names[:4]) + (" …" if len(names) > 4 else "")
        refuse(
            Reason.OTHER_FORMAT,
            f"the archive holds {listed or 'nothing'}; expected tensor.npy with meta.json "
            "(KoboldAI) or with step.npy (mtj-softtuner), or one data.pkl (torch.save); add what "
            "is missing, or get the soft prompt itself",
        )
    reason, likely = Reason.OTHER_FORMAT, looks_like(file.start)
    if file.is_folder:
        reason, what = Reason.NOT_A_FILE, f"{str(file.path)!r} is not a soft prompt: it is a folder"
    elif not file.size:
        reason, what = Reason.TOO_SHORT, "the file is empty"
    elif likely:
        what = f"it is not a soft prompt: it looks like {likely}"
    else:
        what = f"it is not a soft prompt: it begins with {file.start[:8]!r}, as no known format"
    labels = ", ".join(format.label for format in FORMATS.values() if format.read)
    refuse(
        reason,
        f"{what}; expected one of these formats: {labels}; have the program that made it convert "
        "it, or train the prompt again",
    )
