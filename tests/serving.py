"""A server as a user starts it: a process of its own, which can be called, and told to stop."""

import contextlib
import functools
import json
import os
import re
import signal

from running import Running
from waiting import wait_until

READY = "Ctrl-C stops it"


class Served(Running):
    """`softlore serve` in a process of its own, once it can be called.

    Its folders of prompts, stories and lorebooks are in `folder`; `url` is where it is. `models`
    is the models folder.
    """

    def __init__(self, folder, *options, models=None):
        kept = {f"--{name}": folder / name for name in ("prompts", "stories", "lorebooks")}
        told = [part for pair in kept.items() for part in pair]
        at_start = models and functools.partial(_use_models, str(models))
        super().__init__(folder, "serve", "--port", 0, *told, *options, at_start=at_start)
        self.told = self._until_ready()
        self.url = re.search(r"studio +(http://\S+)", self.told)[1]

    def stop(self, sig=signal.SIGTERM):
        """Tells it to stop, which takes a while."""
        os.kill(self.pid, sig)

    def said(self):
        """All that it has said, as it stands."""
        return self._said("err")

    def logs(self):
        """The lines of its log, as they stand."""
        lines = self.said().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _until_ready(self):
        wait_until(lambda: READY in self.said(), self.said, self.process.is_alive)
        return self.said()


@contextlib.contextmanager
def serving(folder, *options, models=None):
    """A server that is stopped in the end, and must have come to its end by itself."""
    server = Served(folder, *options, models=models)
    try:
        yield server
    finally:
        if server.process.is_alive():
            server.stop()
        ended = server.end()
    assert ended.code == 0, ended.err


def _use_models(folder):
    os.environ["SOFTLORE_MODELS"] = folder
