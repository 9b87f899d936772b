"""Gains of lore: measured where the choice depends on them, in the background, once, and saved."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlore.context.budget import LoreOption, choose_within_budget, needs_gain
from softlore.lore import Entry
from softlore.measure import gain as gains
from softlore.measure.gain import GAINS_FILE, EntryGain, MeasuredGains, measure_gain
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer

MODEL = tiny_model()
LONG, SHORT = "She lives by the sea. " * 20, "She is so. "


@pytest.fixture
def measured(monkeypatch):
    """The names of the entries that were measured, in order."""
    names = []

    def measure(model, entry, prompt=None):
        names.append(entry.name)
        return EntryGain(3.0, 3.0 - len(entry.name))

    monkeypatch.setattr(gains, "measure_gain", measure)
    return names


def book(**texts):
    return [Entry(name=name, keys=["sea"], text=text) for name, text in texts.items()]


def plan(composer, budget):
    return composer.plan(StorySettings(budget=budget), ["By the sea."], 20)


def test_what_cannot_fit_or_has_no_rival_is_not_measured(measured):
    composer = ContextComposer(MODEL, book(A=LONG, BB=LONG, C=SHORT))
    assert plan(composer, 20).lore == {"C": "text"}
    composer.gains.wait()
    assert measured == []


def test_rivals_are_measured_once_and_the_next_choice_knows(measured, tmp_path):
    folder = PromptLibrary(tmp_path)
    composer = ContextComposer(MODEL, book(A=SHORT, BB=SHORT, CCC=LONG), folder)
    assert plan(composer, 15).lore == {"A": "text"}
    composer.gains.wait()
    for _ in range(2):
        assert plan(composer, 15).lore == {"BB": "text"}
    assert sorted(measured) == ["A", "BB"]
    again = ContextComposer(MODEL, book(A=SHORT, BB=SHORT), folder)
    plan(again, 15)
    again.gains.wait()
    assert plan(again, 15).lore == {"BB": "text"}
    assert sorted(measured) == ["A", "BB"]
    changed = ContextComposer(MODEL, book(A=SHORT, BB=SHORT + "x"), folder)
    plan(changed, 16)
    changed.gains.wait()
    assert sorted(measured) == ["A", "BB", "BB"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"\xff",
        b"[]",
        b'{"x": 1}',
        b" " * (gains.MAX_FILE + 1),
        b'{"a": {"none": 1e999}}',
    ],
)
def test_a_broken_file_of_gains_is_made_anew(content, measured, tmp_path):
    (tmp_path / GAINS_FILE).write_bytes(content)
    measuring = MeasuredGains(MODEL, tmp_path)
    measuring.gain(book(A=SHORT)[0], None)
    measuring.wait()
    assert measured == ["A"]
    assert list(json.loads((tmp_path / GAINS_FILE).read_text()).values()) == [
        {"none": 3.0, "text": 2.0}
    ]


def test_the_file_holds_the_newest_gains(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(gains, "MAX_GAINS", 2)
    measuring = MeasuredGains(MODEL, tmp_path)
    for entry in book(A=SHORT, BB=SHORT, CCC=SHORT):
        measuring.gain(entry, None)
    measuring.wait()
    saved = json.loads((tmp_path / GAINS_FILE).read_text())
    assert [gain["text"] for gain in saved.values()] == [1.0, 0.0]


def test_what_cannot_be_measured_leaves_the_story_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(gains, "measure_gain", lambda *_: 1 / 0)
    measuring = MeasuredGains(MODEL, tmp_path)
    entry = book(A=SHORT)[0]
    for _ in range(2):
        assert measuring.gain(entry, None) == EntryGain.assumed(entry, None)
        measuring.wait()


def test_the_gain_is_that_of_evaluation():
    entry = Entry(name="Ada", text="Ada wears red.", blocks=[("Ada wore", [" red."])])
    measuring = MeasuredGains(MODEL)
    measuring.gain(entry, None)
    measuring.wait()
    assert measuring.gain(entry, None) == measure_gain(MODEL, entry)


def test_a_long_text_is_measured_on_sentences_from_all_of_it():
    numbered = " ".join(f"House {i} has {i} lamps in its window." for i in range(3000))
    blocks = gains.gain_blocks(Entry(name="Saga", text=numbered))
    assert 32 < len(blocks) <= 64
    assert "House 0" in blocks[0].call
    assert int(blocks[-1].call.split()[1]) > 2800


@given(st.data())
def test_gains_change_no_choice_where_none_is_needed(data):
    budget = data.draw(st.integers(0, 12))
    options = {
        name: [
            LoreOption(
                name, form, data.draw(st.integers(0, 8)), data.draw(st.floats(0, 4)), outside
            )
            for form in data.draw(st.sampled_from([["text"], ["soft"], ["soft", "text"]]))
        ]
        for name in "abc"
        for outside in [data.draw(st.booleans())]
    }
    needed = needs_gain(options, budget)

    def choice(gain_of_others):
        listed = [
            option
            if name in needed
            else LoreOption(name, option.form, option.tokens, gain_of_others, option.outside)
            for name, of_entry in options.items()
            for option in of_entry
        ]
        return {(o.entry, o.form) for o in choose_within_budget(listed, budget).chosen}

    assert choice(0.0) == choice(5.0)


def test_a_soft_prompt_of_unknown_gain_is_preferred_to_a_shorter_text():
    entry = Entry(name="Ada", text="Ada wears red.")
    prompt = SoftPrompt.from_text("Ada wears red, and sells clocks", MODEL, "Ada")
    gain = EntryGain.assumed(entry, prompt)
    options = [
        LoreOption("Ada", form, n, gain.gain(form)) for form, n in (("text", 4), ("soft", 16))
    ]
    assert [option.form for option in choose_within_budget(options, 64).chosen] == ["soft"]
    assert EntryGain.assumed(entry, None).gain("text") > 0


@pytest.mark.parametrize(("text", "form"), [(1.9, "soft"), (1.0, "text")])
def test_a_text_enters_where_it_gains_clearly_more_than_the_prompt(text, form):
    gain = EntryGain(4.0, text=text, soft=2.1)
    options = [LoreOption("Ada", f, n, gain.gain(f)) for f, n in (("text", 80), ("soft", 16))]
    assert [option.form for option in choose_within_budget(options, 200).chosen] == [form]
