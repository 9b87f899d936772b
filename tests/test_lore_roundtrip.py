"""Saving and loading changes nothing, and no content of a file breaks the reader."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore.errors import LoreError
from softlore.lore import Entry, Lorebook, check, files
from softlore.lore.names import as_name, name_problem

# Every character but lone surrogates, which no file can hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
spoken = texts.filter(str.strip)
names = st.text(max_size=20).map(as_name)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
extras = st.dictionaries(
    texts.filter(lambda key: key not in {*Entry.model_fields, *Lorebook.model_fields}),
    values,
    max_size=2,
)
blocks = st.fixed_dictionaries(
    {"call": spoken, "responses": st.lists(spoken, min_size=1, max_size=3)}
)
fields = {
    "name": names,
    "keys": st.lists(spoken, max_size=2),
    "text": texts,
    "blocks": st.lists(blocks, min_size=1, max_size=3),
    "held_out": st.lists(blocks, max_size=2),
    "order": st.integers(-(2**63), 2**63 - 1),
    "probability": st.floats(0, 100),
    "position": st.sampled_from(["before_char", "at_depth"]),
    "scan_depth": st.none() | st.integers(0, 100),
    "group": texts,
}
entries = st.tuples(st.fixed_dictionaries(fields), extras).map(lambda two: {**two[1], **two[0]})
books = st.fixed_dictionaries(
    {
        "name": names,
        "model": st.none() | texts,
        "training": st.dictionaries(texts, values, max_size=2),
        "entries": st.lists(entries, max_size=3, unique_by=lambda e: e["name"].casefold()),
    }
)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@given(data=books, more=extras)
@settings(max_examples=60)
def test_saving_and_loading_changes_nothing(suffix, data, more):
    book = Lorebook(**{**more, **data})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"book{suffix}"
        book.save(path)
        again = Lorebook.load(path)
    assert again == book
    assert again.hash() == book.hash()
    assert check(again) == check(book)


def _read(content, form):
    """Reads as `Lorebook.load` does. Any exception but LoreError fails the test."""
    try:
        return Lorebook.from_data(files.parse(content, "a file", form), source="a file")
    except LoreError as error:
        refusal = str(error)
    assert refusal.startswith("a file")
    assert refusal.isprintable()
    assert "pydantic" not in refusal
    return None


@given(content=st.binary(max_size=200), form=st.sampled_from(["json", "yaml", "toml", ""]))
def test_no_bytes_break_the_reader(content, form):
    _read(content, form)


@given(
    content=st.text(st.sampled_from("a1 \n\t:-[]{}\"'&*!|>#%@,?=.<~\\\u2028é"), max_size=60),
    form=st.sampled_from(["json", "yaml", "toml", ""]),
)
@settings(max_examples=300)
def test_no_marks_break_the_reader(content, form):
    _read(content.encode(), form)


keys = st.sampled_from(
    ["name", "entries", "blocks", "call", "response", "responses", "text", "order", "model", "self"]
)
near_lore = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "Emma"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | texts, inner, max_size=4),
    max_leaves=20,
)


@given(data=near_lore, form=st.sampled_from(["json", ""]))
@settings(max_examples=300)
def test_no_json_breaks_the_reader(data, form):
    book = _read(json.dumps(data).encode(), form)
    if book is not None:
        check(book)


@given(data=near_lore)
@settings(max_examples=200)
def test_no_data_breaks_the_reader(data):
    refusal = ""
    try:
        Lorebook.from_data(data)
    except LoreError as error:
        refusal = str(error)
    assert refusal.isprintable()


@given(text=st.text(max_size=140))
def test_names_follow_the_rule_of_prompts(text):
    from softlore.prompts import is_name

    assert is_name(as_name(text))
    assert is_name(text) == (not name_problem(text))
