"""Groups of a lorebook: entries that keep each other company, each trained as a set by itself.

A group is trained as a lorebook of its own would be: what comes of it follows from its entries,
the settings and the seed, and not from where, when or beside what it is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from softlore.disk import storage_error, write_atomically
from softlore.errors import ConfigError, StorageError
from softlore.lore import Entry, Lorebook
from softlore.prompts import SoftPrompt
from softlore.tune.book import checkpoint_path

VERSION = 1
LARGEST = 16 * 1024 * 1024  # bytes of a record; one of 10,000 entries takes under one


@dataclass(frozen=True)
class GroupTask:
    """One group, and all that a worker must know to train it, or to go on with it.

    Attributes:
        number: of the group in its book, from 1.
        entries: those to train.
        company: finished prompts of the group by name; they stay as they are.
        company_entries: what the company knows.
        settings: fields of `TrainingConfig`.
        memory: bytes that an update may count with; see `WorldInfoTrainer`.
        again: begin anew where a checkpoint is of another run.
    """

    number: int
    entries: list[Entry]
    company: dict[str, SoftPrompt]
    company_entries: list[Entry]
    settings: dict[str, Any]
    memory: int
    again: bool = False

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
    """What a group's checkpoint is named after."""
    return f"{book}.group-{number}"


def record_path(folder: Path, book: str) -> Path:
    """Where it is kept how far a book's groups are."""
    return checkpoint_path(folder, book).with_suffix(".groups.json")


@dataclass
class GroupRecord:
    """How far a run over groups is, kept beside the checkpoints of its groups.

    Attributes:
        groups: names of the entries, group by group.
        only: entries that were asked for; all when empty.
        again: what was there already is trained once more.
        settings: the run's settings as JSON, to tell another run from this one.
        threads: that torch computes with: sums are rounded by how they are shared out.
        memory: bytes that updates count with.
        pending: entries still to be trained.
    """

    groups: list[list[str]]
    only: list[str]
    again: bool
    settings: dict[str, Any]
    threads: int
    memory: int
    pending: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", path.parent, error) from error
        told = {"softlore_groups": VERSION, **asdict(self)}
        write_atomically(path, json.dumps(told, indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: Path) -> GroupRecord | None:
        """What `save` wrote; None where nothing is.

        Raises:
            StorageError: it is no whole record of this version.
        """
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("it is too large")
            told = json.loads(path.read_bytes())
            if not isinstance(told, dict) or told.pop("softlore_groups", None) != VERSION:
                raise ValueError("not a record of this version")
            return cls(**_checked(told))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StorageError(
                f"{str(path)!r} can't be read ({error}); expected how far the groups of a "
                "training are, as this version of softlore keeps it; to begin anew, say so with "
                "--again, or delete it"
            ) from error

    def differences(self, now: GroupRecord) -> list[str]:
        """In which ways another run differs, in plain words; empty when it can go on from here."""
        found = []
        for name in sorted({*self.settings, *now.settings}):
            was, is_now = self.settings.get(name), now.settings.get(name)
            if was != is_now:
                found.append(f"{name} was {was!r:.60} and is {is_now!r:.60}")
        if self.groups != now.groups:
            found.append("the entries fall into other groups")
        if self.only != now.only:
            found.append("other entries are asked for")
        if self.threads != now.threads:
            found.append(f"threads were {self.threads} and are {now.threads}")
        return found


def find_record(path: Path, now: GroupRecord) -> GroupRecord | None:
    """The record of an earlier run that `now` can go on with; None: it begins anew.

    Raises:
        ConfigError: the earlier run is another one, and nothing is to be trained again.
        StorageError: the record can't be read.
    """
    try:
        then = GroupRecord.load(path)
    except StorageError:
        if now.again:
            return None
        raise
    if then is None:
        return None
    differ = then.differences(now)
    if now.again:
        return then if then.again and not differ else None
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ConfigError(
            f"a training in groups was stopped here, of another run "
            f"({'; '.join(differ[:3])}{more}); expected the same; to go on with it, run the "
            "command that began it; to begin anew, say so with --again"
        )
    return then


def _checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record, each of the kind that it must be."""
    kinds = {"groups": list, "only": list, "again": bool, "settings": dict, "pending": list}
    kinds |= {"threads": int, "memory": int}
    for one in fields(GroupRecord):
        if not isinstance(told.get(one.name), kinds[one.name]):
            raise ValueError(f"{one.name} is missing, or is something else")
    names = [*told["only"], *told["pending"], *_flat(told["groups"])]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name is no text")
    if told["threads"] < 1 or told["memory"] < 1:
        raise ValueError("threads or memory are below 1")
    return dict(told)


def _flat(groups: Sequence[Any]) -> list[Any]:
    if not all(isinstance(group, list) for group in groups):
        raise ValueError("a group is no list")
    return [name for group in groups for name in group]
