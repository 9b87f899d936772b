"""The folders stand in the order the data travels; each imports only from those above it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "softlore"
ORDER = [
    "errors",
    "disk",
    "lore",
    "storyteller",
    "demo",
    "vllm_connector",
    "model",
    "prompts",
    "context",
    "decode",
    "measure",
    "tune",
    "control",
    "compare",
    "story",
    "serve",
    "softlore",  # the package's own __init__, which offers names from all above it
    "mkultra",
    "cli",
]


def test_every_folder_has_its_place():
    found = {path.stem for path in _top_level()} - {"__init__", "__main__"}
    assert found <= set(ORDER)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_no_import_goes_upwards(path):
    here = _layer(path.relative_to(SOURCE).parts)
    for line, parts in _imports(path):
        there = _layer(parts)
        assert ORDER.index(there) <= ORDER.index(here), (
            f"{path.relative_to(ROOT)}:{line}: {here} imports from {there}, which comes after it"
        )


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("import softlore.tune.trainer", ["tune", "trainer"]),
        ("from softlore.tune import trainer", ["tune", "trainer"]),
        ("from softlore import Lorebook", []),
        ("from softlore import tune", ["tune"]),
        ("from ..tune import trainer", ["tune", "trainer"]),
        ("from . import files", ["lore", "files"]),
        ("def f():\n    import softlore.cli", ["cli"]),
        ("import softlorebook, torch.tune", None),
        ("from softlore import __version__", None),
    ],
)
def test_the_walk_sees_every_form_of_import(tmp_path, code, parts):
    module = tmp_path / "module.py"
    module.write_text(code)
    found = [found for _, found in _imports(module, package=("lore",))]
    assert found == ([] if parts is None else [parts])


def test_the_readme_shows_every_module():
    tree = _readme_tree()
    named = {path.removesuffix("/") for path in tree}
    top = {path.name for path in _top_level()} - {"__init__.py"}
    assert not top - named, f"missing from README.md's tree: {sorted(top - named)}"
    for path in named:
        assert (SOURCE / path).exists(), f"README.md's tree names {path}, which is not there"
    # A folder that lists files lists them all.
    for folder in {str(Path(path).parent) for path in named if path.endswith(".py")} - {"."}:
        files = {f"{folder}/{file.name}" for file in (SOURCE / folder).glob("*.py")}
        missing = files - named - {f"{folder}/__init__.py"}
        assert not missing, f"missing from README.md's tree: {sorted(missing)}"


def _top_level():
    return [
        path
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    ]


def _layer(parts):
    first = parts[0].removesuffix(".py") if parts else "softlore"
    if first == "__main__":
        return "cli"
    return first if first in ORDER else "softlore"


def _imports(path, package=None):
    """Yields (line, parts under softlore) for every softlore import in a file, lazy ones too."""
    if package is None:
        package = path.relative_to(SOURCE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = ["softlore", *package[: len(package) - node.level + 1], *base]
            # The version is a mere constant: it brings nothing in.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            modules = [_resolved([*base, name]) for name in names]
        else:
            continue
        for module in modules:
            if module[0] == "softlore":
                yield node.lineno, module[1:]


def _resolved(module):
    """`from softlore import Lorebook` names what is in softlore; `... import tune` a folder."""
    return module[:1] if len(module) == 2 and module[1] not in ORDER else module


def _readme_tree():
    """Returns the paths under src/softlore that the README's fenced tree names."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    tree = next((block for block in blocks if re.search(r"^\s*src/softlore/", block, re.M)), None)
    if tree is None:
        pytest.skip("README.md has no tree yet: a fenced block with a line `src/softlore/`")
    lines = tree.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip().startswith("src/softlore/"))
    base = _indent(lines[start])
    folders, paths = [], []
    for line in lines[start + 1 :]:
        indent, words = _indent(line), line[_indent(line) :].split()
        if not words:
            continue
        if indent <= base:
            break
        folders = [(at, name) for at, name in folders if at < indent]
        path = "/".join([name for _, name in folders] + [words[0].removesuffix("/")])
        if words[0].endswith("/"):
            folders.append((indent, words[0].removesuffix("/")))
        paths.append(path)
    return paths


def _indent(line):
    return len(line) - len(line.lstrip(" │├└─"))
