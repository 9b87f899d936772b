"""Reads bodies of API requests leniently, as clients are careless about types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ModelWrapValidatorHandler, PrivateAttr, model_validator
from starlette.requests import Request

from softlore.errors import InputError
from softlore.lore.plain import mend_halves
from softlore.model import LanguageModel
from softlore.settings import SamplingParams, table
from softlore.settings.lenient import flag, integer
from softlore.settings.table import from_client

_NO_RANGE = ("rep_pen_range", "repeat_last_n")  # by which 0 turns the penalty off
# Fields by which clients ask that no text ends before its length.
NO_END = ("bypass_eos", "ban_eos_token", "ignore_eos", "use_default_badwordsids")


class LenientBody(BaseModel):
    """A body in which a value that cannot be used counts as none; `sent` is what was sent."""

    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def sent(self) -> dict[str, Any]:
        return self._sent

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, fields: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        body = handler(fields)
        body._sent = fields if isinstance(fields, dict) else {}
        return body


def sampling_of(sent: Mapping[str, Any], model: LanguageModel) -> dict[str, Any]:
    """Settings of the samplers from a client's fields; ids that the model lacks are left out."""
    sampling = from_client(SamplingParams, sent)
    if any(flag(sent.get(name)) for name in NO_END):
        sampling["banned"] = (*sampling.get("banned", ()), *sorted(model.eos_ids))
    if any(integer(sent.get(name)) == 0 for name in _NO_RANGE):  # as in koboldcpp and llama.cpp
        sampling["repetition_penalty"] = 1.0
    for name, of in (("banned", lambda i: i), ("logit_bias", lambda pair: pair[0])):
        items = [item for item in sampling.pop(name, ()) if of(item) < model.vocab_size]
        if items:
            sampling[name] = tuple(items)
    return sampling


def body_of(model: type[BaseModel], samplers: bool = False) -> dict[str, Any]:
    """OpenAPI's description of a JSON body, with the samplers' settings where it may hold them."""
    schema = model.model_json_schema()
    for setting in table(SamplingParams).values() if samplers else ():
        for name in (setting.name, *setting.aliases) if setting.type in (int, float) else ():
            schema["properties"].setdefault(name, {"type": "number", "description": setting.help})
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body, whatever its declared type; {} where it is empty.

    Raises:
        InputError: it is not a JSON object.
    """
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _refused(f"not JSON ({error!s:.80})") from None
    if not isinstance(body, dict):
        kinds = {list: "a list", str: "text", bool: "a boolean", type(None): "null"}
        raise _refused(kinds.get(type(body), "a number"))
    return _without_surrogates(body) if b"\\ud" in raw.lower() else body


def _refused(what: str) -> InputError:
    return InputError(
        f'the body is {what}; expected an object, such as {{"prompt": "Once"}}; fix the request'
    )


def _without_surrogates(value: Any) -> Any:
    """Replaces lone halves of characters, which no tokenizer takes and no reply can hold."""
    if isinstance(value, str):
        return mend_halves(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    return value
