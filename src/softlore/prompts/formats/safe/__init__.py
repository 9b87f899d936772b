"""Parsers of pickles, torch.save's files and zips that run no code."""
