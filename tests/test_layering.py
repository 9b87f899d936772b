"""Guards on the structure of the package.

Folders import only from those above them, files form no circle, private names stay in their file,
no class name is used twice, files stay short, and the README's tree is complete.
"""

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "softlore"
LONGEST_FILE = 350  # lines
MEDIAN_FUNCTION = 10  # lines
ORDER = [
    "errors",
    "settings",
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


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and for type checking count as well."""
    circles = _circles({module: set(_imported_files(path)) for module, path in _modules().items()})
    assert not circles, "\n".join(" → ".join(circle) for circle in circles)


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert _circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_private_names_stay_in_their_file(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = _private_definitions(tree)
    foreign = _foreign_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("softlore"):
            names = [alias.name for alias in node.names if _is_private(alias.name)]
            assert not names, f"{path.name}:{node.lineno} imports {names} from {node.module}"
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            known = base in {"self", "cls"} | foreign or node.attr in defined
            assert known, f"{path.name}:{node.lineno} uses {ast.unparse(node)}, private elsewhere"


def test_class_names_are_unique():
    places = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice


def test_files_can_be_read_in_one_sitting():
    lengths = {
        str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
    assert not long
    print(f"{sum(lengths.values())} lines in {len(lengths)} files")


def test_functions_are_short():
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) // 2] <= MEDIAN_FUNCTION


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


@cache
def _modules():
    """Every module of the package by its dotted name below softlore, with its file."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported_files(path):
    """The modules that a file imports, lazy imports and those for type checking included."""
    modules = _modules()
    own = {name for name, at in modules.items() if at == path}
    for _, parts in _imports(path, below=True):
        name = ".".join(parts)
        while name not in modules:  # the last part names something in a module
            name = name.rpartition(".")[0]
        if name not in own:
            yield name


def _circles(graph):
    """The strongly connected parts of a graph that have two members or more (Tarjan 1972)."""
    index, low, stack, circles = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                circles.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return circles


def _is_private(name):
    of_named_tuples = name in ("_replace", "_asdict", "_fields")  # public in spite of their names
    return name.startswith("_") and not name.startswith("__") and not of_named_tuples


def _private_definitions(tree):
    """Private names that a file defines: functions, classes, attributes and fields."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if _is_private(name)}


def _foreign_names(tree):
    """Names that a file imports from other packages, whose private parts are their own affair."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
            found.update(name for name in names if name != "softlore")
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("softlore"):
            found.update(alias.asname or alias.name for alias in node.names)
    return found


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


def _imports(path, package=None, below=False):
    """Yields (line, parts under softlore) for every softlore import in a file, lazy ones too.

    With `below`, `from softlore import x` counts as an import of x, whatever x is.
    """
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
            modules = [[*base, name] if below else _resolved([*base, name]) for name in names]
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
