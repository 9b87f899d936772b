"""Lore: what a writer knows about a subject, as entries of a lorebook. Needs no model."""

from softlore.lore.entry import Block, Entry
from softlore.lore.lorebook import Lorebook, check

__all__ = ["Block", "Entry", "Lorebook", "check"]
