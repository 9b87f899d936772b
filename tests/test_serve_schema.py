"""The server against its own description: whatever is sent, it never fails."""

import contextlib

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from api_server import served
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.engines.local import LocalEngine
from softlore.serve.state import ServerState
from softlore.story import Stories

BUSY = 503
EXAMPLES = 10  # of each operation, right ones and wrong ones


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """Of a server with a tiny model."""
    folder = tmp_path_factory.mktemp("server")
    model = tiny_model("llama")
    library = PromptLibrary(folder / "prompts")
    library.save(SoftPrompt.from_text("a dog", model, name="dog"))
    engine = LocalEngine(model, text_seconds=1.0)
    state = ServerState(engine, library, Stories(folder / "stories"), folder / "books")
    with served(state) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.slow
def test_whatever_is_sent_it_never_fails(description):
    """As described, or not quite. What a failure shows is the least that fails."""
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        for mode in GenerationMode:
            _try(operation, mode)


def _try(operation, mode):
    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    def call(case):
        reply = case.call(timeout=30)
        if reply.status_code != BUSY:
            case.validate_response(reply, checks=[not_a_server_error])

    with contextlib.suppress(Unsatisfiable):  # where nothing is sent, nothing can be wrong
        call()
