"""The OpenAI API, by OpenAI's own client, and as SillyTavern calls it."""

import json
import threading

import httpx
import openai
import pytest

from api_server import idle, make_state, served, storyteller, written
from waiting import WAIT_SECONDS, wait_until

PROMPT = "Once upon a time"
GO_ON = {"ignore_eos": True}
ASKED = {"model": "storyteller", "prompt": PROMPT, "max_tokens": 12, "seed": 7, "extra_body": GO_ON}
HELLO = [{"role": "system", "content": "A tale."}, {"role": "user", "content": "Hello"}]
CHAT = {"model": "storyteller", "messages": HELLO, "max_tokens": 12, "seed": 7, "extra_body": GO_ON}


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, **fields):
    return client.completions.create(**{**ASKED, **fields})


def chat(client, **fields):
    return client.chat.completions.create(**{**CHAT, **fields})


def text(client, **fields):
    return complete(client, **fields).choices[0].text


# completions -------------------------------------------------------------------------------------


def test_the_model_and_an_alias_for_each_prompt_are_listed(client):
    names = ["storyteller", "storyteller:Emma", "storyteller:dog"]
    assert [one.id for one in client.models.list()] == names
    assert client.models.retrieve("storyteller:dog").id == "storyteller:dog"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_completion(client):
    reply = complete(client)
    choice = reply.choices[0]
    assert (reply.object, reply.model, choice.finish_reason) == (
        "text_completion", "storyteller", "length",
    )  # fmt: skip
    assert len(choice.text) > 10
    assert reply.usage.prompt_tokens == len(storyteller().encode(PROMPT))
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    assert text(client) == choice.text
    assert text(client, echo=True) == PROMPT + choice.text


def test_a_stream_is_the_same_text(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    told = [one.choices[0] for one in chunks if one.choices]
    assert "".join(one.text for one in told) == text(client)
    assert [one.finish_reason for one in told] == [None] * (len(told) - 1) + ["length"]
    assert chunks[-1].usage.completion_tokens == 12
    assert not chunks[-1].choices
    assert all(one.usage is None for one in chunks[:-1])


def test_a_stream_ends_with_done(web):
    raw = web.post(
        "/v1/completions", json={"prompt": "It", "max_tokens": 3, "stream": True}
    ).content
    lines = raw.decode("ascii").removesuffix("\n\n").split("\n\n")
    assert lines[-1] == "data: [DONE]"
    first = json.loads(lines[0].removeprefix("data: "))
    assert first["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}


def test_prompts_may_be_several_and_ids_and_have_several_choices(client):
    ids = storyteller().encode(PROMPT)
    assert text(client, prompt=ids) == text(client)
    reply = complete(client, prompt=[PROMPT, "The sea"], n=2, echo=True)
    texts = [one.text for one in reply.choices]
    assert [one.index for one in reply.choices] == [0, 1, 2, 3]
    assert [one.startswith(PROMPT) for one in texts] == [True, True, False, False]
    assert len(set(texts)) == 4
    assert texts[0] == PROMPT + text(client)
    assert reply.usage.prompt_tokens == len(ids) + len(storyteller().encode("The sea"))
    assert reply.usage.completion_tokens == 48
    streamed = {}
    for chunk in complete(client, prompt=[PROMPT, "The sea"], n=2, echo=True, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[number] for number in range(4)] == texts
    assert complete(client, prompt=[[1, 2], [3]], max_tokens=1).choices[1].index == 1


def test_stops_and_samplers_are_obeyed(client):
    whole = text(client)
    stop = whole[4:7]
    reply = complete(client, stop=[stop, "zzz"])
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    assert text(client, stop=stop) == whole[: whole.index(stop)]
    assert text(client, temperature=0) == text(client, temperature=0, seed=8)
    comma = storyteller().encode(",")[0]
    assert text(client, logit_bias={str(comma): 100}, max_tokens=3) == ",,,"
    often = text(client, temperature=0, max_tokens=60)
    assert (
        text(client, temperature=0, max_tokens=60, presence_penalty=2, frequency_penalty=2) != often
    )


def test_likelihoods_have_openais_shape(client):
    likely = complete(client, logprobs=3).choices[0]
    told = likely.logprobs
    assert "".join(told.tokens) == likely.text
    assert told.text_offset[0] == 0
    for token, logprob, top in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert len(top) == 3 + (token not in list(top)[:3])  # its own comes after the likeliest
        assert logprob <= max(top.values())
        assert top.get(token, logprob) == logprob
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 12
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert bytes(content[0].bytes).decode() == content[0].token
    tokens = [
        one for chunk in complete(client, logprobs=1, stream=True) for choice in chunk.choices
        if choice.logprobs for one in choice.logprobs.tokens
    ]  # fmt: skip
    assert tokens == told.tokens


@pytest.mark.parametrize("prompt", [None, "", [], [""], [[]]], ids=str)
def test_an_empty_prompt_begins_a_text(web, prompt):
    body = {"model": "storyteller", "prompt": prompt, "max_tokens": 3, "seed": 1}
    reply = web.post("/v1/completions", json=body)
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 3


def test_an_alias_reads_its_soft_prompt_first(client):
    told = text(client, model="storyteller:dog", temperature=0)
    assert told == text(client, prompt=f"[[soft:dog]]{PROMPT}", temperature=0)
    assert told != text(client, temperature=0)
    assert complete(client, model="storyteller:Emma").model == "storyteller:Emma"


def test_sillytaverns_names_of_samplers(web, client):
    sent = {
        "prompt": PROMPT, "max_new_tokens": 12, "max_length": 99, "sampler_seed": 7,
        "ignore_eos": True, "rep_pen": 1, "repetition_penalty": 1, "typical_p": 1, "tfs": 1,
        "stopping_strings": ["zzz"], "truncation_length": 512, "dry_multiplier": 0,
        "sampler_order": [6, 0, 1, 3, 4, 2, 5], "mirostat_mode": 0, "logprobs": 0, "top_k": 40,
        "dry_sequence_breakers": '["\\n"]', "logit_bias": [], "custom_token_bans": "", "seed": -1,
    }  # fmt: skip
    del sent["seed"]
    told = web.post("/v1/completions", json=sent).json()["choices"][0]["text"]
    assert told == text(client)
    assert web.post("/v1/completions", json={"n_predict": 3, "seed": -1}).json()["usage"][
        "completion_tokens"
    ] in (1, 2, 3)
    abort = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True, "genkey": "K"}
    with web.stream("POST", "/v1/completions", json=abort) as stream:
        chunks = stream.iter_bytes()
        next(chunks)
        assert web.post("/api/extra/abort", json={"genkey": "K"}).json()["success"] == "true"
        assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


# chats -------------------------------------------------------------------------------------------


def test_a_chat(client):
    reply = chat(client)
    message = reply.choices[0].message
    assert (reply.object, message.role) == ("chat.completion", "assistant")
    assert message.content == message.content.lstrip()
    assert message.content
    assert reply.usage.completion_tokens == 12
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [one.choices[0].delta.content or "" for one in chunks]
    assert "".join(told) == message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len(chat(client, n=2).choices) == 2


def test_a_chat_is_a_transcript_that_ends_with_the_reply(client):
    told = chat(client, max_completion_tokens=40, max_tokens=None)
    assert "User:" not in told.choices[0].message.content
    prompt = "A tale.\nUser: Hello\nAssistant:"
    assert chat(client).choices[0].message.content == text(client, prompt=prompt).lstrip()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    said = [HELLO[0], {"role": "user", "content": parts}]
    assert chat(client, messages=said).choices == chat(client).choices


def test_a_chat_without_a_length_ends_by_itself_or_by_the_context(client, state):
    short = {"max_context_length": 200}
    reply = chat(client, max_tokens=None, extra_body=short, messages=HELLO * 80)
    assert reply.usage.total_tokens <= 200
    tagged = chat(client, messages=[{"role": "user", "content": "[[soft:dog]] Hi"}])
    assert tagged.usage.prompt_tokens > len(state.prompts["dog"])


# errors, aborts and retries ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"model": "storyteller:dug"}, openai.NotFoundError, "model_not_found"),
        ({"prompt": "[[soft:dug]]"}, openai.BadRequestError, "prompt_not_found"),
        ({"prompt": "[[soft:cat]]"}, openai.BadRequestError, "prompt_mismatch"),
        ({"temperature": "hot"}, openai.BadRequestError, "invalid_value"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value"),
        ({"n": 0}, openai.BadRequestError, "invalid_value"),
        ({"n": 128, "prompt": ["a", "b"]}, openai.BadRequestError, "invalid_value"),
        ({"prompt": [5_000_000]}, openai.BadRequestError, "invalid_value"),
        ({"prompt": {"a": 1}}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_are_those_of_openai(client, fields, kind, code):
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            complete(client, stream=stream, **fields)
        assert caught.value.body.keys() == {"message", "type", "param", "code"}
        assert caught.value.body["code"] == code
        assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "messages",
    [[], "Hello", [{}], [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": 3}]],
)
def test_messages_that_are_none_are_told(client, messages):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=messages)
    assert "message" in caught.value.message


def test_a_field_that_is_wrong_is_named(web):
    told = web.post("/v1/completions", json={"top_p": "x"}).json()["error"]
    assert (told["param"], told["type"]) == ("top_p", "invalid_request_error")
    assert web.post("/v1/completions", content=b"{").status_code == 400


def test_a_stream_that_is_closed_frees_its_slot(client, web, state):
    before = written(web)
    stream = complete(client, max_tokens=900, stream=True)
    next(iter(stream))
    assert state.engine.load().running == 1
    stream.close()
    wait_until(lambda: idle(state))
    assert written(web) - before < 900
    with pytest.raises(openai.APITimeoutError):
        complete(client, max_tokens=900, n=4, timeout=httpx.Timeout(WAIT_SECONDS, read=0.3))
    wait_until(lambda: idle(state))
    assert written(web) - before < 4 * 900


def test_a_busy_server_is_asked_again_by_the_client(tmp_path):
    state = make_state(tmp_path, slots=1, queue=0)
    with served(state) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = complete(client, max_tokens=900, stream=True)
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as caught:
            complete(client.with_options(max_retries=0))
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["code"] == "busy"
        statuses = []

        def answered(response):  # the slot is free as soon as the client has been refused once
            statuses.append(response.status_code)
            stream.close()

        with openai.DefaultHttpxClient(event_hooks={"response": [answered]}) as web:
            again = openai.OpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=5, http_client=web
            )
            assert text(again)
        assert statuses[0] == 503
        assert statuses[-1] == 200


def test_texts_side_by_side_are_what_each_is_alone(client):
    alone = [text(client, seed=seed) for seed in range(8)]
    found = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: text(client, seed=s)}))
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == alone
