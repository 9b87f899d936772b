"""Stories from and to other programs' files: nothing that a format can hold is lost."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlore.errors import SoftloreError, StorageError, StoryError, StoryFileError
from softlore.story import Story, StoryDraft, StoryLibrary, StorySettings, files
from softlore.story.files import koboldai, markdown, read_story, write_story

WORLD = [
    {
        "key": "Marta,clockmaker",
        "keysecondary": "",
        "content": "Marta wears a red coat.",
        "comment": "",
        "folder": None,
        "selective": False,
        "constant": False,
        "probability": "100",
    }
]
LITE = {  # the fields of a save by KoboldAI Lite
    "gamestarted": True,
    "prompt": "The harbour lay still.",
    "memory": "Marta is the clockmaker.",
    "authorsnote": "Slow, and wistful.",
    "anotetemplate": "[Style: <|>]",
    "actions": [" A bell rang.", "\n{{[INPUT]}}\nLook.\n{{[OUTPUT]}}\n", "Gulls.", "\n\n> Go\n\n"],
    "actions_metadata": {},
    "worldinfo": WORLD,
    "wifolders_d": {},
    "wifolders_l": [],
    "extrastopseq": "",
    "anotestr": 320,
    "wisearchdepth": 0,
    "personas": None,
    "savedsettings": {"temperature": 0.75, "sampler_order": [6, 0, 1], "autosave": True},
    "something of the future": {"a": [1, 2.5, "é 😀"]},
}  # fmt: skip
DRAFT = StoryDraft(
    StorySettings(
        title="Harbour: a story",
        memory="Marta is the clockmaker.\nShe wears red.\n---\n",
        note="Slow.",
        note_depth=2,
        seed=7,
        sampling={"temperature": 0.8},
        extra={"of the future": [1, {"a": None}]},
    ),
    (("writer", "The harbour "), ("model", "lay still.\n\n---\n<!--model-->"), ("model", "")),
)

ANY_TEXT = st.text(max_size=30) | st.lists(
    st.sampled_from(
        ["<!--", "\\", "model", "-->", "writer", "<!--model-->", "\n", "---\n", "\r\n"]
    ),
    max_size=8,
).map("".join)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
KNOWN = {*StorySettings().to_dict(), "extra", "koboldai", "softlore-story"}
SETTINGS = st.builds(
    StorySettings,
    title=ANY_TEXT,
    memory=ANY_TEXT,
    note=ANY_TEXT,
    note_template=ANY_TEXT,
    lorebook=ANY_TEXT,
    note_depth=st.integers(0, 9),
    seed=st.none() | st.integers(0, 2**63 - 1),
    sampling=st.dictionaries(ANY_TEXT, PLAIN, max_size=3),
    extra=st.dictionaries(ANY_TEXT.filter(lambda name: name not in KNOWN), PLAIN, max_size=3),
)
TURNS = st.lists(st.tuples(st.sampled_from(["writer", "model"]), ANY_TEXT), max_size=6).map(tuple)
DRAFTS = st.builds(StoryDraft, SETTINGS, TURNS)


@pytest.fixture
def save(tmp_path):
    def write(content, name="save.json"):
        path = tmp_path / name
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
        return path

    return write


BOMB = "---\nsoftlore-story: 1\nc0: &c0 [x]\n"
for _n in range(1, 9):
    BOMB += f"c{_n}: &c{_n} [{', '.join([f'*c{_n - 1}'] * 9)}]\n"
BOMB += "---\n"


# round trips -------------------------------------------------------------------------------------


@given(DRAFTS)
def test_markdown_reads_back_exactly(draft):
    text = markdown.write(draft)
    assert markdown.recognizes(text)
    assert not koboldai.recognizes(text)
    assert markdown.read(text) == draft


@given(DRAFTS)
def test_a_save_reads_back_exactly(draft):
    text = koboldai.write(draft)
    assert koboldai.recognizes(text)
    found = koboldai.read(text)
    others = dict(found.settings.extra)
    assert others.pop("koboldai") == {"gamestarted": True, "actions_metadata": {}, "worldinfo": []}
    assert found.settings.changed(extra=others) == draft.settings
    assert found.turns == draft.turns
    again = koboldai.read(koboldai.write(found))
    assert again == found


@pytest.mark.parametrize("name", ["a.json", "a.md", "a.markdown", "a.txt"])
def test_a_story_goes_out_and_comes_back(name, tmp_path):
    path = tmp_path / name
    with Story.create(tmp_path / "a.story", DRAFT) as story:
        story.add("another branch")
        story.undo()
        write_story(story, path)
    found = read_story(path)
    assert found.text == DRAFT.text
    if name == "a.txt":
        assert path.read_text() == DRAFT.text
        assert found == StoryDraft(turns=(("writer", DRAFT.text),))
        return
    assert found.turns == DRAFT.turns
    kept = {name: found.settings.extra[name] for name in DRAFT.settings.extra}
    assert found.settings.changed(extra=kept) == DRAFT.settings
    with StoryLibrary(tmp_path).create("back", found) as story:
        assert story.draft().turns == DRAFT.turns


def test_a_format_can_be_named(tmp_path):
    write_story(DRAFT, tmp_path / "a", "markdown")
    assert read_story(tmp_path / "a") == DRAFT
    write_story(DRAFT, tmp_path / "a", "koboldai")
    assert read_story(tmp_path / "a").turns == DRAFT.turns


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("a.doc", None, "ends in one of .json, .md, .markdown, .txt"),
        ("a", None, "ends in one of"),
        (
            "a.txt",
            "word",
            "there is no story format 'word'; expected one of koboldai, markdown, text",
        ),
    ],
)
def test_formats_that_are_not_known(name, format, message, tmp_path):
    with pytest.raises(StoryError, match=message):
        write_story(DRAFT, tmp_path / name, format)
    assert list(tmp_path.iterdir()) == []


def test_where_the_disk_refuses(tmp_path):
    with pytest.raises(StorageError, match="make the folder first"):
        write_story(DRAFT, tmp_path / "missing" / "a.md")
    for path in (tmp_path / "missing.md", tmp_path):
        with pytest.raises(StorageError, match="could not read"):
            read_story(path)


# KoboldAI ----------------------------------------------------------------------------------------


def test_a_save_of_kobold_lite(save, tmp_path):
    draft = read_story(save(LITE))
    settings = draft.settings
    assert settings.memory == "Marta is the clockmaker."
    assert (settings.note, settings.note_template) == ("Slow, and wistful.", "[Style: <|>]")
    assert draft.turns == (
        ("writer", "The harbour lay still."),
        ("model", " A bell rang."),
        ("writer", LITE["actions"][1]),
        ("model", "Gulls."),
        ("writer", "\n\n> Go\n\n"),
    )
    assert draft.lorebook == WORLD
    with StoryLibrary(tmp_path).create("lite", draft) as story:
        write_story(story, tmp_path / "back.json")
    found = json.loads((tmp_path / "back.json").read_text(encoding="utf-8"))
    ours = found.pop("softlore")
    assert found == LITE
    assert ours["by"] == ["writer", "model", "writer", "model", "writer"]


def test_world_info_can_be_given_anew(save, tmp_path):
    draft = read_story(save(LITE))
    for lorebook in ([{"key": "a", "content": "b"}], []):
        write_story(draft, tmp_path / "back.json", lorebook=lorebook)
        assert json.loads((tmp_path / "back.json").read_bytes())["worldinfo"] == lorebook


def test_the_fewest_fields(save):
    assert read_story(save({"prompt": "", "actions": []})).turns == ()
    draft = read_story(save({"prompt": None, "actions": ["x"], "memory": None, "worldinfo": None}))
    assert draft.turns == (("writer", ""), ("model", "x"))
    assert draft.lorebook is None
    assert draft.settings.memory == ""


def test_a_save_that_another_program_has_changed(save):
    data = json.loads(koboldai.write(DRAFT))
    data["actions"].append(" more")
    assert [by for by, _ in read_story(save(data)).turns] == ["writer", "model", "model", "model"]
    for odd in (7, {"by": 7}, {"by": ["me"] * 4}, {"settings": 7}, {"by": [[]] * 4}):
        assert len(read_story(save({**data, "softlore": odd})).turns) == 4


def test_what_kobold_knows_of_actions_goes_with_them_only(save):
    old = {"0": {"Selected Text": "x", "Alternative Text": [{"Text": "y"}]}}
    draft = read_story(save({"prompt": "a", "actions": ["x"], "actions_metadata": old}))
    assert json.loads(koboldai.write(draft))["actions_metadata"] == old
    more = StoryDraft(draft.settings, (*draft.turns, ("writer", "z")))
    assert json.loads(koboldai.write(more))["actions_metadata"] == {}
    draft = read_story(save({"prompt": "a", "actions": ["x"], "actions_metadata": [7]}))
    assert json.loads(koboldai.write(draft))["actions_metadata"] == {}


def test_half_characters_are_mended(save):
    draft = read_story(save('{"prompt": "a \\ud83d b \\ud83d\\ude00", "actions": ["\\ude00"]}'))
    assert draft.text == "a \ufffd b 😀\ufffd"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "without the fields `prompt` and `actions`"),
        ([{"keys": ["a"], "entry": "b"}], "without the fields"),
        ({"entries": {}}, "without the fields"),
        ({"prompt": "a", "actions": "b"}, "`actions` are not a list"),
        ({"prompt": 7, "actions": []}, "is not text"),
        ({"prompt": "a", "actions": [7]}, "is not text"),
        ({"prompt": "a", "actions": [], "memory": 7}, "`memory` is not text"),
        ({"prompt": "a", "actions": {"action_count": 1}}, "United"),
        ({"prompt": "a", "actions": [], "softlore": {"settings": {"seed": "x"}}}, "seed is 'x'"),
        ({"prompt": "a", "actions": [], "softlore": {"settings": {"a": 2**70}}}, "too large"),
        ('{"prompt": "a", "actions": ["b"', "JSON|Expecting"),
        ('{"prompt": "a", "actions": [], "x": NaN}', "NaN is not a number"),
        ('{"prompt": "a", "actions": [], "x": 1e999}', "not finite"),
        ('{"prompt": "a", "actions": ' + "[" * 200 + "]" * 200 + "}", "deep"),
        ('{"prompt": "a", "actions": ' + "[" * 200000, "deep"),
        ('{"prompt": "a", "actions": [], "x": ' + "9" * 5000 + "}", "digits|large"),
    ],
)  # fmt: skip
def test_saves_that_are_refused(content, message, save):
    path = save(content)
    with pytest.raises(StoryFileError, match=message) as caught:
        read_story(path)
    assert str(path) in str(caught.value)


# Markdown and text -------------------------------------------------------------------------------


def test_what_markdown_looks_like():
    draft = StoryDraft(
        StorySettings(title="Harbour", memory="Two\nlines"),
        (("writer", "The clock "), ("model", "struck.\n")),
    )
    assert markdown.write(draft) == (
        "---\nsoftlore-story: 1\ntitle: Harbour\nmemory: |-\n  Two\n  lines\n---\n"
        "<!--writer-->The clock <!--model-->struck.\n"
    )


def test_markdown_edited_by_hand(save):
    text = markdown.write(DRAFT).replace("Slow.", "Fast, not slow.").replace("lay still", "lay")
    draft = read_story(save(text.replace("\n", "\r\n"), "a.md"))
    assert draft.settings.note == "Fast, not slow."
    assert draft.turns[1] == ("model", "lay.\n\n---\n<!--model-->")
    first = text.replace("<!--writer-->The", "Before. <!--writer-->The")
    assert read_story(save(first, "a.md")).turns[0] == ("writer", "Before. ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\nsoftlore-story: 1\nmemory: x", "has no end"),
        ("---\nsoftlore-story: 2\n---\n", "of version 2 and this softlore reads 1"),
        ("---\nsoftlore-story: 1\nmemory: [1]\n---\n", r"memory is \[1\]; expected text"),
        ("---\nsoftlore-story: 1\nmemory: !!python/object:os.system x\n---\n", "tags"),
        ("---\nsoftlore-story: 1\nmemory: 'x\n---\n", "cannot be read"),
        ("---\nsoftlore-story: 1\n7: x\n---\n", "settings by name"),
        ("---\nsoftlore-story: 1\nx: " + "[" * 999 + "\n---\n", "deep"),
        (BOMB, "values"),
    ],
)  # fmt: skip
def test_markdown_that_is_refused(text, message, save):
    with pytest.raises(StoryFileError, match=message):
        read_story(save(text, "a.md"))


@pytest.mark.parametrize(
    "text",
    [
        "# A story\n\nOnce upon a time.",
        "---\ntitle: of another program\n---\nText",
        "<!--model-->",
        "{ a story may begin so",
        "[Scene 1] The harbour.",
        '"Actions," she said.',
        "---\n",
        "7",
    ],
)
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a"])
def test_any_other_text_is_one_turn(text, name, save):
    assert read_story(save(text, name)) == StoryDraft(turns=(("writer", text),))


def test_texts_of_windows(save):
    assert read_story(save(b"\xef\xbb\xbfone\r\ntwo\r\n", "a.txt")).text == "one\ntwo\n"
    assert read_story(save(b"one\r\ntwo\n", "a.txt")).text == "one\r\ntwo\n"
    assert read_story(save(b"", "a.txt")).turns == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SQLite format 3\0...", "open it instead"),
        (b"PK\x03\x04...", "zip"),
        (b"\x89PNG...", "picture"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"one\ntwo \xff", "byte 0xff in line 2"),
        (b"a\0b", "binary"),
    ],
)
def test_what_is_no_text(content, message, save):
    with pytest.raises(StoryFileError, match=message):
        read_story(save(content, "a.txt"))


def test_huge_files_are_not_read(save, monkeypatch):
    path = save(b"a" * 100, "a.txt")
    monkeypatch.setattr(files, "MAX_BYTES", 99)
    with pytest.raises(StoryFileError, match="too large for a story"):
        read_story(path)


def test_a_text_too_long_for_a_turn(save):
    with pytest.raises(StoryFileError, match="expected at most 16,777,216"):
        read_story(save("a" * (2**24 + 1), "a.txt"))


def test_hostile_bytes_never_give_a_traceback(save):
    seeds = [
        koboldai.write(DRAFT).encode(),
        json.dumps(LITE).encode(),
        markdown.write(DRAFT).encode(),
    ]
    draw = random.Random(0)
    parts = [
        b"{",
        b"[",
        b'"',
        b"\\",
        b"\\ud83d",
        b"---\n",
        b"null",
        b"-1",
        b"1e999",
        b"\xff",
        b"&a",
        b"*a",
    ]
    for number in range(1500):
        content = bytearray(seeds[number % 3])
        for _ in range(draw.choice((1, 3, 20))):
            at = draw.randrange(len(content))
            content[at : at + draw.choice((0, 1, 5))] = draw.choice(parts)
        try:
            draft = read_story(save(bytes(content)))
        except SoftloreError:
            continue
        if draft.turns:
            assert markdown.read(markdown.write(draft)).turns == draft.turns


@pytest.mark.parametrize("suffix", [".md", ".json", ".txt"])
def test_an_exported_story_names_no_folder_of_this_machine(tmp_path, suffix):
    lorebook, prompts = tmp_path / "lore.yaml", tmp_path / "prompts"
    settings = StorySettings(lorebook=str(lorebook), prompts=str(prompts), model="storyteller")
    write_story(StoryDraft(settings, (("writer", "So"),)), tmp_path / f"story{suffix}")
    assert str(tmp_path) not in (tmp_path / f"story{suffix}").read_text()
