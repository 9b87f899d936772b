"""What an entry has to teach: pairs from its blocks, a teacher's passages from its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softlore.context import Node, Tree
from softlore.decode import OPENERS, WeightedTrees, openers, sample_passages
from softlore.decode.conditioning import Conditioning
from softlore.errors import LoreError, UnsupportedModelError
from softlore.lore import Entry
from softlore.lore.styles import style_blocks
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.conditioning import conditioning_trees
from softlore.tune.objective import CallResponse, pairs_of
from softlore.tune.teacher import Passage, run_teacher

CORPUS_WINDOW = 128  # tokens of a corpus that are predicted at a time
DISTILLED = {"beside pairs": 4, "alone": 12}  # passages of an entry's teacher an update


@dataclass(frozen=True)
class EntryExamples:
    """Call/response pairs and distillation passages of one entry."""

    name: str
    pairs: list[CallResponse]
    passages: list[Passage]

    @property
    def longest(self) -> int:
        """Tokens of the longest leaf."""
        lengths = [len(pair.ids) for pair in self.pairs]
        return max([*lengths, *(len(p.ids) for p in self.passages)], default=0)


def make_examples(model: FrozenModel, entry: Entry, config: TrainingConfig) -> EntryExamples:
    """Tokenizes an entry's blocks, and has the teacher write about its text.

    Raises:
        LoreError: nothing to teach, or a response too long for the context.
    """
    blocks = entry.blocks
    if not blocks and config.style is not None:
        blocks = style_blocks(entry, config.style)
    pairs = [
        pair
        for block in blocks
        for pair in pairs_of(model, block.call, block.responses, config.chat)
    ]
    _check_pairs(model, entry, pairs, config)
    passages: list[Passage] = []
    if entry.text and config.distil_weight > 0:
        before = [(lore_tree(model, entry.text), 1.0)]
        what = f"entry {entry.name!r} has a text"
        passages = write_passages(model, before, what, openers(entry), config)
    if not pairs and not passages:
        raise LoreError(
            f"entry {entry.name!r} has no blocks, and its text is not distilled "
            "(distil_weight is 0); expected blocks or a text to distil; add one"
        )
    return EntryExamples(entry.name, pairs, passages)


def make_corpus_examples(model: FrozenModel, entry: Entry, config: TrainingConfig) -> EntryExamples:
    """Cuts an entry's text into windows to be predicted whole (mkultra's finetune).

    Raises:
        LoreError: when the text is shorter than two tokens.
    """
    ids = model.encode(entry.text)
    length = min(CORPUS_WINDOW, room_beside(model, config.n_tokens) or CORPUS_WINDOW)
    windows = [ids[at : at + length] for at in range(0, len(ids), length)]
    pairs = [CallResponse(window, 1) for window in windows if len(window) > 1]
    if not pairs:
        raise LoreError(
            f"the corpus of {entry.name!r} has {len(ids)} tokens; expected at least two; "
            "give a longer text"
        )
    return EntryExamples(entry.name, pairs, [])


def make_conditioning_examples(
    model: FrozenModel,
    entry: Entry,
    config: TrainingConfig,
    conditionings: Mapping[str, Conditioning],
) -> EntryExamples:
    """Has the model write under an entry's head, or heads by their strengths, to be distilled.

    Raises:
        LoreError: heads that leave no room.
        UnsupportedModelError: a mixture, and the model's logits are no linear function.
    """
    trees = conditioning_trees(model, conditionings[entry.name])
    if len(trees) > 1 and not model.family.linear_head:
        raise UnsupportedModelError(
            f"{model.name!r} caps its logits, so that a mixture of heads can't be distilled; "
            "expected a single head of strength 1; give one, or use another model"
        )
    what = f"head {entry.name!r} has a text"
    return EntryExamples(entry.name, [], write_passages(model, trees, what, OPENERS, config))


def _check_pairs(
    model: FrozenModel, entry: Entry, pairs: Sequence[CallResponse], config: TrainingConfig
) -> None:
    room = room_beside(model, config.n_tokens)
    for pair in pairs:
        if pair.answer < 1 or pair.answer >= len(pair.ids):
            side = "call" if pair.answer < 1 else "response"
            raise LoreError(
                f"entry {entry.name!r} has a {side} without tokens for {model.name!r}; expected "
                "at least one token in each; write some text there"
            )
        if room is not None and len(pair.ids) > room:
            raise LoreError(
                f"entry {entry.name!r} has a call and response of {len(pair.ids)} tokens; "
                f"expected at most {room} ({model.name!r} reads {model.context_length}, the prompt "
                f"takes {config.n_tokens}); shorten the response, or split it over several"
            )


def room_beside(model: FrozenModel, n_tokens: int) -> int | None:
    """Tokens of text that the model can read beside one prompt; None: no end."""
    if model.context_length is None:
        return None
    return model.context_length - n_tokens - len(model.bos)


def passage_length(model: FrozenModel, config: TrainingConfig) -> int:
    """Tokens of a passage: as many as asked for, or as fit beside a prompt."""
    room = room_beside(model, config.n_tokens)
    return config.passage_tokens if room is None else min(config.passage_tokens, room)


def lore_tree(model: FrozenModel, text: str) -> Tree:
    """What the teacher has read: BOS, and the lore's text, on a line of its own."""
    ending = "" if text[-1:].isspace() else "\n"
    return Tree([Node(model.bos + model.encode(text + ending))])


def write_passages(
    model: FrozenModel,
    before: WeightedTrees,
    what: str,
    starts: Sequence[str],
    config: TrainingConfig,
) -> list[Passage]:
    """A teacher's own passages, after what it has read, and its hidden states on them.

    Args:
        what: what messages call that which it has read.
        starts: first words of the passages.

    Raises:
        LoreError: when what it has read leaves no room for a passage.
    """
    taken = max(tree.start + tree.length for tree, _ in before)
    length = passage_length(model, config)
    if model.context_length is not None and taken + length > model.context_length:
        raise LoreError(
            f"{what} of {taken} tokens; expected at most "
            f"{model.context_length - length} ({model.name!r} reads {model.context_length}, a "
            f"passage about it takes {length}); shorten the text or split the entry"
        )
    seen = config.max_steps * max(DISTILLED.values())  # more than these no update comes to see
    count = min(config.distil_passages, seen)
    ids = sample_passages(model, before, starts, count, length, config.seed)
    return run_teacher(model, before, [i for i in ids if len(i) > 1])
