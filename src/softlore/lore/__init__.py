"""Lore: entries of a lorebook, their files, formats and validation. Needs no model."""

from softlore.lore.entry import Block, Entry
from softlore.lore.lorebook import Lorebook, check

__all__ = ["Block", "Entry", "Lorebook", "check"]
