"""From a client's text to what the engine is to write: tags, lore, memory, and what gives way."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.decode import GenerationRequest
from softlore.errors import ContextOverflowError, InputError, UnknownPromptError
from softlore.lore import Lorebook
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt
from softlore.prompts.tags import past_tag
from softlore.serve.engines import warm
from softlore.serve.prompt_store import PromptStore, UsablePrompts
from softlore.story.composing import ENDLESS, ContextComposer, ContextPlan
from softlore.story.frame import count_positions, parse_context
from softlore.story.settings import StorySettings

if TYPE_CHECKING:
    from softlore.serve.state import ServerState

LEAST = 128  # tokens of a context: what clients ask for below it cannot be meant
MOST = 4_000_000  # characters of one request's text
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")


@dataclass(frozen=True)
class ClientRequest:
    """What a client asks for.

    Attributes:
        turns: the text, as turns of a story: what is searched for keys, and among which lore
            stands that has a depth.
        memory: what stands before the text and does not give way.
        limit: the most tokens of a context, those that are written among them; 0: all the model
            can read.
        tokens: how many are to be written; None: as many as there is room for.
        always: names of soft prompts that stand first.
        messages: whether turns give way as wholes.
        stop, seed, logprobs, sampling: as `Wish` takes them.
    """

    turns: Sequence[str]
    memory: str = ""
    limit: int = 0
    tokens: int | None = 80
    always: Sequence[str] = ()
    messages: bool = False
    stop: Sequence[str] = ()
    seed: int | None = None
    logprobs: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComposedRequest:
    """A wish for the engine, how many tokens it is to read, and what they are."""

    wish: GenerationRequest
    tokens: int
    plan: ContextPlan


def model_name(model: LanguageModel) -> str:
    """A model's name for others: of one in a folder the folder's name, not where it lies."""
    path = Path(model.name)
    return path.resolve().name if path.exists() else model.name


def lines(text: str) -> list[str]:
    """A text as turns: its lines, each with the line ends after it."""
    return _LINES.findall(text)


class RequestComposer:
    """Composes the texts of a server's clients; one for a server, for all of its threads."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.model = state.engine.model
        self.shelf = PromptStore(state.prompts, self.model)
        self._lock = threading.Lock()
        self._composer = ContextComposer(self.model, (), UsablePrompts(self.shelf))
        self._book: Lorebook | None = None

    @property
    def longest(self) -> int:
        """The most tokens of a context."""
        return self.model.context_length or ENDLESS

    def names(self) -> list[str]:
        """The soft prompts that can be named."""
        with self._lock:
            self.shelf.look()
            return self.shelf.fitting()

    def prompt(self, name: str) -> SoftPrompt:
        """The soft prompt of a name.

        Raises:
            UnknownPromptError, PromptMismatchError, PromptFileError, StorageError.
        """
        with self._lock:
            self.shelf.look()
            return self.shelf[name]

    def count(self, text: str) -> tuple[int, list[int]]:
        """The tokens that a text takes, soft prompts among them, and the ids of what is text.

        A tag that names no prompt counts as text: clients count while their users still write it.
        """
        _check_length([text])
        with self._lock:
            self.shelf.look()
            context = parse_context(text, UsablePrompts(self.shelf))
        pieces = [piece for piece in context.body if isinstance(piece, str)]
        ids = [i for piece in pieces for i in self.model.encode(piece)]
        return context.token_count(self.model).total, ids

    def composed(self, ask: ClientRequest) -> ComposedRequest:
        """What is read and written for a client. Takes a while: not on an event loop.

        Of a text that is too long the beginning gives way, then that of the memory.

        Raises:
            UnknownPromptError, PromptMismatchError, PromptFileError, StorageError: a tag, or one
                of `always`.
            ContextOverflowError: soft prompts and lore alone leave no room.
        """
        _check_length([ask.memory, *ask.turns])
        warm(self.model, ask.sampling)
        with self._lock:
            self.shelf.look()
            always = [self.shelf[name] for name in dict.fromkeys(ask.always)]
            memory, turns = self._parsed(ask.memory).text, self._turns(ask)
            limit = min(self.longest, max(ask.limit, LEAST)) if ask.limit > 0 else self.longest
            reserve = min(ask.tokens or limit // 4, limit // 2)
            settings = StorySettings(memory=memory, context_tokens=limit)
            plan = self._fitted(settings, turns, reserve, always, ask.messages)
        context = plan.context
        if not context.body.pieces and not self.model.bos:
            context += "\n"  # there must be something to go on from
        room = limit - count_positions(self.model, context)
        wish = GenerationRequest(
            context,
            max(1, min(ask.tokens or room, room)),
            stop=tuple(ask.stop),
            seed=ask.seed,
            logprobs=ask.logprobs,
            check=False,  # the shelf has
            sampling=ask.sampling,
        )
        read = len(self.model.bos) + context.token_count(self.model).total
        return ComposedRequest(wish, read, plan)

    # inside, with the lock held ----------------------------------------------------------------

    def _turns(self, ask: ClientRequest) -> list[str]:
        """The turns with their tags checked, and without what is left of a tag cut in two."""
        if ask.messages:
            return [self._parsed(turn).text for turn in ask.turns]
        return lines(self._parsed("".join(ask.turns)).text)

    def _parsed(self, text: str) -> Context:
        try:
            return Context.parse(text, self.shelf, repair=True)
        except UnknownPromptError as error:
            raise UnknownPromptError(f"{error}; there are: {self.shelf.shown()}") from None

    def _fitted(
        self,
        settings: StorySettings,
        turns: Sequence[str],
        reserve: int,
        always: Sequence[SoftPrompt],
        messages: bool,
    ) -> ContextPlan:
        """The plan of a text; memory gives way where it leaves no room for anything else."""
        limit, memory = settings.context_tokens, settings.memory
        memory = memory[past_tag(memory, len(memory) - 16 * limit) :]
        left = turns
        while True:
            try:
                plan = self._composing().plan(
                    settings.changed(memory=memory), left, reserve, always=always
                )
            except ContextOverflowError:
                left = turns
                if reserve > limit // 8:
                    reserve = limit // 8
                elif memory:
                    memory = memory[past_tag(memory, len(memory) // 4 + 1) :]
                else:
                    raise
            else:
                start = _whole(left, plan.forgotten) if messages else plan.forgotten
                if start == plan.forgotten:
                    return plan
                left = _after(left, start)  # no message is cut in two

    def _composing(self) -> ContextComposer:
        """The composer, made anew where the server has another lorebook."""
        book = self.state.book
        if book is not self._book:
            self._composer = ContextComposer(
                self.model, book.entries if book else (), UsablePrompts(self.shelf)
            )
            self._book = book
        return self._composer


def _check_length(texts: Sequence[str]) -> None:
    if (total := sum(map(len, texts))) > MOST:
        raise InputError(
            f"the text is {total:,} characters long; expected at most {MOST:,}; send its end"
        )


def _whole(turns: Sequence[str], start: int) -> int:
    """The first turn's beginning from a character on; the character itself if there is none."""
    at = 0
    for turn in turns:
        if at >= start:
            return at
        at += len(turn)
    return start


def _after(turns: Sequence[str], start: int) -> list[str]:
    """The turns from a character on."""
    kept: list[str] = []
    at = 0
    for turn in turns:
        if at + len(turn) > start:
            kept.append(turn[max(0, start - at) :])
        at += len(turn)
    return kept
