"""Lorebooks of other programs: import, export and lossless round trips."""

import copy
import itertools
import json
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lore_samples as samples
from lore_samples import FILES
from softlore.context import activate
from softlore.errors import LoreError
from softlore.lore import Block, Entry, Lorebook, check
from softlore.lore.formats import key_syntax
from softlore.lore.formats.registry import EXPORTERS

TEXT_FORMATS = [name for name in EXPORTERS if name != "mkultra"]


def save(data, path):
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def exported(book, to, folder, suffix=""):
    """What is exported after a round trip through softlore's own file."""
    native = Path(folder) / "native.yaml"
    book.save(native)
    out = Path(folder) / f"out{suffix or EXPORTERS[to].suffix}"
    Lorebook.load(native).save(out, to)
    return json.loads(out.read_text(encoding="utf-8"))


def lore(entry):
    """An entry's fields, all but where it came from."""
    return {**entry.model_dump(exclude={"origin"}), "text": entry.text}


# round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_was_imported_goes_back_as_it_was(tmp_path, name, suffix):
    data, to = FILES[name]
    book = Lorebook.load(save(data, tmp_path / name))
    native = tmp_path / f"native{suffix}"
    book.save(native)
    assert Lorebook.load(native) == book
    out = tmp_path / "out.json"
    Lorebook.load(native).save(out, to)
    text = out.read_text(encoding="utf-8")
    assert json.loads(text) == data
    if name not in ("save.json",):  # the order of fields too
        assert json.dumps(json.loads(text)) == json.dumps(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("to", TEXT_FORMATS)
def test_every_format_to_every_other_and_back_here(tmp_path, name, to):
    book = Lorebook.load(save(FILES[name][0], tmp_path / name))
    out = tmp_path / "other.json"
    book.save(out, to)
    back = Lorebook.load(out, name=book.name)
    found = {entry.name: lore(entry) for entry in back}
    assert found == {entry.name: lore(entry) for entry in book}
    if to != "aidungeon":  # a bare list has no name
        assert back.name == book.name
    unnamed = "{{char}}" if to.startswith("card") else "-"  # a card gives a name
    assert check(back) == [line for line in check(book) if unnamed not in line]


NATIVE = Lorebook(
    name="harbour town",
    model="storyteller",
    training={"n_tokens": 20},
    entries=[
        Entry(
            name="Marta",
            text="Marta makes clocks.",
            keys=["Marta", "a, b", "/x,y/i", "salt & pepper", "who?", "/x"],
            secondary_keys=["coat", "/r[ae]d/"],
            selective_logic="not_all",
            blocks=[("Marta wore", [" red.", " a coat."])],
            held_out=[("Marta was dressed in", [" red."])],
            use="soft",
            enabled=False,
            sticky=4,
            position="outlet",
            folder="people",
        ),
        Entry(name="Bram", blocks=[("Bram owns", [" the inn."])], keys=["Bram"]),
        Entry(name="Fog", text="@@depth is no decorator of mine", use="text", order=-3),
    ],
)


@pytest.mark.parametrize("to", TEXT_FORMATS)
def test_what_is_softlores_own_survives_other_programs(tmp_path, to):
    out = tmp_path / "other.json"
    NATIVE.save(out, to)
    back = Lorebook.load(out, name="harbour town")
    found = {entry.name: lore(entry) for entry in back}
    if to in ("sillytavern", "card-v2", "card-v3", "lorebook-v3", "character-book"):
        fog = found["Fog"]  # its first line reads as a decorator there
        assert fog.pop("text") == NATIVE["Fog"].text
        found["Fog"] = fog | {"text": NATIVE["Fog"].text}
    assert found == {entry.name: lore(entry) for entry in NATIVE}
    if isinstance(json.loads(out.read_text()), dict):
        assert (back.name, back.model, back.training) == (
            NATIVE.name,
            NATIVE.model,
            NATIVE.training,
        )


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, (_, to) in FILES.items()])
def test_changes_go_back_and_nothing_else_does(tmp_path, name, to):
    data, _ = FILES[name]
    book = Lorebook.load(save(data, tmp_path / name))
    entry = next(entry for entry in book if entry.origin.get("part") is None)
    entry.text = "A new text."
    entry.keys = ["new key"]
    written = exported(book, to, tmp_path)
    assert written != data
    reread = Lorebook.load(save(written, tmp_path / name))
    assert (reread[entry.name].text, reread[entry.name].keys) == ("A new text.", ["new key"])
    unchanged = [one for one in reread if one.name != entry.name]
    assert unchanged == [one for one in book if one.name != entry.name]


def test_deleted_added_and_renamed_entries(tmp_path):
    book = Lorebook.load(save(samples.SILLYTAVERN, tmp_path / "world.json"))
    book.entries = [entry for entry in book if entry.name != "Marta clocks 2"]
    book["Marta clocks"].name = "Old Marta"
    book.entries.append(Entry(name="Fog", text="Fog is thick.", keys=["fog"]))
    written = exported(book, "sillytavern", tmp_path)["entries"]
    assert list(written) == ["0", "9", "7", "10"]
    assert written["7"] == samples.SILLYTAVERN["entries"]["7"]
    assert written["0"] == samples.SILLYTAVERN["entries"]["0"] | {"comment": "Old Marta"}
    assert (written["10"]["uid"], written["10"]["comment"]) == (10, "Fog")


def test_new_entries_of_a_card_have_numbers_that_no_other_has(tmp_path):
    book = Lorebook.load(save(samples.CARD_V2, tmp_path / "card.json"))
    book.entries += [Entry(name="Fog", text="Fog."), Entry(name="Rain", text="Rain.")]
    entries = exported(book, "card-v2", tmp_path)["data"]["character_book"]["entries"]
    assert [entry.get("id") for entry in entries] == [5, None, None, None, 6, 7]


# import -------------------------------------------------------------------------------------------


def test_sillytavern(tmp_path):
    book = Lorebook.load(save(samples.SILLYTAVERN, tmp_path / "The town (1).json"))
    assert book.name == "The town 1"
    assert [entry.name for entry in book] == ["Marta clocks", "Marta clocks 2", "harbour"]
    assert book["Marta clocks"].model_dump(exclude={"origin"}) == Entry(
        name="Marta clocks",
        keys=["Marta", "/clock(?:maker|s)?/i"],
        text="Marta is the clockmaker of the town.\nShe wears a long red coat.",
        secondary_keys=["coat", "spectacles"],
        selective_logic="and_all",
        order=120,
        position="at_depth",
        depth=2,
        role="user",
        scan_depth=6,
        case_sensitive=True,
        match_whole_words=False,
        probability=75,
        ignore_budget=True,
        exclude_recursion=True,
        prevent_recursion=True,
        delay_until_recursion=2,
        group="people",
        group_override=True,
        group_weight=40,
        sticky=3,
        cooldown=4,
        delay=5,
    ).model_dump(exclude={"origin"})
    second = book["Marta clocks 2"]
    assert (second.enabled, second.constant, second.probability) == (False, True, 100)
    harbour = book["harbour"]
    assert (harbour.text, harbour.constant) == ("The harbour freezes.", True)


def test_a_card(tmp_path):
    book = Lorebook.load(save(samples.CARD_V2, tmp_path / "card.json"))
    assert book.name == "People"
    assert [entry.name for entry in book] == ["Zoë", "Emma", "Bram", "dra w i"]
    zoe, emma, bram, dragons = book
    assert zoe.text == "Zoë is a night watch.\nZoë is patient."
    assert (zoe.keys, zoe.constant) == (["Zoë"], True)
    assert emma.text == "Zoë knows Emma, a spy."
    assert (emma.position, emma.depth, emma.role) == ("at_depth", 4, "user")
    assert (emma.order, emma.probability, emma.selective_logic) == (50, 60, "not_any")
    assert (emma.case_sensitive, emma.match_whole_words, emma.sticky) == (True, True, 2)
    assert (emma.keys, emma.secondary_keys) == (["Emma", "spy"], ["gun"])  # SillyTavern's
    assert (bram.enabled, bram.order, bram.position) == (False, 3, "before_char")
    assert dragons.keys == [r"/dra\w+/i", r"/a\/b/i"]  # of a program that means use_regex


def test_a_card_without_a_book(tmp_path):
    book = Lorebook.load(save(samples.CARD_V1, tmp_path / "card.json"))
    assert [(entry.name, entry.text) for entry in book] == [("Zoë", "A night watch.")]
    assert book.name == "Zoë"
    written = exported(book, "card-v2", tmp_path)
    assert written["spec"] == "chara_card_v2"
    assert written["data"] == samples.CARD_V1
    book.name = "My watch"
    assert Lorebook.from_data(exported(book, "card-v2", tmp_path)).name == "My watch"


def test_a_cards_character_goes_back_to_the_card(tmp_path):
    book = Lorebook.load(save(samples.CARD_V3, tmp_path / "card.json"))
    zoe = book["Zoë"]
    zoe.text, zoe.name, zoe.use = "Zoë sleeps by day.", "Zoe", "soft"
    zoe.blocks = [Block(call="Zoë wore", responses=[" grey."])]
    written = exported(book, "card-v3", tmp_path)["data"]
    assert (written["name"], written["description"]) == ("Zoe", "Zoë sleeps by day.")
    assert written["personality"] == ""
    assert written["first_mes"] == samples.CARD_V3["data"]["first_mes"]
    assert written["character_book"] == samples.BOOK
    assert lore(Lorebook.from_data({"spec": "chara_card_v3", "data": written})["Zoe"]) == lore(zoe)
    tavern = exported(book, "sillytavern", tmp_path)["entries"]
    assert next(iter(tavern.values()))["comment"] == "Zoe"
    assert len(tavern) == 4


def test_versions_of_a_card(tmp_path):
    book = Lorebook.load(save(samples.CARD_V2, tmp_path / "card.json"))
    third = exported(book, "card-v3", tmp_path)
    assert (third["spec"], third["spec_version"]) == ("chara_card_v3", "3.0")
    assert third["data"]["group_only_greetings"] == []
    uses = [entry["use_regex"] for entry in third["data"]["character_book"]["entries"]]
    assert uses == [True, False, False, True]
    assert lore(Lorebook.from_data(third)["Bram"]) == lore(book["Bram"])


def test_a_new_card_has_a_name(tmp_path):
    NATIVE.save(tmp_path / "card.json", "card-v3")
    data = json.loads((tmp_path / "card.json").read_text())["data"]
    assert (data["name"], data["character_book"]["name"]) == ("harbour town", "harbour town")
    bram = data["character_book"]["entries"][1]
    assert bram["content"] == "[[soft:Bram]]"
    assert bram["extensions"]["softlore"]["fields"]["blocks"][0]["call"] == "Bram owns"


def test_what_sillytavern_knows_goes_into_a_card_and_back(tmp_path):
    book = Lorebook.load(save(samples.SILLYTAVERN, tmp_path / "world.json"))
    card = exported(book, "card-v2", tmp_path)
    entry = card["data"]["character_book"]["entries"][0]
    assert entry["extensions"]["position"] == 4
    assert entry["extensions"]["automation_id"] == "bell"
    assert (entry["position"], entry["insertion_order"]) == ("after_char", 120)
    assert (entry["name"], entry["case_sensitive"]) == ("Marta (clocks)", True)
    back = exported(Lorebook.from_data(card), "sillytavern", tmp_path)["entries"]["0"]
    first = samples.SILLYTAVERN["entries"]["0"]
    shared = first.keys() - {"characterFilter", "from a later version", "addMemo"}
    assert {key: back[key] for key in shared} == {key: first[key] for key in shared}


def test_novelai(tmp_path):
    marta, inn = Lorebook.load(save(samples.NOVELAI, tmp_path / "town.lorebook"))
    assert (marta.name, inn.name) == ("Marta", "inn")
    assert (marta.constant, marta.order, inn.enabled) == (True, 400, False)
    word, both, pattern = marta.keys
    assert (word, pattern) == ("Marta", "/clocks?/i")
    found = re.compile(both[1:-2], re.IGNORECASE)
    assert found.search("A long coat,\nand RED.")
    assert not found.search("A long coat, and reddish.")


def test_secondary_keys_for_novelai(tmp_path):
    entry = Entry(name="E", text="x", keys=["a", "b"], secondary_keys=["c", "d"])
    book = Lorebook(name="book", entries=[entry])
    written = exported(book, "novelai", tmp_path)["entries"][0]["keys"]
    assert written == ["a & c", "a & d", "b & c", "b & d"]
    entry.selective_logic = "and_all"
    assert exported(book, "novelai", tmp_path)["entries"][0]["keys"] == ["a & c & d", "b & c & d"]


def test_koboldai(tmp_path):
    marta, inn = Lorebook.load(save(samples.KOBOLDAI, tmp_path / "save.json"))
    assert marta.keys == ["Marta", "/clocks?,? /i", "clockmaker"]
    assert (marta.secondary_keys, marta.selective, marta.probability) == (["coat"], True, 50)
    assert (marta.group, marta.selective_logic) == ("people", "and_any")
    assert (inn.secondary_keys, inn.selective_logic) == (["fire", "ash"], "not_any")
    assert (inn.constant, inn.enabled, inn.selective) == (True, False, True)


def test_secondary_keys_for_koboldai(tmp_path):
    book = Lorebook.load(save(samples.KOBOLDAI, tmp_path / "save.json"))
    marta, inn = book
    marta.selective_logic, marta.secondary_keys = "not_any", ["ash"]
    inn.selective_logic = "and_any"
    written = exported(book, "koboldai", tmp_path)["worldinfo"]
    assert [(e["keysecondary"], e["keyanti"]) for e in written[:2]] == [
        ("", "ash"),
        ("fire,ash", ""),
    ]
    assert [lore(entry) for entry in Lorebook.from_data(written)] == [lore(marta), lore(inn)]


def test_aidungeon(tmp_path):
    book = Lorebook.load(save(samples.AIDUNGEON, tmp_path / "cards.json"))
    assert [(entry.name, entry.keys) for entry in book] == [
        ("Marta", ["Marta", "clockmaker"]),
        ("fog", ["fog"]),
    ]
    book["fog"].enabled = False
    assert exported(book, "aidungeon", tmp_path)[2]["keys"] == ""


def test_agnai(tmp_path):
    book = Lorebook.load(save(samples.AGNAI, tmp_path / "memory.json"))
    marta, other = book
    assert (book.name, marta.name, other.name) == ("Town", "Marta", "marta 2")
    assert (marta.order, other.order, other.enabled) == (3, 0, False)
    word, clocks, dog = marta.keys
    assert word == "Marta"
    texts = ["two clocks", "an xclock", "dig it", "digs"]
    assert [bool(re.search(clocks[1:-2], text)) for text in texts] == [True, False, False, False]
    assert [bool(re.search(dog[1:-2], text)) for text in texts] == [False, False, True, False]


def test_mkultra(tmp_path):
    NATIVE.save(tmp_path / "data.json", "mkultra")
    pairs = json.loads((tmp_path / "data.json").read_text())
    assert pairs[0] == {"call": "Marta wore", "response": " red."}
    assert len(pairs) == 3
    assert len(Lorebook.load(tmp_path / "data.json")["data"].blocks) == 2
    with pytest.raises(LoreError, match="no blocks, and mkultra's data holds nothing else"):
        Lorebook(name="b", entries=[Entry(name="E", text="x")]).save(tmp_path / "x.json", "mkultra")


def test_an_order_where_the_place_is_all_there_is(tmp_path):
    entries = [Entry(name="A", text="a", order=9), Entry(name="B", text="b", order=2)]
    book = Lorebook(name="book", entries=entries)
    assert [card["title"] for card in exported(book, "aidungeon", tmp_path)] == ["B", "A"]


# extras -------------------------------------------------------------------------------------------


def test_what_another_program_changed_holds(tmp_path):
    NATIVE.save(tmp_path / "world.json", "sillytavern")
    data = json.loads((tmp_path / "world.json").read_text())
    marta = data["entries"]["0"]
    assert marta["content"] == "[[soft:Marta]]"
    marta["content"], marta["sticky"] = "Marta sells clocks now.", 9
    entry = Lorebook.from_data(data)["Marta"]
    assert (entry.text, entry.sticky) == ("Marta sells clocks now.", 9)
    assert (entry.use, len(entry.blocks)) == ("soft", 1)


@pytest.mark.parametrize(
    "own", [7, {"fields": 7}, {"fields": {"origin": 7, "name": 7}}, {"fields": {}, "instead_of": 7}]
)
def test_invalid_extras(own):
    data = copy.deepcopy(samples.SILLYTAVERN)
    data["entries"]["0"]["softlore"] = own
    data["softlore"] = own
    assert Lorebook.from_data(data)["Marta clocks"].sticky == 3


def test_an_entry_of_a_tag_alone_holds_no_lore(tmp_path):
    data = {"entries": {"0": {"key": ["a"], "content": " [[soft:Emma]]\n"}}}
    book = Lorebook.load(save(data, tmp_path / "world.json"))
    assert len(book) == 0
    assert exported(book, "sillytavern", tmp_path) == data


# decorators ---------------------------------------------------------------------------------------


def decorated(*lines, **fields):
    content = "\n".join([*lines, "The text."])
    theirs = {"keys": ["k"], "content": content, "insertion_order": 1, "name": "E", **fields}
    return Lorebook.from_data({"spec": "lorebook_v3", "data": {"name": "b", "entries": [theirs]}})


def content_of(book, folder):
    return exported(book, "lorebook-v3", folder)["data"]["entries"][0]["content"]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("@@depth 3", {"position": "at_depth", "depth": 3}),
        ("@@role assistant", {"role": "assistant"}),
        ("@@scan_depth 9", {"scan_depth": 9}),
        ("@@position after_desc", {"position": "after_char"}),
        ("@@activate", {"constant": True}),
        ("@@dont_activate", {"enabled": False}),
        ("@@additional_keys a, b", {"secondary_keys": ["a", "b"], "selective_logic": "and_any"}),
        ("@@exclude_keys a", {"secondary_keys": ["a"], "selective_logic": "not_any"}),
        ("@@depth deep", {"position": "before_char"}),
        ("@@depth " + "9" * 5000, {"position": "before_char"}),
        ("@@role cook\r", {"role": "system"}),
        ("@@position personality", {"position": "before_char"}),
        ("@@is_greeting 2", {}),
        ("@@@fallback", {}),
        ("@@", {}),
    ],
)
def test_decorators(tmp_path, line, fields):
    book = decorated(line)
    entry = book["E"]
    assert entry.text == "The text."
    assert {name: getattr(entry, name) for name in fields} == fields
    assert content_of(book, tmp_path) == f"{line}\nThe text."
    entry.text = "Another."
    assert content_of(book, tmp_path) == f"{line}\nAnother."


def test_a_decorator_gives_way_to_what_was_changed(tmp_path):
    book = decorated(
        "@@is_greeting 1", "@@depth 3", "@@depth 5", "@@activate", position="after_char"
    )
    entry = book["E"]
    assert (entry.position, entry.depth) == ("at_depth", 3)
    entry.depth = 6
    assert content_of(book, tmp_path) == "@@is_greeting 1\n@@activate\nThe text."
    back = Lorebook.from_data(exported(book, "lorebook-v3", tmp_path))["E"]
    assert (back.position, back.depth, back.constant) == ("at_depth", 6, True)


# keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a,b", ["a", "b"]),
        (" a , , b c ,", ["a", "b c"]),
        ("", []),
        ("/a,b/i, c", ["/a,b/i", "c"]),
        (r"/a\/,b/, c", [r"/a\/,b/", "c"]),
        ("/a,b", ["/a", "b"]),
        ("and/or, x", ["and/or", "x"]),
        ("/a,b/ c", ["/a", "b/ c"]),
    ],
)
def test_comma_lists(text, keys):
    assert key_syntax.split_list(text) == keys


@given(st.text("ab &/\\*?.()[]{}^$|+,\nß", max_size=12).filter(str.strip))
@settings(max_examples=300)
def test_ampersands_and_wildcards_come_back(key):
    there = key_syntax.from_ampersands(key)
    parts = [part.strip() for part in key.split("&")]
    assert key_syntax.to_ampersands(there) in (key, " & ".join(parts))
    there = key_syntax.from_wildcards(key)
    assert key_syntax.to_wildcards(there) in (key, re.sub(r"\*+", "*", key))
    for made in (key_syntax.from_ampersands(key), key_syntax.from_wildcards(key)):
        if made != key:
            assert key_syntax.is_regex(made)
            re.compile(made[1:-2])


def test_no_key_takes_long():
    began = time.process_time()
    wild = key_syntax.from_wildcards("a*a*a*b")
    assert re.search(wild[1:-2], "a" * 20_000 + " " + "a" * 20_000) is None
    every = key_syntax.from_ampersands(" & ".join("abcdefghij"))
    assert re.search(every[1:-2], "a b c d e f g h i " * 2_000) is None
    assert key_syntax.from_wildcards("a*" * 4) == "a*" * 4
    for text in (",/" * 100_000, "/a" * 100_000, "/" + "\\/" * 100_000, " " * 100_000 + "x"):
        key_syntax.split_list(text)
        key_syntax.is_regex(text)
        key_syntax.from_wildcards(text)
        key_syntax.from_ampersands(text)
    assert time.process_time() - began < 5


# properties ---------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
wordlists = st.none() | st.lists(texts, max_size=3)
commas = texts | st.lists(texts, max_size=2)
flags = st.none() | st.booleans() | st.sampled_from([0, 1])
numbers = st.none() | st.integers(-5, 300) | st.floats(0, 100) | st.sampled_from(["7", "100"])
contents = texts | st.sampled_from(["@@depth 2\n@@x\nlore\n", "@@activate\n@@dont_activate\nx"])
CARD_FIELDS = {
    "keys": wordlists, "content": contents, "enabled": flags, "insertion_order": numbers,
    "case_sensitive": flags, "use_regex": st.booleans(), "constant": flags, "name": texts,
    "comment": texts, "selective": flags, "secondary_keys": wordlists, "id": numbers,
    "position": st.sampled_from(["before_char", "after_char", "", 3]),
    "extensions": values | st.fixed_dictionaries({}, optional={
        "position": numbers, "depth": numbers, "role": numbers, "selectiveLogic": numbers,
        "probability": numbers, "useProbability": flags, "case_sensitive": flags, "sticky": numbers,
        "group": texts, "scan_depth": numbers, "delay_until_recursion": flags, "x": values,
    }),
}  # fmt: skip
FIELDS = {
    "sillytavern": {
        "uid": numbers, "key": wordlists, "keysecondary": wordlists, "comment": texts,
        "content": contents, "constant": flags, "selective": flags, "selectiveLogic": numbers,
        "order": numbers, "position": numbers, "depth": numbers, "role": numbers, "disable": flags,
        "probability": numbers, "useProbability": flags, "group": texts, "scanDepth": numbers,
        "caseSensitive": flags, "sticky": numbers, "delayUntilRecursion": flags | numbers,
    },
    "lorebook-v3": CARD_FIELDS,
    "novelai": {
        "text": texts, "displayName": texts, "id": texts, "keys": wordlists, "enabled": flags,
        "forceActivation": flags, "searchRange": numbers,
        "contextConfig": values | st.fixed_dictionaries({"budgetPriority": numbers}),
    },
    "koboldai": {
        "key": commas, "keysecondary": commas, "keyanti": commas, "content": texts,
        "comment": texts, "selective": flags, "constant": flags, "probability": numbers,
        "wigroup": texts, "widisabled": flags,
    },
    "aidungeon": {"keys": commas, "value": texts, "type": texts, "title": texts},
    "agnai": {
        "name": texts, "entry": texts, "keywords": wordlists, "priority": numbers,
        "weight": numbers, "enabled": flags,
    },
}  # fmt: skip
NEEDED = {"key", "keys", "content", "value"}  # what a file is known by
SHELLS = {
    "sillytavern": lambda rows, more: {
        **more,
        "entries": {str(3 * n): row for n, row in enumerate(rows)},
    },
    "lorebook-v3": lambda rows, more: {
        "spec": "lorebook_v3",
        "data": {"name": "b", "x": more, "entries": rows},
    },
    "novelai": lambda rows, more: {**more, "lorebookVersion": 6, "entries": rows},
    "koboldai": lambda rows, more: {**more, "worldinfo": rows},
    "aidungeon": lambda rows, more: rows,
    "agnai": lambda rows, more: {**more, "kind": "memory", "name": "b", "entries": rows},
}
unknown = st.dictionaries(
    texts.filter(lambda key: key not in {"softlore", "spec", "entries", "worldinfo"}),
    values,
    max_size=2,
)


@st.composite
def files_of(draw, to):
    known = FIELDS[to]
    rows = st.fixed_dictionaries(
        {key: value for key, value in known.items() if key in NEEDED},
        optional={key: value for key, value in known.items() if key not in NEEDED},
    )
    entry = st.tuples(unknown, rows).map(lambda two: {**two[0], **two[1]})
    least = 1 if to == "aidungeon" else 0  # an empty list is a lorebook of softlore's own
    return SHELLS[to](draw(st.lists(entry, min_size=least, max_size=3)), draw(unknown))


def read(data):
    """Reads a file's data; None if it is rejected."""
    try:
        return Lorebook.from_data(data, name="lore")
    except LoreError as error:
        refusal = str(error)
    assert refusal.isprintable()
    return None


@pytest.mark.parametrize("to", FIELDS)
@given(data=st.data())
@settings(max_examples=80)
def test_any_file_comes_back_the_same(to, data):
    original = data.draw(files_of(to))
    book = read(original)
    if book is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        assert exported(book, to, folder) == original


@pytest.mark.parametrize(("to", "other"), list(itertools.permutations(FIELDS, 2)))
@given(data=st.data())
@settings(max_examples=8)
def test_any_file_survives_another_format(to, other, data):
    book = read(data.draw(files_of(to)))
    if book is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        written = exported(book, other, folder)
    back = Lorebook.from_data(written, name="lore")
    if book.entries:
        assert {entry.name: lore(entry) for entry in back} == {e.name: lore(e) for e in book}


@given(
    data=st.recursive(
        values,
        lambda inner: (
            st.dictionaries(
                st.sampled_from(
                    "spec data entries key keys content worldinfo lorebookVersion kind name value "
                    "text extensions character_book description first_mes softlore fields "
                    "origin".split()
                ),
                inner | st.sampled_from(["memory", "chara_card_v2", "lorebook_v3"]),
                max_size=6,
            )
            | st.lists(inner, max_size=3)
        ),
        max_leaves=30,
    )
)
@settings(max_examples=500)
def test_no_data_breaks_the_importers(data):
    book = read(data)
    if book is not None:
        for name in TEXT_FORMATS:
            json.dumps(book.to_format(name))


near_origins = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["card", *TEXT_FORMATS]),
        "name": texts,
        "data": values | st.sampled_from([data for data, _ in FILES.values()]),
    },
    optional={
        "part": st.just("subject") | values,
        "key": values,
        "title": values,
        "without_lore": values
        | st.lists(st.fixed_dictionaries({"place": numbers, "data": values, "key": values})),
    },
)
near_entries = near_origins | st.builds(
    lambda origin, data: {**origin, "data": data},
    near_origins,
    st.sampled_from([*FIELDS.values()]).flatmap(
        lambda known: st.fixed_dictionaries({}, optional=dict.fromkeys(known, values))
    ),
)


@given(book=near_origins, entries=st.lists(near_entries, max_size=2))
@settings(max_examples=300)
def test_no_origin_breaks_the_exporters(book, entries):
    """Origins are part of softlore's own files, which come from strangers too."""
    made = [Entry(name=f"E {n}", text="x", origin=origin) for n, origin in enumerate(entries)]
    lorebook = Lorebook(name="book", entries=made, origin=book)
    for to in TEXT_FORMATS:
        message = ""
        try:
            json.dumps(lorebook.to_format(to))
        except LoreError as error:
            message = str(error)
        assert "\n" not in message


def test_the_characters_name_stands_in_keys_and_comes_back_as_the_macro(tmp_path):
    entry = {
        "keys": ["{{char}}", "/<BOT>'s (gun|hat)/i"],
        "secondary_keys": ["{{CHAR}} Smith", "{{user}}"],
        "selective": True,
        "content": "{{char}} has a gun.",
        "extensions": {},
        "enabled": True,
        "insertion_order": 1,
    }
    data = {"name": "Dr. Zoe", "description": "A spy.", "character_book": {"entries": [entry]}}
    card = {"spec": "chara_card_v2", "spec_version": "2.0", "data": data}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card))
    book = Lorebook.load(path)
    gun = book.entries[1]
    assert gun.keys == ["Dr. Zoe", r"/Dr\. Zoe's (gun|hat)/i"]
    assert gun.secondary_keys == ["Dr. Zoe Smith", "{{user}}"]
    assert gun.name == "Dr. Zoe 2"
    found = activate([book.resolved().entries[1]], ["It was dr. zoe's hat.", "You: Dr. Zoe came."])
    assert [(one.entry, one.key) for one in found.active] == [
        (book.resolved().entries[1], "Dr. Zoe")
    ]
    again = exported(book, "card-v2", tmp_path, ".json")["data"]["character_book"]["entries"][0]
    assert {name: again[name] for name in ("keys", "secondary_keys", "content")} == {
        name: entry[name] for name in ("keys", "secondary_keys", "content")
    }
