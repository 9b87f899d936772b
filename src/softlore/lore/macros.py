"""Macros of chat programs: names for `{{char}}` and `{{user}}`, in texts and in entries."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from softlore.lore.entry import Block, Entry
from softlore.lore.patterns import escaped, split_pattern

USER = "You"  # the reader, where nobody gives a name
CHARACTER = "the character"
_MACRO = re.compile(r"\{\{\s*(char|user)\s*\}\}|<(BOT|USER)>", re.IGNORECASE)
_ANY = re.compile(r"\{\{[^{}]*\}\}|<(?:BOT|USER)>", re.IGNORECASE)


class Named(Protocol):
    """What may give names: the settings of a story or a server, or a lorebook."""

    @property
    def char(self) -> str: ...
    @property
    def user(self) -> str: ...


class MacroNames(NamedTuple):
    """The names that macros stand for. A macro whose name is empty stays as it is."""

    char: str = ""
    user: str = ""

    @classmethod
    def first(cls, *given: Named | None) -> MacroNames:
        """The first name of each kind that is given, else CHARACTER and USER."""
        chars = (one.char for one in given if one is not None and one.char)
        users = (one.user for one in given if one is not None and one.user)
        return cls(next(chars, CHARACTER), next(users, USER))

    def fill(self, text: str) -> str:
        """The text with names for its macros."""
        return _MACRO.sub(self._name_of, text) if "{{" in text or "<" in text else text

    def fill_key(self, key: str) -> str:
        """The same for a key; in a regular expression names are literal."""
        if _ANY.search(key) is None or split_pattern(key) is None:
            return self.fill(key)
        return MacroNames(escaped(self.char), escaped(self.user)).fill(key)

    def fill_entry(self, entry: Entry) -> Entry:
        """An entry with names for the macros in its text, keys and blocks; itself without any."""
        filled = {
            "text": self.fill(entry.text),
            "keys": list(map(self.fill_key, entry.keys)),
            "secondary_keys": list(map(self.fill_key, entry.secondary_keys)),
            "blocks": list(map(self._fill_block, entry.blocks)),
            "held_out": list(map(self._fill_block, entry.held_out)),
        }
        changed = {name: new for name, new in filled.items() if new != getattr(entry, name)}
        return entry.model_copy(update=changed) if changed else entry

    def _fill_block(self, block: Block) -> Block:
        call, responses = self.fill(block.call), list(map(self.fill, block.responses))
        if call == block.call and responses == block.responses:
            return block
        return block.model_copy(update={"call": call, "responses": responses})

    def _name_of(self, macro: re.Match[str]) -> str:
        is_char = (macro[1] or macro[2]).lower() in ("char", "bot")
        return (self.char if is_char else self.user) or macro[0]


def macros_in(text: str) -> dict[str, str]:
    """The macros in a text, each with the field of `MacroNames` that it stands for, or nothing."""
    fields = {"char": "char", "bot": "char", "user": "user"}
    found = dict.fromkeys(_ANY.findall(text))
    return {macro: fields.get(macro.strip("{}<> \t\n").lower(), "") for macro in found}
