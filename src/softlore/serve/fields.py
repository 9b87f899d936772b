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

from pydantic import AliasChoices, BaseModel

from softlore.errors import ConfigError
from softlore.serve.lenient import NO_END
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
_logged: set[str] = set()


def read_grammar(sent: Mapping[str, Any]) -> dict[str, Any]:
    """A client's fields, with `response_format` and `structured_outputs` as samplers' settings.

    Raises:
        ConfigError: a form of them that is not known here.
    """
    fields = {name: value for name, value in sent.items() if name not in _FLATTENED}
    for setting in map(table(SamplingParams).__getitem__, GRAMMARS):
        names = (setting.name, *setting.aliases)
        if given := [fields.pop(n) for n in names if fields.get(n) not in (None, "", {}, [])]:
            fields[setting.name] = given[0]
        if len(given) > 1 and any(value != given[0] for value in given[1:]):
            raise ConfigError(
                f"{setting.name} is given as {', '.join(names)}, each with another value; expected "
                "one of them; leave the others out"
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


def unused(body: BaseModel) -> list[str]:
    """Warnings for the fields of a body that nothing reads, each logged once."""
    sent = body.model_extra or {}
    aliases = (field.validation_alias for field in type(body).model_fields.values())
    known = (alias.choices for alias in aliases if isinstance(alias, AliasChoices))
    readable = {*map(str, chain.from_iterable(known)), *_SILENT, *_FLATTENED, *NO_END}
    for setting in table(SamplingParams).values():
        readable |= {setting.name, *setting.aliases}
    asked = [str(name) for name, value in sent.items() if value not in _OFF]
    names = [name for name in asked if name not in readable]
    fresh = [name for name in names if name not in _logged][: MAX_LOGGED - len(_logged)]
    if fresh:
        _logged.update(fresh)
        _log.warning("a client sends fields that have no effect here: %.500s", ", ".join(fresh))
    return [f"{name:.80} is not known here and has no effect" for name in names[:MAX_NAMED]]
