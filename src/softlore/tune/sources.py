"""What a trainer is given to teach, in whichever form: as entries, and the lesson of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from softlore.decode.mixing import Steering, dosed
from softlore.errors import ConfigError
from softlore.lore import Block, Entry
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.tune.config import TrainingConfig
from softlore.tune.lessons import Lesson, make_corpus_lesson, make_head_lesson, make_lesson

Blocks = Sequence[Block | tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Source:
    """Entries to train, and how their lessons are made.

    Attributes:
        single: one prompt was asked for, not a set.
        corpus: the entries' texts are to be predicted, not distilled.
        heads: what is distilled as it is, as text, by entry.
    """

    entries: list[Entry]
    make_lesson: Callable[[FrozenModel, Entry, TrainingConfig], Lesson] = make_lesson
    single: bool = False
    corpus: bool = False
    heads: dict[str, str] | None = field(default=None)


def source_of(
    blocks: Blocks | None,
    entries: Sequence[Entry] | None,
    corpus: str | None,
    corpora: Mapping[str, str] | None,
    heads: Mapping[str, Steering] | None,
    name: str,
) -> Source:
    """The one of them that is given; `name` is that of the prompt of blocks or of a corpus.

    Raises:
        ConfigError: none of them is given, or several.
    """
    given = [blocks, entries, corpus, corpora, heads]
    if given.count(None) != len(given) - 1:
        raise ConfigError(
            "expected one of blocks, entries (a set), corpus, corpora (a set) and heads (a set); "
            "give just one"
        )
    if blocks is not None:
        return Source([Entry(name=name, blocks=list(blocks))], single=True)
    if corpus is not None:
        only = Entry(name=name, text=corpus)
        return Source([only], make_corpus_lesson, single=True, corpus=True)
    if corpora is not None:
        texts = [Entry(name=code, text=text) for code, text in corpora.items()]
        return Source(texts, make_corpus_lesson, corpus=True)
    if heads is not None:
        make = partial(make_head_lesson, heads=heads)
        whole = [Entry(name=head, text=_strongest(head, of)) for head, of in heads.items()]
        return Source(whole, make, heads={head: _told(of) for head, of in heads.items()})
    return Source(list(entries or ()))


def _strongest(name: str, steering: Steering) -> str:
    """The text of the head with the greatest strength: what its prompt starts from."""
    heads = [(Context(head).text, weight) for head, weight in dosed(steering) if weight]
    text = max(heads, key=lambda one: one[1])[0] if heads else ""
    if not text.strip():
        raise ConfigError(f"head {name!r} is empty; expected something to distil; give it")
    return text


def _told(steering: Steering) -> str:
    return " ".join(f"{Context(head).text}={weight:g}" for head, weight in dosed(steering))
