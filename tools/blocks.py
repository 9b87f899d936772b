"""A part of a page that a tool writes, between two markers; the rest of the page is left alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def keep(page: Path, name: str, make: Callable[[], str], about: str | None) -> None:
    """A tool's whole command line: puts what `make` gives between the markers of `name`.

    With `--check` nothing is written, and the exit code is 1 when the page is not current.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    options = parser.parse_args()
    current = keep_block(page, name, make(), options.check)
    sys.exit(int(options.check and not current))


def keep_block(page: Path, name: str, block: str, check: bool) -> bool:
    """Puts a text between the markers of `name`, or only checks it; whether it was there."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(start, 1)
    after = rest.split(end, 1)[1]
    new = f"{before}{start}\n{block}\n{end}{after}"
    if not check and text != new:
        page.write_text(new, encoding="utf-8")
    return text == new
