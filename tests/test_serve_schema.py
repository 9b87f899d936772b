"""The server against its own description: whatever is sent, it never fails."""

import contextlib

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from api_server import served
from softlore.decode import PrefixCache, TorchModelRunner
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.engines.local import LocalEngine
from softlore.serve.state import ServerState
from softlore.story import StoryLibrary
from waiting import WAIT_SECONDS

BUSY = 503
EXAMPLES = 6  # of each operation, right ones and wrong ones


# Of what a path names; half of the requests are about what is there.
KNOWN = {"stories": "harbour", "books": "harbour", "prompts": "dog"}


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """Of a server with a tiny model."""
    folder = tmp_path_factory.mktemp("server")
    model = tiny_model("llama")
    library = PromptLibrary(folder / "prompts")
    library.save(SoftPrompt.from_text("a dog", model, name="dog"))
    engine = LocalEngine(TorchModelRunner(model, PrefixCache(2**24)), text_seconds=1.0)
    state = ServerState(engine, library, StoryLibrary(folder / "stories"), folder / "books")
    with served(state) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.slow
def test_whatever_is_sent_it_never_fails(description):
    """As described, or not quite. What a failure shows is the least that fails."""
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) > 50
    for operation in sorted(operations, key=lambda one: one.method == "delete"):  # those last
        for mode in GenerationMode:
            _try(operation, mode)


def _try(operation, mode):
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def call(case, known):
        if known and "name" in case.path_parameters:
            _point_at_what_is_there(case)
        reply = case.call(timeout=WAIT_SECONDS)
        if reply.status_code != BUSY:
            case.validate_response(reply, checks=[not_a_server_error])

    with contextlib.suppress(Unsatisfiable):  # where nothing is sent, nothing can be wrong
        call()


def _point_at_what_is_there(case):
    """Names a story, a lorebook or a prompt that is there, made anew where it was deleted."""
    kind = next((kind for kind in KNOWN if f"/{kind}/" in case.operation.path), None)
    if kind is None:
        return
    case.path_parameters["name"] = KNOWN[kind]
    if "entry" in case.path_parameters:
        case.path_parameters["entry"] = "Emma"
    base = case.operation.schema.location.removesuffix("/openapi.json")
    if kind == "stories":
        made = {"name": "harbour", "opening": "Emma came down the lane."}
        httpx.post(f"{base}/studio/api/stories", json=made)
    elif kind == "books":
        made = {"name": "harbour"}
        httpx.post(f"{base}/studio/api/books", json=made)
        emma = {"name": "Emma", "text": "Emma is a cook."}
        httpx.post(f"{base}/studio/api/books/harbour/entries", json=emma)
