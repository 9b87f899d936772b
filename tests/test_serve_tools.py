"""Calls of tools in chats over HTTP: what the model is shown, held to, and said to have called."""

import json
import re

import httpx
import jsonschema
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server import storyteller
from softlore.context.chat import render_chat
from softlore.errors import ConfigError
from softlore.model.tiny import tiny_model
from softlore.serve.chat import ChatMessage
from softlore.serve.tools import MAX_DEPTH, CallReader, ToolBox

HERMES = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t.function | tojson }}\n{% endfor %}"
    'Reply <tool_call>{"name": …, "arguments": …}</tool_call>\n{% endif %}'
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA = HERMES.replace('"arguments"', '"parameters"')
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
PLACE = {"type": "object", "properties": {"place": {"enum": ["mill", "fair"]},
         "days": {"$ref": "#/$defs/days"}}, "required": ["place", "days"],
         "additionalProperties": False,
         "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}  # fmt: skip
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Tells the weather.", "parameters": PLACE}}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, CLOCK)}
ASKED = {"model": "storyteller", "messages": [{"role": "user", "content": "Rain?"}],
         "tools": [WEATHER, CLOCK], "max_tokens": 80, "seed": 1}  # fmt: skip
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def template(monkeypatch):
    """Sets the chat template of the served model."""
    return lambda text: monkeypatch.setattr(storyteller().tokenizer, "chat_template", text)


def streamed(client, **fields):
    """The text, the calls and why it ended, of a streamed chat."""
    text, calls, reason = "", {}, None
    for chunk in client.chat.completions.create(**fields, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            calls[call.index] = (call.function.name, call.function.arguments)
        reason = choice.finish_reason or reason
    return text, list(calls.values()), reason


# What the reply is held to ------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("text", [HERMES, LLAMA, {"default": PLAIN, "tool_use": HERMES}])
def test_a_required_call_has_arguments_of_its_schema(client, template, text, choice):
    template(text)
    names = set()
    for seed in range(4):
        asked = ASKED | {"tool_choice": choice, "seed": seed}
        reply = client.chat.completions.create(**asked).choices[0]
        (call,) = reply.message.tool_calls
        assert reply.finish_reason == "tool_calls"
        assert reply.message.content is None
        assert re.fullmatch(r"call_\w{24}", call.id)
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        calls = [(call.function.name, call.function.arguments)]
        assert streamed(client, **asked) == ("", calls, "tool_calls")
        names.add(call.function.name)
    assert names == {"weather"} if choice is NAMED else names <= set(SCHEMAS)


def test_a_call_that_is_cut_off_is_none(client, template):
    template(HERMES)
    asked = ASKED | {"tool_choice": NAMED, "max_tokens": 3}
    reply = client.chat.completions.create(**asked).choices[0]
    assert reply.finish_reason == "length"
    assert reply.message.content
    assert not reply.message.tool_calls
    assert streamed(client, **asked) == (reply.message.content, [], "length")


def test_calls_and_text_of_a_model_that_writes_both(client, template, monkeypatch):
    template(HERMES)
    call = r'<tool_call>\n\{"name": "clock", "arguments": \{"x": [0-9]\}\}\n</tool_call>'
    said = {"regex": rf"I look\.\n{call}\n{call}"}
    monkeypatch.setattr(ToolBox, "constrain", lambda _, fields, __: fields | said)
    asked = ASKED | {"max_tokens": 200}
    reply = client.chat.completions.create(**asked).choices[0]
    calls = [(c.function.name, c.function.arguments) for c in reply.message.tool_calls]
    assert reply.message.content == "I look."
    assert [name for name, _ in calls] == ["clock", "clock"]
    assert len({c.id for c in reply.message.tool_calls}) == 2
    assert reply.finish_reason == "tool_calls"
    assert streamed(client, **asked) == ("I look.", calls, "tool_calls")
    one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert len(one.message.tool_calls) == 1


def test_a_reply_without_calls_is_text(client, template):
    template(HERMES)
    reply = client.chat.completions.create(**ASKED, tool_choice="auto").choices[0]
    assert reply.message.tool_calls is None
    assert reply.message.content
    assert streamed(client, **ASKED) == (reply.message.content, [], reply.finish_reason)


@pytest.mark.parametrize("text", [None, PLAIN, HERMES])
def test_with_the_choice_of_none_nothing_is_offered(client, template, text):
    template(text)
    none = client.chat.completions.create(**ASKED, tool_choice="none")
    without = client.chat.completions.create(**{k: v for k, v in ASKED.items() if k != "tools"})
    assert none.choices[0].message.content == without.choices[0].message.content
    assert none.usage == without.usage


# What cannot be done ------------------------------------------------------------------------------

DEEP = json.loads('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1))
VERY_DEEP = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, {}),
        (PLAIN, {}),
        (HERMES, {"tool_choice": "always"}),
        (HERMES, {"tool_choice": {"type": "function", "function": {"name": "sun"}}}),
        (HERMES, {"tool_choice": "required", "tools": []}),
        (HERMES, {"tools": [CLOCK, CLOCK]}),
        (HERMES, {"tools": [CLOCK] * 200}),
        (HERMES, {"tools": "clock"}),
        (HERMES, {"tools": [{"type": "web_search"}]}),
        (HERMES, {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        (HERMES, {"tools": [{"type": "function", "function": {"name": "a", "x": VERY_DEEP}}]}),
        (HERMES, {"tools": [WEATHER | {"function": {"name": "a", "parameters": DEEP}}]}),
        (HERMES, {"tools": [WEATHER | {"function": {"name": "a", "description": "a" * 70_000}}]}),
        (HERMES, {"response_format": {"type": "json_object"}}),
        (HERMES, {"tool_choice": "required", "grammar": 'root ::= "a"'}),
        (HERMES, {"tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "a", "parameters": {"type": "strin"}}}]}),
        (HERMES, {"messages": [{"role": "assistant", "tool_calls": [
            {"function": {"name": "clock", "arguments": "["}}]}]}),
        (HERMES, {"functions": [{"name": "f"}]}),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_cannot_be_done_is_a_400_in_three_parts(url, template, text, wrong):
    template(text)
    reply = httpx.post(f"{url}/v1/chat/completions", json=ASKED | wrong, timeout=60)
    assert reply.status_code == 400, reply.text
    assert re.search(r"; expected .+; .+", reply.json()["error"]["message"])


# What the model is shown --------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function",
        "function": {"name": "clock", "arguments": '{"zone": "é"}'}}  # fmt: skip
TALK = [
    ChatMessage(role="system", content="Be kind."),
    ChatMessage(role="user", content="Late?"),
    ChatMessage(role="assistant", content=None, tool_calls=[CALL]),
    ChatMessage(role="tool", content="Noon.", tool_call_id="call_1"),
]


def shown(text, tools=()):
    model = tiny_model("llama")
    model.tokenizer.chat_template = text
    box = ToolBox([], None)
    assert not box.tools
    chat = render_chat(model, TALK, tools)
    return chat.memory + "".join(chat.turns)


def test_templates_see_tools_calls_and_results():
    told = shown(HERMES, [CLOCK])
    assert told.startswith('<|system|>{"name": "clock"')
    assert told.endswith(
        '<|user|>Late?<|assistant|><tool_call>clock{"zone": "é"}</tool_call>'
        "<|tool|>Noon.<|assistant|>"
    )


@pytest.mark.parametrize("text", [PLAIN, None])
def test_calls_are_text_where_a_template_knows_none(text):
    told = shown(text)
    assert '<tool_call>\n{"name": "clock", "arguments": {"zone": "é"}}\n</tool_call>\n' in told
    with pytest.raises(ConfigError, match="no chat template that shows tools"):
        shown(text, [CLOCK])


# What is a call -----------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["<tool_call>", "</tool_call>", "}{", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
ARGUMENTS = st.dictionaries(st.text(), VALUES, max_size=3)
KEY = st.sampled_from(["arguments", "parameters"])
NAMES = frozenset({"clock", "weather"})
PIECES = st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", "[", "]", '"name"', ":", ",",
                          '"clock"', '"arguments"', " ", "\n", "a", "<", "{}",
                          '{"name": "clock", "arguments": {}}'])  # fmt: skip


def read(text, sizes=(), parallel=True):
    """The text and the calls of a reply that comes in pieces."""
    reader, given, place = CallReader(NAMES, parallel), "", 0
    for size in sizes:
        given += reader.feed(text[place : place + size])
        place += size
    given += reader.feed(text[place:])
    rest, calls = reader.end()
    found = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    return given + rest, found


@given(st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=3),
       KEY, st.booleans(), st.sampled_from(["marked", "list", "lines", "text in text"]),
       st.lists(st.integers(1, 9)))  # fmt: skip
def test_any_arguments_survive_in_every_form(calls, key, ascii_only, form, sizes):
    told = [
        json.dumps(
            {"name": name, key: json.dumps(arguments) if form == "text in text" else arguments},
            ensure_ascii=ascii_only,
        )
        for name, arguments in calls
    ]
    text = {
        "marked": "Well. \n" + "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in told),
        "list": f" [{', '.join(told)}]\n",
        "lines": ";\n".join(told),
        "text in text": f"Well.<tool_call>{'</tool_call><tool_call>'.join(told)}",
    }[form]
    assert read(text, sizes) == ("Well." if "Well" in text[:5] else "", calls)
    assert read(text, sizes, parallel=False)[1] == calls[:1]


@given(
    st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join), st.lists(st.integers(1, 5))
)
def test_pieces_of_any_size_give_the_same(text, sizes):
    whole = read(text)
    assert read(text, sizes) == whole
    assert read(text, [1] * len(text)) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "sun", "arguments": {}}',
        '<tool_call>{"name": "sun", "arguments": {}}</tool_call>',
        '{"name": "clock"}',
        '{"name": "clock", "arguments": [1]}',
        '{"name": "clock", "arguments": {"x": NaN}}',
        '{"name": "clock", "arguments": {"x": 1e999}}',
        '{"name": "clock", "arguments": {}} he said',
        '<tool_call>{"name": "clock", "arguments": {}} and so on',
        '{"name": ["clock"], "arguments": {}}',
        "<tool_call>" + '[{"a":' * 5000,
        '{"name": "clock", "arguments": {"a":' + "[" * 5000 + "]" * 5000 + "}}",
        "[]",
        " \n",
        "",
    ],
    ids=lambda text: text[:50],
)
def test_what_is_no_call_stays_text(text):
    assert read(text, [3] * len(text)) == (text, [])


def test_text_is_given_as_soon_as_it_cannot_be_a_call():
    reader = CallReader(NAMES)
    assert reader.feed("It") == "It"
    assert reader.feed(" is <tool") == " is"
    assert reader.feed("s> here") == " <tools> here"
    assert CallReader(NAMES).feed("[OOC: no]") == "[OOC: no]"
