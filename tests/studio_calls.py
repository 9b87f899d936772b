"""The studio as its page calls it: a real server in a thread, with a tiny model."""

import contextlib
import json
import threading
from urllib.parse import quote

import httpx

from softlore.decode import PrefixCache, TorchModelRunner
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.serve.engines.local import LocalEngine
from softlore.serve.listening import listen, url_of
from softlore.serve.server import Server
from softlore.serve.state import ServerState
from softlore.serve.studio.training_process import TrainingProcess
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary
from waiting import WAIT_SECONDS

MODEL = tiny_model("llama")


class Studio:
    """Calls of one server; what is asserted is that they succeed, or fail as expected."""

    def __init__(self, state, url, stop):
        self.state, self.url, self.stop = state, url, stop
        self.client = httpx.Client(base_url=f"{url}/studio/api", timeout=WAIT_SECONDS)

    def call(self, method, *path, status=200, **given):
        reply = self.client.request(method, "/".join(quote(str(p), safe="") for p in path), **given)
        assert reply.status_code == status, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply

    def get(self, *path, **query):
        return self.call("GET", *path, params=query).json()

    def post(self, *path, **fields):
        return self.call("POST", *path, json=fields).json()

    def put(self, *path, **fields):
        return self.call("PUT", *path, json=fields).json()

    def delete(self, *path):
        return self.call("DELETE", *path).json()

    def refused(self, status, method, *path, **given):
        """The error of a rejected call, whose message is one line."""
        error = self.call(method, *path, status=status, **given).json()["error"]
        assert error["message"]
        assert "\n" not in error["message"]
        assert "Traceback" not in error["message"]
        return error

    def upload(self, what, content, filename, name="", status=200):
        query = {"filename": filename, "name": name}
        return self.call(
            "POST", what, "import", params=query, content=content, status=status
        ).json()

    def export(self, *path, **query):
        return self.call("GET", *path, "export", params=query)

    @contextlib.contextmanager
    def stream(self, method, *path, **fields):
        """The events of an answer, `(name, data)` each; leaving the block drops the connection."""
        url = "/".join(quote(str(one), safe="") for one in path)
        given = {"json": fields} if method == "POST" else {}
        with self.client.stream(method, url, **given) as reply:
            assert reply.status_code == 200, reply.read()
            yield _events(reply.iter_lines())

    def write(self, story, **fields):
        """Lets the model write a turn; returns its text and the data of `done`."""
        with self.stream("POST", "stories", story, "write", **fields) as events:
            seen = list(events)
        assert [name for name, _ in seen if name != "token"] == ["plan", "done"], seen
        return "".join(data["text"] for name, data in seen if name == "token"), seen[-1][1]

    @contextlib.contextmanager
    def held(self):
        """Inside of it no text goes on: the engine takes no step."""
        batch, go = self.state.engine._batch, threading.Event()
        step = batch.step

        def when_let_go():
            go.wait(WAIT_SECONDS)
            return step()

        batch.step = when_let_go
        try:
            yield
        finally:
            batch.step = step
            go.set()

    def texts(self, story):
        return [turn["text"] for turn in self.get("stories", story)["turns"]]


def make_state(folder, close_seconds=5.0, engine=None, **more):
    return ServerState(
        engine or LocalEngine(TorchModelRunner(MODEL, PrefixCache(2**24)), **more),
        prompts=PromptLibrary(folder / "prompts"),
        stories=StoryLibrary(folder / "stories"),
        books=folder / "books",
        settings=ServeSettings(port=0, close_seconds=close_seconds),
    )


@contextlib.contextmanager
def studio(folder, apart=False, **given):
    """A server on folders of its own, stopped in the end as a signal stops it.

    `apart`: its trainings run in a process of their own, as those of `softlore serve`.
    """
    state = make_state(folder, **given)
    process = TrainingProcess.start(MODEL, state.prompts) if apart else None
    state.run_training = process and process.run
    ready = threading.Event()
    server = Server(state, ready.set)
    listening = listen(state.settings)
    thread = threading.Thread(target=server.serve_on, args=(listening,), daemon=True)
    thread.start()
    assert ready.wait(20)

    def stop():
        server.should_exit = True

    found = Studio(state, url_of(listening), stop)
    try:
        yield found
    finally:
        stop()
        thread.join(WAIT_SECONDS)
        found.client.close()
        if process is not None:
            process.close()
        assert not thread.is_alive(), "the server does not stop"


def _events(lines):
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])
