"""The notebooks run from the first cell to the last, and say what they promise."""

from pathlib import Path

import pytest

from waiting import WAIT_SECONDS

EXAMPLES = Path(__file__).parent.parent / "examples"


def _executed(name, folder):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"{name} is to be committed without outputs"
    client = nbclient.NotebookClient(
        notebook,
        timeout=int(WAIT_SECONDS),
        startup_timeout=int(WAIT_SECONDS),
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return [
        "".join(out.get("text", "") for out in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_world_info_is_learned(tmp_path):
    told = "\n".join(_executed("world_info.ipynb", tmp_path))
    with_prompt = told.split("metrics", 1)[-1]
    assert "good boy" in with_prompt or "loves pets" in with_prompt


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_loop_of_ones_own_learns(tmp_path):
    told = "\n".join(_executed("own_loop.ipynb", tmp_path))
    losses = [
        float(line.split(": ")[1].split()[0])
        for line in told.splitlines()
        if line.startswith("update ")
    ]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_decoder_feeds_on_its_own_words(tmp_path):
    told = "\n".join(_executed("decoding.ipynb", tmp_path))
    for line in (
        "RunningBatch: the same tokens",
        "write: the same tokens",
        "generate: the same text",
    ):
        assert line in told
    readings = [line for line in told.splitlines() if line.startswith("reused")]
    assert len(readings) == 3
    assert int(readings[2].split()[1].rstrip(",")) > 20
    assert "the lighthouse |" in told
