"""`softlore serve` as a user runs it: how it begins, what it says, how it ends."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from api_server import count
from running import save_tiny_model, softlore
from serving import Served, serving
from softlore import FrozenModel
from softlore.decode import PrefixCache, TorchModelRunner
from softlore.prompts import PromptLibrary
from softlore.serve.engines.local import LocalEngine
from softlore.serve.listening import listen, url_of
from softlore.serve.server import Server
from softlore.serve.state import ServerState
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary
from waiting import WAIT_SECONDS, wait_until

SECRET = "Xanthippe"
LONG = {"prompt": "Once upon a time", "max_length": 150, "bypass_eos": True}
ENDLESS = {**LONG, "max_length": 90_000}
STREAM = "/api/extra/generate/stream"
TOKENS = "softlore_tokens_total"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server that all may call who know the key; its model can write for minutes."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "key").write_text("open-sesame\n")
    model = save_tiny_model(folder / "tiny", max_position_embeddings=100_000)
    options = ["--host", "0.0.0.0", "--api-key-file", folder / "key", "--model", model]
    with serving(folder, *options, "--slots", 2, "--queue", 0) as server:
        yield server


@pytest.fixture
def friend(locked):
    """A caller who knows the key."""
    headers = {"Authorization": "Bearer open-sesame"}
    with httpx.Client(base_url=locked.url, headers=headers, timeout=WAIT_SECONDS) as client:
        yield client


# how it begins -----------------------------------------------------------------------------------


def test_help_comes_at_once():
    heavy = "{'torch', 'transformers', 'fastapi', 'uvicorn'}"
    code = (
        "import sys; from softlore.cli import commands\n"
        "commands.main(['serve', '--help'], standalone_mode=False)\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_it_tells_where_it_is_and_what_it_has(tmp_path):
    lore = tmp_path / "lore.yaml"
    lore.write_text("name: Harbour\nentries: [{name: Emma, text: Emma is a cook.}]\n")
    options = ["--lorebook", lore, "--origin", "https://lite.koboldai.net/"]
    with serving(tmp_path, *options) as server:
        for said in (
            "loading storyteller (5.5M parameters, included) …",
            f"{server.url}/api\n",
            f"{server.url}/v1\n",
            "FrozenModel('storyteller'",
            f"0 in {tmp_path / 'prompts'}",
            str(tmp_path / "stories"),
            "Harbour, 1 entry\n",
            "https://lite.koboldai.net\n",
            "only this machine can call",
        ):
            assert said in server.told
        assert server.told.startswith("loading ")
        assert httpx.get(f"{server.url}/api/v1/model").json() == {"result": "storyteller"}
        studio = f"{server.url}/studio/api"
        assert httpx.get(f"{studio}/info").json()["book"] == "lore"
        (entry,) = httpx.get(f"{studio}/books/lore").json()["entries"]
        assert entry["name"] == "Emma"


def test_the_studio_changes_the_model(tmp_path):
    models = tmp_path / "models"
    save_tiny_model(models / "tiny")
    (models / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with (
        serving(tmp_path, models=models) as server,
        httpx.Client(base_url=f"{server.url}/studio/api", timeout=WAIT_SECONDS) as studio,
    ):

        def info():
            with contextlib.suppress(httpx.TransportError):  # a connection that it has closed
                return studio.get("info").json()

        def change(name):
            run = info()["run"]
            assert studio.post("model", json={"name": name}).json() == {"name": name}
            wait_until(lambda: (info() or {"run": run})["run"] != run, server.said)
            return info()

        assert info()["model"] == "storyteller"
        here = {model["name"] for model in studio.get("models").json() if model["changes"]}
        assert {"storyteller", "tiny", "broken"} <= here
        after = change("tiny")
        assert (after["model"], after["notice"]) == ("tiny", "")
        written = httpx.post(f"{server.url}/api/v1/generate", json=LONG | {"max_length": 4})
        assert written.json()["results"][0]["text"]
        after = change("broken")
        assert after["model"] == "tiny"
        assert "broken could not be loaded: " in after["notice"]
        refused = studio.post("model", json={"name": "/etc/passwd"})
        assert refused.status_code == 400
        assert "expected one of" in refused.json()["error"]["message"]
        assert change("storyteller")["model"] == "storyteller"


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = softlore("serve", "--port", taken.getsockname()[1])
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert "Address already in use" in ended.err
    assert "--port" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "expected an API key"),
        (["--host", "::"], "expected an API key"),
        (["--host", "192.0.2.7"], "expected an API key"),
        (["--host", "192.0.2.7", "--api-key", "open-sesame"], "cannot listen on 192.0.2.7"),
        (["--api-key", "short"], "the API key has 5 characters"),
        (["--api-key", "with a space"], "printable ASCII without spaces"),
        (["--api-key-file", "no-such-file"], "can't be read"),
        (["--origin", "*"], "'*' is not an origin"),
        (["--origin", "lite.koboldai.net"], "fix --origin"),
        (["--origin", "https://a.example/page"], "without a path"),
        (["--allow-host", "a.example:80"], "without a port"),
        (["--engine", "vllm"], "expected a URL with vllm"),
        (["--engine-url", "http://127.0.0.1:8000"], "none with others"),
        (["--engine", "llamacpp"], "expected the model's GGUF file"),
        (["--gguf", "model.gguf"], "none with others"),
        (["--port", "70000"], "port is 70000"),
    ],
)
def test_what_would_be_unsafe_or_cannot_be_is_refused(options, said):
    ended = softlore("serve", *options)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.lines) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = softlore("serve")
    assert ended.code == 2
    assert ended.lines[0].startswith("softlore: uvicorn is not installed;")
    assert "pip install 'softlore[serve]'" in ended.err


# while it runs -----------------------------------------------------------------------------------


def test_the_key_opens_all_but_health_which_is_open(locked, friend):
    for path in (
        "/metrics",
        "/openapi.json",
        "/api/v1/config/soft_prompt",
        "/v1/models",
        "/nowhere",
    ):
        assert httpx.get(locked.url + path).status_code == 401
    assert httpx.get(f"{locked.url}/health").json()["status"] == "ok"
    assert friend.get("/v1/models").status_code == 200
    assert "open-sesame" not in locked.told


def test_busy_is_told_as_each_api_tells_it(locked, friend):
    with (
        friend.stream("POST", STREAM, json=ENDLESS) as a,
        friend.stream("POST", STREAM, json=ENDLESS) as b,
    ):
        chunks = a.iter_bytes(), b.iter_bytes()  # kept: a stream ends with its iterator
        for one in chunks:
            next(one)
        assert friend.get("/health").json()["load"]["running"] == 2
        refused = friend.post("/api/v1/generate", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"]["type"] == "service_unavailable"
        refused = friend.post("/v1/completions", json={"prompt": "Once"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "busy"
    assert count(friend, "softlore_refused_total") >= 2
    wait_until(lambda: count(friend, "softlore_texts_running") == 0)
    assert count(friend, 'softlore_texts_total{finish="cancelled"}') >= 2
    assert count(friend, "softlore_gone_total") >= 2
    assert count(friend, "softlore_running_bytes") == 0


def test_what_is_counted(friend):
    labels = '{method="POST",route="/api/v1/generate",status="200"}'
    before = count(friend, f"softlore_requests_total{labels}"), count(friend, TOKENS)
    friend.post("/api/v1/generate", json={**LONG, "max_length": 9}).raise_for_status()
    friend.get("/no/such/path/1")
    friend.get("/no/such/path/2")
    httpx.request("BREW", friend.base_url, headers={"Host": "evil.example"})
    after = count(friend, f"softlore_requests_total{labels}"), count(friend, TOKENS)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 9)
    page = friend.get("/metrics").text
    assert "such" not in page  # routes, of which there are so many
    assert "BREW" not in page
    assert 'softlore_requests_total{method="other",route="(none)",status="403"}' in page
    assert count(friend, "softlore_slots") == 2
    assert count(friend, "softlore_first_token_seconds_count") >= 1
    assert count(friend, "softlore_kept_bytes") > 0


def test_the_log_tells_of_requests_and_never_of_stories(locked, friend):
    sent = {**LONG, "prompt": f"{SECRET} said", "memory": SECRET, "max_length": 5}
    reply = friend.post(f"/api/v1/generate?q={SECRET}", json=sent)
    friend.post("/api/v1/generate", json={"prompt": f"[[soft:{SECRET}]]"})
    friend.get(f"/{SECRET}")
    assert SECRET not in locked.said()
    line = next(x for x in locked.logs() if x.get("request") == reply.headers["x-request-id"])
    assert (
        line.items()
        >= {
            "level": "info",
            "method": "POST",
            "route": "/api/v1/generate",
            "status": 200,
            "tokens": 5,
        }.items()
    )
    assert line["ms"] > 0
    friend.get("/health")
    assert not [x for x in locked.logs() if x.get("route") == "/health"]


# how it ends -------------------------------------------------------------------------------------


def test_a_text_that_would_take_longer_ends_where_it_is(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny", max_position_embeddings=100_000)
    model, ended = FrozenModel.from_pretrained(folder), []
    settings = ServeSettings(port=0, close_seconds=0.3)
    here = (
        PromptLibrary(tmp_path / "prompts"),
        StoryLibrary(tmp_path / "stories"),
        tmp_path / "books",
    )
    state = ServerState(
        LocalEngine(TorchModelRunner(model, PrefixCache(2**24))), *here, settings=settings
    )

    async def at_close():
        ended.append(state.closing)

    state.at_close.append(at_close)
    listening, ready = listen(settings), threading.Event()
    server, url = Server(state, ready.set), url_of(listening)
    thread = threading.Thread(target=server.serve_on, args=[listening])
    thread.start()
    ready.wait()
    with httpx.stream("POST", url + STREAM, json=ENDLESS, timeout=WAIT_SECONDS) as stream:
        chunks = stream.iter_text()
        next(chunks)
        server.should_exit = True
        told = "".join(chunks)
    thread.join()
    assert told.endswith('data: {"token": "", "finish_reason": "stop"}\n\n')
    assert ended == [True]
    assert state.engine.load().running == 0


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_text_under_way_is_finished_and_nothing_new_begun(tmp_path, sig):
    with serving(tmp_path) as server:
        with httpx.stream("POST", server.url + STREAM, json=LONG, timeout=WAIT_SECONDS) as stream:
            chunks = stream.iter_text()
            told = next(chunks)
            server.stop(sig)
            wait_until(lambda: refused(server.url))
            told += "".join(chunks)
        assert told.endswith('data: {"token": "", "finish_reason": "length"}\n\n')
        assert told.count("event: message\n") > 20
        ended = server.end()  # here: a second signal would end it at once
    assert ended.code == 0
    assert "Traceback" not in ended.err


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    model = save_tiny_model(tmp_path / "tiny", max_position_embeddings=100_000)
    server = Served(tmp_path, "--model", model)
    with httpx.stream("POST", server.url + STREAM, json=ENDLESS, timeout=WAIT_SECONDS) as stream:
        chunks = stream.iter_text()
        next(chunks)
        server.stop(signal.SIGINT)
        wait_until(lambda: refused(server.url))
        server.stop(signal.SIGINT)
        ended = server.end()
    assert ended.code == 130
    assert ended.lines[-1] == "softlore: stopped at once"


# -------------------------------------------------------------------------------------------------


def refused(url):
    """Whether nobody listens there."""
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:
        return True
    return False
