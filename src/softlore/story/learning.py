"""Learning from a story: lines that the writer marked or edited become responses of entries.

`learnable_lines` lists them and `learn` trains the prompts of the picked ones further. Neither
changes the story, the lorebook or the prompts: the caller saves the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from softlore.context.activation import activate
from softlore.context.scan import ScanSettings
from softlore.errors import ConfigError
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.sentences import ends, starts
from softlore.measure.gain import METRIC, measure_gain
from softlore.measure.material import Material, gather
from softlore.measure.score import drift, fits, recall
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.story.story import Story
from softlore.story.turns import Turn
from softlore.tune import Company, TrainingProgress, WorldInfoTrainer

CALL = 160  # most characters of the story before a line that become its call
LINE = 280  # most characters of a line
STEPS = 120  # updates of a prompt
COMPANY = 3  # other prompts in the company of a prompt; each adds its own examples
PASSAGES = 128  # that the teacher writes; fewer than usual, as the prompts know their lore already
SCAN = ScanSettings(recursive=False)  # entries a line mentions, not those that these mention


@dataclass(frozen=True)
class LearnableLine:
    """A line of a story that may become a response.

    Attributes:
        turn: the number of the turn it comes from.
        why: "kept" (the writer marked it) or "edited" (the model wrote it, the writer changed it).
        call: the text before it.
        entries: names of the entries it is about.
    """

    turn: int
    why: str
    call: str
    response: str
    entries: tuple[str, ...]


@dataclass(frozen=True)
class PromptScores:
    """How well a prompt does, in nats a token; lower is better.

    Attributes:
        lines: recall of the lines.
        lore: recall of the entry's own blocks; None if it has none that fit.
        drift: KL to the bare model on unrelated text.
    """

    lines: float
    lore: float | None
    drift: float


@dataclass(frozen=True)
class LearnedEntry:
    """An entry with the lines among its blocks, its new prompt, and the scores of both prompts."""

    entry: Entry
    prompt: SoftPrompt
    before: PromptScores
    after: PromptScores

    @property
    def better(self) -> bool:
        """Whether recall of the lines improved, and lore and drift did not get much worse."""
        before, after = self.before, self.after
        return (
            after.lines < before.lines
            and (after.lore or 0.0) <= (before.lore or 0.0) + 0.1
            and after.drift <= before.drift * 1.1 + 0.02
        )


def learnable_lines(story: Story, book: Lorebook) -> list[LearnableLine]:
    """The lines of a story that may be learned, oldest first.

    A line is a turn that the writer marked, or one by the model that the writer edited. It is
    about the entries that were active then and are mentioned in it or before it; if none is
    mentioned, about all that were active.
    """
    book = book.resolved()
    marked = {turn.id for turn in story.kept()}
    turns = story.turns
    lines = []
    for index, turn in enumerate(turns):
        why = _why(turn, marked)
        call = _call("".join(before.text for before in turns[max(0, index - 8) : index]))
        response = _line(turn.text)
        if not why or not call or not response.strip():
            continue
        entries = _mentioned(turn, book, call + response)
        if entries:
            lines.append(LearnableLine(turn.id, why, call, response, entries))
    return lines


def learn(
    model: FrozenModel,
    book: Lorebook,
    lines: Sequence[LearnableLine],
    prompts: Mapping[str, SoftPrompt],
    *,
    max_steps: int = STEPS,
    seed: int = 0,
    on_entry: Callable[[str], None] = lambda name: None,
    on_step: Callable[[TrainingProgress], bool | None] | None = None,
    on_phase: Callable[[str, float], None] | None = None,
) -> list[LearnedEntry]:
    """Trains the soft prompts of entries further, one after another, on lines of a story.

    An entry's own blocks and text are trained on together with the lines, so that the prompt does
    not forget them. Some of the other prompts stand beside it, frozen.

    Args:
        lines: what is learned; their entries are trained.
        prompts: by the names of the entries.
        max_steps: updates of each prompt.
        on_entry: called with the name of each entry before its training.
        on_step, on_phase: called as by `WorldInfoTrainer`.

    Raises:
        ConfigError: no lines, or an entry without a prompt.
    """
    chosen = list(dict.fromkeys(name for line in lines for name in line.entries))
    if not chosen:
        raise ConfigError("no lines were picked; expected at least one; mark some in the story")
    for name in chosen:
        if name not in prompts:
            raise ConfigError(
                f"entry {name!r} has no soft prompt to train further; expected one; train it "
                "first, or deselect its lines"
            )
    material = gather(model, 0, seed)
    learned, names, trained_on = [], book.names(), book.resolved().entries
    for name in chosen:
        on_entry(name)
        entry, old = book[name], prompts[name]
        picked = [line for line in lines if name in line.entries]
        company = _company(book, name, prompts)
        trainer = WorldInfoTrainer(
            model,
            entries=[names.fill_entry(add_lines(entry, picked))],
            company=Company(company, trained_on),
            initial=old,
            kind=old.kind,
            n_tokens=len(old),
            max_steps=max_steps,
            distil_passages=PASSAGES,
            seed=seed,
            on_step=on_step,
            on_phase=on_phase,
        )
        learned.append(_measure(model, entry, picked, old, trainer.train()[name], material))
    return learned


def add_lines(entry: Entry, lines: Sequence[LearnableLine]) -> Entry:
    """An entry with lines added to its blocks."""
    calls = {block.call: list(block.responses) for block in entry.blocks}
    for line in lines:
        responses = calls.setdefault(line.call, [])
        if line.response not in responses:
            responses.append(line.response)
    blocks = [Block(call=call, responses=responses) for call, responses in calls.items()]
    return entry.model_copy(update={"blocks": blocks})


def _company(book: Lorebook, name: str, prompts: Mapping[str, SoftPrompt]) -> dict[str, SoftPrompt]:
    """The company of a prompt: those of the same kind of the next entries in the lorebook."""
    names = [entry.name for entry in book]
    index = names.index(name)
    others = [
        other
        for other in names[index + 1 :] + names[:index]
        if other in prompts and prompts[other].kind == prompts[name].kind
    ]
    return {other: prompts[other] for other in others[:COMPANY]}


def _measure(
    model: FrozenModel,
    entry: Entry,
    lines: Sequence[LearnableLine],
    old: SoftPrompt,
    new: SoftPrompt,
    material: Material,
) -> LearnedEntry:
    blocks = add_lines(entry.model_copy(update={"blocks": []}), lines).blocks
    lore = [*entry.held_out, *entry.blocks]

    def scores(prompt: SoftPrompt) -> PromptScores:
        has_lore = lore and fits(model, prompt, lore)
        return PromptScores(
            recall(model, prompt, blocks),
            recall(model, prompt, lore) if has_lore else None,
            drift(model, prompt, material.unrelated),
        )

    entry = add_lines(entry, lines)
    gain = measure_gain(model, entry, new).to_dict()
    prompt = new.replace(metrics=new.metrics | {METRIC: gain})
    return LearnedEntry(entry, prompt, scores(old), scores(new))


def _why(turn: Turn, marked: set[int]) -> str:
    if turn.id in marked:
        return "kept"
    return "edited" if turn.by == "model" and "edited_from" in turn.data else ""


def _mentioned(turn: Turn, book: Lorebook, text: str) -> tuple[str, ...]:
    """Entries that were active at a turn and are mentioned in a text; all active if none is."""
    lore = turn.data.get("lore")
    active = [name for name in lore if name in book] if isinstance(lore, dict) else []
    entries = [book[name] for name in active] or list(book)
    by_key = [entry.model_copy(update={"constant": False}) for entry in entries]
    mentioned = {match.entry.name for match in activate(by_key, [text], SCAN).active}
    mentioned |= {entry.name for entry in entries if entry.name in text}
    names = tuple(entry.name for entry in entries if entry.name in mentioned)
    return names or tuple(active)


def _call(text: str) -> str:
    """The end of the text before a line, from the start of a sentence if there is one."""
    if len(text) <= CALL:
        return text
    tail = text[-CALL:]
    start = next(starts(tail), len(tail))
    return tail[start:] or tail.partition(" ")[2]


def _line(text: str) -> str:
    """The first sentences of a turn."""
    if len(text) <= LINE:
        return text.rstrip()
    end = max(ends(text[:LINE]), default=0)
    return text[:end].rstrip() or text[:LINE].rpartition(" ")[0]
