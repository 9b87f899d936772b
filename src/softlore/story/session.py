"""A story being written with a model: turns of the writer, turns of the model, turn by turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from softlore.context.timers import Timers
from softlore.decode import CacheUsage, GenerationRequest, ModelRunner, runner_for, write_request
from softlore.decode.conditioning import Conditioning
from softlore.decode.output import FinishReason
from softlore.decode.writing import Runnable, TextStream
from softlore.errors import ContextError, StoryError
from softlore.lore import Lorebook
from softlore.model import DEFAULT_MODEL, FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.story.composing import ContextComposer, ContextPlan
from softlore.story.settings import StorySettings
from softlore.story.story import Story
from softlore.story.turns import ROOT, Turn

DRAW = 2**31


@dataclass(frozen=True)
class TurnDraft:
    """A turn of the model's that is not written yet.

    Attributes:
        plan: what the model reads for it, and the report of that.
        request: the same with length, stops, seed and samplers, as a batch or a server takes it.
        after: the turn that it follows.
    """

    story: Story
    plan: ContextPlan
    request: GenerationRequest
    after: int

    def keep(self, text: str, tokens: int, finish: str | None) -> Turn | None:
        """Puts what was written into the story; None where nothing was. `finish`: how it ended."""
        if not text:
            return None
        request, plan = self.request, self.plan
        sampling = dict(request.sampling) | (
            {"no_copy": request.no_copy} if request.no_copy else {}
        )
        data = {
            "seed": request.seed,
            "sampling": sampling,
            "lore": plan.lore,
            "timers": plan.activation.timers.to_dict(),
            "tokens": tokens,
            "finish": finish,
        }
        return self.story.add(text, by="model", data=data, after=self.after)


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
        model: Runnable,
        book: Lorebook | None = None,
        prompts: Mapping[str, SoftPrompt] | None = None,
    ) -> None:
        self.story = story
        self.model = model.model if isinstance(model, ModelRunner) else model
        self.book = book
        self.composer = ContextComposer(self.model, book.entries if book else (), prompts)
        self.plan: ContextPlan | None = None
        self.finish: FinishReason | None = None
        self.cache_usage = CacheUsage(0, 0)
        self._runnable = model

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
        return cls(story, *sources(settings.changed(model=model or settings.model), dtype, device))

    def say(self, text: str) -> Turn:
        """Adds a turn of the writer's."""
        return self.story.add(text, by="writer")

    def look(self, tokens: int = 80) -> ContextPlan:
        """What would be read for a turn of `tokens`, and what went where.

        Raises:
            ContextOverflowError: no room for the story.
        """
        return self._planned(self.story.turns, tokens)

    def begin(
        self,
        tokens: int = 80,
        stop: str | Sequence[str] = (),
        conditioning: Conditioning = "",
        retry: bool = False,
        **sampling: Any,
    ) -> TurnDraft:
        """What the model's next turn is to be written from, by whatever writes it; see `go_on`.

        Raises:
            ContextError: an empty story.
            ContextOverflowError: no room for the story.
            StoryError: a retry of a turn that is not the model's.
        """
        turns = self.story.turns
        if retry:
            self.story.retry_from()
            turns = turns[:-1]
        plan = self._planned(turns, tokens)
        if plan.tree is None:
            raise ContextError(
                "the story is empty; expected an opening for the model to go on from; write one"
            )
        after = turns[-1].id if turns else ROOT
        sampling = {**self.story.settings.sampling, **sampling}
        no_copy = sampling.pop("no_copy", 0)
        request = GenerationRequest(
            plan.context,
            tokens,
            stop=tuple([stop] if isinstance(stop, str) else stop),
            seed=self._seed(after),
            no_copy=no_copy,
            conditioning=conditioning,
            check=False,  # the composer has
            sampling=sampling,
            tree=plan.tree,
        )
        return TurnDraft(self.story, plan, request, after)

    def go_on(self, tokens: int = 80, stop: str | Sequence[str] = (), **rest: Any) -> Iterator[str]:
        """Writes a turn of the model's, piece by piece; it is in the story when the loop is left.

        Leaving the loop early, by `close()` or an exception such as Ctrl-C, keeps what was told.

        Args:
            rest: a `head`, as `write` takes it, and settings of the samplers, `no_copy` among
                them; they win over the story's own `sampling`.

        Raises:
            ContextError: an empty story.
            ContextOverflowError: no room for the story.
            ConfigError: a setting out of range.
        """
        return self._write(self.begin(tokens, stop, **rest))

    def retry(self, tokens: int = 80, stop: str | Sequence[str] = (), **rest: Any) -> Iterator[str]:
        """The model's last turn once more, beside the one that is there; see `go_on`.

        Raises:
            StoryError: the last turn is not the model's.
        """
        return self._write(self.begin(tokens, stop, retry=True, **rest))

    def _planned(self, turns: Sequence[Turn], tokens: int) -> ContextPlan:
        texts = [turn.text for turn in turns]
        return self.composer.plan(self.story.settings, texts, tokens, _timers(turns))

    def _write(self, draft: TurnDraft) -> Iterator[str]:
        self._runnable = runner_for(self._runnable)
        writing = write_request(self._runnable, draft.request)
        self.plan, self.finish = draft.plan, None
        return self._told(writing, draft)

    def _told(self, writing: TextStream, draft: TurnDraft) -> Iterator[str]:
        try:
            for token in writing:
                if token.text:
                    yield token.text
        finally:
            writing.close()
            self.finish = writing.finish
            self.cache_usage = writing.cache_usage or CacheUsage(0, 0)
            draft.keep(writing.text, len(writing.ids), writing.finish)

    def _seed(self, after: int) -> int:
        """Of the next turn: by the story's seed and the place, so that a second try differs."""
        seed = self.story.settings.seed
        if seed is None:
            return random.SystemRandom().randrange(DRAW)
        tries = len(self.story.continuations(after))
        return random.Random(repr((seed, after, tries))).randrange(DRAW)


def sources(
    settings: StorySettings,
    dtype: str | None = None,
    device: str | None = None,
    model: Runnable | None = None,
) -> tuple[Runnable, Lorebook | None, PromptLibrary]:
    """The model, the lorebook and the prompts that a story's settings name.

    `model`: used in place of the one they name.

    Raises:
        SoftloreError: one of them cannot be read; the message says which.
    """
    book = Lorebook.load(settings.lorebook) if settings.lorebook else None
    prompts = PromptLibrary(Path(settings.prompts) if settings.prompts else None)
    name = settings.model or (book.model if book else None) or DEFAULT_MODEL
    return model or FrozenModel.from_pretrained(name, dtype, device), book, prompts


def _timers(turns: Sequence[Turn]) -> Timers | None:
    """Activation's timers as the last turn that has some left them."""
    for turn in reversed(turns):
        if turn.by == "model" and (kept := turn.data.get("timers")) is not None:
            try:
                return Timers.from_dict(kept)
            except ContextError as error:
                raise StoryError(
                    f"turn {turn.id}: {error}; go back to a copy of the file"
                ) from None
    return None
