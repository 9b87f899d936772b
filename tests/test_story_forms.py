"""Forms of a story: a chat of named speakers, and messages in the model's chat template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import save_tiny_model, softlore
from softlore import Entry, Lorebook, SoftPrompt
from softlore.errors import ConfigError, StoryError
from softlore.model.tiny import tiny_model
from softlore.story import StoryLibrary, StorySettings
from softlore.story.beginning import draft_of_card
from softlore.story.forms import next_speaker
from softlore.story.seams import SentenceTrimmer
from softlore.story.session import StorySession

MODEL = tiny_model("llama")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE
)
OWN = SoftPrompt.from_text("an old sailor", MODEL, name="Tom", kind="prefix")
BOOK = Lorebook(
    name="town",
    entries=[
        Entry(name="Marta", keys=["clockmaker"], text="Marta mends clocks."),
        Entry(name="Sea", keys=["sea"], text="The sea is cold."),
    ],
)


@pytest.fixture
def model():
    yield MODEL
    MODEL.tokenizer.chat_template = None


@pytest.fixture
def chat(tmp_path):
    with StoryLibrary(tmp_path).create("talk") as story:
        story.set(form="chat", cast={"Marta": [], "Tom": ["Sea", "gone"]}, user="Ada", seed=1)
        yield StorySession(story, MODEL, BOOK, {"Tom": OWN})


@pytest.fixture
def told(tmp_path, model):
    """A story of messages."""
    with StoryLibrary(tmp_path).create("asked") as story:
        story.set(form="instruct", memory="Be brief.", seed=1)
        yield StorySession(story, model)


def text_of(plan):
    return "".join(piece for piece in plan.context.pieces if isinstance(piece, str))


# a chat ------------------------------------------------------------------------------------------


def test_turns_are_lines_with_names(chat):
    chat.add("Who are you?")
    first = "".join(chat.continue_story(6))
    chat.add("Marta: she said that herself.")
    lines = chat.story.text.split("\n")
    assert lines[0] == "Ada: Who are you?"
    assert first.startswith("\nMarta:")
    assert len(first) > len("\nMarta:")
    assert chat.story.turns[1].text == first
    assert chat.story.turns[1].data["speaker"] == "Marta"
    assert chat.story.text.endswith("\nMarta: she said that herself.")


def test_it_ends_before_anothers_name(chat):
    chat.add("Hello.")
    assert set(chat.draft().request.stop) == {"\nAda:", "\nMarta:", "\nTom:"}
    assert chat.draft(stop="!").request.stop[0] == "!"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" Love you.\nEmma: I too.", " Love you."),
        (" Aye.\n\nThe Old Captain: No.\nTom: Yes.", " Aye."),
        (" Aye.\nÉmile: Non.", " Aye."),
        (" One thing:\nthe sea.\nHe said: no.", " One thing:\nthe sea.\nHe said: no."),
        (" It is late.\nGood Night", " It is late.\nGood Night"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_turn_ends_before_any_name_however_it_comes(said, kept, size):
    trimmer = SentenceTrimmer(500, lead="\nMarta:", chat=True)
    pieces = [trimmer.add(said[at : at + size]) for at in range(0, len(said), size)]
    pieces.append(trimmer.flush("stop"))
    assert "".join(pieces) == trimmer.text == f"\nMarta:{kept}"
    assert trimmer.ended == (kept != said)


def test_who_is_named_speaks_next(chat):
    def speaker():
        return chat.draft().speaker

    chat.add("Hello.")
    assert speaker() == "Marta"
    chat.add("And you, Tom?")
    assert speaker() == "Tom"
    chat.story.add("\nTom: Aye.", by="model")
    assert speaker() == "Marta"
    assert chat.draft(speaker="Tom").speaker == "Tom"
    with pytest.raises(StoryError, match=r"'Ada' is not a speaker.*one of Marta, Tom"):
        chat.draft(speaker="Ada")


def test_a_word_of_a_name_is_enough_unless_two_have_it():
    cast = ["Marta Bell", "Old Tom", "Old Jan"]
    assert next_speaker(cast, ["Ada: Good evening, Tom."]) == "Old Tom"
    assert next_speaker(cast, ["Ada: Tom, or rather Miss Bell?"]) == "Marta Bell"
    assert next_speaker(cast, ["Old Tom: Aye.\nAda: How Old are you?"]) == "Old Jan"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=5))
def test_some_speaker_is_always_next(texts):
    assert next_speaker(["A", "B"], texts) in ("A", "B")


def test_a_retry_has_the_same_speaker(chat):
    chat.add("Tom, hello.")
    list(chat.continue_story(4, speaker="Marta"))
    list(chat.retry(4))
    again = chat.story.turns[-1]
    assert again.text.startswith("\nMarta:")
    assert len(chat.story.turns) == 2
    assert chat.draft(retry=True, speaker="Tom").speaker == "Tom"


def test_each_speaker_has_its_own_lore(chat):
    chat.add("Hello.")
    marta = chat.plan_turn(20, "Marta")
    assert marta.lore == {"Marta": "text"}  # its key is not in the story
    tom = chat.plan_turn(20, "Tom")
    assert tom.lore == {"Sea": "text"}
    assert OWN in tom.context.pieces
    assert OWN not in marta.context.pieces
    assert "no entry or soft prompt is called so" in tom.not_used["gone"]
    assert "gone" not in marta.not_used
    assert text_of(tom).endswith("Ada: Hello.\nTom:")


def test_a_story_without_a_cast_has_the_cards_character(tmp_path):
    book = Lorebook.from_data(
        {"spec": "chara_card_v2", "spec_version": "2.0",
         "data": {"name": "Emma", "first_mes": "Come in.", "description": "A cook.",
                  "character_book": {"entries": []}}}
    )  # fmt: skip
    draft = draft_of_card(book, StorySettings(form="chat"))
    assert draft.text == "Emma: Come in.\n"
    with StoryLibrary(tmp_path).create("card", draft) as story:
        session = StorySession(story, MODEL, book)
        session.add("Thanks.")
        assert story.text == "Emma: Come in.\nYou: Thanks."
        assert session.draft().speaker == "Emma"


def test_a_cast_is_checked():
    with pytest.raises(ConfigError, match="cast is"):
        StorySettings(cast={"a:b": []})
    with pytest.raises(ConfigError, match="65 speakers; expected 64 at most"):
        StorySettings(cast={f"A{n}": [] for n in range(65)})
    with pytest.raises(ConfigError, match="form"):
        StorySettings(form="verse")


def test_the_terminal_makes_a_chat(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    lines = [
        '/cast Marta "Old Tom=sea"', "/set user=Ada tokens=4", "Hello.", "/next Old Tom",
        "/next Nobody", "/show", "/cast -", "/quit",
    ]  # fmt: skip
    ended = softlore(
        "story", "talk", "--model", tmp_path / "tiny", "--stories", tmp_path, "--seed", 1,
        stdin="\n".join(lines) + "\n",
    )  # fmt: skip
    assert ended.code == 0
    assert 'chat: Marta "Old Tom=sea"' in ended.out or "chat: Marta Old Tom=sea" in ended.out
    assert "'Nobody' is not a speaker of this story" in ended.err
    assert "prose: Marta" in ended.out
    with StoryLibrary(tmp_path).open("talk") as story:
        assert [turn.text.partition(":")[0] for turn in story.turns] == [
            "Ada",
            "\nMarta",
            "\nOld Tom",
        ]


# messages ----------------------------------------------------------------------------------------


def test_messages_are_read_in_the_models_template(told):
    told.model.tokenizer.chat_template = TEMPLATE
    told.add("Who is she?")
    told.story.add("\n\nA cook.", by="model")
    told.add("And he?")
    assert told.story.text == "Who is she?\n\nA cook.\n\nAnd he?"
    assert text_of(told.plan_turn()) == (
        "<system>Be brief.</system>\n<user>Who is she?</user>\n<assistant>A cook.</assistant>\n"
        "<user>And he?</user>\n<assistant>"
    )
    written = "".join(told.continue_story(6))
    assert written.startswith("\n\n")
    assert not written[2:].startswith(" ")
    assert told.story.turns[-1].text == written


def test_the_last_message_goes_on_where_it_ends(told):
    told.model.tokenizer.chat_template = TEMPLATE
    told.add("Who is she?")
    told.story.add("\n\nShe is the cook of", by="model")
    assert text_of(told.plan_turn()).endswith("<assistant>She is the cook of")
    assert told.draft().trimmer.lead == ""


def test_a_template_without_a_system_has_the_memory_in_the_first_message(told):
    told.model.tokenizer.chat_template = STRICT
    told.story.add("Welcome.", by="model")
    told.add("Who is she?")
    assert text_of(told.plan_turn()) == (
        "<user>Be brief.\n\nBegin.</user>\n<assistant>Welcome.</assistant>\n"
        "<user>Who is she?</user>\n<assistant>"
    )


def test_a_model_without_a_template_reads_a_transcript(told):
    told.add("Who is she?")
    assert text_of(told.plan_turn()) == "Be brief.\nUser: Who is she?\nAssistant:"
    assert "\nUser:" in told.draft().request.stop


def test_what_is_left_out_is_counted_in_the_storys_characters(told):
    told.model.tokenizer.chat_template = TEMPLATE
    for number in range(150):
        told.story.add(f"Question {number}?", by="writer")
        told.story.add(f"\n\nAnswer {number}.", by="model")
    told.add("And then?")
    plan = told.plan_turn(20)
    read = text_of(plan)
    assert 0 < plan.omitted < len(told.story.text)
    rest = told.story.text[plan.omitted :]
    assert rest.startswith("\n\nAnswer ")
    assert read.startswith(f"<system>Be brief.</system>\n<assistant>{rest[2:12]}")
    assert len(read) > len(rest)  # with the template's own words
