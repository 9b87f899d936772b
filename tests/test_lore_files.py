"""Lorebook files: what is read, and the error messages."""

import json
import os
import pathlib

import pytest

from softlore.errors import LoreError, StorageError
from softlore.lore import Block, Entry, Lorebook, files
from softlore.lore.plain import read_yaml

YAML = """\
name: harbour
model: storyteller
training:
  n_tokens: 20
  min_loss: 1e-1
entries:
  - name: Emma
    keys: [Emma, assassin]
    text: |
      Emma is a spy.
      She wears black.
    blocks:
      - {call: Emma wears, responses: [" a black suit", " gloves"]}
      - [Emma says, " no"]
      - call: Emma is
        response: " tall"
    held_out:
      - [Emma is dressed in, [" a black suit"]]
    order: 5
    folder: people
"""
TOML = """\
name = "harbour"
[[entries]]
name = "Emma"
text = "Emma is a spy."
since = 2024-01-02
"""


@pytest.fixture
def save(tmp_path):
    """Writes a file and returns its path."""

    def write(content, name="lore.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def error_message(path, **options):
    with pytest.raises(LoreError) as caught:
        Lorebook.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_yaml(save):
    book = Lorebook.load(save(YAML))
    assert (book.name, book.model) == ("harbour", "storyteller")
    assert book.training == {"n_tokens": 20, "min_loss": 0.1}
    emma = book["Emma"]
    assert emma.text == "Emma is a spy.\nShe wears black."
    assert [block.responses for block in emma.blocks] == [
        [" a black suit", " gloves"],
        [" no"],
        [" tall"],
    ]
    assert emma.held_out == [Block(call="Emma is dressed in", responses=[" a black suit"])]
    assert (emma.order, emma.extra) == (5, {"folder": "people"})


def test_json_and_toml(save):
    entry = {"name": "Emma", "text": "Emma is a spy."}
    book = Lorebook.load(save(json.dumps({"entries": [entry]}), "harbour.json"))
    assert (book.name, book["Emma"].text) == ("harbour", "Emma is a spy.")
    book = Lorebook.load(save(TOML, "lore.toml"))
    assert (book.name, book["Emma"].extra) == ("harbour", {"since": "2024-01-02"})


@pytest.mark.parametrize(
    "content",
    [YAML, TOML, '[["a", [" b"]]]', '{"entries": [{"name": "E", "text": "t"}]}', "[a: 1]"],
)
def test_without_a_suffix_the_content_decides(save, content):
    if content == "[a: 1]":
        assert "item 1 must be" in error_message(save(content, "lore"))
    else:
        assert len(Lorebook.load(save(content, "lore"))) == 1


def test_a_byte_order_mark_is_no_fault(save):
    assert Lorebook.load(save(b"\xef\xbb\xbf" + YAML.encode())).name == "harbour"


def test_a_bare_list_of_pairs_is_one_entry(save):
    pairs = [
        {"call": " Emma's personality:", "response": " classy"},
        {"call": " Emma wears", "response": " a suit"},
        {"call": " Emma's personality:", "response": " warm"},
    ]
    path = save(json.dumps(pairs), "wi (test).json")
    book = Lorebook.load(path)
    assert [entry.name for entry in book] == ["wi test"] == [book.name]
    assert [(block.call, block.responses) for block in book["wi test"].blocks] == [
        (" Emma's personality:", [" classy", " warm"]),
        (" Emma wears", [" a suit"]),
    ]
    assert "Emma" in Lorebook.load(path, name="Emma")


def test_a_list_of_tuples_is_one_entry():
    book = Lorebook.from_data([("Dog:", ["Dog is good", "Dog loves pets"])], name="dog")
    assert book["dog"].blocks == [Block(call="Dog:", responses=["Dog is good", "Dog loves pets"])]


def test_a_list_of_entries_is_a_lorebook():
    book = Lorebook.from_data([{"name": "Emma", "text": "x"}, Entry(name="Bram", text="y")])
    assert [entry.name for entry in book] == ["Emma", "Bram"]
    assert len(Lorebook.from_data([], name="new")) == 0


def test_finding_entries():
    book = Lorebook(name="book", entries=[Entry(name="Emma", text="x")])
    assert "Emma" in book
    assert "emma" not in book
    assert book
    assert len(book) == 1
    with pytest.raises(LoreError, match=r"has no entry 'Ema'; did you mean 'Emma'\?"):
        book["Ema"]


def test_words_that_yaml_1_1_takes_for_values_are_text():
    text = "- no\n- 12:30\n- 2024-01-02\n- 0x1F\n- 1_000\n- 017\n- .inf"
    words = ["no", "12:30", "2024-01-02", "0x1F", "1_000", "017", ".inf"]
    assert read_yaml(text) == words
    assert read_yaml("[1, -2, 1.5, 1e3, true, ~, ]") == [1, -2, 1.5, 1000.0, True, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "", "is empty; write a lorebook in it"),
        ("a.yaml", "# nothing\n", "it holds neither fields nor a list"),
        ("a.json", " \n", "is empty"),
        ("a.json", "{", "line 1: this is not JSON"),
        ("a.json", "7", "it holds neither fields nor a list"),
        ("a.json", '{"name": "a", "name": "b"}', "the field 'name' is given twice"),
        ("a.json", '{"entries": NaN}', "NaN is not a number in JSON"),
        ("a.json", '{"entries": 1e999}', "the number inf is not finite"),
        ("a.json", '{"entries": 123456789012345678901}', "a number is too large"),
        ("a.json", '{"a\\ud800": 1, "a\\ud801": 1, "entries": []}', "broken characters only"),
        ("a.toml", "a." * 60 + "b = 1", "line 1: a key has more than 50 parts"),
        (
            "a.toml",
            "x = " + "'" * 3 + "a." * 60 + "'" * 3 + "\n[" + "a." * 60 + "b]",
            "line 2: a key has more",
        ),
        ("a.yaml", "a: {<<: 3}", "this is not YAML (`<<` takes a mapping"),
        ("a.json", "[" * 100_000, "too deep"),
        ("a.json", "[" * 60 + "]" * 60, "more than 50 deep"),
        ("a.json", "[" + "1" * 5000 + "]", "a number is too large"),
        ("a.yaml", "a: b\n c: d", "line 2: this is not YAML"),
        ("a.yaml", "a: b: c", "put text that holds a colon"),
        ("a.yaml", "name: a\nname: b", "line 2: the field 'name' is given twice"),
        ("a.yaml", "entries: !!python/object/apply:os.system [echo]", "remove the tag"),
        ("a.yaml", "entries: !secret x", "remove the tag"),
        ("a.yaml", "a: !!bool perhaps", "remove the tag"),
        ("a.yaml", "? [a, b]\n: c", "this is not YAML"),
        ("a.yaml", "1: x", "the field name 1 is not text; put it in quotes"),
        ("a.yaml", "a: 1\n--- \nb: 2", "this is not YAML"),
        ("a.yaml", "[" * 100_000, "more than 50 deep"),
        ("a.yaml", "a: &a [*a]", "the alias *a contains itself"),
        ("a.yaml", "a: *b", "this is not YAML"),
        ("a.yaml", "a: \x07", "this is not YAML"),
        ("a.toml", "a = ", "this is not TOML"),
        ("a.toml", "a = " + "[" * 100_000, "too deep"),
        ("a.toml", "a = inf", "the number inf is not finite"),
        ("a.yaml", b"caf\xe9: 1", "is not UTF-8 text (byte 0xe9 in line 1); save it as UTF-8"),
        ("a.yaml", "a: é".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.yaml", b"\x89PNG\r\n\x1a\n", "is a binary file"),
        ("a.yaml", b"ab\0\1\2", "is a binary file"),
        ("a.yaml", "name: a", "`entries` is missing; add it"),
        ("a.yaml", "name: Emma\ntext: x", "a single entry; put it into a list under `entries`"),
        ("a.yaml", "entries: {'0': {}}", "`entries` must be a list, but is fields (0)"),
        ("a.yaml", "name: a/b\nentries: []", "`name` 'a/b' holds '/'"),
        ("a.yaml", "entries: [{name: A, text: x}, {name: A, text: y}]", "names two entries 'A'"),
        ("a.yaml", "entries: [{name: A, text: x}, {name: a, text: y}]", "entry 1 and entry 2"),
        ("a.yaml", "entries: [{name: A}]", "entry 'A': it has neither text nor blocks"),
        ("a.yaml", "entries: [x]", "entry 1: it must be a mapping of fields"),
        ("a.yaml", "training: [1]\nentries: []", "`training` must be a mapping"),
        ("a.json", '[{"call": "a"}]', "item 1: `response` is missing; add it"),
        ("a.json", '[{"call": 1, "response": "a"}]', "item 1: `call` must be text"),
        ("a.json", '["call", ["response"]]', "item 1 must be {call, response}"),
        (
            "a.json",
            '[{"call": "a", "response": ""}]',
            "entry 'a', block 1, response 1: it is empty",
        ),
        ("a.json", '[{"call": "a", "response": null}]', "response 1: it must be text"),
    ],
)
def test_error_messages_name_the_file(save, name, content, message):
    assert message in error_message(save(content, name))


def test_a_yaml_bomb_is_refused_at_once(save):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "once its aliases are expanded" in error_message(save("\n".join(lines)))
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    assert "once its aliases are expanded" in error_message(save("\n".join(lines)))


def test_harmless_aliases_are_read(save):
    text = "entries:\n- &a {name: A, text: x, order: 7}\n- {<<: *a, name: B}"
    assert [(entry.name, entry.order) for entry in Lorebook.load(save(text))] == [
        ("A", 7),
        ("B", 7),
    ]


def test_files_that_are_no_files(tmp_path):
    assert "does not exist; check the name" in error_message(tmp_path / "none.yaml")
    assert "is a folder; expected a file; name a lorebook file" in error_message(tmp_path)
    with pytest.raises(LoreError, match="cannot be read"):
        Lorebook.load("a\0b")


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"")
    os.truncate(path, files.MAX_BYTES + 1)
    assert "16.0 MiB; expected at most 16 MiB" in error_message(path)
    if pathlib.Path("/dev/zero").exists():  # its size is said to be 0
        assert "at most 16 MiB" in error_message(pathlib.Path("/dev/zero"))


@pytest.mark.parametrize("name", ["out.yaml", "out.yml", "out.json"])
def test_saving_keeps_everything(save, tmp_path, name):
    book = Lorebook.load(save(YAML))
    book.save(tmp_path / name)
    again = Lorebook.load(tmp_path / name)
    assert again == book
    assert again.hash() == book.hash()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["lore.yaml", name])


def test_what_cannot_be_saved(tmp_path):
    book = Lorebook(name="book", entries=[Entry(name="Emma", text="x")])
    with pytest.raises(LoreError, match=r"saved as \.yaml or \.json"):
        book.save(tmp_path / "book.toml")
    with pytest.raises(StorageError, match="could not write"):
        book.save(tmp_path / "none" / "book.yaml")
    book["Emma"].text = ""
    with pytest.raises(LoreError, match="neither text nor blocks"):
        book.save(tmp_path / "book.yaml")
    book["Emma"].text = "\ud800"
    with pytest.raises(LoreError, match="broken character"):
        book.save(tmp_path / "book.yaml")
    assert list(tmp_path.iterdir()) == []
