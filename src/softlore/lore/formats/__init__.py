"""Lorebooks of other programs: a module a format, what they share, and finding out which it is."""
