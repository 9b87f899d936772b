"""Writes the tree in README.md: a line a file, from each module's own first line.

python tools/readme_tree.py            # rewrites the block between its two markers
python tools/readme_tree.py --check    # exit code 1 when the block is not current
"""

from __future__ import annotations

import ast
from pathlib import Path

from blocks import ROOT, keep

PACKAGE = ROOT / "src" / "softlore"
# In the order the data travels.
ORDER = """__init__.py errors.py settings disk.py lore storyteller demo vllm_connector model prompts
context decode measure tune control compare story serve mkultra cli __main__.py""".split()
OTHERS = {
    "tools": "corpus, quests, storyteller training, measures, bench, this tree",
    "examples": "four notebooks and a lorebook",
    "docs": "the site: quickstart, lorebooks, training, stories, serving, models, formats",
    "tests": "what is promised here, checked",
}


def tree() -> str:
    lines = ["src/softlore/"]
    found = {path.name: path for path in PACKAGE.iterdir()}
    for name in ORDER:
        path = found.get(name)
        if path is None:
            continue
        if path.is_file():
            lines.append(_line(path, 1))
            continue
        lines.append(_entry(f"{name}/", _first_line(path / "__init__.py"), 1))
        lines.extend(_inside(path, 2))
    for name, what in OTHERS.items():
        if (ROOT / name).is_dir():
            lines.append(_entry(f"{name}/", what, 0))
    return "\n".join(["```text", *lines, "```"])


def _inside(folder: Path, depth: int) -> list[str]:
    """A line for each module of a package; those of a package within it stand below its own."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(path, depth))
        elif (path / "__init__.py").is_file():
            lines.append(_entry(f"{path.name}/", _first_line(path / "__init__.py"), depth))
            lines.extend(_inside(path, depth + 1))
    return lines


def _line(path: Path, depth: int) -> str:
    return _entry(path.name, _first_line(path), depth)


def _entry(name: str, what: str, depth: int) -> str:
    return f"{'  ' * depth}{name:<{24 - 2 * depth}} {what}".rstrip()


def _first_line(path: Path) -> str:
    documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return documentation.split("\n", 1)[0].rstrip(".").replace("`", "")


if __name__ == "__main__":
    keep(ROOT / "README.md", "tree", tree, __doc__)
