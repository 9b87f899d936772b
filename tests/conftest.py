"""Settings that every test shares."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from waiting import WAIT_SECONDS

# The same examples on every run and machine; a slow machine is no fault.
settings.register_profile("softlore", deadline=None, derandomize=True)
settings.load_profile("softlore")

# Tests that run beside others share the processor with them: one thread each, for torch, too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What the user has set is neither read nor changed, also by processes that a test starts.
NOWHERE = Path(tempfile.gettempdir()) / f"softlore-tests-{os.getpid()}"
os.environ["SOFTLORE_CONFIG"] = str(NOWHERE / "config.json")
os.environ["SOFTLORE_MODELS"] = str(NOWHERE / "models")
os.environ.pop("SOFTLORE_MODEL", None)


# A server of the APIs for the tests of a file, which has a state of its own.


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    from api_server import make_state

    return make_state(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def url(state):
    from api_server import served

    with served(state) as url:
        yield url


@pytest.fixture(scope="module")
def web(url):
    import httpx

    with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as web:
        yield web
