"""Commands as a user runs them: in this process, or in one of their own that can be killed.

Importing torch takes seconds, so processes are forked from a server that has imported it once
(and computed nothing, so that a fork is safe).
"""

import contextlib
import io
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from softlore.cli import main
from softlore.model.tiny import byte_tokenizer, tiny_hf
from waiting import WAIT_SECONDS, wait_until

PRELOAD = [
    "softlore.cli.train",
    "softlore.tune.lorebook_training",
    "transformers.models.llama.modeling_llama",
]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self):
        return self.err.splitlines()

    @property
    def lines_after_loading(self):
        return [line for line in self.lines if not line.startswith("loading ")]

    @property
    def loading(self):
        """What it loads; on a slow machine each is told again, with the seconds so far."""
        return [line for line in self.lines if line.startswith("loading ") and line.endswith("…")]


def save_tiny_model(folder, family="llama", bos=False, **overrides):
    """A tiny random model in a folder, as `--model` takes it."""
    tiny_hf(family, **overrides).save_pretrained(folder)
    byte_tokenizer(bos).save_pretrained(folder)
    return folder


def softlore(*arguments, stdin=""):
    """Runs a command here."""
    out, err = io.StringIO(), io.StringIO()
    kept, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(os.fsencode(stdin)))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdin = kept
    return Ended(code, out.getvalue(), err.getvalue())


class Running:
    """A command in a process of its own; `at_start` is called there first."""

    def __init__(self, folder, *arguments, at_start=None):
        self.folder = Path(folder)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        told = [str(argument) for argument in arguments]
        self.process = context.Process(target=_run, args=(self.folder, told, at_start))
        self.process.start()
        self.pid = self.process.pid

    def wait_for(self, path):
        """Until a file is there, or the command has ended."""
        wait_until(lambda: path.exists() or not self.process.is_alive(), f"there is no {path}")

    def wait_for_output(self):
        """Until it has printed something, or has ended."""
        wait_until(lambda: self._said("out") or not self.process.is_alive(), "it prints nothing")

    def end(self, after=None):
        """How it ends by itself; or killed, if it has not ended `after` so many seconds."""
        self.process.join(WAIT_SECONDS if after is None else after)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            assert after is not None, f"it hangs: {self._said('err')}"
        return Ended(self.process.exitcode, self._said("out"), self._said("err"))

    def _said(self, name):
        path = self.folder / f"{name}.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _run(folder, arguments, at_start):
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    if at_start is not None:
        at_start()
    main(arguments)
