"""Groups of a lorebook, each trained as a set by itself, and the record of a run over them.

A group is trained as a lorebook of its own would be: its prompts follow from its entries, the
settings and the seed, whatever worker trains it and when.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from softlore.disk import storage_error, write_atomically
from softlore.errors import ConfigError, StorageError
from softlore.lore import Entry, Lorebook
from softlore.prompts import SoftPrompt
from softlore.tune.checkpoint import list_some, read_object, settings_differences
from softlore.tune.lorebook_training import checkpoint_path

VERSION = 2
MAX_BYTES = 16 * 1024 * 1024  # bytes of a record; one of 10,000 entries takes under one
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class GroupTask:
    """One group, and all that a worker needs to train it or to resume its training.

    Attributes:
        number: of the group in its book, from 1.
        entries: those to train.
        company: finished prompts of the group by name; they stay as they are.
        company_entries: what the company was trained on.
        settings: fields of `TrainingConfig`.
        memory: bytes that an update may use; see `Execution`.
        overwrite: start over if a checkpoint is of another run.
    """

    number: int
    entries: list[Entry]
    company: dict[str, SoftPrompt]
    company_entries: list[Entry]
    settings: dict[str, Any]
    memory: int
    overwrite: bool = False

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]


def split_book(book: Lorebook, size: int) -> list[Lorebook]:
    """The book's entries in groups of `size`, in order; the last may be smaller.

    Raises:
        ConfigError: a size below 1.
    """
    if size < 1:
        raise ConfigError(
            f"the group size is {size}; expected at least 1 entry a group; give more (--group-size)"
        )
    parts = [book.entries[at : at + size] for at in range(0, len(book.entries), size)]
    return [
        book.model_copy(update={"name": group_name(book.name, number), "entries": list(part)})
        for number, part in enumerate(parts, start=1)
    ]


def group_name(book: str, number: int) -> str:
    """The name of a group, and of its checkpoint."""
    return f"{book}.group-{number}"


def record_path(folder: Path, book: str) -> Path:
    """Where the record of a book's groups is saved."""
    return checkpoint_path(folder, book).with_suffix(".groups.json")


@validated_dataclass(config=ConfigDict(strict=True))
class GroupRecord:
    """The state of a run over groups, saved beside the checkpoints of its groups.

    Attributes:
        groups: names of the entries, group by group.
        include: entries to train; all when empty.
        overwrite: entries whose prompt exists are trained again.
        settings: the run's settings as JSON, to compare with another run's.
        threads: of torch: rounding depends on how sums are split.
        memory: bytes that an update may use.
        pending: entries still to be trained.
    """

    groups: list[list[str]]
    include: list[str]
    overwrite: bool
    settings: dict[str, Any]
    threads: Positive
    memory: Positive
    pending: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", path.parent, error) from error
        data = {"softlore_groups": VERSION, **asdict(self)}
        write_atomically(path, json.dumps(data, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> GroupRecord | None:
        """What `save` wrote; None if there is no file.

        Raises:
            StorageError: it is not a complete record of this version.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            data = read_object(path.read_bytes())
            if data.pop("softlore_groups", None) != VERSION:
                raise ValueError("not a record of this version")
            return cls(**data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise StorageError(
                f"{str(path)!r} can't be read ({why}); expected the state of a training in groups "
                "as this version of softlore saves it; to start over, pass --overwrite, or "
                "delete it"
            ) from error

    def differences(self, now: GroupRecord) -> list[str]:
        """How another run differs, in plain words; empty if it can resume this one."""
        found = settings_differences(self.settings, now.settings)
        if self.groups != now.groups:
            found.append("the entries fall into other groups")
        if self.include != now.include:
            found.append("other entries are asked for")
        if self.threads != now.threads:
            found.append(f"threads were {self.threads} and are {now.threads}")
        return found


def find_record(path: Path, now: GroupRecord) -> GroupRecord | None:
    """The record of an earlier run that `now` can resume; None: there is none.

    Raises:
        ConfigError: the earlier run is another one, and `now` does not overwrite.
        StorageError: the record can't be read.
    """
    try:
        then = GroupRecord.load(path)
    except StorageError:
        if now.overwrite:
            return None
        raise
    if then is None:
        return None
    differ = then.differences(now)
    if now.overwrite:
        return then if then.overwrite and not differ else None
    if differ:
        raise ConfigError(
            f"a training in groups was stopped here, of another run ({list_some(differ)}); "
            "expected the same; to resume it, run the command that began it; to start over, "
            "pass --overwrite"
        )
    return then
