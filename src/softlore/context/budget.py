"""Chooses, under a token budget, which active entries enter, as a soft prompt or as text.

Each entry has one option or two (soft prompt, text), with its tokens and the recall it was measured
to gain. The choice is a multiple-choice knapsack: at most one option per entry, the highest total
gain within the budget, solved exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LoreForm = Literal["soft", "text"]
MIN_GAIN = 0.01  # nats per token: an active entry is of some use, even if no gain was measured


@dataclass(frozen=True)
class LoreOption:
    """An entry in a form, the tokens it takes, and its gain in nats per token of response.

    If it is `outside`, it does not count against the budget, and enters in any case.
    """

    entry: str
    form: LoreForm
    tokens: int
    gain: float
    outside: bool = False


@dataclass(frozen=True)
class BudgetChoice:
    """What enters the context.

    Attributes:
        chosen: at most one option per entry, in the order of the options.
        cut: the other entries, with the reason.
        budget: in tokens, for the options that count against it.
    """

    chosen: tuple[LoreOption, ...]
    cut: dict[str, str]
    budget: int

    @property
    def tokens(self) -> int:
        """Tokens of all chosen options, those outside the budget included."""
        return sum(option.tokens for option in self.chosen)


def choose_within_budget(options: Sequence[LoreOption], budget: int) -> BudgetChoice:
    """Returns the choice of the highest total gain; of equal ones, the one of fewest tokens.

    Earlier entries win ties.
    """
    by_entry: dict[str, list[LoreOption]] = {}
    for option in options:
        by_entry.setdefault(option.entry, []).append(option)
    outside = {
        name: max(group, key=lambda option: (option.gain, -option.tokens))
        for name, group in by_entry.items()
        if group[0].outside
    }
    counted = [group for name, group in by_entry.items() if name not in outside]
    best = {option.entry: option for option in _knapsack(counted, max(0, budget))} | outside
    chosen = tuple(best[name] for name in by_entry if name in best)
    left = budget - sum(option.tokens for option in chosen if not option.outside)
    cut = {n: _why_cut(group, left, budget) for n, group in by_entry.items() if n not in best}
    return BudgetChoice(chosen, cut, budget)


def needs_gain(options: Mapping[str, Sequence[LoreOption]], budget: int) -> list[str]:
    """The entries whose gain the choice depends on; `options` are those of each entry.

    They are those with two forms that can enter, and, if not all entries fit the budget at their
    largest, all that can enter at all.
    """
    entering = {
        name: [o for o in of_entry if o.outside or o.tokens <= budget]
        for name, of_entry in options.items()
    }
    largest = [
        max(option.tokens for option in of_entry)
        for of_entry in entering.values()
        if of_entry and not of_entry[0].outside
    ]
    short = sum(largest) > budget
    return [
        name
        for name, of_entry in entering.items()
        if len(of_entry) > 1 or (short and of_entry and not of_entry[0].outside)
    ]


def _knapsack(groups: Sequence[Sequence[LoreOption]], budget: int) -> list[LoreOption]:
    """Returns at most one option of each group, with the highest total value.

    Dynamic programming over tokens, in time groups × budget: after group g, `best[t]` is the
    highest value of options of groups 0 to g in at most t tokens, and `picked[g, t]` the number of
    the option of group g that it contains, or -1. The choice is read from `picked` backwards::

        tokens    0  1  2 …  budget
        group 0 [ …                ]
        group 1 [ …     ◀── tokens less those of the option picked in group 2
        group 2 [ …             ▲  ]   start: picked[-1, budget]
    """
    # Ties: each token reduces the value slightly, and later groups count slightly less.
    price = 1e-6 / max(1, budget)
    best = np.zeros(budget + 1)
    picked = np.full((len(groups), budget + 1), -1, dtype=np.int16)
    for row, group in enumerate(groups):
        without = best.copy()
        for number, option in enumerate(group):
            value = max(option.gain, MIN_GAIN) * (1 - 1e-9 * row) - price * option.tokens
            values = np.full(budget + 1, -np.inf)
            values[option.tokens :] = without[: max(0, budget + 1 - option.tokens)] + value
            better = values > best
            best[better] = values[better]
            picked[row, better] = number
    chosen: list[LoreOption] = []
    tokens = budget
    for row in reversed(range(len(groups))):
        if (number := picked[row, tokens]) >= 0:
            chosen.insert(0, groups[row][number])
            tokens -= groups[row][number].tokens
    return chosen


def _why_cut(options: Sequence[LoreOption], left: int, budget: int) -> str:
    names = {"soft": "a soft prompt", "text": "text"}
    forms = " or ".join(f"{option.tokens} tokens as {names[option.form]}" for option in options)
    if min(option.tokens for option in options) > budget:
        return f"{forms} would not fit the budget of {budget} by itself"
    best = max(options, key=lambda option: option.gain)
    return (
        f"{forms} (gaining {best.gain:.2f} nats per token) would displace entries that gain more; "
        f"{left} of {budget} tokens are left"
    )
