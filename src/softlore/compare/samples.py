"""Samples: the same openings continued after nothing, an entry's text, and its soft prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softlore.context.compose import ContextLike
from softlore.lore import Entry
from softlore.measure.evaluate import plain_text
from softlore.measure.stories import write_stories
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt


@dataclass(frozen=True)
class Sample:
    """The same opening continued after nothing, the plain text and a soft prompt.

    Attributes:
        prompt: name of the soft prompt.
        without, text, soft: the continuations, sampled with the same seed.
        lore_words: words of the lore, which are marked in all three.
        tokens: of the plain text and of the soft prompt.
    """

    prompt: str
    opening: str
    without: str
    text: str
    soft: str
    lore_words: list[str]
    tokens: tuple[int, int] = (0, 0)


class SampleWriter:
    """Continues openings, first without soft prompts, which need not be trained yet.

    Args:
        cases: name of the soft prompt, its entry, and an opening.
        tokens: length of each continuation.
    """

    def __init__(
        self,
        model: FrozenModel,
        cases: Sequence[tuple[str, Entry, str]],
        seed: int,
        tokens: int,
    ) -> None:
        self.model, self.cases, self.seed, self.tokens = model, cases, seed, tokens
        self.texts = [plain_text(entry) for _, entry, _ in cases]
        written = self._write([*[""] * len(cases), *self.texts])
        self._bare, self._informed = written[: len(cases)], written[len(cases) :]

    def write(
        self, prompts: Mapping[str, SoftPrompt], keywords: Mapping[str, list[str]]
    ) -> list[Sample]:
        """Continues the openings after the soft prompts.

        Args:
            prompts: by the names in the cases.
            keywords: by those names, words of the lore.
        """
        soft = self._write([prompts[name] for name, _, _ in self.cases])
        samples = []
        for place, (name, _, opening) in enumerate(self.cases):
            sizes = len(self.model.encode(self.texts[place])), len(prompts[name])
            written = self._bare[place], self._informed[place], soft[place]
            samples.append(Sample(name, opening, *written, keywords[name], sizes))
        return samples

    def _write(self, conditionings: Sequence[ContextLike]) -> list[str]:
        """Continues the openings, once or more often, after a conditioning each."""
        places = [i % len(self.cases) for i in range(len(conditionings))]
        openings = [[self.model.encode(self.cases[place][2])] for place in places]
        jobs = list(zip(conditionings, openings, strict=True))
        written = write_stories(self.model, jobs, self.tokens, self.seed, places)
        return [_printable(self.model.decode(texts[0])) if texts else "" for texts in written]


def _printable(text: str) -> str:
    """Replaces control characters, which small models sometimes write and HTML can't hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def first_of_each(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.prompt, sample)
    return list(first.values())
