"""Fields of requests that say what the text may be, and those that nothing here reads.

Nothing that a client asks for is dropped in silence: what would make the reply another one is
refused, and other fields without a use are named in the reply's `warnings`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from itertools import chain
from typing import Any

from pydantic import AliasChoices

from softlore.errors import ConfigError
from softlore.serve.lenient import NO_END, LenientBody
from softlore.settings import SamplingParams, table
from softlore.settings.sampling import GRAMMARS

MAX_NAMED = 20  # fields in a reply's warnings
MAX_LOGGED = 1000  # different fields, each of which is logged once
# Fields that ask nothing of the text.
_SILENT = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key quiet api_server api_type "
    "can_abort streaming stream_options n best_of tools tool_choice parallel_tool_calls "
    "functions function_call modalities replace_instruct_placeholders".split()
)
_FLATTENED = ("response_format", "structured_outputs")
_OFF: tuple[Any, ...] = (None, False, 0, -1, "", [], {})  # values that ask for nothing
_log = logging.getLogger(__name__)


def read_grammar(sent: Mapping[str, Any]) -> dict[str, Any]:
    """A client's fields, with `response_format` and `structured_outputs` as samplers' settings.

    Raises:
        ConfigError: a form of them that is not known here.
    """
    fields = {name: value for name, value in sent.items() if name not in _FLATTENED}
    for setting in map(table(SamplingParams).__getitem__, GRAMMARS):
        names = (setting.name, *setting.aliases)
        if given := {n: fields.pop(n) for n in names if fields.get(n) not in (None, "", {}, [])}:
            first, *others = given.values()
            fields[setting.name] = first
            if any(value != first for value in others):
                raise ConfigError(
                    f"{setting.name} is given as {' and '.join(given)} with different values; "
                    "expected one of them; leave the others out"
                )
    for name in _FLATTENED:
        found = _FORMS[name](sent[name]) if sent.get(name) is not None else {}
        if twice := [key for key in found if fields.get(key) is not None]:
            raise ConfigError(
                f"{name} and {twice[0]} are both given; expected one of them, as a text follows "
                "one grammar; leave the other out"
            )
        fields |= found
    return fields


def _response_format(value: Any) -> dict[str, Any]:
    """OpenAI's `response_format`; a schema beside `json_object` is llama.cpp's."""
    kind = value.get("type") if isinstance(value, dict) else value
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": json.dumps(value.get("schema") or {"type": "object"})}
    described = value.get("json_schema") if kind == "json_schema" else None
    if isinstance(described, dict) and isinstance(described.get("schema"), dict | bool):
        return {"json_schema": json.dumps(described["schema"])}
    raise ConfigError(
        f"response_format is {value!r:.80}; expected an object of type text, json_object, or "
        'json_schema with {"json_schema": {"schema": …}}; fix it'
    )


def _structured_outputs(value: Any) -> dict[str, Any]:
    """The object of vLLM's `structured_outputs`."""
    names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
    given = {k: v for k, v in value.items() if v not in _OFF} if isinstance(value, dict) else {}
    if given.pop("json_object", False):
        given["json"] = {"type": "object"}
    if not isinstance(value, dict) or not set(given) <= set(names):
        raise ConfigError(
            f"structured_outputs is {value!r:.80}; expected an object with one of "
            f"{', '.join(names)} or json_object; fix it"
        )
    if isinstance(given.get("json"), dict):
        given["json"] = json.dumps(given["json"])
    return {names[name]: wanted for name, wanted in given.items()}


_FORMS = {"response_format": _response_format, "structured_outputs": _structured_outputs}


def refuse(sent: Mapping[str, Any], copies: int = 1) -> None:
    """Raises ConfigError for a field without which the reply would be of no use."""
    best_of = sent.get("best_of")
    wrong = {
        "suffix": (sent.get("suffix"), "text to fill in before other text"),
        "best_of": (
            best_of if best_of not in (None, 0, 1, copies) else None,
            "the best of more texts than n",
        ),
        "functions": (sent.get("functions"), "calls of functions"),
        "tools": (
            sent.get("tools") if sent.get("tool_choice") != "none" else None,
            "calls of tools",
        ),
        "modalities": (sent.get("modalities") not in (None, [], ["text"]) or None, "sound"),
    }
    for name, (value, what) in wrong.items():
        if value not in _OFF:
            raise ConfigError(
                f"{name} asks for {what}, which this server does not write; expected a request "
                "without it; leave it out"
            )


def unused(body: LenientBody, logged: set[str]) -> list[str]:
    """Warnings for the fields of a body that nothing reads, and for values that cannot be used.

    `logged`: fields that were logged before; those that nothing reads are logged, and added.
    """
    readable = {*chain.from_iterable(_names(type(body)).values()), *_SILENT, *_FLATTENED, *NO_END}
    for setting in table(SamplingParams).values():
        readable |= {setting.name, *setting.aliases}
    asked = [str(name) for name, value in (body.model_extra or {}).items() if value not in _OFF]
    names = [name for name in asked if name not in readable]
    fresh = [name for name in names if name not in logged][: MAX_LOGGED - len(logged)]
    if fresh:
        logged.update(fresh)
        _log.warning("a client sends fields that have no effect here: %.500s", ", ".join(fresh))
    warnings = [f"{name:.80} is not known here and has no effect" for name in names]
    return [*warnings, *_unusable(body)][:MAX_NAMED]


def _names(body: type[LenientBody]) -> dict[str, list[str]]:
    """The names by which a client may send each declared field of a body."""
    names = {}
    for name, field in body.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [name]
        names[name] = [str(choice) for choice in choices]
    return names


def _unusable(body: LenientBody) -> list[str]:
    """Warnings for values that were sent and cannot be used."""
    wrong = {}
    for field, names in _names(type(body)).items():
        given = [name for name in names if name in body.sent]
        if given and getattr(body, field) in (None, "", []) and _asks(body.sent[given[0]]):
            wrong[given[0]] = "another value"
    for setting in table(SamplingParams).values():
        for name in (setting.name, *setting.aliases) if setting.name not in GRAMMARS else ():
            value = (body.model_extra or {}).get(name)  # those declared are checked above
            if _asks(value) and setting.from_client(value) in (None, (), []):
                wrong[name] = setting.expected
    return [
        f"{name} is {_shown(body.sent[name])}, which cannot be used, and has its default; "
        f"expected {expected}"
        for name, expected in wrong.items()
    ]


def _asks(value: Any) -> bool:
    """Whether a value asks for anything; lists of what asks for nothing do not, nor does "[]"."""
    if isinstance(value, list):
        return any(item not in _OFF for item in value)
    return value not in _OFF and value not in ("[]", "{}", "null")


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float):
        return f"{value!r:.60}"
    return "a list" if isinstance(value, list) else "an object"
