"""Entries with a past and a present: what they are from a turn of the story on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from softlore.lore import Entry
from softlore.lore.entry import Name, Natural
from softlore.lore.macros import MacroNames
from softlore.lore.validation import LoreModel

if TYPE_CHECKING:
    from softlore.prompts import SoftPrompt  # imports torch, which a list of stories does not need


class LoreChange(LoreModel):
    """What an entry is from a turn on, on every branch that has the turn.

    With neither text nor prompt it ends: it is not activated any more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: Name
    """The entry's name. One that the lorebook does not have begins with this change."""
    turn: Natural
    """The turn that it follows; 0 for the story's beginning."""
    text: str = ""
    """Its text from then on."""
    prompt: str = ""
    """The soft prompt that it has from then on, by name. The old one knows the old text only."""


@dataclass(frozen=True)
class StoryLore:
    """The entries of a story at a point of it.

    Attributes:
        prompts: by entry that has another soft prompt than the one of its name, what it is called;
            empty for none.
        own: by entry that has a soft prompt outside of the library, that prompt.
        since: by entry that has changed, after how many turns it did.
    """

    entries: Sequence[Entry]
    prompts: dict[str, str] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    own: dict[str, SoftPrompt] = field(default_factory=dict)


class EntryReader:
    """Makes entries as a model reads them: with a key, and with names in place of macros.

    Each is made once, so that a turn costs no more where there are thousands.
    """

    def __init__(self) -> None:
        # The last names, and by an entry's name the entry, as it is and as it is read with them.
        self._made: tuple[MacroNames, dict[str, tuple[Entry, Entry]]] = (MacroNames(), {})

    def read(self, entries: Sequence[Entry], names: MacroNames) -> list[Entry]:
        """The entries; one without keys has its name for a key."""
        last, known = self._made
        if last != names:
            known = {}
            self._made = names, known
        read = []
        for entry in entries:
            made = known.get(entry.name)
            if made is None or made[0] is not entry:
                keyed = entry if entry.keys else entry.model_copy(update={"keys": [entry.name]})
                made = known[entry.name] = entry, names.fill_entry(keyed)
            read.append(made[1])
        return read


def lore_after(
    entries: Sequence[Entry], changes: Iterable[tuple[int, LoreChange]] = ()
) -> StoryLore:
    """The entries after changes, each with the number of turns before it, in their order."""
    now = {entry.name: entry for entry in entries}
    prompts: dict[str, str] = {}
    since: dict[str, int] = {}
    for place, change in changes:
        entry = now.get(change.entry)
        if entry is None:
            if not (change.text or change.prompt):
                continue
            entry = Entry(name=change.entry, text=change.text or change.entry)
        if change.text or change.prompt:
            use = "soft" if not change.text else "both" if change.prompt else "text"
            told = {"text": change.text, "blocks": [], "held_out": [], "use": use}
            now[entry.name] = entry.model_copy(update={**told, "enabled": True})
        else:
            now[entry.name] = entry.model_copy(update={"enabled": False})
        prompts[entry.name], since[entry.name] = change.prompt, place
    return StoryLore(list(now.values()), prompts, since)
