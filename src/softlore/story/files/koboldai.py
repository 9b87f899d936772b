"""Stories as the JSON saves of KoboldAI and KoboldAI Lite.

`prompt` is the first turn and `actions` are the others; `memory`, `authorsnote` and
`anotetemplate` are settings. All other fields are saved in `settings.extra["koboldai"]` and
written again. The authors of turns, and the settings that KoboldAI does not have, are in one more
field, `softlore`, which other programs ignore: `{"by": ["writer", "model", …], "settings": {…}}`.

Source: KoboldAI-Client's `aiserver.py` and KoboldAI Lite's `index.html`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

from softlore.lore.plain import plain
from softlore.story.settings import StorySettings
from softlore.story.turns import BY, By, StoryDraft

EXTRA = "koboldai"  # the place of the other fields in settings.extra
_SOFTLORE = "softlore"
# By field of the save: the setting.
_SETTINGS = {"memory": "memory", "authorsnote": "note", "anotetemplate": "note_template"}
_INPUT = ("{{[INPUT]}}", "\n\n> ", "> ")  # of Lite, and of adventure mode


def recognizes(text: str) -> bool:
    """Whether a text is JSON, which `read` checks further, or a damaged save."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return any(f'"{name}"' in text for name in ("actions", "authorsnote"))


def read(text: str) -> StoryDraft:
    """A draft from a save. Raises ValueError."""
    data = plain(json.loads(text, parse_constant=_reject_constant), mend=True)
    if not isinstance(data, dict) or not ({"prompt", "actions"} <= data.keys()):
        raise ValueError("it is JSON without the fields `prompt` and `actions`")
    prompt, actions = data.pop("prompt"), data.pop("actions")
    if isinstance(actions, dict):
        raise ValueError(
            "it is in KoboldAI United's own format; download it there as a KoboldAI save"
        )
    if not isinstance(actions, list):
        raise ValueError("its `actions` are not a list")
    texts = [prompt or "", *actions]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its `prompt` or one of its `actions` is not text")
    more = data.pop(_SOFTLORE, None)
    more = more if isinstance(more, dict) else {}
    settings = more.get("settings")
    settings = dict(settings) if isinstance(settings, dict) else {}
    for field, name in _SETTINGS.items():
        value = data.pop(field, None)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"its `{field}` is not text")
        if value is not None:
            settings[name] = value
    by = _authors(more.get("by"), texts)
    lorebook = data.get("worldinfo")
    return StoryDraft(
        StorySettings.from_dict({**settings, EXTRA: data}),
        tuple(zip(by, texts, strict=False)),  # without an empty prompt that has no author
        lorebook or None,
    )


def write(draft: StoryDraft) -> str:
    """A draft as a save, with the fields that KoboldAI requires."""
    others = draft.settings.extra.get(EXTRA)
    others = others if isinstance(others, dict) else {}
    settings = draft.settings.non_defaults()
    written = {*_SETTINGS.values(), EXTRA}
    prompt, *actions = [text for _, text in draft.turns] or [""]
    data = {
        "gamestarted": True,
        **others,
        "prompt": prompt,
        **{field: getattr(draft.settings, name) for field, name in _SETTINGS.items()},
        "actions": actions,
        "actions_metadata": _metadata(others.get("actions_metadata"), actions),
        "worldinfo": others.get("worldinfo", []) if draft.lorebook is None else draft.lorebook,
        _SOFTLORE: {
            "by": [by for by, _ in draft.turns],
            "settings": {name: value for name, value in settings.items() if name not in written},
        },
    }
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _authors(given: Any, texts: list[str]) -> list[By]:
    """The authors of the turns: as softlore wrote them, else by KoboldAI's markers of input."""
    fits = isinstance(given, list) and (len(given) == len(texts) or (not given and texts == [""]))
    if fits and all(by in BY for by in given):
        return cast(list[By], given)
    typed: list[By] = ["writer" if _is_input(text) else "model" for text in texts[1:]]
    return [] if texts == [""] else ["writer", *typed]


def _is_input(text: str) -> bool:
    return _INPUT[0] in text or text.startswith(_INPUT[1:])


def _metadata(old: Any, actions: list[str]) -> Any:
    """KoboldAI's alternatives of each action, if the actions are unchanged."""
    if isinstance(old, dict) and all(isinstance(action, dict) for action in old.values()):
        selected = [action.get("Selected Text") for action in old.values()]
        if selected == actions:
            return old
    return {}


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
