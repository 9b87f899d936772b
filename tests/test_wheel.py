"""What is shipped works where nothing but Python is: built, installed afresh, and used."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from waiting import WAIT_SECONDS

ROOT = Path(__file__).parent.parent
PROMPT = ROOT / "tests" / "golden" / "prompt-v1-embedding.safetensors"

pytestmark = pytest.mark.slow


def run(*command, folder):
    """Runs a command far from the repository, offline but for pip, and returns what it said."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The folder with the sdist, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def installed(shipped, tmp_path_factory):
    """The programs' folder of a new virtual environment with nothing but the wheel."""
    folder = tmp_path_factory.mktemp("new")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    wheel = next(shipped.glob("*.whl"))
    pip = [programs / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, folder=folder)
    yield programs
    shutil.rmtree(folder)  # torch is large, and pytest keeps what tests leave


def test_the_wheel_holds_what_is_needed_and_no_more(shipped):
    with zipfile.ZipFile(next(shipped.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    for needed in (
        "softlore/py.typed",
        "softlore/demo/lorebook.yaml",
        "softlore/storyteller/config.json",
        "softlore/storyteller/model.safetensors",
        "softlore/storyteller/tokenizer.json",
    ):
        assert needed in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"softlore"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_holds_what_is_needed_and_no_more(shipped):
    with tarfile.open(next(shipped.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {"pyproject.toml", "Makefile", "LICENSE", "constraints.txt", "mkdocs.yml"} <= names
    assert {"tests/test_wheel.py", "docs/index.md", "examples/lorebook.yaml"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "site", "out"))]


def test_help_is_quick(installed):
    """Told by what it imports, not by the clock."""
    done = run(
        installed / "python", "-X", "importtime", installed / "softlore", "--help",
        folder=installed,
    )  # fmt: skip
    assert "Usage: softlore" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "softlore.cli" in imported
    assert not imported & {"torch", "transformers", "numpy", "matplotlib"}


def test_a_prompt_file_is_inspected(installed):
    assert "embedding" in run(installed / "softlore", "inspect", PROMPT, folder=installed).stdout


def test_a_story_is_written(installed):
    done = run(installed / "softlore", "write", "Once", "--tokens", 5, folder=installed)
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
