"""StorySession: a story with its model, lorebook and soft prompts, continued turn by turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from softlore.context.timers import Timers
from softlore.decode import CacheUsage, GenerationRequest, ModelRunner, runner_for, write_request
from softlore.decode.conditioning import Conditioning
from softlore.decode.output import FinishReason
from softlore.decode.writing import Runnable, TextStream
from softlore.errors import ContextError, StoryError
from softlore.lore import Lorebook
from softlore.lore.macros import MacroNames, Named
from softlore.model import FrozenModel
from softlore.model.default import choose_model
from softlore.prompts import ControlVector, PromptLibrary, SoftPrompt
from softlore.story.changes import StoryLore, lore_after
from softlore.story.chapters import Chapters, with_chapters
from softlore.story.composing import ContextComposer, ContextPlan
from softlore.story.condensing import ChapterWriter, condense_next
from softlore.story.forms import Reading, read_turns, typed, with_own_lore
from softlore.story.seams import SentenceTrimmer
from softlore.story.settings import STORY_SAMPLING, StorySettings
from softlore.story.story import Story
from softlore.story.turns import ROOT, Turn

DRAW = 2**31


@dataclass(frozen=True)
class TurnDraft:
    """A turn of the model that is not generated yet.

    Attributes:
        plan: the context that the model reads, with its report.
        request: that context with length, stops, seed and sampling, for a batch or an engine.
        after: the turn that it follows.
        trimmer: that its text goes through as it is generated.
        speaker: who speaks, in a chat.
    """

    story: Story
    plan: ContextPlan
    request: GenerationRequest
    after: int
    trimmer: SentenceTrimmer
    speaker: str = ""

    def save(
        self, text: str, tokens: int, finish: str | None, more: Mapping[str, Any] | None = None
    ) -> Turn | None:
        """Adds the generated text to the story, if there is any.

        Args:
            finish: why it ended.
            more: data to save with the turn, besides how it was generated.
        """
        if not text:
            return None
        request, plan = self.request, self.plan
        data = {
            "seed": request.seed,
            "sampling": dict(request.sampling),
            "lore": plan.lore,
            "timers": plan.activation.timers.to_dict(),
            "tokens": tokens,
            "finish": finish,
            **({"speaker": self.speaker} if self.speaker else {}),
            **(more or {}),
        }
        return self.story.add(text, by="model", data=data, after=self.after)


class StorySession:
    """A story with its model, lorebook and soft prompts.

    Args:
        model: or a runner. Without a runner of its own the session makes one when it first
            generates; its cache saves running the story again at each turn.
        names: what macros stand for where the story gives no name, before the book's own names.
        chapter_writer: condenses what leaves the context meanwhile; else `condense` does.

    Attributes:
        chapters: what has left the context, condensed.
        plan: the context of the model's last turn, with its report.
        cache_usage: how much of that was cached, and how much had to be read.
        finish: why that turn ended; None if it was stopped.
    """

    def __init__(
        self,
        story: Story,
        model: Runnable,
        book: Lorebook | None = None,
        prompts: Mapping[str, SoftPrompt] | None = None,
        names: Named | None = None,
        chapter_writer: ChapterWriter | None = None,
    ) -> None:
        self.story = story
        self.model = model.model if isinstance(model, ModelRunner) else model
        self.book = book
        entries = book.entries if book else ()
        self._names = book.names(names) if book else MacroNames.first(names)
        self.composer = ContextComposer(self.model, entries, prompts, names=self._names)
        self.chapters = Chapters(story, self.model)
        self.chapter_writer = chapter_writer
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
        quantize: str | None = None,
    ) -> Self:
        """Loads model, lorebook and prompts of the story's settings; `model` names another model.

        See `FrozenModel.from_pretrained` for the other arguments.

        Raises:
            SoftloreError: one of them cannot be read; the message says which.
        """
        book, prompts = sources(story.settings)
        named = model or story.settings.model or None
        name = choose_model(named, book.model if book else None).name
        loaded = FrozenModel.from_pretrained(name, dtype, device, quantize)
        return cls(story, loaded, book, prompts)

    @property
    def names(self) -> MacroNames:
        """What macros stand for: the names of the story, else those of the lorebook."""
        return MacroNames.first(self.story.settings, self._names)

    def add(self, text: str) -> Turn:
        """Adds a turn of the writer, as it is typed in the story's form: see `forms.typed`."""
        return self.story.add(typed(self.story.text, text, self.story.settings, self.names))

    def plan_turn(self, tokens: int = 80, speaker: str = "") -> ContextPlan:
        """The context that would be read for a turn of `tokens`, with its report.

        Raises:
            ContextOverflowError: no room for the story.
            StoryError: the speaker is not of the cast.
        """
        return self._plan(self.story.turns, tokens, speaker)[0]

    def draft(
        self,
        tokens: int = 80,
        stop: str | Sequence[str] = (),
        conditioning: Conditioning = "",
        retry: bool = False,
        turns: Sequence[Turn] | None = None,
        vectors: Sequence[tuple[ControlVector, float]] = (),
        speaker: str = "",
        within: bool = False,
        **sampling: Any,
    ) -> TurnDraft:
        """The model's next turn, to be generated here or by an engine; see `continue_story`.

        Args:
            retry: in place of the model's last turn, by the same speaker if there is no other.
            turns: what it follows, where that is not the story as it is.
            within: it goes on within the last turn.

        Raises:
            ContextError: an empty story.
            ContextOverflowError: no room for the story.
            StoryError: a retry of a turn that is not the model's, or no speaker of the cast.
        """
        turns = self.story.turns if turns is None else list(turns)
        if retry:
            again = str(self.story.retry_from().data.get("speaker", ""))
            speaker = speaker or (again if again in self.story.settings.cast else "")
            turns = turns[:-1]
        plan, reading = self._plan(turns, tokens, speaker, within)
        if plan.tree is None:
            raise ContextError(
                "the story is empty; expected an opening for the model to continue; write one"
            )
        after = turns[-1].id if turns else ROOT
        settings = self.story.settings
        sampling = {**STORY_SAMPLING, **settings.sampling, **sampling}
        request = GenerationRequest(
            plan.context,
            tokens,
            stop=(*([stop] if isinstance(stop, str) else stop), *reading.stop),
            seed=self._seed(after),
            conditioning=conditioning,
            check=False,  # the composer has
            sampling=sampling,
            tree=plan.tree,
            vectors=[*plan.vectors, *vectors],
        )
        trimmer = SentenceTrimmer(
            tokens, settings.trim, reading.lead, reading.strip, chat=settings.form == "chat"
        )
        return TurnDraft(self.story, plan, request, after, trimmer, reading.speaker)

    def remember(self, plan: ContextPlan) -> None:
        """Has the chapter writer condense what is not in the context of a turn that was written."""
        if self.chapter_writer is not None and self.story.settings.chapters and plan.omitted:
            self.chapter_writer.add(self.story, self.chapters, plan.omitted)

    def condense(self, tokens: int = 80) -> None:
        """Condenses what has left the context; see `softlore.story.condensing`.

        Raises:
            SoftloreError: it cannot be done.
        """
        omitted = self.plan_turn(tokens).omitted
        while omitted and condense_next(self.story, self.chapters, omitted):
            pass

    def continue_story(
        self, tokens: int = 80, stop: str | Sequence[str] = (), **settings: Any
    ) -> Iterator[str]:
        """Generates a turn of the model, piece by piece.

        It is added to the story when the iteration ends: also when it ends early, by `close()` or
        an exception such as Ctrl-C, with the text so far.

        Args:
            settings: `conditioning` and `vectors`, as `write` takes them (the story's own vectors
                are added), and sampling settings, `no_copy` included; they override the story's
                own `sampling`.

        Raises:
            ContextError: an empty story.
            ContextOverflowError: no room for the story.
            ConfigError: a setting out of range.
        """
        return self._generate(self.draft(tokens, stop, **settings))

    def retry(
        self, tokens: int = 80, stop: str | Sequence[str] = (), **settings: Any
    ) -> Iterator[str]:
        """Generates an alternative to the model's last turn; see `continue_story`.

        Raises:
            StoryError: the last turn is not the model's.
        """
        return self._generate(self.draft(tokens, stop, retry=True, **settings))

    def _plan(
        self, turns: Sequence[Turn], tokens: int, speaker: str = "", within: bool = False
    ) -> tuple[ContextPlan, Reading]:
        settings, names, composer = self.story.settings, self.names, self.composer
        reading = read_turns(self.model, settings, turns, names, composer.prompts, speaker, within)
        lore = lore_after(composer.entries, self.story.changes(turns))
        lore, always, missing = with_own_lore(
            self.model, lore, settings.cast, reading.speaker, composer.prompts
        )

        def plan(lore: StoryLore) -> ContextPlan:
            found = composer.plan(
                settings, reading.texts, tokens, _timers(turns), always, reading.memory,
                settings.form == "instruct", lore,
            )  # fmt: skip
            found.not_used.update(missing)
            return replace(found, omitted=reading.omitted(found.omitted))

        planned = plan(lore)
        if settings.chapters and planned.omitted:
            chapters = self.chapters.on_path(turns, planned.omitted)
            if chapters:
                planned = plan(with_chapters(lore, chapters))
        return planned, reading

    def _generate(self, draft: TurnDraft) -> Iterator[str]:
        self._runnable = runner_for(self._runnable)
        stream = write_request(self._runnable, draft.request)
        self.plan, self.finish = draft.plan, None
        return self._pieces(stream, draft)

    def _pieces(self, stream: TextStream, draft: TurnDraft) -> Iterator[str]:
        pausing = self.chapter_writer.writing() if self.chapter_writer else nullcontext()
        with pausing:
            yield from self._streamed(stream, draft)

    def _streamed(self, stream: TextStream, draft: TurnDraft) -> Iterator[str]:
        try:
            for token in stream:
                if text := draft.trimmer.add(token.text):
                    yield text
                if draft.trimmer.ended:
                    break
            if text := draft.trimmer.flush(stream.finish):
                yield text
        finally:
            stream.close()
            self.finish = "stop" if draft.trimmer.ended else stream.finish
            self.cache_usage = stream.cache_usage or CacheUsage(0, 0)
            draft.trimmer.flush(stream.finish)  # of a turn that was stopped
            draft.save(draft.trimmer.text, len(stream.ids), self.finish)
            self.remember(draft.plan)

    def _seed(self, after: int) -> int:
        """The seed of the next turn: from the story's seed, its position, and earlier attempts."""
        seed = self.story.settings.seed
        if seed is None:
            return random.SystemRandom().randrange(DRAW)
        tries = len(self.story.continuations(after))
        return random.Random(repr((seed, after, tries))).randrange(DRAW)


def sources(settings: StorySettings) -> tuple[Lorebook | None, PromptLibrary]:
    """The lorebook and the prompts that a story's settings name.

    Raises:
        SoftloreError: one of them cannot be read; the message says which.
    """
    book = Lorebook.load(settings.lorebook) if settings.lorebook else None
    prompts = PromptLibrary(Path(settings.prompts) if settings.prompts else None)
    return book, prompts


def _timers(turns: Sequence[Turn]) -> Timers | None:
    """Activation's timers after the last turn that has any."""
    for turn in reversed(turns):
        if turn.by == "model" and (timers := turn.data.get("timers")) is not None:
            try:
                return Timers.from_dict(timers)
            except ContextError as error:
                raise StoryError(
                    f"turn {turn.id}: {error}; go back to a copy of the file"
                ) from None
    return None
