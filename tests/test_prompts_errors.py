"""The tree of errors, and the light import of the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import softlore
from softlore import errors


def tree(root: type[BaseException], depth: int = 0) -> list[tuple[int, str]]:
    errors = [(depth, root.__name__)]
    for child in root.__subclasses__():
        errors += tree(child, depth + 1)
    return errors


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        word = next((word for word in line.split() if word.endswith("Error")), None)
        if word and (line.startswith("    SoftloreError") or "──" in line):
            drawn.append(((line.index(word) - 4) // 4, word))
    assert drawn == tree(errors.SoftloreError)


def test_exit_codes() -> None:
    assert errors.SoftloreError.exit_code == errors.CheckError.exit_code == 1
    assert errors.DivergedError.exit_code == 1
    assert errors.UnknownPromptError.exit_code == errors.PromptFileError.exit_code == 2
    assert errors.StorageError.exit_code == 2


def test_messages_are_shown_as_they_are() -> None:
    for _, name in tree(errors.SoftloreError):
        assert str(getattr(errors, name)("it's 'so'")) == "it's 'so'"


def test_importing_the_package_or_its_errors_is_light() -> None:
    code = "import sys, softlore, softlore.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SoftPrompts'"):
        softlore.SoftPrompts  # noqa: B018
    assert {"SoftPrompt", "Context", "load_prompt", "__version__"} <= set(dir(softlore))
