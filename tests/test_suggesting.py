"""Lore that finds itself: names that recur in a story become proposed entries."""

import json
import sys

import pytest

from running import softlore
from softlore import Entry, FrozenModel, Lorebook
from softlore.lore.recurring import NameFinder
from softlore.story import StoryDraft, StoryLibrary
from softlore.story.suggesting import suggest_entries, surprise_of

STORY = [
    "Captain Oswin kept the lighthouse at Grey Point. Every evening Marta climbed the stairs to "
    "bring him bread. When the fog came, the captain rang the bell.\n",
    "Marta was the clockmaker of Odrin. She wore a long red coat. Oswin had known Marta since she "
    "was a child. However, nobody in Odrin knew why Oswin never left Grey Point.\n",
    '"Suddenly the light went out," said Marta. Then the bell was silent. Then Oswin ran down to '
    "the boats. Suddenly there was a cry. At Grey Point the sea was black.\n",
    '"Who goes there?" asked the heron. Nobody answered. "I know you, Marta," the heron said. The '
    "heron looked towards Odrin. Suddenly it flew.\n",
]


def names(parts, **given):
    return [one.entry.name for one in suggest_entries(parts, **given).found]


def test_names_of_people_and_places_are_found_and_no_other_words():
    found = {one.entry.name: one.entry for one in suggest_entries(STORY).found}
    assert found.keys() == {"Marta", "Oswin", "Grey Point", "Odrin", "heron"}
    assert set(found["Oswin"].keys) == {"Oswin", "Captain Oswin"}
    assert "Marta was the clockmaker of Odrin." in found["Marta"].text
    assert "red coat" not in found["Grey Point"].text


def test_the_most_mentioned_is_first_and_mentions_are_counted():
    first = suggest_entries(STORY).found[0]
    assert first.entry.name == "Marta"
    assert (first.mentions, first.turns) == (5, 4)


def test_what_the_book_covers_or_the_writer_dropped_is_not_proposed():
    book = [
        Entry(name="The keeper", keys=["Oswin"], text="He keeps the light."),
        Entry(name="Town", keys=["/odr[iy]n/i"], text="A town.", enabled=False),
        Entry(name="Marta", text="A clockmaker."),
    ]
    assert names(STORY, book=book) == ["Grey Point", "heron"]
    assert names(STORY, book=book, dropped=["grey point"]) == ["heron"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Вечером Маша пришла домой. Утром Маша ушла. Мы знали, что Маша вернётся. ", "Маша"),
        ("Hier soir Élodie chantait. Puis Élodie dormait. Alors Élodie se leva. ", "Élodie"),
        ("They met Alexander the Great. So Alexander the Great spoke. It was Alexander the Great. ",
         "Alexander the Great"),
        ("They met St. Lawrence there. It was St. Lawrence. And so St. Lawrence built. ",
         "St Lawrence"),
        ("He saw Ludwig van Berg. It was Ludwig van Berg. Then Ludwig laughed. ",
         "Ludwig van Berg"),
    ],
)  # fmt: skip
def test_names_of_other_languages_and_forms(text, expected):
    assert names([text]) == [expected]


def test_scripts_without_capitals_are_told_of():
    found = suggest_entries(["王さまは山へ行きました。王さまは川へ行きました。" * 5])
    assert not found.found
    assert "script" in found.notes[0]
    german = "Der Mann ging in den Wald und sah das Haus mit dem Dach und der Tür. " * 30
    assert "noun" in NameFinder([german]).notes[0]
    assert not NameFinder(STORY).notes


def test_lines_that_are_wrapped_are_read_through():
    wrapped = (
        "It was the hour when old\nMarta came to the gate with a\nlamp in her hand. Nobody saw\n"
        "Marta, for the street was\nempty. And so\nMarta went on.\n"
    )
    (found,) = suggest_entries([wrapped]).found
    assert "It was the hour when old Marta came to the gate" in found.entry.text


def test_a_model_ranks_by_what_it_could_not_have_guessed():
    model = FrozenModel.from_pretrained("storyteller")
    usual = "Then the little girl Lily went to the park to play. She was happy. "
    odd = "Under the brass viaduct Zephyrine audited ninety embargoed zeppelins. "
    parts = [usual, odd, usual, odd, usual, odd]
    plain = suggest_entries(parts).found
    ranked = suggest_entries(parts, surprise=surprise_of(model)).found
    assert {one.entry.name for one in plain} == {one.entry.name for one in ranked}
    assert ranked[0].entry.name == "Zephyrine"
    assert ranked[0].surprise > ranked[1].surprise > 0


def test_a_story_without_names_suggests_nothing():
    assert not suggest_entries([]).found
    assert not suggest_entries(["", "it rained. it rained. it rained."]).found


# the command -------------------------------------------------------------------------------------


@pytest.fixture
def stories(tmp_path):
    library = StoryLibrary(tmp_path / "stories")
    library.create("harbour", StoryDraft(turns=tuple(("writer", text) for text in STORY))).close()
    return library


def suggest(library, *options, stdin=""):
    return softlore("lore", "suggest", "harbour", "--stories", library.folder, *options,
                    stdin=stdin)  # fmt: skip


def suggested(library):
    """The names that the command suggests."""
    report = json.loads(suggest(library, "--json", "-").out)
    return {row["name"] for row in report["suggestions"]}


def book_of(library):
    with library.open("harbour") as story:
        return Lorebook.load(story.settings.lorebook)


def test_all_are_accepted_and_not_suggested_again(stories):
    shown = suggest(stories, "--json", "-")
    assert shown.code == 0, shown.err
    rows = json.loads(shown.out)["suggestions"]
    assert rows[0]["name"] == "Marta"
    with stories.open("harbour") as story:
        assert not story.settings.lorebook
    done = suggest(stories, "--yes")
    assert done.code == 0, done.err
    assert [entry.name for entry in book_of(stories)] == [row["name"] for row in rows]
    assert suggest(stories, "--yes").code == 0
    assert not suggested(stories)


def test_cards_are_accepted_edited_and_dropped_one_by_one(stories, tmp_path, monkeypatch):
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text().replace('name: Oswin', 'name: The captain'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")
    monkeypatch.setattr("softlore.cli.common.interactive", lambda: True)
    done = suggest(stories, stdin="a\ne\nd\nq\n")
    assert done.code == 0, done.err
    assert [entry.name for entry in book_of(stories)] == ["Marta", "The captain"]
    with stories.open("harbour") as story:
        (dropped,) = story.settings.dropped
        left = {
            row["name"] for row in json.loads(suggest(stories, "--json", "-").out)["suggestions"]
        }
        assert dropped not in left
        assert left
        assert story.undo() == "set"  # dropped again: it is suggested
    assert suggested(stories) == {dropped, *left}


def test_another_programs_book_is_not_written_over(stories, tmp_path):
    path = tmp_path / "world.json"
    Lorebook(name="world", entries=[Entry(name="Marta", text="A clockmaker.")]).save(
        path, "sillytavern"
    )
    before = path.read_bytes()
    assert suggest(stories, "--lorebook", path, "--yes").code == 0
    assert path.read_bytes() == before
    assert {"Marta", "Odrin"} <= {entry.name for entry in book_of(stories)}


def test_nothing_is_taken_unasked_and_mistakes_are_told(stories):
    for options, code in [((), 2), (("--lorebook", stories.folder), 2)]:
        ended = suggest(stories, *options, stdin="")
        assert ended.code == code
        assert "Traceback" not in ended.err
    missing = softlore("lore", "suggest", "harbor", "--stories", stories.folder, "--yes")
    assert missing.code == 2
    assert "harbour" in missing.err
