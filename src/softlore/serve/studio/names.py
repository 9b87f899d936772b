"""Names of files: which a lorebook may have, and one that is still free."""

from __future__ import annotations

from collections.abc import Container
from pathlib import PurePosixPath, PureWindowsPath

from softlore.errors import LoreError
from softlore.lore.names import NAME_RULE, as_name, composed, wrong_with_file_name

_LONG = 1000  # characters of what a browser sends


def legal(name: str) -> str:
    """A lorebook's name in Unicode's composed form. Raises LoreError for one that is not legal.

    The rules are those of stories' names, since its file is named by it.
    """
    wrong = wrong_with_file_name(composed(name))
    if wrong:
        raise LoreError(
            f"the lorebook name {name!r:.160} {wrong}; expected {NAME_RULE}, such as 'The "
            "harbour'; choose another name"
        )
    return composed(name)


def file_name(given: str) -> str:
    """The last part of a file's name as a browser gives it, fit to show and to take a suffix of."""
    name = PureWindowsPath(PurePosixPath(given[:_LONG].replace("\0", "")).name).name
    return name.encode("utf-8", "replace").decode()[-120:]


def name_for(given: str, filename: str, otherwise: str) -> str:
    """The nearest legal name to the one that was given, or else to the file's."""
    wanted = given[:_LONG] or PurePosixPath(file_name(filename)).stem
    name = as_name(wanted.encode("utf-8", "replace").decode(), otherwise).lstrip(".").strip()[:60]
    name = name.strip()
    return otherwise if wrong_with_file_name(name) else name


def free_name(wanted: str, taken: Container[str]) -> str:
    """The name, with a number after it where it is taken; `taken` are names in lower case."""
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        name = f"{wanted} {number}"
    return name
