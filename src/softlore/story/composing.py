"""Composes what the model reads of a story: memory, lore, author's note and the newest turns.

::

    places │ lore before │ memory │ lore after │ … story … │ lore at depth │ note │ … story │ new
    └───────────────────────────── positions: at most `limit` ────────────────────────────────┘

Lore consists of the entries that are active (`softlore.context.activation`), each in the form that
fits the budget best: its soft prompt, or its text in the place that SillyTavern has for it. Late
prefixes are seen by the newest text only, and the places before the text stay as many, so that a
story's keys and values stay as they are when lore wakes, sleeps or is swapped. If the context is
full, the beginning of the story is left out, in large steps: most contexts start with the one
before, and only their newest text must be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from softlore.context import Tree, compose
from softlore.context.activation import Activation, ActiveEntry, activate, place_entries
from softlore.context.budget import BudgetChoice, LoreOption, choose_within_budget, needs_gain
from softlore.context.scan import ScanSettings
from softlore.context.timers import Timers
from softlore.errors import ContextOverflowError, PromptMismatchError
from softlore.lore import Entry
from softlore.lore.macros import MacroNames
from softlore.measure.evaluate import plain_text
from softlore.measure.gain import MeasuredGains
from softlore.model import LanguageModel
from softlore.prompts import Context, ControlVector, SoftPrompt
from softlore.story.changes import EntryReader, StoryLore
from softlore.story.layout import (
    ContextLayout,
    Part,
    StoryText,
    TokenCounter,
    TurnText,
    end_line,
    parse_context,
)
from softlore.story.settings import StorySettings
from softlore.story.steering import active_vectors

DEFAULT_LENGTH = 8192  # tokens of context for models without a limit
LORE_SHARE = 4  # a quarter of the context is for lore by default
MIN_STORY = 32  # tokens of the story that must fit
STEP = 2560  # tokens of the story's beginning that are left out at once: twenty turns or more;
STEP_SHARES = (2, 4)  # but no more than a half of the context, and no less than a quarter
STEP_CHARACTERS = 4  # that a token has, roughly
FILLED_SHARE = 4  # a quarter of the story's room is still filled then
HALVINGS = 4  # how often the step is halved for that
SMALL_STEP = 25  # characters; with steps up to this, less than MIN_STORY suffices
SCAN_DEPTH = 6  # turns that are searched for keys, so that lore stays active for a while
MAX_CHARACTERS = 8  # most that a token has, nearly always
NO_PROMPT = "it has no soft prompt for this model; train it"
SLACK = 8  # tokens: text at the border of two pieces may be encoded differently


@dataclass(frozen=True)
class ContextPlan:
    """What the model reads next, and what was left out.

    Attributes:
        context: text and soft prompts.
        tree: the context, encoded; None if it is empty and the model has no BOS.
        limit: length of the context in tokens, including new ones.
        reserved: tokens for new text.
        places: positions before the text, for prefixes.
        parts: the parts of the context, in order.
        omitted: characters of the story's beginning that are left out.
        not_used: by entry that was triggered and is not in the context, the reason; and by control
            vector (`vector dark, of Emma`) that is not added.
        why: by entry in the context, why it enters as a soft prompt or as text.
        vectors: control vectors of the story and of active entries, with a strength each.
    """

    context: Context
    tree: Tree | None
    limit: int
    reserved: int
    places: int
    parts: list[Part]
    omitted: int
    activation: Activation
    choice: BudgetChoice
    not_used: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    vectors: Sequence[tuple[ControlVector, float]] = ()

    @property
    def lore(self) -> dict[str, str]:
        """By entry in the context, its form."""
        return {option.entry: option.form for option in self.choice.chosen}

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def positions(self) -> int:
        """Positions that the context takes; prefixes share the same ones."""
        return self.places + (self.tree.length if self.tree is not None else 0)

    def to_dict(self) -> dict[str, Any]:
        """The report, without the context itself."""
        return {
            "limit": self.limit,
            "reserved": self.reserved,
            "parts": [asdict(part) for part in self.parts],
            "omitted": self.omitted,
            "not_used": self.not_used,
            "why": self.why,
            "tokens": self.tokens,
        }


class ContextComposer:
    """Composes contexts for one model, lorebook and set of prompts.

    The gains of entries are measured in the background, for the next contexts, where the choice
    depends on them: see `MeasuredGains`.

    Args:
        names: what macros stand for where the story's settings give no name; None: the defaults.
    """

    def __init__(
        self,
        model: LanguageModel,
        entries: Sequence[Entry] = (),
        prompts: Mapping[str, SoftPrompt] | None = None,
        scanning: ScanSettings | None = None,
        names: MacroNames | None = None,
    ) -> None:
        self.model = model
        self.entries = list(entries)
        self.prompts = prompts if prompts is not None else {}
        self.scanning = scanning or ScanSettings(scan_depth=SCAN_DEPTH)
        self._count = TokenCounter(model)
        self.gains = MeasuredGains(model, getattr(self.prompts, "folder", None))
        self._checked: dict[str, SoftPrompt] = {}
        self._names = names
        self._reader = EntryReader()

    def plan(
        self,
        settings: StorySettings,
        turns: Sequence[TurnText],
        reserve: int = 80,
        timers: Timers | None = None,
        always: Sequence[SoftPrompt] = (),
        memory: Context | None = None,
        whole_turns: bool = False,
        lore: StoryLore | None = None,
    ) -> ContextPlan:
        """Plans the context for the turns of a story, with room for `reserve` new tokens.

        Args:
            turns: strings, whose tags are parsed here, or contexts.
            always: soft prompts at the start, whatever the story mentions.
            memory: replaces the memory of the settings.
            whole_turns: leaves out whole turns only.
            lore: the entries as they are in the story now; the composer's if left out.

        Raises:
            ContextOverflowError: memory, note and lore leave no room for the story.
        """
        limit = self._limit(settings, reserve)
        story = StoryText(turns, self.prompts, self._count)
        seed = settings.seed or 0
        lore = StoryLore(self.entries) if lore is None else lore
        names = MacroNames.first(settings, self._names)
        lore = replace(lore, entries=self._reader.read(lore.entries, names))
        active = activate(lore.entries, story.texts, self.scanning, timers, seed=seed)
        budget = settings.budget or limit // LORE_SHARE
        options, not_used = self._options(active, budget, lore)
        choice = choose_within_budget(options, budget)
        woken = (match.entry for match in active.active)
        vectors, unsteered = active_vectors(self.model, settings.vectors, woken)
        why = {option.entry: self._why(option, options, lore) for option in choice.chosen}
        layout = ContextLayout(self.model, self._count, self._keeps_places)
        for prompt in always:
            self.model.check_prompt(prompt)
            layout.add("soft", prompt.name, prompt)
        if memory is None:
            memory = parse_context(names.fill(settings.memory), self.prompts)
        self._arrange(layout, settings, memory, names.fill(settings.note), active, choice, lore)
        not_used = choice.cut | not_used
        not_used |= {skipped.entry.name: skipped.why for skipped in active.skipped} | unsteered
        room = limit - reserve - layout.positions() - SLACK
        while room >= MIN_STORY:
            start = self._start(story, room, limit, whole_turns)
            context = layout.context(story, start)
            places = layout.places(context.prefixes)
            tree = self._encode(context, places)
            parts = [*layout.parts, layout.story_part(story, start)]
            plan = ContextPlan(
                context, tree, limit, reserve, places, parts, start, active, choice, not_used, why,
                vectors,
            )  # fmt: skip
            excess = plan.positions + reserve - limit
            if excess <= 0:
                return plan
            room -= excess  # of prompts that are named in the story
        raise ContextOverflowError(
            f"memory, author's note and lore take {layout.positions()} tokens of {limit}, and "
            f"{reserve} are reserved for writing; expected at least {MIN_STORY} to be left for the "
            "story; shorten them, lower the budget for lore, or write fewer tokens at once"
        )

    # internals ---------------------------------------------------------------------------------

    def _limit(self, settings: StorySettings, reserve: int) -> int:
        length = self.model.context_length or DEFAULT_LENGTH
        limit = min(settings.context_tokens or length, length)
        if reserve >= limit:
            raise ContextOverflowError(
                f"{reserve} tokens are to be written in a context of {limit}; expected fewer; "
                "write fewer at once"
            )
        return limit

    @property
    def _keeps_places(self) -> bool:
        """Whether places are kept free: where prefixes may come that are not there yet."""
        return self.model.takes_prefix and bool(self.entries or self.prompts)

    def _encode(self, context: Context, places: int) -> Tree | None:
        """Encodes the context, which happens here only; None if there is nothing to read."""
        if not context.body.pieces and not self.model.bos:
            return None
        # Entries and `always` are checked.
        return compose(self.model, context, check=False, reserved=places)

    def _prompt(self, entry: Entry, lore: StoryLore) -> SoftPrompt | None:
        """An entry's soft prompt, checked again if it has been trained again meanwhile."""
        if entry.use == "text":
            return None
        if entry.name in lore.own:
            return lore.own[entry.name]  # checked
        name = lore.prompts.get(entry.name, entry.name)
        prompt = self.prompts.get(name) if name else None
        if prompt is not None and prompt is not self._checked.get(name):
            try:
                self.model.check_prompt(prompt)
            except PromptMismatchError:
                return None
            self._checked[name] = prompt
        return prompt

    def _options(
        self, active: Activation, budget: int, lore: StoryLore
    ) -> tuple[list[LoreOption], dict[str, str]]:
        """The forms that active entries can take, by descending order, and who has none."""
        forms: dict[str, list[LoreOption]] = {}
        without: dict[str, str] = {}
        entries = sorted((match.entry for match in active.active), key=lambda e: -e.order)
        for entry in entries:
            options: list[LoreOption] = []
            prompt = self._prompt(entry, lore)
            outside = entry.ignore_budget
            if prompt is not None:
                options.append(LoreOption(entry.name, "soft", len(prompt), 0.0, outside))
            if entry.text and entry.use != "soft":
                tokens = self._count.text(plain_text(entry))
                options.append(LoreOption(entry.name, "text", tokens, 0.0, outside))
            if options:
                forms[entry.name] = options
            else:
                without[entry.name] = NO_PROMPT + ", or let it enter as text"
        rivals = needs_gain(forms, budget)
        by_name = {entry.name: entry for entry in entries}
        for name in rivals:
            entry = by_name[name]
            gain = self.gains.gain(entry, self._prompt(entry, lore))
            forms[name] = [replace(option, gain=gain.gain(option.form)) for option in forms[name]]
        return [option for options in forms.values() for option in options], without

    def _why(self, chosen: LoreOption, options: Sequence[LoreOption], lore: StoryLore) -> str:
        """Why an entry enters in its form, in words."""
        gains = {o.form: o.gain for o in options if o.entry == chosen.entry}
        entry = next(entry for entry in lore.entries if entry.name == chosen.entry)
        if entry.name in lore.since:
            return f"it is so since turn {lore.since[entry.name]}"
        if len(gains) == 1:
            if chosen.form == "soft":
                return "soft prompt only" if entry.use == "soft" else "it has no text"
            return "text only" if entry.use == "text" else NO_PROMPT
        if not self.gains.is_known(entry, self._prompt(entry, lore)):
            return "what its soft prompt and its text gain is being measured"
        return f"soft prompt gains {gains['soft']:.2f} nats a token, text {gains['text']:.2f}"

    def _arrange(
        self,
        layout: ContextLayout,
        settings: StorySettings,
        memory: Context,
        note: str,
        active: Activation,
        choice: BudgetChoice,
        lore: StoryLore,
    ) -> None:
        """Adds everything but the story to the layout."""
        forms = {option.entry: option.form for option in choice.chosen}
        places = place_entries(match for match in active.active if match.entry.name in forms)

        def add(matches: Sequence[ActiveEntry], depth: int | None = None) -> None:
            for match in matches:
                name = match.entry.name
                prompt = self._prompt(match.entry, lore)
                if forms[name] == "soft" and prompt is not None:
                    layout.add("soft", name, prompt, depth)
                else:
                    layout.add("lore", name, plain_text(match.entry), depth)

        add([*places.before_char, *places.outlet])
        if memory.pieces:
            layout.add("memory", "memory", end_line(memory))
        add([*places.after_char, *places.examples_top, *places.examples_bottom])
        for (depth, _), matches in places.at_depth.items():
            add(matches, depth)
        add(places.note_top, settings.note_depth)
        if note:
            text = settings.note_template.replace("<|>", note)
            whole = end_line(parse_context(text, self.prompts))
            layout.add("note", "author's note", whole, settings.note_depth)
        add(places.note_bottom, settings.note_depth)

    def _start(self, story: StoryText, room: int, limit: int, whole_turns: bool) -> int:
        """The first character of the story that is read, a multiple of a step, moved on to a break.

        Steps follow from the context's length alone: they stay the same whatever lore is active.
        """
        most, least = (limit // share for share in STEP_SHARES)
        step = min(most, max(least, STEP)) * STEP_CHARACTERS
        small = step >> HALVINGS
        while step:
            left = room // FILLED_SHARE if step >= small else MIN_STORY
            first = max(0, -(-(story.length - room * MAX_CHARACTERS) // step)) * step
            for multiple in range(first, story.length, step):
                start = story.break_after(multiple, step, whole_turns)
                tokens = story.tokens_from(start, room)
                enough = not start or tokens >= left or step <= SMALL_STEP
                if start < story.length and tokens <= room and enough:
                    return start
            step //= 2  # as too little of the story would be left
        return story.length
