"""The documentation does what it says: its Python and its marked commands are run.

A page's blocks run in order, in one folder and one namespace. Comments above a block steer it:

- ``<!-- run -->``: run this bash block too (Python blocks are always run);
- ``<!-- run: OLD => NEW ;; OLD => NEW -->``: run it with these replacements, to make it small;
- ``<!-- skip: why -->``: do not run this Python block;
- ``<!-- save: NAME -->``: save this block as a file for those after it.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from softlore.lore import Lorebook, check
from waiting import WAIT_SECONDS

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"(?:^<!-- (?P<verb>run|skip|save)(?:: (?P<rest>.*?))? -->\n+)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Piece:
    """A fenced block: its language, its code, the line it begins at and the mark above it."""

    language: str
    code: str
    line: int
    verb: str
    rest: str

    @property
    def runs(self):
        return self.verb == "run" or (self.language == "python" and self.verb != "skip")

    def small(self):
        """Returns the code after the replacements that its mark asks for."""
        code = self.code
        for change in self.rest.split(" ;; ") if self.verb == "run" and self.rest else []:
            old, new = change.split(" => ")
            assert old in code, f"line {self.line}: there is no {old!r} to replace"
            code = code.replace(old, new)
        return code


def pieces(text):
    return [
        Piece(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            match["verb"] or "",
            match["rest"] or "",
        )
        for match in FENCE.finditer(text)
    ]


def _pages():
    """The pages that hold something to run, with their pieces."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    read = {path: pieces(path.read_text(encoding="utf-8")) for path in found if path.exists()}
    return [(path, blocks) for path, blocks in read.items() if any(b.runs for b in blocks)]


def test_the_extractor():
    text = (
        "a\n<!-- run: --n 9 => --n 1 -->\n```bash\nx --n 9\n```\n```bash\ny\n```\n\n"
        "<!-- skip: slow -->\n\n```python\nz\n```\n```python title='t'\nw\n```\n"
    )
    found = pieces(text)
    assert [(piece.language, piece.runs, piece.line) for piece in found] == [
        ("bash", True, 4),
        ("bash", False, 7),
        ("python", False, 13),
        ("python", True, 16),
    ]
    assert found[0].small() == "x --n 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "blocks"), [pytest.param(*found, id=found[0].name) for found in _pages()]
)
def test_the_page_does_what_it_says(page, blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names = {"__name__": "__main__"}
    for block in blocks:
        if block.verb == "save":
            (tmp_path / block.rest).write_text(block.code, encoding="utf-8")
        elif block.runs and block.language == "python":
            # Empty lines put the right line numbers into a traceback.
            code = compile("\n" * (block.line - 1) + block.small(), str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
        elif block.runs:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.small()],
                capture_output=True,
                text=True,
                timeout=WAIT_SECONDS,
            )
            assert done.returncode == 0, f"{page.name}, line {block.line}:\n{done.stderr}"


def _lorebooks():
    text = (ROOT / "docs" / "lorebook.md").read_text(encoding="utf-8")
    return [piece for piece in pieces(text) if piece.language in ("yaml", "json")]


@pytest.mark.parametrize("piece", _lorebooks(), ids=lambda piece: f"line {piece.line}")
def test_the_lorebooks_on_the_page_are_lorebooks(piece, tmp_path):
    path = tmp_path / f"page.{piece.language}"
    path.write_text(piece.code, encoding="utf-8")
    assert not [warning for warning in check(Lorebook.load(path)) if "space" in warning]


def test_the_example_lorebook_has_no_warnings():
    assert check(Lorebook.load(ROOT / "examples" / "lorebook.yaml")) == []
