"""Where sentences end: titles, quotations, other scripts, and text that comes in parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlore import Entry
from softlore.lore.chunks import chunks
from softlore.lore.sentences import ends, is_complete, sentences, starts
from softlore.lore.styles import facts
from softlore.story.seams import SHORTEST, SentenceTrimmer

PARTS = [*'ab .!?…。」"”\n', "Mr", "Dr. ", "St."]
PROSE = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('He ran. "Stop!" she said. Why? Mr', ["He ran.", '"Stop!"', "she said.", "Why?", "Mr"]),
        ("Dr. Moss met Mr. Hale. They spoke.", ["Dr. Moss met Mr. Hale.", "They spoke."]),
        ("She said: “Go!” (Twice.) He went.", ["She said: “Go!”", "(Twice.)", "He went."]),
        ("The bell rang…\nThen nothing.", ["The bell rang…", "Then nothing."]),
        ("It cost 3.50 and a tooth.", ["It cost 3.50 and a tooth."]),
        ("彼は来た。「行け！」と言った。", ["彼は来た。", "「行け！」", "と言った。"]),
        ("A line\nthat goes on. And ends", ["A line that goes on.", "And ends"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert [" ".join(part.split()) for part in sentences(text)] == expected


def test_a_title_does_not_cut_a_fact_of_lore():
    moss = Entry(name="Moss", text="Dr. Moss keeps bees. He met Mr. Hale at St. Anne’s.")
    assert facts(moss) == ["Dr. Moss keeps bees.", "He met Mr. Hale at St. Anne’s."]


def test_lines_end_and_begin_too():
    text = "A title\nIt rained. All day"
    assert [text[:end] for end in ends(text)] == ["A title", "A title\nIt rained."]
    assert [text[start:] for start in starts(text)] == ["It rained. All day", "All day"]


@pytest.mark.parametrize("text", ["He went.", "He went.” ", "行け！」", "What?!\n"])
def test_complete(text):
    assert is_complete(text)


@pytest.mark.parametrize("text", ["He went", "He met Mr.", "", "A comma,"])
def test_not_complete(text):
    assert not is_complete(text)


@given(PROSE)
def test_nothing_is_lost(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert "".join(chunks(text, 8, len)) == text


@given(PROSE, st.data())
def test_an_end_stays_an_end_when_the_text_goes_on(text, data):
    cut = data.draw(st.integers(0, len(text)))
    assert [*ends(text[:cut])] == [end for end in ends(text) if end < cut]


@given(PROSE, st.lists(st.integers(1, 8), min_size=60, max_size=60))
def test_a_turn_is_trimmed_alike_however_its_text_is_cut_into_tokens(text, sizes):
    def trimmed(parts):
        trimmer = SentenceTrimmer(SHORTEST)
        for _ in range(SHORTEST):  # past the part of a turn that is passed on as it comes
            trimmer.add("")
        return "".join(map(trimmer.add, parts)) + trimmer.flush("length")

    parts, rest = [], text
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    assert trimmed(parts) == trimmed(list(text))
