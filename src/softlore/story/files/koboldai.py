"""KoboldAI's saves, as KoboldAI and KoboldAI Lite write them: JSON.

`prompt` is the first turn and `actions` are the others; `memory`, `authorsnote` and
`anotetemplate` are settings. All other fields are kept as they are in `settings.extra["koboldai"]`
and written again. By whom a turn is, and the settings that KoboldAI does not have, stand in one
field more, `softlore`, which other programs pass over:
`{"by": ["writer", "model", …], "settings": {…}}`.

Source: KoboldAI-Client's `aiserver.py` and KoboldAI Lite's `index.html`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

from softlore.lore.plain import plain
from softlore.story.settings import StorySettings
from softlore.story.turns import BY, By, StoryDraft

EXTRA = "koboldai"  # where the other fields are kept in settings.extra
_OURS = "softlore"
# The save's field -> the setting.
_SETTINGS = {"memory": "memory", "authorsnote": "note", "anotetemplate": "note_template"}
_INPUT = ("{{[INPUT]}}", "\n\n> ", "> ")  # how Lite marks what was typed, and adventures do


def recognizes(text: str) -> bool:
    """Whether it is JSON; which JSON, `read` finds out."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        # A broken save, if its first lines look like one; else a text that begins with a bracket.
        return any(f'"{name}"' in text for name in ("actions", "authorsnote"))


def read(text: str) -> StoryDraft:
    """A save as a draft. Raises ValueError."""
    data = plain(_mended(json.loads(text, parse_constant=_refuse)))
    if not isinstance(data, dict) or not ({"prompt", "actions"} <= data.keys()):
        raise ValueError("it is JSON, but has no fields `prompt` and `actions`")
    prompt, actions = data.pop("prompt"), data.pop("actions")
    if isinstance(actions, dict):
        raise ValueError(
            "it is a save of KoboldAI United's own form; download it there as a KoboldAI save"
        )
    if not isinstance(actions, list):
        raise ValueError("its `actions` are no list")
    texts = [prompt or "", *actions]
    if not all(isinstance(one, str) for one in texts):
        raise ValueError("its `prompt` or one of its `actions` is no text")
    ours = data.pop(_OURS, None)
    ours = ours if isinstance(ours, dict) else {}
    own = ours.get("settings")
    settings = dict(own) if isinstance(own, dict) else {}
    for field, name in _SETTINGS.items():
        value = data.pop(field, None)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"its `{field}` is no text")
        if value is not None:
            settings[name] = value
    by = _by(ours.get("by"), texts)
    lorebook = data.get("worldinfo")
    return StoryDraft(
        StorySettings.from_dict({**settings, EXTRA: data}),
        tuple(zip(by, texts, strict=False)),  # an empty prompt that no one wrote is left out
        lorebook or None,
    )


def write(draft: StoryDraft) -> str:
    """A draft as a save, with the fields that KoboldAI needs to open it."""
    others = draft.settings.extra.get(EXTRA)
    others = others if isinstance(others, dict) else {}
    own = draft.settings.non_defaults()
    told = {*_SETTINGS.values(), EXTRA}
    prompt, *actions = [text for _, text in draft.turns] or [""]
    data = {
        "gamestarted": True,
        **others,
        "prompt": prompt,
        **{field: getattr(draft.settings, name) for field, name in _SETTINGS.items()},
        "actions": actions,
        "actions_metadata": _metadata(others.get("actions_metadata"), actions),
        "worldinfo": others.get("worldinfo", []) if draft.lorebook is None else draft.lorebook,
        _OURS: {
            "by": [by for by, _ in draft.turns],
            "settings": {name: value for name, value in own.items() if name not in told},
        },
    }
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _by(said: Any, texts: list[str]) -> list[By]:
    """By whom the turns are: as the save says, if it is ours, else as its marks have it."""
    fits = isinstance(said, list) and (len(said) == len(texts) or (not said and texts == [""]))
    if fits and all(by in BY for by in said):
        return cast(list[By], said)
    typed: list[By] = ["writer" if _is_input(text) else "model" for text in texts[1:]]
    return [] if texts == [""] else ["writer", *typed]


def _is_input(text: str) -> bool:
    return _INPUT[0] in text or text.startswith(_INPUT[1:])


def _metadata(old: Any, actions: list[str]) -> Any:
    """KoboldAI's alternatives of each action, if they still belong to these actions."""
    if isinstance(old, dict) and all(isinstance(one, dict) for one in old.values()):
        selected = [one.get("Selected Text") for one in old.values()]
        if selected == actions:
            return old
    return {}


def _mended(value: Any) -> Any:
    """Half characters (a pair cut apart, as JavaScript does) become U+FFFD."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_mended(one) for one in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(one) for name, one in value.items()}
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number JSON knows")
