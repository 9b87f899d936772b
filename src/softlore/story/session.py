"""A story being written with a model: turns of the writer, turns of the model, turn by turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from softlore.context.timers import Timers
from softlore.decode import Memory, Reading, write
from softlore.decode.telling import Finish
from softlore.decode.writing import Writing
from softlore.errors import ContextError, StoryError
from softlore.lore import Lorebook
from softlore.model import DEFAULT_MODEL, FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.story.composing import Composer, Plan
from softlore.story.story import Story
from softlore.story.turns import ROOT, Turn

DRAW = 2**31


class StorySession:
    """Joins a story, a model, a lorebook and soft prompts, and keeps what the model has read.

    Attributes:
        plan: what was read for the last turn of the model, and the report of it.
        reading: how much of that had to be read anew.
        finish: how that turn ended; None where it was stopped.
    """

    def __init__(
        self,
        story: Story,
        model: FrozenModel,
        book: Lorebook | None = None,
        prompts: Mapping[str, SoftPrompt] | None = None,
    ) -> None:
        self.story = story
        self.model = model
        self.book = book
        self.composer = Composer(model, book.entries if book else (), prompts)
        self.plan: Plan | None = None
        self.finish: Finish | None = None
        self._memory = Memory()

    @classmethod
    def open(
        cls,
        story: Story,
        model: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> Self:
        """Takes model, lorebook and prompts from the story's settings; `model` names another.

        Raises:
            SoftloreError: one of them cannot be read; the message says which.
        """
        settings = story.settings
        book = Lorebook.load(settings.lorebook) if settings.lorebook else None
        prompts = PromptLibrary(Path(settings.prompts) if settings.prompts else None)
        name = model or settings.model or (book.model if book else None) or DEFAULT_MODEL
        return cls(story, FrozenModel.from_pretrained(name, dtype, device), book, prompts)

    @property
    def reading(self) -> Reading:
        return self._memory.reading

    def say(self, text: str) -> Turn:
        """Adds a turn of the writer's."""
        return self.story.add(text, by="writer")

    def look(self, tokens: int = 80) -> Plan:
        """What would be read for a turn of `tokens`, and what went where.

        Raises:
            ContextOverflowError: no room for the story.
        """
        return self._planned(self.story.turns, tokens)

    def go_on(
        self, tokens: int = 80, stop: str | Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Writes a turn of the model's, piece by piece; it is in the story when the loop is left.

        Leaving the loop early, by `close()` or an exception such as Ctrl-C, keeps what was told.

        Args:
            sampling: what `write` takes besides; it wins over the story's own `sampling`.

        Raises:
            ContextError: an empty story.
            ContextOverflowError: no room for the story.
            ConfigError: a setting out of range.
        """
        return self._begin(self.story.turns, tokens, stop, sampling)

    def retry(
        self, tokens: int = 80, stop: str | Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """The model's last turn once more, beside the one that is there; see `go_on`.

        Raises:
            StoryError: the last turn is not the model's.
        """
        self.story.retry_from()
        return self._begin(self.story.turns[:-1], tokens, stop, sampling)

    def _planned(self, turns: Sequence[Turn], tokens: int) -> Plan:
        texts = [turn.text for turn in turns]
        return self.composer.plan(self.story.settings, texts, tokens, _timers(turns))

    def _begin(
        self, turns: list[Turn], tokens: int, stop: str | Sequence[str], sampling: dict[str, Any]
    ) -> Iterator[str]:
        plan = self._planned(turns, tokens)
        if not plan.context.body.pieces and not self.model.bos:
            raise ContextError(
                "the story is empty; expected an opening for the model to go on from; write one"
            )
        after = turns[-1].id if turns else ROOT
        sampling = {**self.story.settings.sampling, **sampling}
        seed = self._seed(after)
        writing = write(
            self.model,
            plan.context,
            tokens,
            stop=stop,
            seed=seed,
            check=False,  # the composer has
            memory=self._memory,
            **sampling,
        )
        self.plan, self.finish = plan, None
        kept = {
            "seed": seed,
            "sampling": sampling,
            "lore": plan.lore,
            "timers": plan.activation.timers.data(),
        }
        return self._told(writing, after, kept)

    def _told(self, writing: Writing, after: int, kept: dict[str, Any]) -> Iterator[str]:
        try:
            for token in writing:
                if token.text:
                    yield token.text
        finally:
            writing.close()
            self.finish = writing.finish
            if writing.text:
                data = kept | {"tokens": len(writing.ids), "finish": writing.finish}
                self.story.add(writing.text, by="model", data=data, after=after)

    def _seed(self, after: int) -> int:
        """Of the next turn: by the story's seed and the place, so that a second try differs."""
        seed = self.story.settings.seed
        if seed is None:
            return random.SystemRandom().randrange(DRAW)
        tries = len(self.story.continuations(after))
        return random.Random(repr((seed, after, tries))).randrange(DRAW)


def _timers(turns: Sequence[Turn]) -> Timers | None:
    """Activation's timers as the last turn that has some left them."""
    for turn in reversed(turns):
        if turn.by == "model" and (kept := turn.data.get("timers")) is not None:
            try:
                return Timers.from_data(kept)
            except ContextError as error:
                raise StoryError(
                    f"turn {turn.id}: {error}; go back to a copy of the file"
                ) from None
    return None
