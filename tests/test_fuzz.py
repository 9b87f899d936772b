"""A short run of the fuzzer over all readers; `make fuzz` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_seeds import TARGETS
from softlore.errors import InputError
from softlore.prompts import FORMATS
from waiting import WAIT_SECONDS

TOOL = Path(__file__).parent.parent / "tools" / "fuzz.py"
RUNS = 20_000
# Seeds that their reader must refuse: each target also holds a dtype that is not read.
REFUSED = {
    "mkultra-pickle": 1, "kobold": 2, "npy": 1, "mtj-zip": 1, "mtj-legacy": 1, "any": 2,
    "checkpoint": 2,  # of other runs
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_what_the_reader_reads(name: str) -> None:
    target, refused = TARGETS[name], 0
    for seed in target.seeds():
        try:
            target.read(target.wrap(seed))
        except InputError:
            refused += 1
    assert refused == REFUSED.get(name, 0)


def test_every_reader_is_fuzzed() -> None:
    targets = {"safetensors": "native", "mtj": "mtj-legacy"}
    for name, format in FORMATS.items():
        assert not format.read or targets.get(name, name) in TARGETS


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not to be had for this system or Python")
    command = [sys.executable, str(TOOL), "--reader", "mixed", "--runs", str(RUNS)]
    done = subprocess.run(
        [*command, "--crashes", str(tmp_path)], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, done.stdout
    assert "0 readers crashed" in done.stdout
    # The fuzzer may execute an input once more than it was told to.
    count = re.search(r"inputs (\d+)", done.stdout)
    assert count is not None
    assert int(count[1]) >= RUNS
