"""Lorebook formats of other programs: a module each, and what reads and writes by them."""
