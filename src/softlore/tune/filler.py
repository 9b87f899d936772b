"""Filler for late prefixes: long unrelated texts that the bare model reads once.

A late prefix is seen by new text only, so the text before it is the bare model's, whatever the
prompts are. Its keys and values are kept for the whole training and shared by all entries; an
update takes the first tokens of one, hangs its branches there, and runs these alone:

    text   BOS ............. filler ............ (not used) ....
           └─ keys and values, read once ──────┘
                                                └─ prompts join here ─▶ call, response
                                                └─ prompts join here ─▶ the text as it goes on
                                                                        (drift guard)

The texts are the passages of the source of unrelated text one after another, so the first ones are
short, and longer ones follow as more passages are written.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from softlore.context import Node, Tree, splice
from softlore.model import FrozenModel, KVCache
from softlore.model.memory import total_memory
from softlore.settings import TrainingConfig
from softlore.tune.initial import known_ids
from softlore.tune.lengths import spacing
from softlore.tune.passages import Passage, PassageSource, writing_rounds
from softlore.tune.topics import bare_tree

MAX_TEXTS = 4  # at once; then new ones take the places of the oldest
RENEWED = 1.5  # times the passages that the oldest text was made of: a new one replaces it
# Of all memory, for keys and values of the texts: what is free differs from run to run.
MEMORY_SHARE = 0.05


@dataclass(frozen=True)
class ReadText:
    """A text that the bare model has read.

    Attributes:
        ids: token ids, without BOS.
        past: keys and values of BOS, if the model has one, and of `ids`, in one row.
        states: hidden states `[len(ids), hidden]`.
    """

    ids: list[int]
    past: KVCache
    states: Tensor

    def trunk(self, length: int, at: int) -> Tree:
        """BOS, and the first `length` ids behind it in a node of their own; no prefix is seen."""
        n_bos = len(self.past) - len(self.ids)
        tree = Tree([], at=at)
        if n_bos:
            tree = tree.then(self.past.cut(n_bos), sees=())
        if length:
            tree = tree.then(self.past.cut(n_bos + length, n_bos), sees=())
        return tree

    def passage(self, start: int, length: int) -> Passage:
        """Tokens of the text, with the bare model's states: what a drift guard compares."""
        part = slice(start, start + length)
        return Passage(self.ids[part], 0, self.states[part])


@dataclass
class FillerStore:
    """The texts of one training.

    Attributes:
        at: position of the first token of a text: the places before it are the prefixes'.
        length: tokens of a text, at most.
        limit: texts at once.
        source: passages that texts are made of; None: random tokens.
        story: ids that texts are cut from, in place of passages.
        made_of: for each text made so far, how many passages there were.
        texts: the newest of them.
        first: the first one, on which prompts are measured while they are trained.
    """

    at: int
    length: int
    seed: int
    limit: int = MAX_TEXTS
    source: PassageSource | None = None
    story: Sequence[int] = ()
    made_of: list[int] = field(default_factory=list)
    texts: list[ReadText] = field(default_factory=list)
    first: ReadText | None = None

    @classmethod
    def of(
        cls,
        model: FrozenModel,
        config: TrainingConfig,
        source: PassageSource | None,
        at: int,
        longest: int,
    ) -> FillerStore:
        """A store without texts yet.

        Args:
            at: position of the first token.
            longest: tokens of the longest branch, which must fit behind a text.
        """
        length = spacing(config)
        if config.drift_guard > 0 and length:
            length += config.passage_tokens  # the guard goes on where the filler ends
        if model.context_length is not None:
            length = min(length, model.context_length - at - len(model.bos) - longest)
        length = max(0, length)
        size = model.layers * 2 * model.kv_heads * model.head_dim * model.dtype.itemsize
        limit = int(MEMORY_SHARE * total_memory(model.device) // max(1, size * length))
        story = model.encode(config.story) if config.story is not None and length else ()
        if config.filler == "random":
            source = None
        limit = max(1, min(MAX_TEXTS, limit)) if length else 1
        return cls(at, length, config.seed, limit, source, story)

    def write(self, model: FrozenModel, updates: int) -> None:
        """Adds a filler text, if one is due after so many updates: one each time passages are.

        Once there are `limit`, a new one takes the place of the oldest, where there are `RENEWED`
        times as many passages as that was made of.
        """
        wanted = 1 + writing_rounds(updates) if self.length else 1
        if len(self.made_of) < wanted:
            number = len(self.source.ids) if self.source is not None else 0
            full = len(self.texts) >= self.limit
            if not full or number >= RENEWED * max(1, self.made_of[-self.limit]):
                self._read(model, number)

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {"limit": self.limit, "made_of": self.made_of}

    def restore(self, model: FrozenModel, state: Mapping[str, Any]) -> None:
        """Makes the texts that another run of the same training has made, in the same order."""
        self.limit, made_of = state["limit"], state["made_of"]
        kept = max(0, len(made_of) - self.limit)
        for place, number in enumerate(made_of):
            if place == 0 or place >= kept:
                self._read(model, number)
            else:
                self.made_of.append(number)  # its text has been replaced

    def to_measure(self) -> FillerStore:
        """A store of the first text alone, which never changes."""
        return replace(self, texts=[self.first] if self.first is not None else [])

    @torch.no_grad()
    def _read(self, model: FrozenModel, passages: int) -> None:
        ids = self._ids(model, passages)
        tree = bare_tree(model)
        tree = Tree([*tree.nodes, Node(ids, tree.end)], at=self.at)
        spliced = splice(model, [tree])
        hidden, keys_values = spliced.run(model, keep=True)
        past = spliced.after(keys_values or [])
        text = ReadText(ids, past, hidden[0, len(model.bos) :])
        self.texts = [*self.texts, text][-self.limit :]
        self.first = self.first or text
        self.made_of.append(passages)

    def _ids(self, model: FrozenModel, passages: int) -> list[int]:
        """Token ids of the next filler text: at most `length`, at least 1.

        Args:
            passages: how many of the source's passages to draw from, the first ones.
        """
        draw = random.Random(f"filler/{self.seed}/{len(self.made_of)}")
        if self.story:
            start = draw.randrange(max(1, len(self.story) - self.length + 1))
            return list(self.story[start : start + max(1, self.length)])
        if self.source is None:
            known, special = known_ids(model), model.special_ids
            ordinary = [i for i in range(known) if i not in special]
            return draw.choices(ordinary, k=max(1, self.length))
        order = draw.sample(range(passages), passages)
        return [i for number in order for i in self.source.ids[number]][: max(1, self.length)]
