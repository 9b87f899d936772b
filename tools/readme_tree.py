"""Writes the tree in README.md: a line a file, from each module's own first line.

python tools/readme_tree.py            # rewrites the block between its two markers
python tools/readme_tree.py --check    # exit code 1 when the block is not current
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "softlore"
START, END = "<!-- tree -->", "<!-- /tree -->"
# In the order the data travels.
ORDER = """__init__.py errors.py lore storyteller demo model prompts context decode measure tune
control compare story serve mkultra.py cli""".split()
OTHERS = {
    "tools": "corpus, storyteller training, bench, this tree",
    "examples": "two notebooks and a lorebook",
    "docs": "the site: quickstart, lorebooks, training, evaluating, models, formats",
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
        for inner in sorted(path.rglob("*.py")):
            if inner.name != "__init__.py":
                lines.append(_line(inner, 2))
    for name, what in OTHERS.items():
        if (ROOT / name).is_dir():
            lines.append(_entry(f"{name}/", what, 0))
    return "\n".join(lines)


def _line(path: Path, depth: int) -> str:
    return _entry(path.name, _first_line(path), depth)


def _entry(name: str, what: str, depth: int) -> str:
    return f"{'  ' * depth}{name:<{24 - 2 * depth}} {what}".rstrip()


def _first_line(path: Path) -> str:
    documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return documentation.split("\n", 1)[0].rstrip(".").replace("`", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(START, 1)
    tail = rest.split(END, 1)[1]
    wanted = f"{head}{START}\n```text\n{tree()}\n```\n{END}{tail}"
    if options.check:
        return int(text != wanted)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
