"""Stories as Markdown and as plain text.

Markdown has the settings in front matter and the authors in comments::

    ---
    softlore-story: 1
    memory: Marta is the clockmaker of the town.
    ---
    <!--writer-->The clock struck<!--model--> twelve, and then once more.

The comments are not rendered. A comment of that form in a turn's text is escaped by a backslash
(`<!--\\model-->`), an escaped one by one more, so that a story reads back exactly. Markdown without
such front matter is plain text, which is read as one turn.
"""

from __future__ import annotations

import re
from typing import cast

from softlore.lore.plain import read_yaml, write_yaml
from softlore.story.settings import StorySettings
from softlore.story.turns import BY, By, StoryDraft

VERSION = 1
_NAME = "softlore-story"
_FRONT = re.compile(rf"---\n({_NAME}:.*?\n)---\n", re.DOTALL)
_COMMENT = re.compile(rf"<!--({'|'.join(BY)})-->")
_ESCAPABLE = re.compile(rf"<!--(\\*)({'|'.join(BY)})-->")
_ESCAPED = re.compile(rf"<!--\\(\\*)({'|'.join(BY)})-->")


def recognizes(text: str) -> bool:
    """Whether it has softlore's front matter; other Markdown is plain text."""
    return text.startswith((f"---\n{_NAME}:", f"---\r\n{_NAME}:"))


def read(text: str) -> StoryDraft:
    """A draft from what `write` returned, also edited by hand. Raises ValueError."""
    if text.startswith("---\r\n"):  # edited on Windows
        text = text.replace("\r\n", "\n")
    front = _FRONT.match(text)
    if front is None:
        raise ValueError("its front matter has no end, a line of three dashes")
    data = read_yaml(front[1])
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise ValueError("its front matter is not a mapping of settings by name")
    version = data.pop(_NAME, None)
    if version != VERSION:
        raise ValueError(
            f"its front matter is of version {version!r:.20} and this softlore reads {VERSION}; "
            "install a newer softlore"
        )
    before, *parts = _COMMENT.split(text[front.end() :])
    turns = list(read_plain(before).turns)  # empty unless edited by hand
    for by, part in zip(parts[::2], parts[1::2], strict=True):
        turns.append((cast(By, by), _ESCAPED.sub(r"<!--\1\2-->", part)))
    return StoryDraft(StorySettings.from_dict(data), tuple(turns))


def write(draft: StoryDraft) -> str:
    """A draft as Markdown, without the settings that have their defaults."""
    front = write_yaml({_NAME: VERSION, **draft.settings.non_defaults()})
    body = "".join(
        f"<!--{by}-->" + _ESCAPABLE.sub(r"<!--\\\1\2-->", text) for by, text in draft.turns
    )
    return f"---\n{front}---\n{body}"


def read_plain(text: str) -> StoryDraft:
    """A draft of one turn by the writer; Windows' line ends become `\n`."""
    if text.count("\r\n") == text.count("\n"):
        text = text.replace("\r\n", "\n")
    return StoryDraft(turns=(("writer", text),) if text else ())
