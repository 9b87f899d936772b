"""Macros in lore have names wherever a model reads it, and cards begin stories."""

import json

import pytest

from running import save_tiny_model, softlore
from softlore.context import activate
from softlore.errors import ConfigError, StoryError
from softlore.lore import Entry, Lorebook, check
from softlore.lore.macros import MacroNames
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.compose import RequestComposer
from softlore.settings import ServeSettings
from softlore.story import ROOT, Story, StoryLibrary, StorySettings
from softlore.story.beginning import draft_of_card
from softlore.story.session import StorySession
from softlore.tune import WorldInfoTrainer
from softlore.tune.finished_prompt import entry_hash
from softlore.tune.lorebook_training import plan_book, save_prompts
from studio_calls import make_state, studio

MODEL = tiny_model("llama")
TEXT = "{{char}} knows {{user}}, and <BOT> likes <USER>."
BOOK = {"name": "b", "entries": [{"name": "Hat", "keys": ["hat"], "text": TEXT}]}
CARD = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {
        "name": "Zoe",
        "description": "{{char}} is a night watch. She knows {{user}}.",
        "personality": "",
        "scenario": "{{user}} meets {{char}} at the gate.",
        "first_mes": "*{{char}} looks up.* \"You are late, {{user}}.\"",
        "mes_example": "<START>\n{{user}}: Hello.\n{{char}}: Go home."
        "\n<START>\n{{char}}: Late again.",
        "alternate_greetings": ["\"Halt!\" says {{char}}."],
        "character_book": {
            "entries": [
                {
                    "keys": ["lamp"], "content": "{{char}}'s lamp burns green for {{user}}.",
                    "extensions": {}, "enabled": True, "insertion_order": 5, "name": "lamp",
                }
            ]
        },
    },
}  # fmt: skip


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "zoe.json"
    path.write_text(json.dumps(CARD))
    return path


def test_names_stand_for_macros():
    names = MacroNames("Zoe", "Ada")
    assert names.fill(TEXT + " {{ CHAR }}{{User}}") == "Zoe knows Ada, and Zoe likes Ada. ZoeAda"
    assert MacroNames("", "Ada").fill("{{char}} {{user}}") == "{{char}} Ada"
    assert names.fill("{{time}} <b>") == "{{time}} <b>"


def test_the_first_name_that_is_given_holds():
    book = Lorebook(**BOOK, char="Zoe")
    assert book.names() == ("Zoe", "You")
    assert book.names(StorySettings(user="Ada"), StorySettings(char="Bo", user="Cy")) == (
        "Bo",
        "Ada",
    )
    assert Lorebook(**BOOK).names().char == "the character"
    assert check(book) == []
    assert "`char`" in check(Lorebook(**BOOK))[0]


@pytest.mark.parametrize("key", ["{{user}}", "<USER>", "/{{User}}$/", "/x|{{user}}'s/"])
def test_names_stand_in_keys_and_are_literal_in_patterns(key):
    book = Lorebook(name="b", user="Bo (2)", entries=[Entry(name="x", text="x", keys=[key])])
    book = book.resolved()

    def called(text):
        return bool(activate(book, [text]).active)

    assert called("I am Bo (2)") or "'s" in key
    assert called("the hat of Bo (2)'s") or "$" in key
    assert not called("I am Bo 2")


def test_names_are_kept_in_every_format(tmp_path, card):
    book = Lorebook(**BOOK, char="Zoe", user="Ada")
    for name, to in (("b.yaml", None), ("b.json", None), ("b-card.json", "card-v2")):
        book.save(tmp_path / name, to)
        again = Lorebook.load(tmp_path / name)
        assert (again.char, again.user) == ("Zoe", "Ada")
        assert again.resolved()["Hat"].text == "Zoe knows Ada, and Zoe likes Ada."
    cards = Lorebook.load(card)
    cards.save(tmp_path / "native.yaml")
    native = Lorebook.load(tmp_path / "native.yaml")
    assert native == cards
    assert native.resolved(StorySettings(user="Ada"))["lamp"].text == (
        "Zoe's lamp burns green for Ada."
    )
    native.save(tmp_path / "again.json", "card-v2")
    assert json.loads((tmp_path / "again.json").read_text()) == CARD


def test_a_name_is_one_short_line():
    for name in ("a\nb", "a" * 161):
        with pytest.raises(ConfigError, match="expected a name"):
            StorySettings(user=name)


def read_by(story, book, **settings):
    story.set(**settings)
    return StorySession(story, MODEL, book).plan_turn(8).context.text


def test_a_story_reads_names(tmp_path):
    book = Lorebook(**BOOK, char="Zoe")
    with Story.create(tmp_path / "a.story") as story:
        story.set(memory="{{user}} is here.", note="{{char}} is sad.")
        story.add("The hat was gone.")
        read = read_by(story, book)
        assert "Zoe knows You, and Zoe likes You." in read
        assert "You is here." in read
        assert "Zoe is sad." in read
        read = read_by(story, book, user="Ada", char="Bo")
        assert "Bo knows Ada, and Bo likes Ada." in read
        assert "Ada is here." in read


def test_training_reads_names_and_trains_again_when_they_change(tmp_path):
    book = Lorebook(**BOOK, char="Zoe")
    library = PromptLibrary(tmp_path)
    trainer = plan_book(MODEL, book, library, max_steps=1).trainer
    assert trainer.entries[0].text == "Zoe knows You, and Zoe likes You."
    prompt = trainer.train()["Hat"]
    save_prompts(library, [prompt], trainer)
    assert prompt.data_hash == entry_hash(book.resolved()["Hat"])
    assert not plan_book(MODEL, book, library).new
    renamed = book.model_copy(update={"user": "Ada"})
    assert plan_book(MODEL, renamed, library).new[0].text == "Zoe knows Ada, and Zoe likes Ada."
    bare = WorldInfoTrainer(MODEL, entries=book.entries, max_steps=1)
    assert bare.entries[0].text == "the character knows You, and the character likes You."


def test_a_story_begins_with_a_card(tmp_path, card):
    book = Lorebook.load(card)
    draft = draft_of_card(book, StorySettings(user="Ada"))
    assert draft.settings.memory == (
        "Ada meets Zoe at the gate.\n***\nAda: Hello.\nZoe: Go home.\n***\nZoe: Late again.\n***"
    )
    with Story.create(tmp_path / "a.story", draft) as story:
        assert story.text == '*Zoe looks up.* "You are late, Ada."\n'
        assert story.head.by == "model"
        first, second = story.alternatives(story.head)
        assert (first, second.text) == (story.head, '"Halt!" says Zoe.\n')
        story.go_to(second)
        assert story.text == '"Halt!" says Zoe.\n'
        assert [turn.text for turn in story.continuations(ROOT)] == [first.text, second.text]
    assert draft_of_card(book, StorySettings(), 2).turns == (("model", '"Halt!" says Zoe.\n'),)
    with pytest.raises(StoryError, match="from 1 to 2"):
        draft_of_card(book, StorySettings(), 3)
    with pytest.raises(StoryError, match="expected a character card"):
        draft_of_card(Lorebook(**BOOK), StorySettings())


def test_a_story_of_a_card_on_the_command_line(tmp_path, card):
    model = save_tiny_model(tmp_path / "model")
    stories = ["--stories", tmp_path / "stories", "--prompts", tmp_path]
    begun = softlore("story", "gate", "--card", card, "--greeting", 2, "--user", "Ada", "--model",
                     model, "--tokens", 4, *stories, stdin="/quit\n")  # fmt: skip
    assert begun.code == 0, begun.err
    with StoryLibrary(tmp_path / "stories").open("gate") as story:
        assert story.text == '"Halt!" says Zoe.\n'
        assert story.settings.user == "Ada"
        assert story.settings.memory.startswith("Ada meets Zoe")
        assert story.settings.lorebook == str(card)
        assert len(story.alternatives(story.head)) == 2
    again = softlore("story", "gate", "--card", card, *stories)
    assert (again.code, "already" in again.err) == (2, True)
    alone = softlore("story", "other", "--greeting", 2, *stories)
    assert "expected --card FILE" in alone.err


def test_lore_of_a_server_has_names(tmp_path):
    settings = ServeSettings(user="Ada", char="Zoe")
    state = make_state(tmp_path)
    state.book, state.settings = Lorebook(**BOOK), settings
    read = RequestComposer(state).compose("The hat was gone.", 4).context.text
    assert "Zoe knows Ada, and Zoe likes Ada." in read


def test_the_studio_begins_a_story_with_a_card(tmp_path, card):
    with studio(tmp_path) as server:
        book = server.upload("books", card.read_bytes(), "zoe.json")
        assert book["greetings"] == ['*Zoe looks up.* "You are late, You."', '"Halt!" says Zoe.']
        story = server.post("stories", book="zoe", greeting=1)
        assert story["name"] == "zoe"
        assert [(turn["by"], turn["text"]) for turn in story["turns"]] == [
            ("model", '*Zoe looks up.* "You are late, You."\n')
        ]
        assert len(story["turns"][0]["tries"]) == 2
        assert story["settings"]["memory"].startswith("You meets Zoe at the gate.")
        assert story["settings"]["book"] == "zoe"
        server.put("stories", "zoe", "settings", user="Ada")
        server.post("stories", "zoe", "turns", text="The lamp.")
        plan = server.get("stories", "zoe", "context", tokens=4)
        assert "green for Ada." in json.dumps(plan)
        server.refused(400, "POST", "stories", json={"book": "zoe", "greeting": 3})
        server.refused(404, "POST", "stories", json={"book": "none", "greeting": 1})
        server.refused(400, "PUT", "stories", "zoe", "settings", json={"user": "a\nb"})
        chat = server.post("stories", book="zoe", greeting=1, form="chat", user="Ada")
        assert (chat["name"], chat["settings"]["user"]) == ("zoe chat", "Ada")
        assert chat["turns"][0]["text"] == 'Zoe: *Zoe looks up.* "You are late, Ada."\n'
        messages = server.post("stories", book="zoe", greeting=1, form="instruct")
        assert messages["name"] == "zoe messages"


def test_a_name_is_asked_for_where_a_card_has_a_place_for_it_and_nobody_gave_one(tmp_path, card):
    content = card.read_bytes()
    with studio(tmp_path) as server:
        assert server.upload("books", content, "zoe.json")["asks_name"]
        plain = server.upload("books", content.replace(b"{{user}}", b"Ada"), "plain.json")
        assert not plain["asks_name"]
        assert not server.post("books", name="no card")["asks_name"]
        named = server.get("books", "zoe") | {"user": "Ada"}
        assert not server.put("books", "zoe", **named)["asks_name"]
        server.put("books", "zoe", **named | {"user": ""})
        server.state.settings = ServeSettings(user="Ada")
        assert not server.get("books", "zoe")["asks_name"]


def test_a_story_goes_on_with_prompts_of_another_model(tmp_path):
    other = tiny_model("gpt2")
    prompt = SoftPrompt.from_text("a hat", other, name="Hat", kind="prefix")
    book = Lorebook(**BOOK, char="Zoe")
    soft = book.model_copy(update={"entries": [Entry(name="Hat", text="x", use="soft")]})
    with Story.create(tmp_path / "a.story") as story:
        story.add("The hat was gone.")
        plan = StorySession(story, MODEL, book, {"Hat": prompt}).plan_turn(8)
        assert plan.lore == {"Hat": "text"}
        assert plan.why == {"Hat": "it has no soft prompt for this model; train it"}
        plan = StorySession(story, MODEL, soft, {"Hat": prompt}).plan_turn(8)
        assert "for this model" in plan.not_used["Hat"]
