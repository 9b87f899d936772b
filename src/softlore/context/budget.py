"""A budget that chooses: which active entries stand in the context, as soft prompt or as text.

Each entry is offered in one form or two, with its tokens and the recall it was measured to gain.
Under a token budget the mix with the highest gain in all is taken: a knapsack with a choice of
form for each entry, solved exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LoreForm = Literal["soft", "text"]
LEAST = 0.01  # nats a token: an entry is called up for a reason, even if no gain was measured


@dataclass(frozen=True)
class LoreOption:
    """An entry in a form.

    Attributes:
        tokens: of the context that it takes.
        gain: recall that it adds, nats a token of response.
    """

    entry: str
    form: LoreForm
    tokens: int
    gain: float
    outside: bool = False  # of the budget: it enters in any case


@dataclass(frozen=True)
class CutEntry:
    """An entry that was called up and does not stand in the context, and why."""

    entry: str
    why: str
    offers: tuple[LoreOption, ...]


@dataclass(frozen=True)
class BudgetChoice:
    """What was chosen.

    Attributes:
        chosen: in the order in which they were offered, at most one an entry.
        cut: the others.
        budget: tokens there were for those that count.
    """

    chosen: tuple[LoreOption, ...]
    cut: tuple[CutEntry, ...]
    budget: int

    @property
    def tokens(self) -> int:
        """Tokens of all that was chosen, what stands outside of the budget too."""
        return sum(offer.tokens for offer in self.chosen)

    @property
    def gain(self) -> float:
        return sum(offer.gain for offer in self.chosen)


def choose_within_budget(offers: Sequence[LoreOption], budget: int) -> BudgetChoice:
    """The mix of offers within a budget that gains most; of equals, the one of fewest tokens.

    Entries that were offered first win ties. An entry without offers cannot be chosen.
    """
    by_entry: dict[str, list[LoreOption]] = {}
    for offer in offers:
        by_entry.setdefault(offer.entry, []).append(offer)
    outside = {
        name: max(mine, key=lambda offer: (offer.gain, -offer.tokens))
        for name, mine in by_entry.items()
        if mine[0].outside
    }
    rest = [mine for name, mine in by_entry.items() if name not in outside]
    picked = {offer.entry: offer for offer in _knapsack(rest, max(0, budget))}
    picked |= outside
    chosen = tuple(picked[name] for name in by_entry if name in picked)
    left = budget - sum(offer.tokens for offer in chosen if not offer.outside)
    cut = tuple(
        CutEntry(name, _why(mine, left, budget), tuple(mine))
        for name, mine in by_entry.items()
        if name not in picked
    )
    return BudgetChoice(chosen, cut, budget)


def _knapsack(groups: Sequence[Sequence[LoreOption]], budget: int) -> list[LoreOption]:
    """At most one offer of each group, of the highest value in all.

    `best[t]` is the highest value in at most `t` tokens; exact, in time groups × budget.
    """
    # A token costs a little, so that of two mixes as good the shorter one wins; and an earlier
    # entry is worth a little more than a later one.
    price = 1e-6 / max(1, budget)
    best = np.zeros(budget + 1)
    taken = np.full((len(groups), budget + 1), -1, dtype=np.int16)
    for row, group in enumerate(groups):
        known = best.copy()
        for number, offer in enumerate(group):
            if offer.tokens > budget:
                continue
            value = max(offer.gain, LEAST) * (1 - 1e-9 * row) - price * offer.tokens
            tried = np.full(budget + 1, -np.inf)
            tried[offer.tokens :] = known[: budget + 1 - offer.tokens] + value
            better = tried > best
            best[better] = tried[better]
            taken[row, better] = number
    found, tokens = [], budget
    for row in range(len(groups) - 1, -1, -1):
        number = int(taken[row, tokens])
        if number >= 0:
            found.append(groups[row][number])
            tokens -= groups[row][number].tokens
    return found[::-1]


def _why(offers: Sequence[LoreOption], left: int, budget: int) -> str:
    forms = " or ".join(f"{offer.tokens} tokens as {_called(offer.form)}" for offer in offers)
    if min(offer.tokens for offer in offers) > budget:
        return f"{forms} would not fit the budget of {budget} by itself"
    best = max(offers, key=lambda offer: offer.gain)
    return (
        f"{forms} (gaining {best.gain:.2f} nats a token) would have pushed out what gains more; "
        f"{left} of {budget} tokens are left"
    )


def _called(form: LoreForm) -> str:
    return "a soft prompt" if form == "soft" else "text"
