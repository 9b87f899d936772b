"""Samplers by the names that clients have for them, whatever is sent, within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from softlore.decode.samplers import SamplingParams, kobold_order
from softlore.model import LanguageModel
from softlore.serve.lenient import flag, number, strings, whole

MOST_BIASES = 1024
BIAS = 100.0
_FAR = 2**16  # tokens that a penalty looks back at most

_Reads = Callable[[Any], "float | int | None"]


def _within(low: float, high: float) -> _Reads:
    def read(value: Any) -> float | None:
        found = number(value)
        return None if found is None else min(high, max(low, found))

    return read


def _share(value: Any) -> float | None:
    """A share of probability to keep; 1, or nothing above 0, is off."""
    found = number(value)
    if found is None:
        return None
    return 1.0 if found <= 0 else min(1.0, found)


def _top_p(value: Any) -> float | None:
    found = number(value)
    if found is None:
        return None
    return 1.0 if found < 0 else min(1.0, max(1e-9, found))


def _least(least: float, otherwise: float, high: float) -> _Reads:
    """A number from `least` on; below it `otherwise`, which is what off, or usual, is."""

    def read(value: Any) -> float | None:
        found = number(value)
        if found is None:
            return None
        return otherwise if found < least else min(high, found)

    return read


def _count(most: int, least: int = 0) -> _Reads:
    def read(value: Any) -> int | None:
        found = whole(value)
        return None if found is None else min(most, max(least, found))

    return read


def _version(value: Any) -> int | None:
    found = whole(value)
    return found if found in (1, 2) else 0


# Field of Sampling: the names that clients have for it, and how what they send is read.
NAMES: dict[str, tuple[tuple[str, ...], _Reads]] = {
    "temperature": (("temperature",), _within(0, 100)),
    "top_k": (("top_k",), _count(10**6)),
    "top_p": (("top_p",), _top_p),
    "min_p": (("min_p",), _within(0, 1)),
    "typical": (("typical", "typical_p"), _share),
    "tfs": (("tfs", "tfs_z"), _share),
    "top_a": (("top_a",), _within(0, 1)),
    "top_n_sigma": (("nsigma", "top_n_sigma"), _within(0, 100)),
    "dynatemp_range": (("dynatemp_range",), _within(0, 100)),
    "dynatemp_exponent": (("dynatemp_exponent",), _least(0.01, 1.0, 100)),
    "smoothing": (("smoothing_factor", "smoothing"), _within(0, 100)),
    "repetition_penalty": (
        ("rep_pen", "repetition_penalty", "repeat_penalty"),
        _least(0.01, 1.0, 100),
    ),
    "repetition_range": (
        ("rep_pen_range", "repetition_penalty_range", "repeat_last_n"),
        _count(_FAR),
    ),
    "repetition_slope": (("rep_pen_slope",), _within(0, 100)),
    "presence_penalty": (("presence_penalty",), _within(-10, 10)),
    "frequency_penalty": (("frequency_penalty",), _within(-10, 10)),
    "no_repeat_ngram": (("no_repeat_ngram_size",), _count(_FAR)),
    "dry_multiplier": (("dry_multiplier",), _within(0, 100)),
    "dry_base": (("dry_base",), _least(1.0, 1.75, 100)),
    "dry_allowed_length": (("dry_allowed_length",), _count(_FAR, 1)),
    "dry_range": (("dry_penalty_last_n", "dry_range"), _count(_FAR)),
    "xtc_probability": (("xtc_probability",), _within(0, 1)),
    "xtc_threshold": (("xtc_threshold",), _within(0, 1)),
    "mirostat": (("mirostat", "mirostat_mode"), _version),
    "mirostat_tau": (("mirostat_tau",), _within(0, 100)),
    "mirostat_eta": (("mirostat_eta",), _within(0, 100)),
}
_NO_END = ("bypass_eos", "ban_eos_token", "ignore_eos", "use_default_badwordsids")


def first(sent: Mapping[str, Any], *names: str) -> Any:
    """What was sent under the first of some names that is there and not null."""
    return next((sent[name] for name in names if sent.get(name) is not None), None)


def sampling_of(sent: Mapping[str, Any], model: LanguageModel) -> dict[str, Any]:
    """Fields of `Sampling` from a client's; what it leaves out, or garbles, has its default."""
    found: dict[str, Any] = {}
    for name, (names, read) in NAMES.items():
        value = first(sent, *names)
        if value is not None and (told := read(value)) is not None:
            found[name] = told
    banned = strings(first(sent, "banned_tokens")) + strings(first(sent, "banned_strings"))
    listed = {
        "banned_strings": banned,
        "banned": sorted(i for i in model.eos_ids if i < model.vocab_size)
        if any(flag(sent.get(name)) for name in _NO_END)
        else [],
        "dry_breakers": _breakers(first(sent, "dry_sequence_breakers")),
        "logit_bias": _biases(sent.get("logit_bias"), model.vocab_size),
        "order": _order(sent.get("sampler_order")),
    }
    found |= {name: value for name, value in listed.items() if value}
    usual = SamplingParams()
    return {name: value for name, value in found.items() if value != getattr(usual, name)}


def _breakers(value: Any) -> list[str]:
    """A list, or one written as JSON, or strings in quotes with commas between."""
    if isinstance(value, str):
        for text in (value, f"[{value}]"):
            try:
                return strings(json.loads(text))
            except (ValueError, RecursionError):
                continue
    return strings(value)


def _biases(value: Any, size: int) -> dict[int, float]:
    """What is added to the logits of ids; a list of pairs serves as well."""
    if isinstance(value, list):
        value = {str(one[0]): one[1] for one in value if isinstance(one, list) and len(one) == 2}
    found: dict[int, float] = {}
    for key, bias in list(value.items())[:MOST_BIASES] if isinstance(value, dict) else []:
        i, added = whole(key), number(bias)
        if i is not None and added is not None and 0 <= i < size:
            found[i] = min(BIAS, max(-BIAS, added))
    return found


def _order(value: Any) -> tuple[str, ...]:
    numbers = [whole(one) for one in value] if isinstance(value, list) else []
    known = [one for one in numbers[:100] if one is not None and 0 <= one <= 6]
    return kobold_order(dict.fromkeys(known))
