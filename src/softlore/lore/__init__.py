"""Lore: entries of a lorebook, their files, formats and validation. Needs no model."""

from softlore.lore.entry import Block, Entry
from softlore.lore.lorebook import Lorebook
from softlore.lore.warnings import check

__all__ = ["Block", "Entry", "Lorebook", "check"]
