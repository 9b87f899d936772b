"""Condenses chapters in the background: the model's own summary, and a soft prompt of the text.

Each is done while nobody writes, the quickest first: a summary (by the chat template of a model
that has one; else the sentences that the model could have guessed least), a soft prompt in closed
form, then updates of it. What is under way pauses at the model's next step when a turn is written.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from softlore.context.chat import chat_template
from softlore.decode import write
from softlore.decode.asking import as_question
from softlore.errors import SoftloreError
from softlore.lore import Entry
from softlore.lore.names import as_name
from softlore.lore.recurring import NameFinder
from softlore.lore.sentences import sentences
from softlore.measure.score import token_losses, trunk
from softlore.model import FrozenModel, require_frozen_model
from softlore.prompts import SoftPrompt
from softlore.story.chapters import CHARACTERS, Chapters
from softlore.story.seams import SentenceTrimmer
from softlore.story.story import Story
from softlore.tune import TrainingProgress, WorldInfoTrainer

SUMMARY_SHARE, SUMMARY_TOKENS = 8, 96  # tokens of a summary: that part of the text, at most that
PROMPT_SHARE, PROMPT_TOKENS = 16, 64  # the same of a soft prompt
LEAST_TOKENS = 8
LEAST_WORDS = 5  # of a sentence that may be in a summary
UPDATES = 60  # of a soft prompt, after its start in closed form
PASSAGES, FIRST_PASSAGES = 96, 16  # that the model writes about a chapter, and for the start
STEADY: dict[str, Any] = {
    "dry_multiplier": 0.8,
    "dry_allowed_length": 8,
}  # a greedy text runs in circles
POLL = 0.1  # seconds between two looks at whether something is being written
NICE = 19  # the least priority of a thread
ASKED = (
    "Summarize this part of a story in a few plain sentences. Say who is in it, what happens, "
    "where, and what is left open. Use the names.\n\n{}"
)

_log = logging.getLogger(__name__)


Pause = Callable[[], None]  # waits while something is to be written; raises Stopped in the end


class Stopped(Exception):
    """The program ends: what is under way is left."""


def condense_next(
    story: Story, chapters: Chapters, omitted: int, pause: Pause = lambda: None
) -> bool:
    """Does the next piece of work on a story's chapters; returns whether there was any.

    Args:
        omitted: characters of the story's beginning that are out of its context.
        pause: called between two steps of the model.

    Raises:
        SoftloreError: it cannot be done.
    """
    turns = story.turns
    text = "".join(turn.text for turn in turns)
    part = chapters.next_part(turns, min(omitted, len(text)))
    model = require_frozen_model(chapters.model, "condensing a story")
    if part is not None:
        start, end = part
        chapters.add(turns, start, end, summarize(model, text[start:end], pause))
        return True
    for one in chapters.on_path(turns, omitted):
        if one.entry.enabled and model.takes_prefix and not one.place.get("trained"):
            trained = one.prompt is not None
            updates = UPDATES if trained else 0
            prompt = chapter_prompt(model, text[one.start : one.end], updates, pause=pause)
            chapters.save_prompt(one.entry.name, prompt, trained)
            return True
    return False


class ChapterWriter:
    """Condenses the chapters of stories, one after another, in a thread of least priority.

    Args:
        busy: whether something is being written, besides what is within `writing`.
    """

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        self._busy = busy
        self._changed = threading.Condition()
        self._waiting: dict[str, tuple[Story, Chapters, int]] = {}  # by the story's path
        self._failed: dict[str, int] = {}  # by the story's path, `omitted` of what failed
        self._writing = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, story: Story, chapters: Chapters, omitted: int) -> None:
        """Has a story condensed whose first characters are out of its context."""
        path = str(story.path)
        with self._changed:
            if self._closing or self._failed.get(path) == omitted:
                return
            self._waiting[path] = story, chapters, omitted
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="chapters", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nothing is condensed during the block."""
        with self._changed:
            self._writing += 1
        try:
            yield
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until everything is condensed; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting or self._closing, seconds)

    def close(self, seconds: float = 5.0) -> None:
        """Ends the thread at the model's next step."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    # in the thread of its own ------------------------------------------------------------------

    def _pause(self) -> None:
        with self._changed:
            while not self._closing and (self._writing or self._busy()):
                self._changed.wait(POLL)
            if self._closing:
                raise Stopped

    def _work(self) -> None:
        with suppress(AttributeError, OSError):  # of this thread, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        with suppress(Stopped):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                self._pause()
                path, item = next(iter(self._waiting.items()))
                if not self._condense(path, *item):
                    with self._changed:
                        if self._waiting.get(path) == item:
                            del self._waiting[path]
                        self._changed.notify_all()

    def _condense(self, path: str, story: Story, chapters: Chapters, omitted: int) -> bool:
        try:
            return condense_next(story, chapters, omitted, self._pause)
        except SoftloreError as error:  # the story goes on without it
            _log.warning("a chapter of the story %r is not condensed: %s", story.name, error)
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - the same
            _log.error("a chapter of the story %r is not condensed", story.name, exc_info=error)
        self._failed[path] = omitted
        return False


def summarize(model: FrozenModel, text: str, pause: Pause = lambda: None) -> str:
    """A summary of a text, by the model itself.

    Models with a chat template are asked for it. Of others, it is the sentences that they could
    have guessed least.
    """
    tokens = len(model.encode(text))
    length = max(LEAST_TOKENS, min(SUMMARY_TOKENS, tokens // SUMMARY_SHARE))
    if chat_template(model):
        with suppress(SoftloreError):
            asked = _asked(model, ASKED.format(text.strip()), length, pause)
            if len(asked.split()) >= LEAST_WORDS:
                return asked
    return extract(model, text, length)


def extract(model: FrozenModel, text: str, length: int) -> str:
    """The sentences of a text that a model could have guessed least, in at most `length` tokens.

    Of one that is longer than that, its beginning.
    """
    parts = sentences(" ".join(text.split()))
    encoded = [model.encode(" " + part, inside=True) for part in parts]
    before = model.encode("\n")
    room = (model.context_length or 10**9) - len(model.bos) - len(before)
    while encoded and sum(map(len, encoded)) > room:
        encoded.pop()
    if not encoded:
        return _start(text, length)
    (losses,) = token_losses(model, trunk(model, ""), [(before, [*chain.from_iterable(encoded)])])
    means = [float(loss.mean()) for loss in losses.split([len(ids) for ids in encoded])]
    chosen: dict[int, str] = {}
    for number in sorted(range(len(encoded)), key=lambda n: -means[n]):
        told = len(parts[number].split()) >= LEAST_WORDS and not parts[number][:1].islower()
        told = told and parts[number] not in chosen.values()
        if told and len(encoded[number]) <= length:
            chosen[number] = parts[number]
            length -= len(encoded[number])
    return " ".join(chosen[number] for number in sorted(chosen)) or _start(text, length)


def _start(text: str, length: int) -> str:
    """The beginning of a text, in characters of about so many tokens."""
    return " ".join(text.split())[: CHARACTERS * length].strip() or "…"


def _asked(model: FrozenModel, question: str, length: int, pause: Pause) -> str:
    """What a model with a chat template answers, to the end of a sentence."""
    trimmer = SentenceTrimmer(length)
    stream = write(model, as_question(model, question), length, temperature=0, **STEADY)
    try:
        for token in stream:
            trimmer.add(token.text)
            pause()
    finally:
        stream.close()
    trimmer.flush(stream.finish)
    return " ".join(trimmer.text.split())


def chapter_prompt(
    model: FrozenModel,
    text: str,
    updates: int,
    n_tokens: int | None = None,
    seed: int = 0,
    pause: Pause = lambda: None,
) -> SoftPrompt:
    """A soft prompt that stands for a text.

    Args:
        updates: after its start in closed form, at most; 0 keeps that.
        n_tokens: a sixteenth of the text's if left out, and at most PROMPT_TOKENS.
    """
    if n_tokens is None:
        share = len(model.encode(text)) // PROMPT_SHARE
        n_tokens = max(LEAST_TOKENS, min(PROMPT_TOKENS, share))
    names = NameFinder([text]).names

    def on_step(_progress: TrainingProgress) -> None:
        pause()

    trainer = WorldInfoTrainer(
        model,
        entries=[Entry(name=as_name(names[0].name if names else "The story"), text=text)],
        n_tokens=n_tokens,
        max_steps=updates,
        style="none",
        distil_passages=PASSAGES if updates else FIRST_PASSAGES,
        seed=seed,
        on_phase=lambda _name, _done: pause(),
        on_step=on_step,
    )
    (prompt,) = trainer.train().values()
    return prompt
