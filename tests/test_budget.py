"""The choice under a budget: within it, and of the highest gain."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from softlore.context.budget import MIN_GAIN, LoreOption, choose_within_budget


@st.composite
def option_lists(draw):
    offers = []
    for name in "abcde"[: draw(st.integers(0, 5))]:
        outside = draw(st.booleans()) and draw(st.booleans())
        for form in draw(st.sampled_from([("soft",), ("text",), ("soft", "text")])):
            gain = draw(st.integers(-2, 12)) / 4
            offers.append(LoreOption(name, form, draw(st.integers(0, 12)), gain, outside))
    return offers


def choices(offers):
    """Every choice of at most one option per entry."""
    by_entry = {}
    for offer in offers:
        by_entry.setdefault(offer.entry, [None]).append(offer)
    for options in itertools.product(*by_entry.values()):
        yield [offer for offer in options if offer is not None]


def total_gain(mix):
    return sum(max(offer.gain, MIN_GAIN) for offer in mix)


@given(option_lists(), st.integers(-2, 40))
@settings(max_examples=300)
def test_no_other_choice_gains_more(offers, budget):
    mix = choose_within_budget(offers, budget)
    inside = [offer for offer in mix.chosen if not offer.outside]
    assert sum(offer.tokens for offer in inside) <= max(0, budget)
    names = [offer.entry for offer in mix.chosen]
    assert len(set(names)) == len(names)
    assert {offer.entry for offer in offers if offer.outside} <= set(names)
    counted = [offer for offer in offers if not offer.outside]
    fitting = [m for m in choices(counted) if sum(o.tokens for o in m) <= max(0, budget)]
    best = max(map(total_gain, fitting), default=0)
    assert abs(total_gain(inside) - best) < 1e-4
    shortest = min(
        (sum(o.tokens for o in m) for m in fitting if abs(total_gain(m) - best) < 1e-9), default=0
    )
    assert sum(offer.tokens for offer in inside) == shortest
    assert mix.cut.keys() == {offer.entry for offer in offers} - set(names)


def test_a_short_soft_prompt_stands_in_for_a_long_text():
    offers = [
        LoreOption("Emma", "soft", 16, 2.0), LoreOption("Emma", "text", 60, 2.5),
        LoreOption("Bram", "soft", 16, 1.5), LoreOption("Bram", "text", 50, 1.6),
    ]  # fmt: skip
    assert [o.form for o in choose_within_budget(offers, 32).chosen] == ["soft", "soft"]
    assert [o.form for o in choose_within_budget(offers, 76).chosen] == ["text", "soft"]
    assert [o.form for o in choose_within_budget(offers, 110).chosen] == ["text", "text"]
    choice = choose_within_budget(offers, 16)
    assert [(o.entry, o.form) for o in choice.chosen] == [("Emma", "soft")]
    assert "16 tokens as a soft prompt or 50 tokens as text" in choice.cut["Bram"]
    assert "0 of 16 tokens are left" in choice.cut["Bram"]
    assert "would not fit the budget of 4 by itself" in choose_within_budget(offers, 4).cut["Emma"]


def test_a_thousand_entries_are_chosen_from_at_once():
    offers = [LoreOption(str(i), "soft", 8 + i % 9, 1 + i % 7) for i in range(1000)]
    mix = choose_within_budget(offers, 2000)
    assert 1980 < mix.tokens <= 2000
