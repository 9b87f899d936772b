"""Benchmarks on data of others: readers, scores, and one command, run.py."""
