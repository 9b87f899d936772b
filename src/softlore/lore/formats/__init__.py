"""Lorebook formats of other programs: declarations, import and export."""
