"""What the model reads next of a story: memory, lore, the author's note and the newest text.

    before | memory | after | … story … | lore at depth | author's note | … story

Lore is what activation calls up, in the forms that the budget chooses: soft prompts, or text in the
places that SillyTavern has for it. The story's beginning gives way where the context is full, by a
quarter of the room at a time, so that most turns read only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from softlore.context import Tree, compose
from softlore.context.activation import Activation, ActiveEntry, activate, place_entries
from softlore.context.budget import BudgetChoice, LoreForm, LoreOption, choose_within_budget
from softlore.context.scan import ScanSettings
from softlore.context.timers import Timers
from softlore.errors import ContextOverflowError
from softlore.lore import Entry
from softlore.measure.evaluate import plain_text
from softlore.measure.gain import EntryGain, measure_gain
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt
from softlore.story.frame import (
    Frame,
    Part,
    StoryText,
    TokenCounter,
    Turn,
    line,
    parse_context,
)
from softlore.story.settings import StorySettings

ENDLESS = 8192  # tokens, for models whose context has no end
LORE = 4  # the part of the context that lore may take, where the writer does not say
STEP = 4  # the part of the room for the story by which its beginning gives way
LEAST = 32  # tokens of story that must fit, or nothing is written
SMALL_STEP = 25  # characters; less story than `LEAST` is read only where no larger step does
SCANNED = 6  # turns that are searched for keys: lore stays a while after it was mentioned
WORD = 8  # characters a token at most, nearly always
SLACK = 8  # tokens: pieces that meet may be cut into tokens otherwise


@dataclass(frozen=True)
class ContextPlan:
    """What the model reads next, and the report of what went where.

    Attributes:
        context: text and soft prompts.
        tree: the context, encoded; None where it is empty and the model has no BOS.
        limit: tokens the model reads at most, those that it is to write among them.
        reserved: tokens kept for writing.
        parts: all that is read, in order; prefixes stand at the head of the cache.
        forgotten: characters of the story's beginning that are not read.
        not_used: entries that were called up and do not stand there, and why.
    """

    context: Context
    tree: Tree | None
    limit: int
    reserved: int
    parts: list[Part]
    forgotten: int
    activation: Activation
    mix: BudgetChoice
    not_used: dict[str, str] = field(default_factory=dict)

    @property
    def lore(self) -> dict[str, str]:
        """The form in which each entry stands there."""
        return {offer.entry: offer.form for offer in self.mix.chosen}

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def positions(self) -> int:
        """Positions that the context takes; prefixes share theirs."""
        return self.tree.start + self.tree.length if self.tree is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "limit": self.limit,
            "reserved": self.reserved,
            "parts": [asdict(part) for part in self.parts],
            "forgotten": self.forgotten,
            "not_used": self.not_used,
            "tokens": self.tokens,
        }


class ContextComposer:
    """Composes contexts for one model, lorebook and set of prompts; knows no story.

    What entries are worth is taken from the prompts' files, or measured when it is first needed.
    """

    def __init__(
        self,
        model: LanguageModel,
        entries: Sequence[Entry] = (),
        prompts: Mapping[str, SoftPrompt] | None = None,
        scanning: ScanSettings | None = None,
    ) -> None:
        self.model = model
        self.entries = [_waking(entry) for entry in entries]
        self.prompts = prompts if prompts is not None else {}
        self.scanning = scanning or ScanSettings(scan_depth=SCANNED)
        self._count = TokenCounter(model)
        self._worths: dict[str, EntryGain] = {}
        self._usable: dict[str, SoftPrompt] = {}

    def plan(
        self,
        settings: StorySettings,
        turns: Sequence[Turn],
        reserve: int = 80,
        timers: Timers | None = None,
        always: Sequence[SoftPrompt] = (),
        memory: Context | None = None,
        whole_turns: bool = False,
    ) -> ContextPlan:
        """What is read after the turns of a story, with room for `reserve` more tokens.

        Args:
            turns: strings, whose tags are resolved here, or contexts.
            always: soft prompts that stand before everything, whatever the story mentions.
            memory: replaces the memory of the settings.
            whole_turns: begin with a whole turn where the first ones do not fit.

        Raises:
            ContextOverflowError: memory, note and lore leave no room for the story.
        """
        limit = self._limit(settings, reserve)
        story = StoryText(turns, self.prompts, self._count)
        if memory is None:
            memory = parse_context(settings.memory, self.prompts)
        found = activate(self.entries, story.texts, self.scanning, timers, seed=settings.seed or 0)
        offers, without = self._offers(found)
        mix = choose_within_budget(offers, settings.budget or limit // LORE)
        frame = Frame(self.model, self._count)
        for prompt in always:
            self.model.check_prompt(prompt)
            frame.put("soft", prompt.name, prompt)
        self._lay(frame, settings, memory, found, mix)
        not_used = {cut.entry: cut.why for cut in mix.cut} | without
        not_used |= {skipped.entry.name: skipped.why for skipped in found.skipped}
        room = limit - reserve - frame.positions() - SLACK
        while True:
            if room < LEAST:
                raise _no_room(frame.positions(), limit, reserve)
            start = self._start(story, room, whole_turns)
            context = frame.context(story, start)
            tree = self._compose(context)
            parts = [*frame.parts, frame.story_part(story, start)]
            plan = ContextPlan(context, tree, limit, reserve, parts, start, found, mix, not_used)
            over = plan.positions + reserve - limit
            if over <= 0:
                return plan
            room -= over  # prompts that the story itself names take room as well

    def worth(self, entry: Entry) -> EntryGain:
        """What an entry's forms were measured to gain."""
        if entry.name not in self._worths:
            prompt = self._prompt(entry)
            told = EntryGain.of_prompt(prompt) if prompt is not None else None
            self._worths[entry.name] = told or measure_gain(self.model, entry, prompt)
        return self._worths[entry.name]

    # inside ------------------------------------------------------------------------------------

    def _limit(self, settings: StorySettings, reserve: int) -> int:
        most = self.model.context_length or ENDLESS
        limit = min(settings.context_tokens or most, most)
        if reserve >= limit:
            raise ContextOverflowError(
                f"{reserve} tokens are to be written in a context of {limit}; expected fewer; ask "
                "for less at once"
            )
        return limit

    def _compose(self, context: Context) -> Tree | None:
        """The context encoded, the only time that this is done."""
        if not context.body.pieces and not self.model.bos:
            return None
        return compose(self.model, context, check=False)  # entries and `always` are checked

    def _prompt(self, entry: Entry) -> SoftPrompt | None:
        """An entry's soft prompt as it is now: it may have been trained again meanwhile."""
        prompt = self.prompts.get(entry.name)
        if prompt is not None and prompt is not self._usable.get(entry.name):
            self.model.check_prompt(prompt)
            self._usable[entry.name] = prompt
            self._worths.pop(entry.name, None)
        return prompt

    def _offers(self, found: Activation) -> tuple[list[LoreOption], dict[str, str]]:
        """The forms that active entries can take, the highest order first; and who has none."""
        offers: list[LoreOption] = []
        without: dict[str, str] = {}
        for one in sorted(found.active, key=lambda one: -one.entry.order):
            entry = one.entry
            mine: list[tuple[LoreForm, int]] = []
            prompt = self._prompt(entry) if entry.use != "text" else None
            if prompt is not None:
                mine.append(("soft", len(prompt)))
            if entry.text and entry.use != "soft":
                mine.append(("text", self._count.text(plain_text(entry))))
            offers += [
                LoreOption(
                    entry.name, form, tokens, self.worth(entry).gain(form), entry.ignore_budget
                )
                for form, tokens in mine
            ]
            if not mine:
                without[entry.name] = "it has no soft prompt; train it, or let it enter as text"
        return offers, without

    def _lay(
        self,
        frame: Frame,
        settings: StorySettings,
        memory: Context,
        found: Activation,
        mix: BudgetChoice,
    ) -> None:
        """Puts everything but the story where it goes."""
        forms = {offer.entry: offer.form for offer in mix.chosen}
        places = place_entries(one for one in found.active if one.entry.name in forms)

        def lay(actives: Sequence[ActiveEntry], depth: int | None = None) -> None:
            for one in actives:
                entry = one.entry
                if forms[entry.name] == "soft":
                    frame.put("soft", entry.name, self.prompts[entry.name], depth)
                else:
                    frame.put("lore", entry.name, plain_text(entry), depth)

        lay([*places.before_char, *places.outlet])
        if memory.pieces:
            frame.put("memory", "memory", line(memory))
        lay([*places.after_char, *places.examples_top, *places.examples_bottom])
        for (depth, _), some in places.at_depth.items():
            lay(some, depth)
        note = settings.note_depth
        lay(places.note_top, note)
        if settings.note:
            text = settings.note_template.replace("<|>", settings.note)
            frame.put("note", "author's note", line(parse_context(text, self.prompts)), note)
        lay(places.note_bottom, note)

    def _start(self, story: StoryText, room: int, whole_turns: bool) -> int:
        """The character of the story that is read first: a place that changes seldom."""
        step = max(200, room * 4 // STEP)
        while step:
            first = max(0, -(-(story.length - room * WORD) // step)) * step
            for start in range(first, story.length, step):
                start = story.beginning(start, step, whole_turns)
                tokens = story.tokens_from(start, room)
                enough = tokens >= LEAST or step <= SMALL_STEP
                if start < story.length and tokens <= room and enough:
                    return start
            step //= 2  # where nothing, or next to nothing, would be left
        return story.length


def _waking(entry: Entry) -> Entry:
    """An entry that something can call up: by its name, if it has no keys."""
    return entry if entry.keys else entry.model_copy(update={"keys": [entry.name]})


def _no_room(taken: int, limit: int, reserve: int) -> ContextOverflowError:
    return ContextOverflowError(
        f"memory, author's note and lore take {taken} tokens of {limit}, and {reserve} are kept "
        f"for writing; expected {LEAST} at least to be left for the story; shorten them, lower "
        "the budget for lore, or write fewer tokens at once"
    )
