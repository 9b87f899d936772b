"""Comparisons for people to read: tables, plots, reports, and the demo."""
