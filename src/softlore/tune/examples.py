"""What prompts are trained on: call/response pairs, and sources of a teacher's passages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from softlore.context import Branch
from softlore.context.chat import chat_template, render_template
from softlore.decode.conditioning import Conditioning, weighted
from softlore.errors import ConfigError, LoreError, UnsupportedModelError
from softlore.lore import Block, Entry
from softlore.lore.macros import MacroNames
from softlore.lore.study import OPENERS
from softlore.lore.styles import blocks_of
from softlore.measure.conditioning import conditioning_trees
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.settings import TrainingConfig
from softlore.tune.lengths import passage_length, places_beside, room_beside
from softlore.tune.passage_sources import continuation_source, make_source
from softlore.tune.passages import Passage, PassageSource
from softlore.tune.topics import Topic, lore_ids, lore_topics

CORPUS_WINDOW = 128  # tokens of a corpus that are predicted at a time
DISTILLED = {"beside pairs": 4, "alone": 12}  # passages of an entry's teacher in an update

Blocks = Sequence[Block | tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class CallResponse:
    """Token ids of a call and a response; the loss is on `ids[response_start:]` only."""

    ids: list[int]
    response_start: int

    @property
    def target(self) -> list[int]:
        """The response's ids."""
        return self.ids[self.response_start :]

    def branch(self, parent: int) -> Branch:
        """Row i predicts token i + 1: the response is predicted from the call's last token on."""
        return Branch(self.ids, parent, self.response_start - 1, len(self.ids) - 1)


@dataclass(frozen=True)
class EntryExamples:
    """What one entry's prompt is trained on.

    Attributes:
        pairs: call/response pairs.
        passages: distillation passages written so far; `source` adds to them.
        held_out: pairs that are measured on, and not trained on.
        lore: token ids of the text that the passages are about.
        continuations: what the bare model writes after calls and responses.
    """

    name: str
    pairs: list[CallResponse]
    passages: Sequence[Passage] = ()
    source: PassageSource | None = None
    held_out: Sequence[CallResponse] = ()
    lore: Sequence[int] = ()
    continuations: PassageSource | None = None

    @classmethod
    def of(
        cls,
        name: str,
        pairs: list[CallResponse],
        source: PassageSource | None,
        held_out: Sequence[CallResponse] = (),
        lore: Sequence[int] = (),
        continuations: PassageSource | None = None,
    ) -> EntryExamples:
        """The examples whose passages a source writes."""
        passages = source.passages if source else ()
        return cls(name, pairs, passages, source, held_out, lore, continuations)

    @property
    def sources(self) -> list[PassageSource]:
        """Its sources of passages."""
        return [source for source in (self.source, self.continuations) if source is not None]

    @property
    def longest(self) -> int:
        """Tokens of the longest branch, or of a text and a passage that a teacher reads."""
        lengths = [len(pair.ids) for pair in [*self.pairs, *self.held_out]]
        lengths += [len(passage.ids) for passage in self.passages]
        lengths += [source.longest + source.length for source in self.sources]
        return max(lengths, default=0)

    def to_measure(self) -> EntryExamples:
        """What a prompt is measured on while it is trained: held-out pairs, if there are any."""
        passages = self.source.held_out if self.source else self.passages
        pairs = list(self.held_out) or self.pairs
        return EntryExamples(self.name, pairs, passages, lore=self.lore)


# pairs -----------------------------------------------------------------------------------------


def make_examples(model: FrozenModel, entry: Entry, config: TrainingConfig) -> EntryExamples:
    """Tokenizes an entry's blocks, and prepares the source of passages about its text.

    Raises:
        LoreError: neither blocks nor a text to distil, or a response too long for the context.
    """
    blocks = blocks_of(entry, config.style)
    pairs, held_out = (
        [
            pair
            for block in some
            for pair in pairs_of(model, block.call, block.responses, config.chat)
        ]
        for some in (blocks, entry.held_out)
    )
    _check_pairs(model, entry, [*pairs, *held_out], config)
    source, lore = None, lore_ids(model, entry.text) if entry.text else []
    if lore and config.distil_weight > 0:
        topics = lore_topics(model, entry, passage_length(model, config), config.distil_passages)
        what = f"entry {entry.name!r} has a text"
        drawn = DISTILLED["beside pairs" if pairs else "alone"]
        source = make_source(model, entry.name, topics, config, drawn, what)
    if not pairs and source is None:
        raise LoreError(
            f"entry {entry.name!r} has no blocks, and its text is not distilled "
            "(distil_weight is 0); expected blocks or a text to distil; add one"
        )
    continuations = continuations_of(model, entry, pairs, config)
    return EntryExamples.of(entry.name, pairs, source, held_out, lore, continuations)


def continuations_of(
    model: FrozenModel, entry: Entry, pairs: Sequence[CallResponse], config: TrainingConfig
) -> PassageSource | None:
    """The source of what follows an entry's responses; None where that is not guarded."""
    if not pairs or not config.continuation_guard or config.chat:  # a message ends by itself
        return None
    texts = [model.decode(pair.ids) for pair in pairs]
    return continuation_source(model, entry.name, texts, room_beside(model, config))


def pairs_of(
    model: FrozenModel, call: str, responses: Sequence[str], chat: bool = False
) -> list[CallResponse]:
    """Token ids of one block; with `chat`, as turns of the model's chat template.

    Raises:
        ConfigError: `chat`, and the model has no chat template.
    """
    pairs = []
    for response in responses:
        before, after = _turns(model, call, response) if chat else (call, response)
        ids = model.encode(before)
        pairs.append(CallResponse(ids + model.encode(after, inside=True), len(ids)))
    return pairs


def _turns(model: FrozenModel, call: str, response: str) -> tuple[str, str]:
    """The template's text up to the start of the response, and the response's turn to its end."""
    if not chat_template(model):
        raise ConfigError(
            f"{model.name!r} has no chat template; expected one to put call and response into; "
            "leave chat (--chat) out, or use a model made for chat"
        )
    turns = [{"role": "user", "content": call}]
    before = render_template(model, turns, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": response})
    dialogue = render_template(model, turns).rstrip()
    if dialogue.startswith(before) and response.strip() in dialogue[len(before) :]:
        return before, dialogue[len(before) :]
    # Some templates render a past response unlike the start of a new one, such as with <think>.
    return before, response + (model.tokenizer.eos_token or "")


def _check_pairs(
    model: FrozenModel, entry: Entry, pairs: Sequence[CallResponse], config: TrainingConfig
) -> None:
    room = room_beside(model, config)
    for pair in pairs:
        if not 0 < pair.response_start < len(pair.ids):
            side = "call" if pair.response_start < 1 else "response"
            raise LoreError(
                f"entry {entry.name!r} has a {side} without tokens for {model.name!r}; expected "
                "at least one token in each; write some text there"
            )
        if room is not None and len(pair.ids) > room:
            raise LoreError(
                f"entry {entry.name!r} has a call and response of {len(pair.ids)} tokens; "
                f"expected at most {room} ({model.name!r} reads {model.context_length}, the prompt "
                f"takes {places_beside(model, config)}); shorten the response, or divide it"
            )


def make_corpus_examples(model: FrozenModel, entry: Entry, config: TrainingConfig) -> EntryExamples:
    """Cuts an entry's text into windows to be predicted as a whole (mkultra's finetune).

    Raises:
        LoreError: the text is shorter than two tokens.
    """
    ids = model.encode(entry.text)
    length = min(CORPUS_WINDOW, room_beside(model, config) or CORPUS_WINDOW)
    windows = [ids[at : at + length] for at in range(0, len(ids), length)]
    pairs = [CallResponse(window, 1) for window in windows if len(window) > 1]
    if not pairs:
        raise LoreError(
            f"the corpus of {entry.name!r} has {len(ids)} tokens; expected at least two; "
            "give a longer text"
        )
    return EntryExamples(entry.name, pairs)


def make_conditioning_examples(
    model: FrozenModel,
    entry: Entry,
    config: TrainingConfig,
    conditionings: Mapping[str, Conditioning],
) -> EntryExamples:
    """The source of passages that a model writes under an entry's conditioning, to be distilled.

    Raises:
        LoreError: the conditioning leaves no room in the context.
        UnsupportedModelError: a mixture, and the model's logits are not linear in its states.
    """
    trees = conditioning_trees(model, conditionings[entry.name])
    if len(trees) > 1 and not model.family.linear_head:
        raise UnsupportedModelError(
            f"{model.name!r} caps its logits, so that a mixture of conditionings can't be "
            "distilled; expected a single one of strength 1; give one, or use another model"
        )
    what = f"conditioning {entry.name!r} has a text"
    drawn = DISTILLED["alone"]
    source = make_source(model, entry.name, [Topic(trees, OPENERS)], config, drawn, what)
    return EntryExamples.of(entry.name, [], source)


# what a trainer is given -----------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Entries to train, and how their examples are made.

    Attributes:
        single: one prompt is trained, not a set by name.
        corpus: the entries' texts are predicted, not distilled.
        conditionings: by entry, the conditioning that is distilled, as text.
    """

    entries: list[Entry]
    make_examples: Callable[[FrozenModel, Entry, TrainingConfig], EntryExamples] = make_examples
    single: bool = False
    corpus: bool = False
    conditionings: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            raise LoreError("no entries to train; expected at least one; add one to the lorebook")

    def adapt(self, config: TrainingConfig) -> TrainingConfig:
        """Settings without a style for corpora and conditionings, whose texts are no lore."""
        lore = not self.corpus and self.conditionings is None
        return config if lore else config.changed(style="none")


def source_of(
    blocks: Blocks | None,
    entries: Sequence[Entry] | None,
    corpus: str | Mapping[str, str] | None,
    conditionings: Mapping[str, Conditioning] | None,
    name: str,
) -> Source:
    """The source that is given; `name` is that of a single prompt.

    Raises:
        ConfigError: none of them is given, or several.
        LoreError: there are no entries.
    """
    if [blocks, entries, corpus, conditionings].count(None) != 3:
        raise ConfigError(
            "expected one of blocks, entries (a set), corpus (a text, or a set) and conditionings "
            "(a set); give just one"
        )
    if blocks is not None:
        return Source([Entry(name=name, blocks=list(blocks))], single=True)
    if corpus is not None:
        texts = {name: corpus} if isinstance(corpus, str) else corpus
        named = [Entry(name=key, text=text) for key, text in texts.items()]
        return Source(named, make_corpus_examples, isinstance(corpus, str), corpus=True)
    if conditionings is not None:
        make = partial(make_conditioning_examples, conditionings=conditionings)
        named = [Entry(name=key, text=_strongest(key, c)) for key, c in conditionings.items()]
        rendered = {key: _render(conditioning) for key, conditioning in conditionings.items()}
        return Source(named, make, conditionings=rendered)
    listed: list[Any] = list(entries) if isinstance(entries, Iterable) else [entries]
    if not all(isinstance(entry, Entry) for entry in listed):
        raise ConfigError(
            f"entries is {entries!r:.60}; expected entries of a lorebook, such as "
            "Lorebook.load(path).entries; pass them"
        )
    return Source([MacroNames.first().fill_entry(entry) for entry in listed])


def _strongest(name: str, conditioning: Conditioning) -> str:
    """The text of the strongest part of a conditioning: its prompt starts from that."""
    parts = [(weight, Context(before)) for before, weight in weighted(conditioning) if weight]
    strongest = max(parts, key=lambda item: item[0])[1] if parts else Context()
    text = strongest.text or " ".join(vector.name for vector, _ in strongest.vectors)
    if not text.strip():
        raise ConfigError(f"conditioning {name!r} is empty; expected text or a prompt; pass one")
    return text


def _render(conditioning: Conditioning) -> str:
    parts = [(Context(part), weight) for part, weight in weighted(conditioning)]
    return " ".join(f"{part.text}{_render_vectors(part)}={weight:g}" for part, weight in parts)


def _render_vectors(context: Context) -> str:
    """The control vectors of a context by name, content and strength."""
    return "".join(
        f"[[vector:{vector.name}/{vector.digest[:16]}={strength:g}]]"
        for vector, strength in context.vectors
    )
