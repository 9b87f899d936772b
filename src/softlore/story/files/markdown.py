"""A story as Markdown: settings in a front part, then the text, with remarks that say who wrote.

::

    ---
    softlore-story: 1
    memory: Marta is the clockmaker of the town.
    ---
    <!--writer-->The clock struck<!--model--> twelve, and then once more.

The remarks are invisible where Markdown is shown. A remark of that form within a turn's text gets
a backslash (`<!--\\model-->`), one that has some gets one more, so that what is written reads back
exactly. Markdown without such a front part is a text like any other.
"""

from __future__ import annotations

import re
from typing import cast

from softlore.lore.plain import read_yaml, write_yaml
from softlore.story.files import plain_text
from softlore.story.settings import StorySettings
from softlore.story.turns import BY, By, StoryDraft

VERSION = 1
_NAME = "softlore-story"
_FRONT = re.compile(rf"---\n({_NAME}:.*?\n)---\n", re.DOTALL)
_REMARK = re.compile(rf"<!--({'|'.join(BY)})-->")
_ESCAPABLE = re.compile(rf"<!--(\\*)({'|'.join(BY)})-->")
_ESCAPED = re.compile(rf"<!--\\(\\*)({'|'.join(BY)})-->")


def recognizes(text: str) -> bool:
    """Whether it has our front part; other Markdown is plain text."""
    return text.startswith((f"---\n{_NAME}:", f"---\r\n{_NAME}:"))


def read(text: str) -> StoryDraft:
    """What `write` wrote, also after an edit by hand. Raises ValueError."""
    if text.startswith("---\r\n"):  # an editor on Windows has been at it
        text = text.replace("\r\n", "\n")
    front = _FRONT.match(text)
    if front is None:
        raise ValueError("its front part has no end: a line of three dashes")
    data = read_yaml(front[1])
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise ValueError("its front part does not hold settings by name")
    version = data.pop(_NAME)
    if version != VERSION:
        raise ValueError(
            f"its front part is of version {version!r:.20} and this softlore reads {VERSION}; "
            "install a newer one"
        )
    before, *parts = _REMARK.split(text[front.end() :])
    turns = list(plain_text.read(before).turns)  # nothing, unless somebody put it there
    for by, part in zip(parts[::2], parts[1::2], strict=True):
        turns.append((cast(By, by), _ESCAPED.sub(r"<!--\1\2-->", part)))
    return StoryDraft(StorySettings.from_dict(data), tuple(turns))


def write(draft: StoryDraft) -> str:
    """Settings that have their defaults are left out."""
    front = write_yaml({_NAME: VERSION, **draft.settings.non_defaults()})
    body = "".join(
        f"<!--{by}-->" + _ESCAPABLE.sub(r"<!--\\\1\2-->", text) for by, text in draft.turns
    )
    return f"---\n{front}---\n{body}"
