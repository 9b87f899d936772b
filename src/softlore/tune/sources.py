"""What a trainer is given to teach, in whichever form: as entries, and the examples of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from softlore.decode.conditioning import Conditioning, weighted
from softlore.errors import ConfigError
from softlore.lore import Block, Entry
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.settings import TrainingConfig
from softlore.tune.examples import (
    EntryExamples,
    make_conditioning_examples,
    make_corpus_examples,
    make_examples,
)

Blocks = Sequence[Block | tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Source:
    """Entries to train, and how their examples are made.

    Attributes:
        single: one prompt was asked for, not a set.
        corpus: the entries' texts are to be predicted, not distilled.
        heads: what is distilled as it is, as text, by entry.
    """

    entries: list[Entry]
    make_examples: Callable[[FrozenModel, Entry, TrainingConfig], EntryExamples] = make_examples
    single: bool = False
    corpus: bool = False
    conditionings: dict[str, str] | None = field(default=None)


def source_of(
    blocks: Blocks | None,
    entries: Sequence[Entry] | None,
    corpus: str | None,
    corpora: Mapping[str, str] | None,
    conditionings: Mapping[str, Conditioning] | None,
    name: str,
) -> Source:
    """The one of them that is given; `name` is that of the prompt of blocks or of a corpus.

    Raises:
        ConfigError: none of them is given, or several.
    """
    given = [blocks, entries, corpus, corpora, conditionings]
    if given.count(None) != len(given) - 1:
        raise ConfigError(
            "expected one of blocks, entries (a set), corpus, corpora (a set) and heads (a set); "
            "give just one"
        )
    if blocks is not None:
        return Source([Entry(name=name, blocks=list(blocks))], single=True)
    if corpus is not None:
        only = Entry(name=name, text=corpus)
        return Source([only], make_corpus_examples, single=True, corpus=True)
    if corpora is not None:
        texts = [Entry(name=code, text=text) for code, text in corpora.items()]
        return Source(texts, make_corpus_examples, corpus=True)
    if conditionings is not None:
        make = partial(make_conditioning_examples, conditionings=conditionings)
        whole = [
            Entry(name=conditioning, text=_strongest(conditioning, of))
            for conditioning, of in conditionings.items()
        ]
        return Source(
            whole,
            make,
            conditionings={conditioning: _told(of) for conditioning, of in conditionings.items()},
        )
    return Source(list(entries or ()))


def _strongest(name: str, steering: Conditioning) -> str:
    """The text of the head with the greatest strength: what its prompt starts from."""
    conditionings = [
        (Context(conditioning).text, weight)
        for conditioning, weight in weighted(steering)
        if weight
    ]
    text = max(conditionings, key=lambda one: one[1])[0] if conditionings else ""
    if not text.strip():
        raise ConfigError(f"head {name!r} is empty; expected something to distil; give it")
    return text


def _told(steering: Conditioning) -> str:
    return " ".join(
        f"{Context(conditioning).text}={weight:g}" for conditioning, weight in weighted(steering)
    )
