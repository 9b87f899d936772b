"""The tools that measure real models: end to end on a tiny one, resumed, and their tables."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import measure_real
import measuring
from peft_training import joined, train_peft
from real_tables import model_section
from running import save_tiny_model
from softlore.lore import Block, Entry
from softlore.measure import recall
from softlore.model.tiny import tiny_model
from softlore.prompts import Context
from waiting import WAIT_SECONDS

pytestmark = pytest.mark.filterwarnings("default")  # PEFT's own are not our concern
TOOLS = Path(__file__).resolve().parent.parent / "tools"
LABELS = [
    label
    for method in measure_real.METHODS
    for label in ([method] if method == "nothing" else [method, f"{method}, in company"])
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Runs the tool on a tiny model; a second call resumes. Returns its tables, and its rows."""
    folder = tmp_path_factory.mktemp("real")
    model, rows = save_tiny_model(folder / "tiny", max_position_embeddings=1024), folder / "rows"

    def run(capsys):
        options = [str(model), "--quick", "--seconds", "0.2", "--out", str(rows)]
        measuring.main("", measure_real.real, arguments=options)
        return capsys.readouterr(), rows

    return run


def test_every_method_is_measured_alone_and_in_company(quick, capsys):
    captured, rows = quick(capsys)
    lines = captured.out.splitlines()
    assert lines[0] == "### tiny"
    for label in LABELS:  # in the table of means, and in that of the worst prompts
        assert sum(line.startswith(f"| {label} |") for line in lines) >= 2, label
    saved = [json.loads(line) for line in rows.read_text().splitlines()]
    measured = [row for row in saved if row["method"] != "loading"]
    assert len(measured) == len(LABELS) * 2  # two entries
    for row in measured:
        assert all(math.isfinite(row[name]) for name in ("recall_0", "recall_16", "held_out"))
        assert (row["updates"] is None) == (row["method"] in ("nothing", "text"))
        assert row["drift"] == 0 if row["method"] == "nothing" else row["drift"] > 0
    text = next(row for row in measured if row["method"] == "text")
    assert text["fidelity"] == pytest.approx(1, abs=1e-3)
    assert "8 of 8 cases to measure; 5 of them train for 0.2 s each" in captured.err
    assert "[8/8]" in captured.err


def test_what_is_in_the_file_is_not_measured_again(quick, capsys, monkeypatch):
    first, rows = quick(capsys)
    lines = rows.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["method"] != "loading"]
    rows.write_text("".join(kept))  # interrupted before one case
    again, _ = quick(capsys)
    assert "1 of 8 cases to measure; 0 of them train" in again.err
    monkeypatch.setattr(measure_real.FrozenModel, "from_pretrained", None)  # is not called
    last, _ = quick(capsys)
    assert "0 of 8 cases" in last.err
    assert last.out == again.out
    tables = [line for line in last.out.splitlines() if line.startswith("|")]
    assert tables == [line for line in first.out.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_prompts_that_peft_trains_recall_here_what_they_recall_there(kind, bos):
    model = tiny_model("llama", bos=bos)
    block = Block(call="Ada wears", responses=[" a red hat"])
    entry = Entry(name="Ada", text="Ada wears a red hat. She sells clocks.", blocks=[block])
    still = train_peft(model, entry, kind, 4, seconds=0.01, learning_rate=1e-9)
    assert recall(model, still.prompt, [block]) == pytest.approx(still.loss, abs=1e-4)
    trained = train_peft(model, entry, kind, 4, seconds=1, recall=still.loss - 0.1)
    assert len(trained.prompt) == 4
    assert recall(model, trained.prompt, [block]) < still.loss - 0.1
    assert 0 < trained.to_recall < trained.seconds


def test_prompts_joined_as_peft_composes_them():
    model = tiny_model("llama")
    block = Block(call="Ada wears", responses=[" a red hat"])
    entry = Entry(name="Ada", text="Ada wears a red hat.", blocks=[block])
    rows, prefix = (
        train_peft(model, entry, kind, 4, seconds=0.01).prompt for kind in ("embedding", "prefix")
    )
    both = recall(model, joined([rows, rows]), [block])
    assert both == pytest.approx(recall(model, Context([rows, rows]), [block]), abs=1e-4)
    assert len(joined([prefix, prefix])) == 8
    assert math.isfinite(recall(model, joined([prefix, prefix]), [block]))


def test_a_broken_prompt_does_not_hide_in_a_mean():
    row = {"setting": "alone", "tokens": 16.0, "held_out": 1.0, "drift": 0.1, "fidelity": None}
    row |= {"method": "soft", "lore_words": 1.0, "seconds": 9.0, "updates": 5, "recall_1000": None}
    loading = {"method": "loading", "context_length": 512}
    rows = [
        loading | {"seed": 0, "load_seconds": 2.0},
        row | {"seed": 0, "entry": "Ada", "recall_0": 0.2, "to_recall": 3.0},
        row | {"seed": 0, "entry": "Bo", "recall_0": 4.4, "to_recall": None},
        loading | {"seed": 1, "load_seconds": 2.0},
        row | {"seed": 1, "entry": "Ada", "recall_0": 0.1, "to_recall": 5.0},
        row | {"seed": 1, "entry": "Bo", "recall_0": 0.3, "to_recall": 4.0},
    ]
    section = model_section("models/small.gguf", rows, [0, 1000])
    assert section.startswith("### small\n")
    assert "a distance of 1000 does not fit its context of 512 tokens" in section
    means, worst, recalled = (line for line in section.splitlines() if line.startswith("| soft |"))
    assert means.startswith("| soft | 16 ± 0 | 1.25 ± 13.34 | 1.00 ± 0.00 |")
    assert worst == "| soft | 4.40 (Bo, seed 0) |"
    assert recalled == "| soft | 5 | 3 of 4 | 4 ± 10 | 5 |"


def test_the_gpu_check_runs_at_tiny_shapes(tmp_path):
    command = [TOOLS / "gpu_check.sh", "--device", "cpu", "--quick"]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(report) == ["machine", "seconds", "demo", "lorebook", "peft", "quantized"]
    for part in ("demo", "lorebook"):
        assert report[part]["updates"] >= 1
        assert 0 < report[part]["share_of_peak"]["matrix product here"] < 1
        assert report[part]["peak_megabytes"] > 0
    assert report["demo"]["measures"]["soft"]["recall"]["0"] > 0
    assert report["lorebook"]["entries"] == 3
    assert report["quantized"]["updates"] >= 1
    assert report["quantized"]["foretold"]["on_24_GB"] == "whole"
    assert [row["filler"] for row in report["peft"]] == [0, 16]
    for row in report["peft"]:  # both made the same update
        assert row["softlore"]["loss"] == pytest.approx(row["PEFT"]["loss"], rel=1e-4)
        assert row["softlore"]["gradient"] == pytest.approx(row["PEFT"]["gradient"], rel=1e-2)
