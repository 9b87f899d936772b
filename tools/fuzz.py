"""Coverage-guided fuzzing of the readers of prompts, lore, stories and checkpoints (atheris).

python tools/fuzz.py --reader all --seconds 60      # a minute a reader, one after another
python tools/fuzz.py --reader kobold --runs 100000

Inputs stay in memory and go where an open file would; those of checkpoints are files. Each may
raise one of softlore's errors. Any other exception is a crash, as are an input that takes 20
seconds, a process of more than 512 MB, and any attempt to unpickle, run, import or open something.
Prints a line a reader, with counts; exit code 1 after a crash. The input is saved in --crashes.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY_MB = 512
TIMEOUT = 20  # seconds an input
MAX_INPUT = 4096  # bytes
TRAINING = ("checkpoint", "mixed")  # readers that import all of training
FORBIDDEN = ("pickle.find_class", "os.", "subprocess.", "open", "import", "exec", "socket.")
STATS = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--reader", default="all", help="one, all one by one, or mixed")
    parser.add_argument("--runs", type=int, default=-1, help="inputs a reader")
    parser.add_argument("--seconds", type=int, default=0, help="time a reader")
    parser.add_argument("--seed", type=int, default=1, help="for libFuzzer's random numbers")
    parser.add_argument("--corpus", type=Path, help="folder for interesting inputs")
    parser.add_argument("--crashes", type=Path, default=Path("."), help="folder for crashes")
    parser.add_argument("--json", type=Path, help="file to append a line a reader to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if options.child:
        return _fuzz(options.reader, flags)
    from fuzz_seeds import TARGETS

    known = [*TARGETS, "mixed"]
    if options.runs < 0 and not options.seconds:
        options.seconds = 60
    names = list(TARGETS) if options.reader == "all" else [options.reader]
    if unknown := set(names) - set(known):
        parser.error(f"unknown reader {unknown.pop()!r}; expected all or one of {known}")
    results = [_run(name, options) for name in names]
    total, crashed = sum(r["inputs"] for r in results), [r for r in results if r["exit_code"]]
    print(f"{total:,} inputs in all, {len(crashed)} readers crashed")
    return int(bool(crashed))


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fuzzes one reader in a process of its own, as libFuzzer ends the one it runs in."""
    from fuzz_seeds import find_target

    with contextlib.ExitStack() as stack:
        corpus = options.corpus and options.corpus / name
        corpus = corpus or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(find_target(name).seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        options.crashes.mkdir(parents=True, exist_ok=True)
        # What the process leaves behind, as libFuzzer ends it, goes with this folder.
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, __file__, "--child", "--reader", name, str(corpus)]
        command += [f"-runs={options.runs}", f"-max_total_time={options.seconds}"]
        command += [f"-rss_limit_mb={MEMORY_MB}", f"-timeout={TIMEOUT}", f"-max_len={MAX_INPUT}"]
        command += [f"-seed={options.seed}", "-print_final_stats=1", "-use_value_profile=0"]
        command += [f"-artifact_prefix={options.crashes}/{name}-"]
        began = time.monotonic()
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": temporary},
        )
        seconds = time.monotonic() - began
    stats = dict(STATS.findall(done.stdout))
    result = {
        "reader": name,
        "inputs": int(stats.get("number_of_executed_units", 0)),
        "seconds": round(seconds, 1),
        "peak_mb": int(stats.get("peak_rss_mb", 0)),
        "coverage": max(map(int, re.findall(r"\bcov: (\d+)", done.stdout)), default=0),
        "exit_code": done.returncode,
    }
    print("  ".join(f"{key} {value}" for key, value in result.items()), flush=True)
    if done.returncode:
        print(done.stdout[-6000:], flush=True)
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(result) + "\n")
    return result


def _fuzz(name: str, flags: list[str]) -> int:
    """Hands one reader to libFuzzer; does not return."""
    import atheris
    import numpy  # noqa: F401 (not to be instrumented: only the readers are)
    import torch  # noqa: F401

    with atheris.instrument_imports(
        include=[
            "softlore.prompts",
            "softlore.lore",
            "softlore.story.files",
            "softlore.tune.checkpoint",
        ]
    ):
        import softlore.lore
        import softlore.prompts
        import softlore.story.files

        if name in TRAINING:
            import softlore.tune.checkpoint  # noqa: F401 (all of training, which takes seconds)
    from fuzz_seeds import TARGETS, find_target, read_file
    from softlore import SoftPrompt
    from softlore.errors import SoftloreError

    # Brings in what is imported late, before imports are forbidden.
    for other, each in TARGETS.items():
        if other in TRAINING and name not in TRAINING:
            continue
        for data in map(each.wrap, each.seeds()):
            with contextlib.suppress(SoftloreError):
                each.read(data)
    for codec in ("unicode_escape", "utf-16-le", "utf-8-sig"):
        codecs.lookup(codec)
    target = find_target(name)
    guarded = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if guarded and event.startswith(FORBIDDEN):
            raise AssertionError(f"a reader did {event} {arguments!r:.200}")

    def test(data: bytes) -> None:
        nonlocal guarded
        wrapped = target.wrap(data)
        guarded = True
        refusal = ""
        try:
            value = target.read(wrapped)
            assert not isinstance(value, SoftPrompt) or value.tensor.isfinite().all()
        except SoftloreError as error:
            refusal = str(error)
        finally:
            guarded = False
        assert len(refusal) < 2000, refusal[:2000]
        assert not refusal or target.read is not read_file or "expected" in refusal, refusal

    sys.addaudithook(watch)
    atheris.Setup([sys.argv[0], *flags], test)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
