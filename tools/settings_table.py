"""Writes the table of settings in docs/training.md, from TrainingConfig's own lines.

python tools/settings_table.py            # rewrites the table between its two markers
python tools/settings_table.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from blocks import ROOT, keep

TUNE = ROOT / "src" / "softlore" / "tune"
PAGE = ROOT / "docs" / "training.md"


def table() -> str:
    """A row a setting: its option where it has one, its default, what it is."""
    config = _class(TUNE / "config.py", "TrainingConfig")
    said = _said(ast.get_docstring(config) or "")
    options = (ROOT / "src" / "softlore" / "cli" / "train.py").read_text(encoding="utf-8")
    lines = ["| setting | option | default | |", "|---|---|---|---|"]
    for name, default in _defaults(config).items():
        option = f"--{name.replace('_', '-')}"
        shown = f"`{option}`" if f'"{option}"' in options else ""
        lines.append(f"| `{name}` | {shown} | {default} | {said[name]} |")
    return "\n".join(lines)


def _class(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def _defaults(config: ast.ClassDef) -> dict[str, str]:
    found = {}
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = ast.literal_eval(node.value) if node.value is not None else None
            text = value if isinstance(value, str) else repr(value)
            found[node.target.id] = "none" if value is None else f"`{text}`"
    rates = _constant(TUNE / "learner.py", "LEARNING_RATES")
    found["learning_rate"] = ", ".join(f"`{rate}` ({kind})" for kind, rate in rates.items())
    return found


def _constant(path: Path, name: str) -> dict[str, float]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value: dict[str, float] = ast.literal_eval(node.value)
            return value
    raise LookupError(f"{path} has no {name}")


def _said(documentation: str) -> dict[str, str]:
    """What the docstring says of each attribute; some lines are of two."""
    attributes = documentation.split("Attributes:\n", 1)[1]
    said = {}
    for entry in re.split(r"\n    (?=\w)", "\n" + attributes)[1:]:
        names, text = entry.split(": ", 1)
        text = " ".join(text.split()).rstrip(".")
        said.update(dict.fromkeys(names.split(", "), text.replace("|", "\\|")))
    return said


if __name__ == "__main__":
    keep(PAGE, "settings", table, __doc__)
