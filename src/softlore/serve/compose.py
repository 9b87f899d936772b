"""RequestComposer: makes generation requests of clients' texts: tags, lore, memory, cuts to fit."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.context import compose
from softlore.decode import GenerationRequest
from softlore.errors import ContextOverflowError, InputError, UnknownPromptError
from softlore.lore import Lorebook
from softlore.model import LanguageModel
from softlore.prompts import Context, ControlVector, SoftPrompt
from softlore.prompts.tags import past_tag, split_vector_tags
from softlore.prompts.vector_folder import fitting_vectors
from softlore.story.composing import DEFAULT_LENGTH, ContextComposer, ContextPlan
from softlore.story.layout import cut, parse_context, plain
from softlore.story.settings import StorySettings

if TYPE_CHECKING:
    from softlore.serve.state import ServerState

MIN_CONTEXT = 128  # tokens; clients that ask for fewer get as many
MAX_TEXT = 4_000_000  # characters of one request
MAX_TOKEN_CHARACTERS = 16  # characters, nearly always
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")


def model_name(model: LanguageModel) -> str:
    """A model's name for clients: for a folder its last part, without the path."""
    path = Path(model.name)
    return path.resolve().name if path.exists() else model.name


class RequestComposer:
    """Makes generation requests of clients' texts; a server has one, shared by its threads.

    A text is parsed once, here, and encoded once, by the `ContextComposer`: the request that goes
    to the engine carries both.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.model = state.engine.model
        self.store = state.prompt_store
        self._lock = threading.Lock()
        self._composer = ContextComposer(self.model, (), self.store.usable())
        self._book: Lorebook | None = None

    @property
    def context_length(self) -> int:
        """The most tokens of a context."""
        return self.model.context_length or DEFAULT_LENGTH

    def count(self, text: str) -> tuple[int, list[int]]:
        """The tokens of a text, soft prompts included, and the ids of what is text.

        A tag that names no prompt counts as text: clients count while their users still type.
        """
        _check_length([text])
        text, _ = split_vector_tags(text)
        context = parse_context(text, self.store.refresh().usable())
        ids: list[int] = []
        soft = sum(map(len, context.prefixes))
        for piece in context.body:
            if isinstance(piece, str):
                ids += self.model.encode(piece)
            else:
                soft += len(piece)
        return len(ids) + soft, ids

    def compose(
        self,
        text: str | Sequence[str],
        max_new_tokens: int | None = 80,
        *,
        memory: str = "",
        context_tokens: int = 0,
        always: Sequence[str] = (),
        **settings: Any,
    ) -> GenerationRequest:
        """The request for a client's text. Takes a while: not for the event loop.

        The beginning of a text that is too long is cut off, then that of the memory.

        Args:
            text: a text, whose lines count as the turns of a story; or messages, which are left
                out whole where they do not fit. Keys of lore are searched in the newest turns.
            max_new_tokens: None: as many as there is room for.
            memory: stands before the text and is not cut while the text is.
            context_tokens: the most tokens, new ones included; 0: all that the model can read.
            always: names of soft prompts that stand first.
            settings: `stop`, `seed`, `logprobs`, `prompt_logprobs`, `sampling` of the request.

        Raises:
            UnknownPromptError, PromptMismatchError, PromptFileError, StorageError: for a tag (of
                a soft prompt or a control vector), or a name in `always`.
            ContextOverflowError: soft prompts and lore alone leave no room.
        """
        _check_length([memory, *([text] if isinstance(text, str) else text)])
        text, memory, vectors = self._steered(text, memory)
        limit = self.context_length
        if context_tokens > 0:
            limit = min(limit, max(context_tokens, MIN_CONTEXT))
        wanted = limit // 4 if max_new_tokens is None else max_new_tokens
        reserve = min(wanted, limit // 2)
        with self._lock:
            self.store.refresh()
            plan = self._plan(
                self._turns(text, MAX_TOKEN_CHARACTERS * limit),
                self._parse(memory),
                [self.store[name] for name in dict.fromkeys(always)],
                limit,
                reserve,
                whole_turns=not isinstance(text, str),
            )
        context, tree = plan.context, plan.tree
        if tree is None:  # the model has no BOS: there must be something to continue
            context += "\n"
            tree = compose(self.model, context, check=False, reserved=plan.places)
        room = max(1, limit - tree.start - tree.length)
        tokens = room if max_new_tokens is None else min(max_new_tokens, room)
        # The store has checked the prompts, `_steered` and the composer the vectors.
        vectors = [*plan.vectors, *vectors]
        return GenerationRequest(
            context, tokens, check=False, tree=tree, vectors=vectors, **settings
        )

    def compose_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int | None = 80,
        *,
        memory: str = "",
        context_tokens: int = 0,
        always: Sequence[str] = (),
        **settings: Any,
    ) -> GenerationRequest:
        """The request for ids, which are read as they are: not cut, without BOS or lore.

        `context_tokens` is not used; for the other arguments see `compose`.

        Raises:
            InputError: an id that the model does not have. ContextOverflowError: too many ids.
            UnknownPromptError, PromptMismatchError, PromptFileError, StorageError: as `compose`.
        """
        self.check_ids(ids)
        _, memory, vectors = self._steered("", memory)
        with self._lock:
            self.store.refresh()
            context = Context([self.store[name] for name in dict.fromkeys(always)])
            context += self._parse(memory)
        tree = compose(self.model, context, check=False, ids=ids)
        room = self.context_length - tree.start - tree.length
        if room < 0:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} token ids, {-room} too many; expected at most "
                f"{len(ids) + room} with these soft prompts and memory, as token ids are not "
                "truncated; send fewer"
            )
        # The last token is never run, so it may stand one past the end.
        tokens = min(room + 1 if max_new_tokens is None else max_new_tokens, room + 1)
        return GenerationRequest(
            context, tokens, check=False, tree=tree, vectors=vectors, **settings
        )

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises InputError for an id that the model does not have."""
        if invalid := [i for i in ids if not 0 <= i < self.model.vocab_size]:
            raise InputError(
                f"the prompt holds the id {invalid[0]}; expected ids of {self.model.name!r}, below "
                f"{self.model.vocab_size}; send text"
            )

    def _steered(
        self, text: str | Sequence[str], memory: str
    ) -> tuple[str | list[str], str, list[tuple[ControlVector, float]]]:
        """Text and memory without their tags of control vectors, and the vectors."""
        strengths: dict[str, float] = {}
        parts = [memory, *([text] if isinstance(text, str) else text)]
        for i, part in enumerate(parts):
            parts[i], found = split_vector_tags(part)
            strengths |= found
        vectors = fitting_vectors(self.model, strengths)
        return parts[1] if isinstance(text, str) else parts[1:], parts[0], vectors

    # with the lock held ------------------------------------------------------------------------

    def _turns(self, text: str | Sequence[str], max_characters: int) -> list[Context]:
        """The turns of a text, of which no more than `max_characters` can fit."""
        if isinstance(text, str):
            # What cannot fit is not parsed; in whole blocks, so that the start changes seldom.
            start = max(0, len(text) // max_characters - 1) * max_characters
            return split_lines(self._parse(text[past_tag(text, start) :]))
        return [self._parse(message) for message in text]

    def _parse(self, text: str) -> Context:
        """A text with its tags resolved, without the rest of a tag that a client cut in two."""
        try:
            return Context.parse(text, self.store, repair=True)
        except UnknownPromptError as error:
            raise UnknownPromptError(f"{error}; there are: {self.store.listed_names()}") from None

    def _plan(
        self,
        turns: Sequence[Context],
        memory: Context,
        always: Sequence[SoftPrompt],
        limit: int,
        reserve: int,
        whole_turns: bool,
    ) -> ContextPlan:
        """Plans the context; cuts the memory where it leaves no room for anything else."""
        settings = StorySettings(context_tokens=limit)
        memory = cut(memory, len(plain(memory)) - MAX_TOKEN_CHARACTERS * limit)
        while True:
            try:
                return self._current_composer().plan(
                    settings, turns, reserve, always=always, memory=memory, whole_turns=whole_turns
                )
            except ContextOverflowError:
                if reserve > limit // 8:
                    reserve = limit // 8
                elif memory.pieces:
                    memory = cut(memory, len(plain(memory)) // 4 + 1)
                else:
                    raise

    def _current_composer(self) -> ContextComposer:
        """The composer, made again where the server has another lorebook."""
        book = self.state.book
        if book is not self._book:
            entries = book.entries if book else ()
            names = book.names(self.state.settings) if book else None
            self._composer = ContextComposer(self.model, entries, self.store.usable(), names=names)
            self._book = book
        return self._composer


def split_lines(context: Context) -> list[Context]:
    """The lines of a context, each with all newlines after it."""
    lines: list[list[str | SoftPrompt]] = []
    ended = True
    for piece in context:
        for part in _LINES.findall(piece) if isinstance(piece, str) else [piece]:
            if ended:
                lines.append([])
            lines[-1].append(part)
            ended = isinstance(part, str) and part.endswith("\n")
    return [Context(line) for line in lines]


def _check_length(texts: Sequence[str]) -> None:
    if (total := sum(map(len, texts))) > MAX_TEXT:
        raise InputError(
            f"the text is {total:,} characters long; expected at most {MAX_TEXT:,}; send its end"
        )
