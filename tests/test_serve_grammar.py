"""Grammars and structured output over HTTP, and fields that have no effect."""

import json
import re

import openai
import pytest

from softlore.serve.fields import read_grammar

SCHEMA = {"type": "object", "properties": {"name": {"enum": ["Bram", "Mirela"]},
          "age": {"type": "integer", "minimum": 1, "maximum": 99}},
          "required": ["name", "age"], "additionalProperties": False}  # fmt: skip
GBNF = 'root ::= "(" root ")" | [a-c]{2}'
ASKED = {"prompt": "Once", "max_tokens": 60, "seed": 3}


def follows(text, form):
    if form == "json":
        found = json.loads(text)
        return found["name"] in ("Bram", "Mirela") and 0 < found["age"] < 100
    return re.fullmatch(form, text)


FORMS = [
    ({"guided_json": SCHEMA}, "json"),
    ({"guided_json": json.dumps(SCHEMA)}, "json"),
    ({"json_schema": SCHEMA, "grammar": ""}, "json"),
    ({"structured_outputs": {"json": SCHEMA}}, "json"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "json"),
    ({"guided_regex": "[a-d]{4}"}, "[a-d]{4}"),
    ({"structured_outputs": {"regex": "[a-d]{4}", "choice": None}}, "[a-d]{4}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": GBNF}, r"\(*[a-c]{2}\)*"),
    ({"grammar": GBNF}, r"\(*[a-c]{2}\)*"),
]


@pytest.mark.parametrize(("fields", "form"), FORMS, ids=str)
def test_completions_follow_the_grammar_of_each_field(web, fields, form):
    reply = web.post("/v1/completions", json=ASKED | fields | {"n": 2}).raise_for_status().json()
    for choice in reply["choices"]:
        assert follows(choice["text"], form), choice
        assert choice["finish_reason"] == "stop"
    assert "warnings" not in reply


def test_healing_beside_a_grammar_is_named(web):
    asked = ASKED | {"heal": True}
    reply = web.post("/v1/completions", json=asked | {"guided_regex": "[a-d]{4}"}).json()
    assert reply["warnings"] == ["heal has no effect: a regex begins where the text ends, as it is"]
    assert "warnings" not in web.post("/v1/completions", json=asked).json()


def test_chats_stream_json_as_the_openai_client_asks_for_it(web):
    with openai.OpenAI(base_url=f"{web.base_url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="storyteller", messages=[{"role": "user", "content": "Who?"}],
            stream=True, seed=1, max_tokens=90, response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}},
        )  # fmt: skip
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert follows(text, "json")


def test_koboldai_lite_sends_gbnf(web):
    sent = {"prompt": "Once", "max_length": 40, "sampler_seed": 1, "grammar": GBNF}
    reply = web.post("/api/v1/generate", json=sent).raise_for_status().json()
    assert follows(reply["results"][0]["text"], r"\(*[a-c]{2}\)*")
    told = web.post("/api/extra/generate/stream", json=sent).raise_for_status().text
    events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
    assert "".join(event["token"] for event in events) == reply["results"][0]["text"]
    free = web.post("/api/v1/generate", json=sent | {"grammar": ""}).raise_for_status().json()
    assert free["results"][0]["text"] != reply["results"][0]["text"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"grammar": "root ::= x"},
        {"grammar": 5},
        {"guided_regex": "(", "grammar": ""},
        {"guided_json": {"type": "strin"}},
        {"guided_json": "{"},
        {"guided_choice": [1]},
        {"guided_json": SCHEMA, "guided_regex": "a"},
        {"guided_json": SCHEMA, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"response_format": "json"},
        {"structured_outputs": {"structural_tag": {"a": 1}}},
        {"structured_outputs": 3},
        {"suffix": " and then"},
        {"best_of": 4},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_a_400_in_three_parts(web, wrong):
    for path in ("/v1/completions", "/api/v1/generate"):
        reply = web.post(path, json=ASKED | wrong)
        assert reply.status_code == 400, reply.text
        assert re.search(r"; expected .+; .+", reply.text)


def test_fields_without_effect_are_named_and_others_are_not(web, caplog):
    sent = {"prompt": "Once", "max_length": 3, "n": 1, "adaptive_target": -1.0, "images": [],
            "user": "me", "quiet": True, "smoothing_curve_of_mine": 1.5, "best_of": 1,
            "max_context_length": 500, "stop": ["~"], "stop_sequence": ["~"]}  # fmt: skip
    warned = ["smoothing_curve_of_mine is not known here and has no effect"]
    for _ in range(2):
        assert web.post("/api/v1/generate", json=sent).json()["warnings"] == warned
    theirs = {"max_new_tokens": 3, "n_predict": 3, "truncation_length": 500}
    assert web.post("/v1/completions", json=sent | theirs).json()["warnings"] == warned
    told = web.post("/api/extra/generate/stream", json=sent).text
    assert json.loads(told.splitlines()[-2][6:])["warnings"] == warned
    told = web.post("/v1/completions", json=sent | {"stream": True}).text
    assert sum("has no effect" in line for line in told.splitlines()) == 1
    assert caplog.text.count("smoothing_curve_of_mine") == 1
    del sent["smoothing_curve_of_mine"]
    assert "warnings" not in web.post("/api/v1/generate", json=sent).json()


def test_values_that_cannot_be_used_are_named(web):
    odd = {"top_k": "abc", "rep_pen": {"a": 1}, "logit_bias": "x", "sampler_order": [99],
           "sampler_seed": "new", "stop_sequence": 7}  # fmt: skip
    usable = {"min_p": "0.1", "top_a": None, "mirostat": -3, "banned_tokens": [""], "tfs": 99,
              "xtc_probability": False, "dry_sequence_breakers": "[]", "memory": ""}  # fmt: skip
    for path in ("/api/v1/generate", "/v1/completions", "/completion"):
        length = {"max_length": "many"} if path == "/api/v1/generate" else {"n_predict": 3}
        reply = web.post(path, json={"prompt": "Once", **length, **odd, **usable})
        assert reply.status_code == 200, reply.text
        told = {line.split()[0]: line for line in reply.json()["warnings"]}
        assert set(told) == {*odd} | ({"max_length"} if "max_length" in length else set())
        assert told["top_k"] == (
            "top_k is 'abc', which cannot be used, and has its default; expected a whole number "
            "from 0 to 1000000000"
        )
    deep = "[" * 900 + "1" + "]" * 900
    for value in (deep, '{"a": ' + deep + "}"):
        body = '{"prompt": "Once", "max_length": 3, "top_k": ' + value + "}"
        reply = web.post("/api/v1/generate", content=body)
        assert reply.status_code in (200, 400), reply.text
        assert reply.status_code == 400 or reply.json()["warnings"][0].startswith("top_k is a")


def test_any_json_object():
    sent = read_grammar({"response_format": {"type": "json_object"}, "top_k": 3})
    assert sent == {"json_schema": '{"type": "object"}', "top_k": 3}
    assert read_grammar({"response_format": {"type": "text"}, "top_k": 3}) == {"top_k": 3}
