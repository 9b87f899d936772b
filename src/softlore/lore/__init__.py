"""Lore: what a writer knows about a subject, in entries, in a lorebook. No model is needed here."""

from softlore.lore.check import check
from softlore.lore.entry import Block, Entry
from softlore.lore.lorebook import Lorebook

__all__ = ["Block", "Entry", "Lorebook", "check"]
