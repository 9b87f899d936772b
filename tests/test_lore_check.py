"""`lore.check`: what is allowed but probably not meant."""

import pytest

from softlore.context import activate
from softlore.lore import Entry, Lorebook, check


def warnings(**fields):
    entry = Entry(**{"name": "Emma", "keys": ["Emma"], "text": "x", **fields})
    return check(Lorebook(name="book", entries=[entry]))


def test_a_good_entry_has_no_warnings():
    assert (
        warnings(blocks=[("Emma wears", [" gloves", " a suit"]), ("Emma said, “", ["No.”"])]) == []
    )
    assert warnings(blocks=[("Emma wears", [", of course, a suit"])]) == []
    assert warnings(blocks=[("Emma wears ", ["gloves"])]) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"blocks": [("Emma wears", ["gloves"])]},
            "entry 'Emma': there is no space between 'Emma wears' and 'gloves'; begin the response "
            "with one",
        ),
        ({"held_out": [("Emma wears", ["“no”"])]}, "there is no space between"),
        ({"blocks": [("Emma wears ", [" gloves"])]}, "remove the first"),
        ({"blocks": [("Emma", [" a", " a"])]}, "the response ' a' is given twice"),
        ({"blocks": [("Emma", [" a"]), ("Emma ", ["b"])]}, "is in several blocks"),
        (
            {"blocks": [("Emma", [" a"])], "held_out": [("Emma", [" a"])]},
            "the held-out call 'Emma' is also trained on",
        ),
        ({"keys": [], "secondary_keys": ["x"]}, "secondary keys have no effect"),
        ({"keys": ["/(/i"]}, "the key '/(/i' matches nothing: no valid regular expression"),
        ({"key": ["x"]}, "`key` is not a field, so it has no effect; did you mean 'keys'?"),
    ],
)
def test_warnings(fields, message):
    assert any(message in warning for warning in warnings(**fields))


HOSTILE = [
    "(?:" * 300 + "a" + ")" * 300,
    "(" * 5000 + ")" * 5000,
    "a{20000}",
    "(?P<a>b)",
    "a" * 3000,
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_file_with_a_key_that_is_refused(tmp_path, monkeypatch, pattern):
    """The file loads; the check warns in activation's words."""
    path = tmp_path / "b.json"
    Lorebook(name="b", entries=[Entry(name="A", text="x", keys=[f"/{pattern}/i"])]).save(path)
    book = Lorebook.load(path)
    [why] = [bad.why for bad in activate(book, ["a"]).bad_keys]
    [warning] = check(book)
    assert f"matches nothing: {why}; correct it" in warning


@pytest.mark.parametrize(
    "key", [r"/(?<name>a)\k<name>/", "/[^]/", r"/\u{1F600}/u", "/a/x", "/a/b/"]
)
def test_keys_of_javascript_and_plain_keys_need_no_warning(key):
    assert warnings(keys=[key]) == []


def test_what_needs_no_warning():
    assert warnings(keys=[]) == []  # its name is its key
    assert warnings(keys=[], constant=True) == []
    assert check(Lorebook(name="book", entries=[])) == ["lorebook: it has no entries; add one"]


def test_unknown_fields_and_macros_are_named():
    entry = {"name": "Ada", "keys": ["Ada"], "text": "{{char}} knows {{user}}.", "colour": "red"}
    assert check(Lorebook.from_data({"entries": [entry]})) == [
        "entry 'Ada': `colour` is not a field, so it has no effect",
        "entry 'Ada': {{char}} is read as 'the character'; name one: `char` of the lorebook",
    ]
