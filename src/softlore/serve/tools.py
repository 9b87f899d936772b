"""Tools of chats: what a client offers, what holds the reply to them, and the calls in its text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from softlore.errors import ConfigError
from softlore.settings.sampler_values import MAX_GRAMMAR
from softlore.settings.sampling import GRAMMARS

MAX_TOOLS = 128  # of a request, as OpenAI has it
MAX_DEPTH = 64  # of lists and objects inside each other, in tools and arguments
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_KEYS = ("arguments", "parameters")
_MAY_BE_BARE = re.compile(r'\s*(\[\s*)?(\{\s*(".*)?)?', re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")  # calls without marks
_END = re.compile(rf"\s*({_CLOSE}|$)")


def _is_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not depth or any(_is_deep(one, depth - 1) for one in inner)


def _shallow(value: Any) -> Any:
    """A value that is not nested too deep; nothing is an empty list. Raises ValueError."""
    if _is_deep(value):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value or []


def _object(value: Any) -> Any:
    """Arguments as an object; OpenAI's API has them as JSON text. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = _decode(value.strip() or "{}")[0]
    if not isinstance(found, dict):
        raise ValueError("must be a JSON object, encoded as a string")
    return _shallow(found) or {}


class CalledFunction(BaseModel):
    """A function that an earlier message called."""

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)] = {}


class ToolCall(BaseModel):
    """A call in an earlier message of the assistant's."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def text(self) -> str:
        """The call for templates that know of none."""
        return f"{_OPEN}\n{json.dumps(self.function.model_dump(), ensure_ascii=False)}\n{_CLOSE}"


class OfferedFunction(BaseModel):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[\w.:-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool of a request."""

    type: Literal["function"] = "function"
    function: OfferedFunction

    def for_template(self) -> dict[str, Any]:
        """The tool with all that templates look for."""
        function = self.function.model_dump(exclude_none=True)
        schema = {"type": "object", "properties": {}} | (self.function.parameters or {})
        return {
            "type": "function",
            "function": {"description": "", **function, "parameters": schema},
        }


Tools = Annotated[list[Tool], BeforeValidator(_shallow), Field(max_length=MAX_TOOLS)]
ToolCalls = Annotated[list[ToolCall], BeforeValidator(_shallow)]


class ToolBox:
    """The tools that a reply may call, and whether it must.

    Attributes:
        tools: as the model's template takes them; empty where `choice` is "none".

    Args:
        offered: by the client.
        choice: OpenAI's `tool_choice`.
        parallel: whether one reply may call more than once.

    Raises:
        ConfigError: tools that are too long, or two of one name; a choice that none of them fits.
    """

    def __init__(self, offered: Sequence[Tool], choice: Any, parallel: bool = True) -> None:
        names = [tool.function.name for tool in offered]
        self.tools = [] if choice == "none" else [tool.for_template() for tool in offered]
        self._names = frozenset(names if self.tools else ())
        self._parallel = parallel
        length = len(json.dumps(self.tools))
        if length > MAX_GRAMMAR or len(set(names)) < len(names):
            raise ConfigError(
                f"tools are {length:,} characters long and have {len(set(names))} names for "
                f"{len(names)} functions; expected at most {MAX_GRAMMAR:,} characters, and a name "
                "for each; offer fewer, or rename them"
            )
        named = choice.get("function") if isinstance(choice, dict) else None
        name = named.get("name") if isinstance(named, dict) else None
        self._forced = names if choice == "required" else [n for n in names if n == name]
        if choice not in (None, "", "none", "auto") and not self._forced:
            raise ConfigError(
                f"tool_choice is {choice!r:.80}; expected none, auto, required or "
                f'{{"type": "function", "function": {{"name": …}}}} with the name of one of the '
                f"tools ({', '.join(names) or 'there are none'!s:.160}); fix it"
            )

    def constrain(self, fields: Mapping[str, Any], template: str) -> dict[str, Any]:
        """Samplers' fields of a request, with the schema of a call where one must be made.

        Args:
            fields: in which grammars have the names of settings.
            template: of the model's chats, which tells what it calls the arguments.

        Raises:
            ConfigError: the fields hold a grammar, under which no call could be written.
        """
        if not self.tools:
            return dict(fields)
        if given := [name for name in GRAMMARS if fields.get(name) not in (None, "", {}, [])]:
            raise ConfigError(
                f"tools and {given[0]} (or response_format) are both given; expected one of them, "
                'as a text follows one grammar; leave the other out, or send tool_choice "none"'
            )
        if not self._forced:
            return dict(fields)
        key = next((key for key in _KEYS if re.search(rf"{key}\\?[\"']", template)), _KEYS[0])
        functions = [tool["function"] for tool in self.tools]
        asked = [function for function in functions if function["name"] in self._forced]
        schemas = [_schema_of_call(function, key, i) for i, function in enumerate(asked)]
        return {**fields, "json_schema": json.dumps({"anyOf": schemas})}

    def reader(self) -> CallReader:
        """For the text of one reply."""
        return CallReader(self._names, self._parallel)


def _schema_of_call(function: dict[str, Any], key: str, number: int) -> dict[str, Any]:
    """The schema of a call, the `number`-th of the alternatives at the root."""
    place = f"#/anyOf/{number}/properties/{key}"

    def moved(value: Any) -> Any:
        """A schema whose references into itself follow it to its place."""
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, dict):
            return value
        found = {name: moved(one) for name, one in value.items()}
        if isinstance(ref := found.get("$ref"), str) and ref.startswith("#"):
            found["$ref"] = place + ref[1:]
        return found

    arguments = moved({k: v for k, v in function["parameters"].items() if k != "$schema"})
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, key: arguments},
        "required": ["name", key],
        "additionalProperties": False,
    }


class CallReader:
    """Tells calls in a reply from its text, as it comes, the same in pieces of any size.

    Calls are JSON between `<tool_call>` and `</tool_call>` anywhere (Hermes, Qwen, SmolLM2), or
    the whole reply: objects or a list of them (Llama 3). They have the `name` of a function and an
    object of `arguments` or `parameters`. All else is text.

    Args:
        names: of the functions; without any all is text.
        parallel: whether more than the first call counts.
    """

    def __init__(self, names: frozenset[str], parallel: bool = True) -> None:
        self._names = names
        self._parallel = parallel
        self._held = ""
        self._bare = True  # whether the whole reply may still be calls
        self._called = False  # whether a call has begun, as it seems: all else is held

    def feed(self, text: str) -> str:
        """Adds a piece; returns the text of which it is certain now that it belongs to no call."""
        if not self._names:
            return text
        self._held += text
        if self._called:
            return ""
        if self._bare and _MAY_BE_BARE.fullmatch(self._held):
            self._called = '"' in self._held
            return ""
        self._bare = False
        found = self._held.find(_OPEN)
        self._called = found >= 0
        end = found if self._called else len(self._held) - _overlap(self._held)
        given = self._held[:end].rstrip()
        self._held = self._held[len(given) :]
        return given

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls as OpenAI's API has them."""
        calls = self._bare_calls(self._held) if self._bare else []
        text, calls = ("", calls) if calls else self._marked_calls(self._held)
        return text, [
            {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": call}
            for call in (calls if self._parallel else calls[:1])
        ]

    def _bare_calls(self, text: str) -> list[dict[str, str]]:
        """The calls that a whole text is; none where anything else is in it."""
        calls, text, place = [], text.strip(), 0
        while place < len(text):
            value, place = _decode(text, place)
            for one in value if isinstance(value, list) else [value]:
                if (call := self._call(one)) is None:
                    return []
                calls.append(call)
            if between := _BETWEEN.match(text, place):
                place = between.end()
        return calls

    def _marked_calls(self, text: str) -> tuple[str, list[dict[str, str]]]:
        """A text without its marked calls, and these."""
        calls, rest, place = [], "", 0
        while (found := text.find(_OPEN, place)) >= 0:
            start = found + len(_OPEN)
            value, end = _decode(text, start)
            call, closed = self._call(value), _END.match(text, end)
            if call is not None and closed is not None:
                rest += text[place:found]
                calls.append(call)
                place = closed.end()
            else:
                rest += text[place:start]
                place = start
        return ((rest + text[place:]).rstrip() if calls else text), calls

    def _call(self, value: Any) -> dict[str, str] | None:
        """The name and the arguments, as JSON text, of what is a call."""
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
            return None
        arguments = next((value[key] for key in _KEYS if key in value), None)
        if isinstance(arguments, str):
            arguments = _decode(arguments)[0]
        if name not in self._names or not isinstance(arguments, dict):
            return None
        return {"name": name, "arguments": json.dumps(arguments)}


def _overlap(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    return next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)


def _finite(number: str) -> float:
    if not abs(value := float(number)) < float("inf"):
        raise ValueError("no number of JSON")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _decode(text: str, place: int = 0) -> tuple[Any, int]:
    """The JSON value at a place, after whitespace, and where it ends; None and the text's end."""
    place += len(text[place:]) - len(text[place:].lstrip())
    try:
        value, end = _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return None, len(text)
    return (None, len(text)) if _is_deep(value) else (value, end)
