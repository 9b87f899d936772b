"""Entries and blocks: the forms they accept, and their error messages."""

import pytest

from softlore.errors import LoreError
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.names import as_name, name_problem


@pytest.mark.parametrize(
    "form",
    [
        ("Emma wears", [" a black suit", " gloves"]),
        ["Emma wears", [" a black suit", " gloves"]],
        {"call": "Emma wears", "responses": [" a black suit", " gloves"]},
        {"call": "Emma wears", "response": [" a black suit", " gloves"]},
        Block(call="Emma wears", responses=[" a black suit", " gloves"]),
    ],
)
def test_a_block_takes_many_forms(form):
    entry = Entry(name="Emma", blocks=[form])
    assert entry.blocks == [Block(call="Emma wears", responses=[" a black suit", " gloves"])]


@pytest.mark.parametrize(
    "form",
    [
        ("Emma wears", " gloves"),
        {"call": "Emma wears", "response": " gloves"},
        {"call": "Emma wears", "responses": " gloves"},
    ],
)
def test_one_response_needs_no_list(form):
    assert Entry(name="Emma", blocks=[form]).blocks[0].responses == [" gloves"]


def test_spaces_are_kept_as_written():
    entry = Entry(name="Emma", blocks=[(" Emma wears", [" gloves "])])
    assert entry.blocks[0].call == " Emma wears"
    assert entry.blocks[0].responses == [" gloves "]


def test_activation_has_sillytaverns_defaults():
    entry = Entry(name="Emma", text="A spy.")
    assert (entry.enabled, entry.constant, entry.selective) == (True, False, True)
    assert (entry.order, entry.position, entry.depth) == (100, "before_char", 4)
    assert (entry.selective_logic, entry.probability, entry.group_weight) == ("and_any", 100, 100)
    assert entry.scan_depth is entry.case_sensitive is entry.match_whole_words is None


def test_sillytaverns_numbers_are_understood():
    entry = Entry(name="Emma", text="A spy.", selective_logic=3, position=4, role=2)
    chosen = (entry.selective_logic, entry.position, entry.role)
    assert chosen == ("and_all", "at_depth", "assistant")


def test_unknown_fields_are_retained():
    entry = Entry(name="Emma", text="A spy.", vectorized=True, colour={"hair": "blonde"})
    assert entry.extra == {"vectorized": True, "colour": {"hair": "blonde"}}
    assert entry.data()["vectorized"] is True


def test_null_is_an_absent_field():
    entry = Entry(name="Emma", text="A spy.", keys=None, blocks=None)
    assert (entry.keys, entry.blocks) == ([], [])


def test_empty_lines_around_a_text_are_dropped():
    assert Entry(name="Emma", text="\n A spy. \n\n").text == " A spy. "


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "x"}, "`name` is missing; add it"),
        ({"name": "Emma"}, "entry 'Emma': it has neither text nor blocks"),
        ({"name": "Emma", "text": " \n"}, "it has neither text nor blocks"),
        ({"name": "", "text": "x"}, "`name` '' is empty; a name is"),
        ({"name": "Em[ma]", "text": "x"}, "entry 'Em[ma]': `name` 'Em[ma]' holds '['; a name is"),
        ({"name": " Emma", "text": "x"}, "begins or ends with a space"),
        ({"name": "...", "text": "x"}, "holds no letter or digit"),
        ({"name": "a/b", "text": "x"}, "holds '/'"),
        ({"name": "x" * 129, "text": "x"}, "is 129 characters long"),
        ({"name": 7, "text": "x"}, "`name` must be text, but is the number 7; put it in quotes"),
        ({"name": "Emma", "text": ["x"]}, "`text` must be text, but is a list of 1"),
        ({"name": "Emma", "text": "x", "keys": ["a", " "]}, "entry 'Emma', key 2: it is empty"),
        ({"name": "Emma", "text": "x", "keys": 5}, "`keys` must be a list, but is the number 5"),
        ({"name": "Emma", "text": "x", "enabled": "perhaps"}, "`enabled` must be true or false"),
        ({"name": "Emma", "text": "x", "probability": 101}, "`probability` must be at most 100"),
        ({"name": "Emma", "text": "x", "depth": -1}, "`depth` must be at least 0"),
        ({"name": "Emma", "text": "x", "order": 1.5}, "`order` must be a whole number"),
        (
            {"name": "Emma", "text": "x", "position": "after_chra"},
            "`position` must be 'before_char', 'after_char',",
        ),
        ({"name": "Emma", "text": "x", "position": "after_chra"}, "did you mean 'after_char'?"),
        ({"name": "Emma", "text": "x", "position": 8}, "but is the number 8"),
        ({"name": "Emma", "blocks": "x"}, "`blocks` must be a list, but is the text 'x'"),
        (
            {"name": "Emma", "blocks": ["x"]},
            "entry 'Emma', block 1: it must be fields (`call` and `responses`) or a pair "
            "[call, [responses]], but is the text 'x'",
        ),
        ({"name": "Emma", "blocks": [("a", [])]}, "block 1: `responses` is empty"),
        ({"name": "Emma", "blocks": [("", [" b"])]}, "block 1: `call` is empty"),
        ({"name": "Emma", "blocks": [("a", [" b", ""])]}, "block 1, response 2: it is empty"),
        ({"name": "Emma", "blocks": [("a", [" b", 3])]}, "response 2: it must be text"),
        ({"name": "Emma", "blocks": [{"call": "a"}]}, "`responses` is missing"),
        (
            {"name": "Emma", "blocks": [{"call": "a", "respones": [" b"]}]},
            "block 1: `respones` is not a field of a block; it has `call` and `responses`; "
            "did you mean 'responses'? (and 1 more fault)",
        ),
        (
            {"name": "Emma", "blocks": [{"call": "a", "response": " b", "responses": [" c"]}]},
            "it has both `response` and `responses`; keep one",
        ),
        ({"name": "Emma", "text": "x", "held_out": [("a", [])]}, "held-out block 1: `responses`"),
        ({"name": "Emma", "text": "x", "other": object()}, "a value is of the kind object"),
        ({"name": "Emma", "text": "x", "other": float("nan")}, "the number nan is not finite"),
    ],
)
def test_error_messages(fields, message):
    with pytest.raises(LoreError) as caught:
        Entry(**fields)
    _assert_plain(str(caught.value))
    assert message in str(caught.value)


def test_an_error_in_a_lorebook_names_the_entry():
    emma = {"name": "Emma", "blocks": [("Emma wears", [" a", " "])]}
    with pytest.raises(LoreError, match=r"^entry 'Emma', block 1, response 2: it is empty;"):
        Lorebook(name="book", entries=[Entry(name="Bram", text="x"), emma])
    with pytest.raises(LoreError, match=r"^entry 2: `name` is missing; add it$"):
        Lorebook(name="book", entries=[Entry(name="Bram", text="x"), {"text": "y"}])


def test_fields_are_given_by_name():
    with pytest.raises(LoreError, match=r"write Block\(call=\.\.\.\)"):
        Block("Emma wears", [" gloves"])


def test_the_hash_is_of_the_content():
    one = Entry(name="Emma", text="A spy.", keys=["Emma"])
    same = Entry(keys=["Emma"], text="A spy.\n", name="Emma", order=100)
    other = Entry(name="Emma", text="A spy.", keys=["emma"])
    assert one.hash() == same.hash() != other.hash()
    # A released version's hash must not change: checkpoints and reports hold it.
    assert one.hash() == "2d4fac598727cdbb732e057e3db11fe1de3b8d3ebc836e55d0f4c8241c23f31b"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("wi_test", "wi_test"),
        ("lore (copy) [2]", "lore copy 2"),
        ("..", "lore"),
        ("", "lore"),
        ("a" * 200, "a" * 128),
        ("Zoë’s house", "Zoë s house"),
        ("a\nb", "a b"),
    ],
)
def test_a_legal_name_is_made_of_any_text(text, name):
    assert as_name(text) == name
    assert not name_problem(as_name(text))


def _assert_plain(message):
    assert "\n" not in message
    for jargon in ("pydantic", "http", "type=", "input_value", "validation", "Value error"):
        assert jargon not in message
