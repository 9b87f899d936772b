"""CardOpening: how a card's story begins: its first messages, scenario and example dialogues."""

from __future__ import annotations

import re
from typing import NamedTuple

from softlore.lore.macros import MacroNames

MAX_EXAMPLES = 2000  # characters
_START = re.compile(r"<START>", re.IGNORECASE)


class CardOpening(NamedTuple):
    """What a character card has for the beginning of a story.

    Attributes:
        greetings: the first message, then the alternatives to it.
        scenario: where the story takes place.
        examples: dialogues, each after a line `<START>`.
    """

    greetings: tuple[str, ...] = ()
    scenario: str = ""
    examples: str = ""

    @classmethod
    def of(cls, greetings: list[object], scenario: object, examples: object) -> CardOpening:
        """The opening in values of a file, of which those that are no text are left out."""
        texts = [text.strip() for text in greetings if isinstance(text, str) and text.strip()]
        rest = (part.strip() if isinstance(part, str) else "" for part in (scenario, examples))
        return cls(tuple(dict.fromkeys(texts)), *rest)

    def fill(self, names: MacroNames) -> CardOpening:
        """The opening with names for its macros."""
        filled = tuple(map(names.fill, self.greetings))
        return CardOpening(filled, names.fill(self.scenario), names.fill(self.examples))

    def memory(self) -> str:
        """A story's memory: the scenario, then whole dialogues of MAX_EXAMPLES characters at most.

        They are separated by lines of `***`, and the last from the story.
        """
        dialogues: list[str] = []
        for part in filter(None, map(str.strip, _START.split(self.examples))):
            if sum(map(len, dialogues)) + len(part) > MAX_EXAMPLES:
                break
            dialogues.append(part)
        parts = [self.scenario] if self.scenario else []
        return "\n".join(["\n***\n".join([*parts, *dialogues]), "***"] if dialogues else parts)
