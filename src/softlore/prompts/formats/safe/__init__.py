"""Parsers of containers from strangers: pickles, torch.save's files, zips. None runs any code."""
