"""The KoboldAI API over HTTP, byte by byte, as KoboldAI Lite and SillyTavern use it."""

import json
import re
import threading

import httpx
import pytest

from api_server import idle, make_state, served, storyteller, written
from waiting import WAIT_SECONDS, wait_until

ASKED = {"prompt": "Once upon a time", "max_length": 12, "sampler_seed": 7, "bypass_eos": True}
ENDLESS = {"prompt": "Once upon a time", "max_length": 900, "bypass_eos": True}
EVENT = re.compile(rb'event: message\ndata: (\{"token": "[^\n]*", "finish_reason": [^\n]*\})\n\n')


@pytest.fixture(scope="module")
def client(state):
    with served(state) as url, httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        yield client


def generate(client, **fields):
    reply = client.post("/api/v1/generate", json={**ASKED, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["results"]


def text(client, **fields):
    return generate(client, **fields)[0]["text"]


def events(raw):
    """The data of events that are exactly as Lite reads them."""
    found = EVENT.findall(raw)
    assert b"".join(b"event: message\ndata: " + one + b"\n\n" for one in found) == raw
    assert raw.isascii()
    return [json.loads(one) for one in found]


# facts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/api/v1/model", {"result": "storyteller"}),
        ("/api/latest/model", {"result": "storyteller"}),
        ("/api/v1/info/version", {"result": "1.2.5"}),
        ("/api/v1/config/max_context_length", {"value": 1024}),
        ("/api/extra/true_max_context_length", {"value": 1024}),
        ("/api/extra/version", {"result": "KoboldCpp", "version": "1.87", "protected": False}),
        ("/api/extra/preloadstory", {}),
        ("/api/v1/config/soft_prompt", {"value": ""}),
        ("/api/v1/config/soft_prompts_list", {"values": [{"value": "Emma"}, {"value": "dog"}]}),
        ("/api/extra/generate/check", {"results": [{"text": ""}]}),
    ],
)
def test_what_clients_ask_when_they_connect(client, path, told):
    reply = client.get(path, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()) == (200, told)


def test_tokens_are_counted(client, state):
    told = client.post("/api/extra/tokencount", json={"prompt": "Once upon a time"}).json()
    assert told == {"value": len(told["ids"]), "ids": storyteller().encode("Once upon a time")}
    told = client.post("/api/extra/tokencount", json={"prompt": "Once [[soft:dog]]"}).json()
    assert told["value"] == len(storyteller().encode("Once ")) + len(state.prompts["dog"])


# texts -------------------------------------------------------------------------------------------


def test_a_text_is_written(client):
    results = generate(client)
    assert list(results[0]) == ["text", "finish_reason"]
    assert results[0]["finish_reason"] == "length"
    assert len(results[0]["text"]) > 10
    assert generate(client) == results  # by the same seed
    assert text(client, sampler_seed=8) != results[0]["text"]


def test_a_stream_is_the_same_text_byte_for_byte_as_lite_reads_it(client):
    reply = client.post("/api/extra/generate/stream", json=ASKED)
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply.content)
    assert [one["finish_reason"] for one in told] == [None] * (len(told) - 1) + ["length"]
    assert "".join(one["token"] for one in told) == text(client)


def test_soft_prompts_are_named_in_text_and_memory(client):
    bare = text(client, temperature=0)
    for sent in (
        {"prompt": "[[soft:dog]]Once upon a time"},
        {"memory": "[[soft:dog]]"},
        {"prompt": "Once upon [[soft:Emma]] a time"},
    ):
        assert text(client, temperature=0, **sent) != bare
    assert text(client, prompt="g]]Once upon a time") == text(client)
    reply = client.post("/api/v1/generate", json={"prompt": "[[soft:dug]]"})
    assert reply.status_code == 400
    assert "did you mean [[soft:dog]]?" in reply.json()["detail"]["msg"]
    reply = client.post("/api/extra/generate/stream", json={"prompt": "[[soft:cat]]"})
    assert reply.status_code == 400
    assert reply.json()["detail"]["type"] == "bad_input"


def test_a_soft_prompt_is_chosen_by_koboldais_old_way(client, state):
    path = "/api/v1/config/soft_prompt"
    bare = text(client, temperature=0)
    assert client.put(path, json={"value": "dog"}).json() == {}
    assert client.get(path).json() == {"value": "dog"}
    chosen = text(client, temperature=0)
    assert chosen == text(client, temperature=0, prompt="[[soft:dog]]Once upon a time")
    assert chosen != bare
    for name in ("dug", "cat"):
        assert client.put(path, json={"value": name}).status_code == 400
    assert client.get(path).json() == {"value": "dog"}
    state.chosen = "gone"  # its file was deleted meanwhile
    assert text(client, temperature=0) == bare
    assert client.put(path, json={"value": ""}).json() == {}


def test_memory_stands_before_a_text_that_is_too_long(client):
    sent = {"prompt": "The rain fell. " * 2000, "memory": "Of Emma.", "max_context_length": 512}
    assert text(client, **sent, max_length=8)
    assert text(client, prompt="Once", max_length=10**6, stop_sequence=["the", "a"]) is not None


def test_stop_strings_are_kept_or_trimmed(client):
    whole = text(client)
    stop = whole[4:8]
    assert generate(client, stop_sequence=[stop]) == [
        {"text": whole[: whole.index(stop)], "finish_reason": "stop"}
    ]
    shown = text(client, stop_sequence=[stop], trim_stop=False)
    assert shown == whole[: whole.index(stop)] + stop
    raw = client.post(
        "/api/extra/generate/stream", json={**ASKED, "stop_sequence": [stop], "trim_stop": False}
    )
    assert "".join(one["token"] for one in events(raw.content)) == shown


def test_bans_and_biases_are_obeyed(client):
    assert "e" not in text(client, banned_tokens=["e"], max_length=30)
    comma = storyteller().encode(",")[0]
    assert text(client, logit_bias={str(comma): 100}, max_length=3) == ",,,"


def test_several_texts_at_once(client):
    results = generate(client, n=3)
    assert len({one["text"] for one in results}) == 3
    assert results[0]["text"] == text(client)


def test_likelihoods_are_told_when_asked_for(client):
    result = generate(client, logprobs=True, max_length=4)[0]
    content = result["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == result["text"]
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 5 for one in content)


@pytest.mark.parametrize(
    "odd",
    [
        {"max_length": "8", "temperature": "0.7", "top_k": "40", "sampler_seed": -1, "n": "1"},
        {"max_length": None, "max_context_length": None, "memory": None, "stop_sequence": None},
        {"nsigma": -1, "dry_base": 0, "dry_multiplier": 1, "rep_pen": 1.1, "rep_pen_range": 10**9},
        {"sampler_order": [6, 0, 1, 3, 4, 2], "max_context_length": -5, "n": -3, "max_length": -1},
        {
            "sampler_order": [9, "x", None, 5, 5],
            "top_p": 1e308,
            "min_p": -1e308,
            "xtc_threshold": 9,
        },
        {"sampler_seed": 10**30, "logit_bias": {"99999999": 1}, "banned_tokens": [None, "", 3]},
        {"prompt": 5, "memory": ["x"], "genkey": 7, "trim_stop": "x", "stop_sequence": "the"},
        {"prompt": "", "grammar": "root ::=", "images": [1], "render_special": True},
        {"prompt": "\ud83d half", "stop_sequence": ["\ud83d"]},
    ],
)
def test_odd_values_are_never_an_error(client, odd):
    sent = {"max_length": 4, **odd}
    if sent["max_length"] in (-1, None):
        sent["stop_sequence"] = ["a", "e", "o"]
    for path in ("/api/v1/generate", "/api/extra/generate/stream"):
        reply = client.post(path, content=json.dumps({"prompt": "Once", **sent}))
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff", b"[" * 10_000, b'{"prompt": 1' * 9])
def test_a_body_that_is_no_object_is_told(client, body):
    reply = client.post("/api/v1/generate", content=body)
    assert reply.status_code == 400
    assert reply.json()["detail"]["type"] == "bad_input"


# under way ---------------------------------------------------------------------------------------


def test_a_text_is_looked_at_and_aborted_by_its_key(client, state):
    with client.stream("POST", "/api/extra/generate/stream", json={**ENDLESS, "genkey": "K1"}) as s:
        chunks = s.iter_bytes()
        raw = next(chunks)
        others = client.post("/api/extra/generate/check", json={"genkey": "K2"})
        assert others.json() == {"results": [{"text": ""}]}
        assert client.post("/api/extra/abort", json={"genkey": "K2"}).json()["success"] == "false"
        seen = client.post("/api/extra/generate/check", json={"genkey": "K1"}).json()
        assert client.post("/api/extra/abort", json={"genkey": "K1"}).json()["success"] == "true"
        told = events(raw + b"".join(chunks))
    whole = "".join(one["token"] for one in told)
    assert told[-1]["finish_reason"] == "stop"
    assert seen["results"][0]["text"]
    assert whole.startswith(seen["results"][0]["text"])
    wait_until(lambda: idle(state))


NO_KEY = [b"", b"{}", b'{"genkey": ""}', b"nonsense"]


@pytest.mark.parametrize("body", NO_KEY)
@pytest.mark.parametrize("key", ["", "K1"])
def test_an_abort_without_a_key_ends_nobodys_text(client, state, body, key):
    asked = {**ENDLESS, "max_length": 60, "genkey": key}
    found = []
    thread = threading.Thread(target=lambda: found.extend(generate(client, **asked)))
    thread.start()
    wait_until(lambda: state.engine.load().running == 1)
    told = client.post("/api/extra/abort", content=body)
    assert (told.status_code, told.json()) == (200, {"success": "false", "done": "false"})
    thread.join(WAIT_SECONDS)
    assert found[0]["finish_reason"] == "length"
    assert found[0]["text"]
    wait_until(lambda: idle(state))


@pytest.mark.parametrize("key", ["", "K1"])
def test_without_a_key_nobodys_text_is_shown(client, state, key):
    asked = {**ENDLESS, "genkey": key, "logprobs": True}
    check, last = "/api/extra/generate/check", "/api/extra/last_logprobs"
    with client.stream("POST", "/api/extra/generate/stream", json=asked) as stream:
        chunks = stream.iter_bytes()
        assert "token" in next(chunks).decode()
        assert state.engine.load().running == 1
        told = [client.get(check), *(client.post(check, content=body) for body in NO_KEY)]
        assert all(reply.json() == {"results": [{"text": ""}]} for reply in told)
        if key:
            seen = client.post(check, json={"genkey": key}).json()["results"]
            assert [bool(one["text"]) for one in seen] == [True]
    wait_until(lambda: idle(state))
    client.post("/api/v1/generate", json={**asked, "max_length": 3})
    told = [client.get(last), *(client.post(last, content=body) for body in NO_KEY)]
    assert all(reply.json() == {"logprobs": None} for reply in told)
    assert (client.post(last, json={"genkey": key}).json()["logprobs"] is not None) == bool(key)


def test_a_dropped_connection_frees_the_slot(client, state):
    before = written(client)
    with client.stream("POST", "/api/extra/generate/stream", json=ENDLESS) as stream:
        chunks = stream.iter_bytes()  # kept, since httpx closes what it has lost
        next(chunks)
        assert state.engine.load().running == 1
    wait_until(lambda: idle(state))
    assert written(client) - before < 900
    soon = httpx.Timeout(WAIT_SECONDS, read=0.3)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/v1/generate", json={**ENDLESS, "n": 3}, timeout=soon)
    wait_until(lambda: idle(state))
    assert written(client) - before < 3 * 900


def test_a_busy_server_says_so_in_koboldcpps_words(tmp_path):
    state = make_state(tmp_path, slots=1, queue=0)
    with served(state) as url, httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        with client.stream("POST", "/api/extra/generate/stream", json=ENDLESS) as stream:
            chunks = stream.iter_bytes()
            next(chunks)
            for path in ("/api/v1/generate", "/api/extra/generate/stream"):
                reply = client.post(path, json=ASKED)
                assert reply.status_code == 503
                assert reply.json() == {
                    "detail": {
                        "msg": "Server is busy; please try again later.",
                        "type": "service_unavailable",
                    }
                }
        wait_until(lambda: idle(state))
        assert generate(client)


def test_who_waited_too_long_is_told_before_the_stream_begins(tmp_path):
    state = make_state(tmp_path, slots=1, queue=2, queue_seconds=0.2)
    with served(state) as url, httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
        with client.stream("POST", "/api/extra/generate/stream", json=ENDLESS) as stream:
            chunks = stream.iter_bytes()
            next(chunks)
            for path in ("/api/extra/generate/stream", "/api/v1/generate"):
                reply = client.post(path, json=ASKED)
                assert reply.status_code == 503
                assert reply.headers["retry-after"] == "1"
        wait_until(lambda: idle(state))
