"""Learning from what is kept: lines that the writer accepted or edited become responses.

Nothing is learned by itself: `offers` finds lines, the writer picks, `learn` trains on from the
prompts as they are and measures before and after. What comes of it is returned, and kept only when
the caller saves it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from softlore.context.activation import activate
from softlore.context.scan import ScanSettings
from softlore.errors import ConfigError
from softlore.lore import Block, Entry, Lorebook
from softlore.measure.gain import METRIC, measure_gain
from softlore.measure.material import Material, gather
from softlore.measure.score import drift, fits, recall
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.story.story import Story
from softlore.story.turns import Turn
from softlore.tune import WorldInfoTrainer
from softlore.tune.trainer import TrainingProgress

CALL = 160  # characters of story before a line: what it is to be called by
LINE = 280  # characters of a line that are learned
STEPS = 120  # updates, where the caller does not say
COMPANY = 3  # other prompts that stand beside it; each brings its own lessons
PASSAGES = 128  # that teachers write; the prompts know their lore already
SCANNING = ScanSettings(recursive=False)  # whom a line names, not whom that one's lore names
_BREAK = re.compile(r"(?<=[.!?\n])[\"'”’]*\s+|\n+")


@dataclass(frozen=True)
class KeptLine:
    """A line that may be learned: what led to it, what it says, and whom it is about.

    Attributes:
        turn: the number of the turn it comes from.
        why: "kept" (the writer marked it) or "edited" (the writer changed it).
        entries: the entries it is offered to.
    """

    turn: int
    why: str
    call: str
    response: str
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A prompt on some text: recall in nats a token, drift in nats a token; lower is better."""

    lines: float
    lore: float | None
    drift: float


@dataclass(frozen=True)
class Learned:
    """What an entry came to: its new prompt and lore, and how both prompts do."""

    entry: Entry
    prompt: SoftPrompt
    before: Measured
    after: Measured

    @property
    def better(self) -> bool:
        """Whether the lines are known better, and neither lore nor other text paid for it."""
        lore = (self.before.lore or 0.0, self.after.lore or 0.0)
        return (
            self.after.lines < self.before.lines
            and lore[1] <= lore[0] + 0.1
            and self.after.drift <= self.before.drift * 1.1 + 0.02
        )


def offers(story: Story, book: Lorebook) -> list[KeptLine]:
    """The lines of a story that may be learned, oldest first.

    A line is a turn that the writer marked, or one of the model's that the writer changed. It is
    offered to the entries that were active then and are named in it or in what led to it; if none
    is named, to all that were active.
    """
    kept = {turn.id for turn in story.kept()}
    turns = story.turns
    found = []
    for place, turn in enumerate(turns):
        why = _why(turn, kept)
        call = _call("".join(before.text for before in turns[max(0, place - 8) : place]))
        response = _line(turn.text)
        if not why or not call or not response.strip():
            continue
        entries = _about(turn, book, call + response)
        if entries:
            found.append(KeptLine(turn.id, why, call, response, entries))
    return found


def learn(
    model: FrozenModel,
    book: Lorebook,
    lines: Sequence[KeptLine],
    prompts: Mapping[str, SoftPrompt],
    *,
    max_steps: int = STEPS,
    seed: int = 0,
    on_entry: Callable[[str], None] = lambda name: None,
    on_step: Callable[[TrainingProgress], bool | None] | None = None,
) -> list[Learned]:
    """Trains the prompts that lines are for, from where they are, beside the others.

    An entry is taught the lines together with all it was taught before, so that it forgets none
    of that.

    Raises:
        ConfigError: no lines, or an entry that has no prompt to go on from.
    """
    names = list(dict.fromkeys(name for line in lines for name in line.entries))
    if not names:
        raise ConfigError("no lines were picked; expected one at least; keep some in the story")
    for name in names:
        if name not in prompts:
            raise ConfigError(
                f"entry {name!r} has no soft prompt to go on from; expected one; train it first, "
                "or pick no lines for it"
            )
    material = gather(model, 0, seed)
    found = []
    for name in names:
        on_entry(name)
        mine = [line for line in lines if name in line.entries]
        company = _company(book, name, prompts)
        trainer = WorldInfoTrainer(
            model,
            entries=[taught(book[name], mine)],
            company=company,
            company_entries=[entry for entry in book if entry.name in company],
            initial=prompts[name],
            kind=prompts[name].kind,
            n_tokens=len(prompts[name]),
            max_steps=max_steps,
            distil_passages=PASSAGES,
            seed=seed,
            on_step=on_step,
        )
        made = trainer.train()[name]
        found.append(_learned(model, book[name], mine, prompts[name], made, material))
    return found


def taught(entry: Entry, lines: Sequence[KeptLine]) -> Entry:
    """An entry with lines among its blocks."""
    calls = {block.call: list(block.responses) for block in entry.blocks}
    for line in lines:
        known = calls.setdefault(line.call, [])
        known += [] if line.response in known else [line.response]
    blocks = [Block(call=call, responses=responses) for call, responses in calls.items()]
    return entry.model_copy(update={"blocks": blocks})


def _company(book: Lorebook, name: str, prompts: Mapping[str, SoftPrompt]) -> dict[str, SoftPrompt]:
    """Some prompts to stand beside an entry's, of its kind: the next ones in the lorebook."""
    names = [entry.name for entry in book]
    at = names.index(name)
    others = [
        other
        for other in names[at + 1 :] + names[:at]
        if other in prompts and prompts[other].kind == prompts[name].kind
    ]
    return {other: prompts[other] for other in others[:COMPANY]}


def _learned(
    model: FrozenModel,
    entry: Entry,
    lines: Sequence[KeptLine],
    old: SoftPrompt,
    new: SoftPrompt,
    material: Material,
) -> Learned:
    blocks = taught(entry.model_copy(update={"blocks": []}), lines).blocks
    lore = [*entry.held_out, *entry.blocks]

    def measured(prompt: SoftPrompt) -> Measured:
        known = recall(model, prompt, lore) if lore and fits(model, prompt, lore) else None
        bent = drift(model, prompt, material.unrelated)
        return Measured(recall(model, prompt, blocks), known, bent)

    mine = taught(entry, lines)
    worth = measure_gain(model, mine, new).to_dict()
    kept = new.replace(metrics=new.metrics | {METRIC: worth})
    return Learned(mine, kept, measured(old), measured(new))


def _why(turn: Turn, kept: set[int]) -> str:
    if turn.id in kept:
        return "kept"
    return "edited" if turn.by == "model" and "edited_from" in turn.data else ""


def _about(turn: Turn, book: Lorebook, text: str) -> tuple[str, ...]:
    """Entries that were active at a turn and are named; all of them if none is."""
    lore = turn.data.get("lore")
    active = [name for name in lore if name in book] if isinstance(lore, dict) else []
    entries = [book[name] for name in active] or list(book)
    waking = [entry.model_copy(update={"constant": False}) for entry in entries]
    named = {one.entry.name for one in activate(waking, [text], SCANNING).active}
    named |= {entry.name for entry in entries if entry.name in text}
    return tuple(name for name in (entry.name for entry in entries) if name in named) or tuple(
        active
    )


def _call(text: str) -> str:
    """The end of what stands before a line, from the beginning of a sentence if there is one."""
    if len(text) <= CALL:
        return text
    tail = text[-CALL:]
    found = [m.end() for m in _BREAK.finditer(tail) if m.end() < len(tail)]
    return tail[found[0] :] if found else tail.partition(" ")[2]


def _line(text: str) -> str:
    """The first sentences of a turn."""
    if len(text) <= LINE:
        return text.rstrip()
    found = [m.start() for m in _BREAK.finditer(text[:LINE])]
    return text[: found[-1]].rstrip() if found else text[:LINE].rpartition(" ")[0]
