"""A server of the APIs in a thread, with an engine and prompts of its own."""

import contextlib
import functools
import threading
import time

import uvicorn

from softlore import FrozenModel, SoftPrompt
from softlore.decode import PrefixCache, TorchModelRunner
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.serve.app import make_app
from softlore.serve.engines.local import LocalEngine
from softlore.serve.state import ServerState
from softlore.story import StoryLibrary


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
        thread.join(20)


def wait_until(true, seconds=20.0):
    """Until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def idle(state):
    """Whether nothing is written."""
    load = state.engine.load()
    return load.running == load.waiting == 0
