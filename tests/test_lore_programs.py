"""What other programs' lorebooks say, in all the ways in which they say it."""

import copy
import json
import time

import pytest

import lore_samples as samples
from softlore.context.activation import activate
from softlore.errors import LoreError
from softlore.lore import Entry, Lorebook, files
from softlore.lore.formats.registry import EXPORTERS

GUN = {"keys": ["gun"], "content": "A gun.", "extensions": {}, "enabled": True,
       "insertion_order": 1}  # fmt: skip


def card(*entries):
    book = {"entries": list(entries), "extensions": {}}
    return {
        "spec": "chara_card_v2",
        "data": {"name": "Zoe", "description": "Zoe is a spy.", "character_book": book},
    }


def active(book, text):
    return [found.entry.name for found in activate(book, [text]).active]


# values that say nothing --------------------------------------------------------------------------

NUMBERS = (
    "depth", "scan_depth", "sticky", "cooldown", "delay", "group_weight", "probability", "role",
    "selectiveLogic", "delay_until_recursion", "position", "useProbability",
)  # fmt: skip


@pytest.mark.parametrize("nothing", ["", "  ", None])
@pytest.mark.parametrize("name", [*NUMBERS, "insertion_order", "case_sensitive"])
def test_nothing_in_the_place_of_a_number(name, nothing):
    if nothing == "  " and name in ("case_sensitive", "useProbability"):
        return  # a flag, where it is a fault
    on_top = name in ("insertion_order", "case_sensitive")
    given = GUN | ({name: nothing} if on_top else {"extensions": {name: nothing}})
    data = card(given, GUN | {"keys": ["coat"]})
    book = Lorebook.from_data(copy.deepcopy(data))
    gun = book["gun"]
    plain = Lorebook.from_data(card(GUN))["gun"]
    same = set(Entry.model_fields) - {"origin", "order", "case_sensitive"}
    assert {field: getattr(gun, field) for field in same} == {
        field: getattr(plain, field) for field in same
    }
    assert book.to_format("card-v2") == data


@pytest.mark.parametrize(
    "data",
    [
        card(GUN | {"keys": ["gun", None], "secondary_keys": [None]}),
        card(None, GUN, None),
        {"entries": {"0": {"key": ["gun", None], "content": "A gun.", "order": "", "depth": None},
                     "1": None}},
        {"lorebookVersion": 5, "entries": [
            {"text": "A gun.", "keys": ["gun", None], "contextConfig": {"budgetPriority": ""}}]},
        {"kind": "memory", "name": "b", "entries": [
            {"entry": "A gun.", "keywords": [None, "gun"], "weight": "", "enabled": None}]},
        {"worldinfo": [{"key": ["gun", None], "content": "A gun.", "probability": ""}, None]},
        {"type": "risu", "data": [{"key": "gun", "content": "A gun.", "insertorder": ""}, None]},
    ],
)  # fmt: skip
def test_nulls_in_lists_and_nothing_for_numbers(data):
    book = Lorebook.from_data(copy.deepcopy(data))
    assert book["gun"].keys == ["gun"]
    assert book.to_format(book.origin["format"].replace("card", "card-v2")) == data


# halves of characters -----------------------------------------------------------------------------

HALF = "\\ud83d"


@pytest.mark.parametrize("name", samples.FILES)
def test_half_an_emoji_anywhere(tmp_path, name):
    """JavaScript's `substring` cuts an emoji into halves."""
    data, to = samples.FILES[name]
    text = json.dumps(data).replace("Marta", "Marta" + HALF).replace("gun", "gun" + HALF)
    text = text.replace("Zo\\u00eb", "Zo\\u00eb" + HALF)
    assert HALF in text
    whole = Lorebook.from_data(copy.deepcopy(data), name="x")
    for book in (
        Lorebook.from_bytes(text.encode(), name),
        Lorebook.from_bytes(json.dumps(json.loads(text), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"), "x.json"),
        Lorebook.from_data(json.loads(text)),
    ):  # fmt: skip
        assert len(book) == len(whole)
        native = tmp_path / "native.yaml"
        book.save(native)
        assert "\ufffd" in json.dumps(Lorebook.load(native).to_format(to), ensure_ascii=False)


def test_two_halves_are_a_character():
    content = b'{"entries": {"0": {"key": ["gun"], "content": "A \\ud83d\\ude00 gun \\ude00."}}}'
    assert Lorebook.from_bytes(content, "x.json")["gun"].text == "A \U0001f600 gun \ufffd."


# dialects -----------------------------------------------------------------------------------------


def test_janitorais_list_is_not_koboldais():
    book = Lorebook.from_data(samples.JANITORAI, name="x")
    gun = book["Gun"]
    assert (gun.enabled, gun.order, gun.probability) == (False, 7, 60)
    assert (gun.group, gun.group_override, gun.group_weight) == ("arms", True, 30)
    assert (gun.secondary_keys, gun.selective_logic, gun.delay) == (["coat"], "not_any", 3)
    assert gun.match_whole_words is True
    assert active(book, "a gun") == []
    assert book.origin["format"] == "janitorai"


def test_risuais_lorebook():
    for data in (samples.RISUAI, samples.RISUAI_MODULE, samples.RISUAI_NEW_MODULE):
        book = Lorebook.from_data(data, name="x")
        gun, axe = book["Gun"], book["Axe"]
        assert (gun.keys, gun.secondary_keys) == (["gun", "pistol"], ["coat"])
        assert (gun.order, gun.probability, gun.case_sensitive) == (50, 40, True)
        assert (gun.position, gun.depth, gun.text) == ("at_depth", 2, "A gun.")
        assert (axe.keys, axe.constant) == (["/axes?/i"], True)
        assert book.name == ("x" if data is samples.RISUAI else "Arms")
        axe.enabled = False
        written = json.dumps(book.to_format("risuai"))
        assert '"alwaysActive": true' not in written
        back = Lorebook.from_data(json.loads(written))["Axe"]
        assert back.model_dump(exclude={"origin"}) == axe.model_dump(exclude={"origin"})


def test_a_risuai_key_in_slashes_is_text_unless_it_says_so():
    entry = {"key": "/gun/", "content": "A gun."}
    book = Lorebook.from_data({"type": "risu", "data": [entry, entry | {"useRegex": True}]})
    assert [found.keys for found in book] == [["/\\/gun\\//i"], ["/gun/"]]


def test_files_that_hold_a_lorebook():
    for data in (samples.NOVELAI_SCENARIO, samples.NOVELAI_STORY):
        book = Lorebook.from_data(data, name="x")
        assert (book.name, book["Marta"].order) == ("Harbour", 400)
    for data in (samples.AIDUNGEON_SCENARIO, samples.AIDUNGEON_RESPONSE):
        book = Lorebook.from_data(data, name="x")
        assert (book.name, book["Marta"].keys) == ("Harbour", ["Marta", "clockmaker"])
    old = {"title": "Harbour", "worldInfo": [{"keys": "gun", "entry": "A gun."}]}
    assert Lorebook.from_data(old)["gun"].text == "A gun."
    assert len(Lorebook.from_data({"scenarioVersion": 3, "title": "x"})) == 0


def test_an_agnai_character():
    book = Lorebook.from_data(samples.AGNAI_CHARACTER, name="x")
    zoe = book["Zoe"]
    assert zoe.text == "job: spy, clockmaker\nage: 30\nZoe wears a long red coat."
    assert (zoe.constant, book["Marta"].order, book.name) == (True, 3, "Town")
    zoe.text = "Zoe is a thief."
    written = book.to_format("agnai")
    assert written["persona"] == {"kind": "text", "attributes": {"text": ["Zoe is a thief."]}}
    assert written["characterBook"] == samples.AGNAI
    assert Lorebook.from_data(written)["Zoe"].text == "Zoe is a thief."
    del written["characterBook"]
    assert [entry.name for entry in Lorebook.from_data(written)] == ["Zoe"]
    memory = Lorebook.from_data(samples.AGNAI)  # which has no place for a character
    memory.entries.append(zoe)
    assert memory.to_format("agnai")["entries"][-1]["name"] == "Zoe"


ROW = {"key": ["gun"], "content": "A gun.", "comment": "Gun"}


@pytest.mark.parametrize(
    ("data", "enabled", "order"),
    [
        ({"entries": {"0": ROW | {"enabled": False, "insertion_order": 7}}}, False, 7),
        ({"entries": {"0": ROW | {"enabled": True, "disable": True}}}, False, 100),
        ({"entries": [ROW | {"disable": True, "order": 3, "name": "x"}]}, False, 3),
        ({"entries": {"0": GUN | {"enabled": False, "comment": "Gun"}}}, False, 1),
        ([{**ROW, "folder": None, "widisabled": True}], False, 100),
        ([{**ROW, "insertion_order": 3}], True, 3),
    ],
)
def test_dialects_say_who_is_enabled(data, enabled, order):
    book = Lorebook.from_data(data, name="lore")
    assert (book["Gun"].keys, book["Gun"].enabled) == (["gun"], enabled)
    assert book["Gun"].order == order
    if isinstance(data, dict):
        to = book.origin["format"]
        assert book.to_format(to) == data
        book["Gun"].enabled = not enabled
        assert Lorebook.from_data(book.to_format(to))["Gun"].enabled is not enabled


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([ROW | {"active": False}], "an unknown program: like KoboldAI's, but with `active`"),
        ([{"keys": "gun", "entry": "A gun.", "isOn": 0}], "but with `isOn`"),
        (
            [{"name": "Gun", "content": "A gun.", "enabled": True, "strategy": {"type": "x"},
              "position": {"type": "at_depth", "depth": 4}}],
            "Tavern Helper (`strategy`), which are not read",
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(data, message):
    with pytest.raises(LoreError) as caught:
        Lorebook.from_data(data)
    assert message in str(caught.value)
    with pytest.raises(LoreError, match="RisuAI's module in its binary form"):
        Lorebook.from_bytes(b"o\0\x10\0\0\0abc", "arms.risum")


def test_a_position_as_an_object():
    def entry(position):
        return Lorebook.from_data(card(GUN | {"position": position}))["gun"]

    assert entry({"type": "after_char"}).position == "after_char"
    assert entry({"type": "at_depth", "depth": 4}).position == "at_depth"
    assert entry({"x": 0}).position == "before_char"


def test_exporters_have_samples():
    assert {to for _, to in samples.FILES.values()} == {*EXPORTERS} - {"mkultra"}


# time ---------------------------------------------------------------------------------------------


def cpu_seconds(content, syntax):
    began = time.process_time()
    try:
        files.parse(content.encode(), "x", syntax)
    except LoreError as error:
        refusal = str(error)
        assert refusal.isprintable()
    return time.process_time() - began


def repeated(piece, size):
    parts, length, number = [], 0, 0
    while length < size:
        parts.append(piece.replace("#", str(number)))
        length, number = length + len(parts[-1]), number + 1
    return "".join(parts)


DEEP = ".".join("a" * 48)
SLOW = {
    "entries": ("yaml", "- name: n#\n  text: hello\n  keys: [a, b]\n"),
    "fields": ("yaml", "k#: 1\n"),
    "anchors": ("yaml", "- &a# x\n"),
    "tables": ("toml", "[t#]\na = 1\n"),
    "deep tables": ("toml", f"[{DEEP}.t#]\n"),
    "dotted keys": ("toml", f"{DEEP}.t# = 1\n"),
    "lists": ("toml", "[[entries]]\nname = '#'\n"),
}


@pytest.mark.parametrize("name", SLOW)
def test_time_is_linear(name):
    """Sixteen times the size takes some sixteen times the time, not 256 times."""
    syntax, piece = SLOW[name]
    short = min(cpu_seconds(repeated(piece, 2**15), syntax) for _ in range(3))
    assert cpu_seconds(repeated(piece, 2**19), syntax) < 64 * short + 0.5


@pytest.mark.parametrize("piece", ["a.", "'a'.", '"a".', "'", '"', '"\\', "'" * 3, '"' * 3, "a.'"])
def test_no_toml_takes_long(piece):
    assert cpu_seconds(piece * (files.MAX_TOML // len(piece)), "toml") < 30


def test_long_toml_is_refused():
    with pytest.raises(LoreError, match="longer than the 2 Mi characters"):
        files.parse(b"#" * (files.MAX_TOML + 1), "x.toml", "toml")
