"""JSON as a prompt file may hold it: no duplicate keys, no NaN, no depths."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from softlore.errors import PromptFileError
from softlore.prompts.reasons import Reason

# A string (also one that never ends, so that the search stays linear), or a bracket.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def parse_json(text: str, what: str, max_depth: int, not_json: Reason) -> Any:
    """Parses `text`, called `what` in messages, or raises PromptFileError.

    The depth is measured before parsing, so a hostile file cannot exhaust the stack. `not_json`
    is the reason given for text that is not JSON.
    """
    depth = _depth(text)
    if depth > max_depth:
        raise PromptFileError(
            f"{what} is nested {depth} deep; expected at most {max_depth}; the file was not made "
            "by softlore, or was damaged: get it again",
            reason=Reason.TOO_DEEP,
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise PromptFileError(
                f"{what} has the key {twice!r:.80} twice; expected each once, since readers would "
                "disagree on which one holds; get the file again from where it was made",
                reason=Reason.DUPLICATE_KEY,
            )
        return found

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except PromptFileError:
        raise
    except ValueError as error:
        raise PromptFileError(
            f"{what} is not JSON: {error!s:.200}; expected JSON; the file was damaged, or is "
            "of another format: get it again",
            reason=not_json,
        ) from None


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _TOKEN.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
