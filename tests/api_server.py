"""A server of the APIs in a thread, with an engine and prompts of its own."""

import contextlib
import functools
import threading

import uvicorn

from softlore import FrozenModel, SoftPrompt
from softlore.decode import PrefixCache, TorchModelRunner
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.serve.app import make_app
from softlore.serve.engines.local import LocalEngine
from softlore.serve.state import ServerState
from softlore.story import StoryLibrary
from waiting import WAIT_SECONDS, wait_until


@functools.cache
def storyteller():
    """The packaged model, loaded once."""
    return FrozenModel.from_pretrained("storyteller")


def make_state(folder, **engine):
    """A server's state in a folder; `engine` are arguments of LocalEngine.

    Its prompts are dog (a prefix), Emma (an embedding), and cat, which is of another model.
    """
    model, other = storyteller(), tiny_model("llama")
    library = PromptLibrary(folder / "prompts")
    for text, of, name, kind in [
        ("The dog is a very good boy.", model, "dog", "prefix"),
        (" a long red coat", model, "Emma", "embedding"),
        ("a cat", other, "cat", "embedding"),
    ]:
        library.save(SoftPrompt.from_text(text, of, name=name, kind=kind))
    engine = LocalEngine(TorchModelRunner(model, PrefixCache(2**24)), **engine)
    return ServerState(engine, library, StoryLibrary(folder / "stories"), folder / "books")


@contextlib.contextmanager
def served(state):
    """The address at which a state is served."""
    config = uvicorn.Config(make_app(state), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_SECONDS)


def count(client, name):
    """A figure of /metrics; 0 where there is none yet."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def written(client):
    """How many tokens of texts that have ended were written."""
    return count(client, "softlore_tokens_total")


def idle(state):
    """Whether nothing is written."""
    load = state.engine.load()
    return load.running == load.waiting == 0
