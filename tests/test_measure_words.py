"""Copy, lore keywords and repetition: by property, without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlore.lore import Entry
from softlore.lore.keywords import STOP_WORDS, words
from softlore.measure import copied, count_keywords, distinct, longest_run, lore_keywords
from softlore.measure.stories import story_openings

texts = st.lists(st.integers(0, 5), max_size=12)


def naive_run(one, other):
    """Every pair of places, the slow way."""
    best = 0
    for i in range(len(one)):
        for j in range(len(other)):
            n = 0
            while i + n < len(one) and j + n < len(other) and one[i + n] == other[j + n]:
                n += 1
            best = max(best, n)
    return best


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3))
def test_the_longest_run_is_what_the_slow_way_finds(outputs, sources):
    slow = max((naive_run(one, other) for one in outputs for other in sources), default=0)
    assert longest_run(outputs, sources) == slow == longest_run(sources, outputs)


@given(texts)
def test_a_text_copies_itself_whole(text):
    found = copied([text], [text], gram=2)
    assert found.run == len(text)
    assert found.share == (1.0 if len(text) >= 2 else None)


@given(texts, texts)
def test_no_run_crosses_from_a_text_to_the_next(one, other):
    assert longest_run([one, other], [[*one, 9, *other]]) == max(len(one), len(other))


def test_the_share_counts_runs_of_the_output():
    found = copied([[1, 2, 3, 4, 5, 9]], [[1, 2, 3, 4, 5]])
    assert found.run == 5
    assert found.share == pytest.approx(2 / 3)  # 1234 and 2345, not 3459


MARTA = Entry(
    name="Marta",
    keys=["Marta", "/clock.*/"],
    text="Marta’s shop smells of oil. She is never late.",
    blocks=[("Marta wore", [" a long red coat.", " her red coat and spectacles."])],
    held_out=[("On her head, Marta's friends saw", [" a hat."]), ("Outside it rained", [" on."])],
)


def test_keywords_are_the_words_that_tell():
    assert lore_keywords(MARTA) == "shop smells oil late red coat spectacles".split()
    assert lore_keywords(MARTA, known={"coat", "late"}) == "shop smells oil red spectacles".split()


@given(st.text(max_size=60))
def test_keywords_hold_no_stop_word_and_are_found_in_their_own_text(text):
    entry = Entry(name="x", text=f"lamp {text}")
    keywords = lore_keywords(entry)
    assert "lamp" in keywords
    assert not STOP_WORDS.intersection(keywords)
    hits = count_keywords([entry.text, "-"], keywords)
    assert (hits.a_story, hits.share) == (len(keywords) / 2, 0.5)


def test_a_keyword_counts_once_a_story_and_only_as_a_word():
    hits = count_keywords(["Red, RED, red’s", "redder", "oil and red"], ["red", "oil"])
    assert hits.a_story == pytest.approx(1.0)
    assert hits.share == pytest.approx(2 / 3)
    assert count_keywords([], ["red"]).a_story == 0


def test_words():
    assert words("The fox's tail, ninety-nine; l’été 42!") == [
        "the", "fox", "tail", "ninety-nine", "l'été",
    ]  # fmt: skip


def test_openings_are_calls_up_to_the_name():
    assert story_openings(MARTA) == ["On her head, Marta's", "Outside it rained", "Marta"]
    assert story_openings(Entry(name="Ox", text="An ox.")) == ["One day, Ox"]


def test_distinct():
    assert distinct([[1, 2, 1, 2, 1]]) == pytest.approx(0.5)
    assert distinct([[1, 2, 3], [1, 1, 1]]) == pytest.approx(0.75)
    assert distinct([[1]]) is None
