"""Stories with a model: what it reads, turn by turn; what is kept; what is learned."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from running import save_tiny_model, softlore
from softlore import Entry, FrozenModel, Lorebook, PromptLibrary, SoftPrompt
from softlore.cli.reading import Bar
from softlore.cli.wrapping import WordWrapper
from softlore.context import free_places
from softlore.errors import ConfigError, ContextOverflowError, StoryError
from softlore.model.tiny import tiny_model
from softlore.story import StoryDraft, StoryLibrary, StorySettings
from softlore.story.composing import ContextComposer
from softlore.story.learning import add_lines, learn, learnable_lines
from softlore.story.seams import SentenceTrimmer, join_turns
from softlore.story.session import StorySession

MODEL = tiny_model("llama")
LIMIT = MODEL.context_length
EMMA = SoftPrompt.from_text("a black suit", MODEL, name="Emma", kind="prefix")
BRAM = SoftPrompt.from_text("an inn", MODEL, name="Bram", kind="embedding")
BOOK = Lorebook(
    name="town",
    entries=[
        Entry(name="Emma", text="Emma wears a suit.", blocks=[("Emma wore", [" a black suit."])]),
        Entry(name="Bram", text="Bram keeps the inn by the old road.", position="after_char"),
        Entry(name="Gate", text="The gate is shut.", keys=["gate"], position="at_depth", depth=1),
    ],
)
PROMPTS = {"Emma": EMMA, "Bram": BRAM}
COMPOSER = ContextComposer(MODEL, BOOK.entries, PROMPTS)


@pytest.fixture
def story(tmp_path):
    with StoryLibrary(tmp_path).create("harbour") as story:
        story.set(seed=1)
        yield story


def planned(texts, reserve=20, composer=COMPOSER, **settings):
    return composer.plan(StorySettings(**settings), texts, reserve)


# what is read ------------------------------------------------------------------------------------


def test_lore_wakes_when_it_is_mentioned():
    assert not planned(["A dog ran."], budget=99).lore
    plan = planned(["A dog ran.", " There stood Emma."], budget=99)
    assert plan.lore.keys() == {"Emma"}
    assert "key 'Emma'" in plan.activation.active[0].reason
    assert not planned(["Emma came.", *["A dog ran."] * 6], budget=99).lore


def test_everything_stands_in_its_place():
    only_text = ContextComposer(MODEL, BOOK.entries)
    texts = ["Emma and Bram.\n", "They met at the gate.\n", "It rained."]
    plan = planned(
        texts, composer=only_text, memory="A tale.", note="Slowly", note_depth=2, budget=199
    )
    assert plan.context.text == (
        "Emma wears a suit.\nA tale.\nBram keeps the inn by the old road.\n"
        "Emma and Bram.\n[Author's note: Slowly]\nThey met at the gate.\n"
        "The gate is shut.\nIt rained."
    )
    assert [part.kind for part in plan.parts] == ["lore", "memory", "lore", "lore", "note", "story"]
    assert plan.tokens == len(MODEL.encode(plan.context.text)) == sum(p.tokens for p in plan.parts)


def test_soft_prompts_stand_in_for_text_under_a_budget():
    texts = ["Emma and Bram met."]
    plan = planned(texts, budget=len(EMMA) + len(BRAM))
    assert plan.lore == {"Emma": "soft", "Bram": "soft"}
    assert plan.context.prompts == (EMMA, BRAM)
    plan = planned(texts, budget=len(EMMA))
    assert sum(offer.tokens for offer in plan.choice.chosen) <= len(EMMA)
    assert plan.not_used


def test_an_entry_says_which_forms_it_may_take():
    texts = ["Emma came."]
    for use, form in (("text", "text"), ("soft", "soft")):
        entry = BOOK["Emma"].model_copy(update={"use": use})
        plan = planned(texts, composer=ContextComposer(MODEL, [entry], PROMPTS), budget=99)
        assert plan.lore == {"Emma": form}
    bare = ContextComposer(MODEL, [BOOK["Emma"].model_copy(update={"use": "soft"})], {})
    assert "has no soft prompt" in planned(texts, composer=bare).not_used["Emma"]


@given(
    st.lists(st.text(st.sampled_from("ab .\nEmmaBrgte"), max_size=120), max_size=12),
    st.integers(1, 60),
    st.integers(0, 4),
    st.booleans(),
)
@settings(max_examples=60)
def test_the_context_never_overflows(texts, reserve, depth, long_note):
    plan = planned(texts, reserve, note="x" * (30 if long_note else 0), note_depth=depth)
    longest = max((len(p) for p in plan.context.prefixes), default=1)
    taken = plan.context.token_count(MODEL).context + len(MODEL.bos)
    assert plan.positions == plan.places + taken
    assert plan.places == free_places(longest, LIMIT)
    assert plan.positions + reserve <= LIMIT
    whole = "".join(texts)
    if not plan.omitted:
        assert plan.parts[-1].tokens == len(MODEL.encode(whole))
    assert 0 <= plan.omitted <= len(whole)


def test_the_beginning_gives_way_seldom():
    text, starts = "", []
    for number in range(60):
        text += f"Turn {number} went by. "
        starts.append(planned([text]).omitted)
    assert starts == sorted(starts)
    assert starts[-1] > 0
    assert len(set(starts)) < 14  # not at every turn


def test_no_room_is_said():
    with pytest.raises(ContextOverflowError, match="to be left for the story"):
        planned(["x"], memory="m" * (LIMIT - 10))
    with pytest.raises(ContextOverflowError, match="in a context of"):
        planned(["x"], reserve=LIMIT)


def test_tags_in_the_story_are_prompts_and_what_names_none_is_text():
    composer = ContextComposer(MODEL, [], PROMPTS)
    plan = planned(["Here is [[soft:Bram]]."], composer=composer)
    assert plan.context.prompts == (BRAM,)
    plan = planned(["Here is [[soft:Nobody]]."], composer=composer)
    assert plan.context.prompts == ()
    assert plan.parts[-1].tokens == len(MODEL.encode("Here is [[soft:Nobody]]."))


# turns -------------------------------------------------------------------------------------------


def test_a_session_turn_by_turn(story):
    session = StorySession(story, MODEL, BOOK, PROMPTS)
    session.add("Emma came in.")
    written = "".join(session.continue_story(12))
    assert story.text == "Emma came in." + written
    head = story.head
    assert head.by == "model"
    assert head.data["lore"] == session.plan.lore
    assert session.finish in ("length", "end")
    again = "".join(session.retry(12))
    assert story.text == "Emma came in." + again
    assert [turn.text for turn in story.alternatives(story.head)] == [written, again]
    story.undo()
    assert story.text == "Emma came in." + written


def test_the_same_seed_writes_the_same_story(tmp_path):
    texts = []
    for name in ("a", "b"):
        with StoryLibrary(tmp_path).create(name) as story:
            story.set(seed=7)
            session = StorySession(story, MODEL, BOOK, PROMPTS)
            session.add("Emma came in.")
            for _ in range(3):
                list(session.continue_story(8))
            texts.append(story.text)
    assert texts[0] == texts[1]


def test_what_was_told_is_kept_when_it_is_stopped(story):
    session = StorySession(story, MODEL)
    session.add("A dog")
    pieces = session.continue_story(30)
    first = next(pieces) + next(pieces)
    pieces.close()
    assert story.text == "A dog" + first
    assert session.finish is None
    pieces = session.continue_story(30)
    first += next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)
    assert story.text == "A dog" + first


def test_only_what_is_new_is_read(story):
    session = StorySession(story, MODEL)
    session.add("A dog ran down the lane to the sea.")
    list(session.continue_story(4))
    list(session.continue_story(4))
    assert session.cache_usage.reused > session.cache_usage.read
    assert not session.cache_usage.why


def test_a_retry_needs_a_turn_of_the_models(story):
    session = StorySession(story, MODEL)
    session.add("A dog")
    with pytest.raises(StoryError, match="the writer wrote its last turn"):
        session.retry()


# learning ----------------------------------------------------------------------------------------


def kept_story(story):
    session = StorySession(story, MODEL, BOOK, PROMPTS)
    session.add("Down the lane came Emma. She took off her")
    list(session.continue_story(6))
    story.edit(story.head, " long black gloves.")
    session.add(" It rained.")
    list(session.continue_story(6))
    story.mark(story.head)
    return session


def test_kept_and_edited_lines_are_offered(story):
    kept_story(story)
    first, second = learnable_lines(story, BOOK)
    assert (first.why, first.response) == ("edited", " long black gloves.")
    assert first.call.endswith("She took off her")
    assert first.entries == ("Emma",)
    assert second.why == "kept"


def test_what_nobody_kept_is_not_offered(story):
    session = StorySession(story, MODEL, BOOK, PROMPTS)
    session.add("Emma came in.")
    list(session.continue_story(6))
    assert learnable_lines(story, BOOK) == []
    with pytest.raises(ConfigError, match="no lines were picked"):
        learn(MODEL, BOOK, [], PROMPTS)


def test_a_line_is_not_about_whom_the_lore_of_another_names(story):
    ada = Entry(name="Ada", text="Ada is the smith of Rook.")
    book = Lorebook(name="b", entries=[ada, Entry(name="Rook", text="A town.", constant=True)])
    session = StorySession(story, MODEL, book)
    session.add("At the forge stood Ada.")
    list(session.continue_story(6))
    story.mark(story.head)
    assert session.plan.lore.keys() == {"Ada", "Rook"}
    assert learnable_lines(story, book)[0].entries == ("Ada",)


def test_lines_are_learned_and_measured(story):
    kept_story(story)
    line = learnable_lines(story, BOOK)[0]
    (found,) = learn(MODEL, BOOK, [line], PROMPTS, max_steps=60)
    assert found.after.lines < found.before.lines
    assert found.prompt.name == "Emma"
    assert (len(found.prompt), found.prompt.kind) == (len(EMMA), "prefix")
    assert found.entry == add_lines(BOOK["Emma"], [line])
    assert found.entry.blocks[0] == BOOK["Emma"].blocks[0]
    assert found.prompt.metrics["recall"]["soft"] < found.prompt.metrics["recall"]["none"]


# the commands ------------------------------------------------------------------------------------


@pytest.fixture
def town(tmp_path):
    save_tiny_model(tmp_path / "model")
    BOOK.save(tmp_path / "lore.yaml")
    library = PromptLibrary(tmp_path / "prompts")
    for prompt in PROMPTS.values():
        library.save(prompt)
    return tmp_path


def run(town, *arguments, stdin="", command="story", name="harbour"):
    return softlore(command, name, "--stories", town / "stories", *arguments, stdin=stdin)


def begun(town):
    script = (
        "Down the lane came Emma. She took off her\n/lore\n/tokens\n/edit long black gloves.\n"
        "\n/keep\n/memory A tale.\n/set tokens=5 temperature=0.5\n\n/undo\n/redo\n/branches\n"
        "/nope\n"
        f"/save {town}/out.json\n/quit\n"
    )
    return run(
        town, "--model", town / "model", "--lorebook", town / "lore.yaml",
        "--prompts", town / "prompts", "--seed", 3, "--tokens", 8, stdin=script,
    )  # fmt: skip


def test_an_evening_at_the_terminal(town):
    ended = begun(town)
    assert ended.code == 0
    assert "key 'Emma'" in ended.out
    assert "tokens are free" in ended.out
    assert "there is no command /nope" in ended.err
    save = json.loads((town / "out.json").read_text(encoding="utf-8"))
    assert save["prompt"].startswith("Down the lane came Emma.")
    assert save["memory"] == "A tale."
    listed = softlore("story", "--stories", town / "stories")
    assert "harbour" in listed.out
    again = run(town, stdin="/lore\n")
    assert again.code == 0
    exported = run(town, "--export", town / "story.md")
    assert exported.code == 0
    assert "long black gloves" in (town / "story.md").read_text(encoding="utf-8")
    other = run(town, "--import", town / "story.md", "--export", town / "b.txt", name="other")
    assert other.code == 0
    assert (town / "b.txt").read_text(encoding="utf-8").startswith("Down the lane")


def test_learning_from_a_story(town):
    begun(town)
    before = PromptLibrary(town / "prompts")["Emma"]
    listed = run(town, "--list", command="learn")
    assert "edited, for Emma" in listed.out
    refused = run(town, command="learn")
    assert (refused.code, len(refused.lines)) == (2, 1)
    wrong = run(town, "--pick", "99", command="learn")
    assert (wrong.code, len(wrong.lines)) == (2, 1)
    looked = run(town, "--pick", "1", "--max-steps", "4", command="learn")
    assert looked.code == 0
    assert "nothing was saved" in looked.err
    assert PromptLibrary(town / "prompts")["Emma"] == before
    saved = run(town, "--pick", "1", "--max-steps", "4", "--yes", command="learn")
    assert saved.code == 0, saved.err
    assert PromptLibrary(town / "prompts")["Emma"] != before
    assert PromptLibrary(town / "prompts" / "before")["Emma"] == before
    learned = Lorebook.load(town / "lore.learned.yaml")
    responses = [response for block in learned["Emma"].blocks for response in block.responses]
    assert any("long black gloves." in response for response in responses)
    with StoryLibrary(town / "stories").open("harbour") as story:
        assert story.settings.lorebook.endswith("lore.learned.yaml")


def test_a_story_that_is_there_is_not_written_over(town):
    begun(town)
    (town / "x.txt").write_text("other", encoding="utf-8")
    refused = run(town, "--import", town / "x.txt")
    assert (refused.code, len(refused.lines)) == (2, 1)
    missing = run(town, name="nothing", command="learn")
    assert (missing.code, len(missing.lines)) == (2, 1)


def test_the_lore_of_a_save_comes_along(town):
    wise = {"key": "Ada,the smith", "keysecondary": "", "content": "Ada is a smith.", "comment": ""}
    wise |= {"folder": None, "selective": False, "constant": False}
    save = {
        "prompt": "At the gate stood Ada.",
        "memory": "",
        "authorsnote": "",
        "actions": [" So."],
    }
    save["worldinfo"] = [wise]
    (town / "save.json").write_text(json.dumps(save), encoding="utf-8")
    ended = run(
        town, "--import", town / "save.json", "--model", town / "model", "--tokens", 4,
        stdin="/lore\n", name="saved",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "lore came along: 1 entry" in ended.err
    assert "text" in ended.out
    assert "Ada" in ended.out


def test_a_failed_command_leaves_no_story(town):
    for more, said in (
        (["--lorebook", town / "nolore.yaml"], "nolore.yaml"),
        (["--prompts", town / "nodir"], "there is no folder"),
        (["--model", town / "nomodel"], "nomodel"),
        (["--export", town / "x.md"], "there is no story 'nn'"),
    ):
        given = ["--model", town / "model", *more]
        refused = run(town, *given, name="nn")
        assert (refused.code, len(refused.lines)) == (2, 1), refused.err
        assert said in refused.err
    assert not list(StoryLibrary(town / "stories"))
    assert not (town / "x.md").exists()
    begun(town)
    refused = run(town, "--lorebook", town / "nolore.yaml", "--model", town / "nomodel")
    assert refused.code == 2
    with StoryLibrary(town / "stories").open("harbour") as story:
        assert story.settings.lorebook == str(town / "lore.yaml")  # as it was
        assert story.settings.model == str(town / "model")


def test_a_story_is_deleted_when_it_is_said_twice(town):
    begun(town)
    refused = run(town, "--delete")
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "expected --yes" in refused.err
    assert "harbour" in StoryLibrary(town / "stories")
    deleted = run(town, "--delete", "--yes")
    assert deleted.code == 0
    assert "harbour.story.deleted" in deleted.err
    assert "harbour" not in StoryLibrary(town / "stories")
    assert "there is no story" in run(town, "--delete", "--yes").err
    nameless = softlore("story", "--stories", town / "stories", "--delete")
    assert (nameless.code, len(nameless.lines)) == (2, 1)


def test_deleting_is_asked_for_on_a_terminal(town, monkeypatch):
    StoryLibrary(town / "stories").create("harbour").close()
    monkeypatch.setattr("softlore.cli.story.interactive", lambda: True)
    assert "nothing was deleted" in run(town, "--delete", stdin="n\n").err
    assert "harbour" in StoryLibrary(town / "stories")
    assert run(town, "--delete", stdin="y\n").code == 0
    assert "harbour" not in StoryLibrary(town / "stories")


def test_damaged_stories_are_named_beside_the_others(town):
    stories = StoryLibrary(town / "stories")
    for name in ("one", "zoe"):
        stories.create(name, StoryDraft(turns=(("writer", "Once."),))).close()
    (town / "stories" / "odd.story").write_bytes(b"Once upon a time")
    (town / "stories" / "torn.story").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    listed = softlore("story", "--stories", town / "stories")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == ["one", "zoe"]
    assert " 1 turn " in listed.out
    assert "b'" not in listed.err
    assert [line.split(":")[0] for line in listed.lines[:2]] == ["odd", "torn"]
    assert listed.lines[2].startswith("2 stories in ")


def test_what_is_set_and_undone_is_said(town):
    script = (
        "At the gate.\n/set tokens=-1\n/set tokens=nan\n/set seed=1.5\n/set foo=1\n/set top_kk=1\n"
        "/set no_copy=2\n/set no_copy=8 tokens=3\n/memory A tale.\n/undo\n/undo\n/redo\n"
    )
    ended = run(town, "--model", town / "model", "--tokens", 4, stdin=script)
    assert ended.code == 0
    for said in (
        "/set tokens=-1; expected a whole number from 1",
        "/set tokens=nan; expected",
        "seed is 1.5",
        "there is no sampler 'foo'",
        "did you mean 'top_k'",
        "no_copy is 2; expected 0",
        "(undone: a change of the settings)",
        "(undone: a new turn)",
        "(done again: a new turn)",
        "harbour: 0 turns",
    ):
        assert said in ended.err
    assert [line for line in ended.out.splitlines() if line.startswith("tokens=")] == [
        next(line for line in ended.out.splitlines() if line.startswith("tokens=3"))
    ]


def test_the_bar_follows_the_story(story):
    session = StorySession(story, MODEL, BOOK, PROMPTS)
    bar = Bar(session)
    assert bar() == " harbour · 0 turns"
    session.add("A dog.")
    assert bar() == " harbour · 1 turn"
    list(session.continue_story(5))

    def read():
        return f"{session.plan_turn().tokens}/{LIMIT} tokens"

    first = read()
    assert f"2 turns · {first}" in bar()
    session.add(" And then Emma came.")
    assert read() != first
    assert f"3 turns · {read()}" in bar()
    assert "Emma" in bar()
    story.undo()
    assert f"2 turns · {first}" in bar()


@pytest.mark.parametrize(
    ("pieces", "finish", "kept"),
    [
        (["A cat", " sat", ". ", "A dog", " ran", " and"], "length", "A cat sat."),
        (["A cat", " sat", ".”", " A do"], "length", "A cat sat.”"),
        (["A cat", " sat", "."], "length", "A cat sat."),
        (["Dear", " Mr", ".", " Brown", " was", " la"], "length", "Dear Mr. Brown was"),
        (["A song\n", "of the se"], "length", "A song"),
        (["A cat", " sat", ". ", "A dog"], "stop", "A cat sat. A dog"),
        (["A cat", " sat", ". ", "A dog"], None, "A cat sat. A dog"),
    ],
)
def test_a_turn_that_its_length_ends_is_trimmed_to_a_sentence(pieces, finish, kept):
    trimmer = SentenceTrimmer(48)
    shown = "".join([*(trimmer.add("") for _ in range(24)), *map(trimmer.add, pieces)])
    shown += trimmer.flush(finish)
    assert trimmer.text == shown == kept


def test_text_is_passed_on_at_once_far_from_the_end_and_where_trimming_is_off():
    assert SentenceTrimmer(80).add("A ca") == "A ca"
    whole = SentenceTrimmer(48, enabled=False)
    assert "".join(whole.add(" a") for _ in range(48)) + whole.flush("length") == " a" * 48


@pytest.mark.parametrize(
    ("before", "text", "joined"),
    [
        ("", "He", "He"),
        ("The end.", "He", " He"),
        ("The end. ", "He", "He"),
        ("He said", ", no", ", no"),
        ("He said", "“No", " “No"),
        ("He said “", "No", "No"),
        ('He said "No', '"', '"'),
        ('He said "No"', "and", " and"),
        ('"No."', '"Yes', ' "Yes'),
        ("(", "so", "so"),
        ("The\n", "He", "He"),
        ("well", "—no", " —no"),
    ],
)
def test_a_turn_of_the_writer_begins_after_a_space_where_one_belongs(before, text, joined):
    assert join_turns(before, text) == joined


def test_turns_of_stories_end_with_sentences_unless_trim_is_off(tmp_path):
    model = FrozenModel.from_pretrained("storyteller")
    with StoryLibrary(tmp_path).create("a") as story:
        story.add("The fox ran down to the river. There he met a")
        story.set(seed=1)
        session = StorySession(story, model)
        for _ in range(3):
            shown = "".join(session.continue_story(80))
            assert shown == story.head.text
            assert session.finish != "length" or shown.rstrip("\"'”’")[-1] in ".!?\n"
        assert session.draft(40).request.sampling["dry_multiplier"] > 0
        story.set(trim=False, sampling={"dry_multiplier": 0})
        assert not session.draft(40).request.sampling["dry_multiplier"]
        assert len("".join(session.continue_story(40))) > 0
        assert len(model.encode(story.head.text)) >= 38


def test_the_terminal_wraps_between_words():
    text = "The fox ran down to the river, where he met the old badger.\n\nHe said nothing at all."
    for size in (1, 3, 7, 200):
        wrapper = WordWrapper(20)
        shown = "".join(wrapper.add(text[i : i + size]) for i in range(0, len(text), size))
        shown += wrapper.flush()
        assert all(len(line) <= 20 for line in shown.splitlines())
        assert shown.replace("\n", " ").split() == text.split()
    assert WordWrapper(None).add(text) == text


def test_the_plan_says_why_each_entry_has_its_form(tmp_path):
    model = tiny_model()
    prompts = PromptLibrary(tmp_path / "prompts")
    for name in ("Ada", "Bo", "Cid"):
        prompts.save(SoftPrompt.from_text(f"{name} wears red", model, name))
    entries = [
        Entry(name="Ada", text="Ada wears red.", blocks=[("Ada wore", [" red."])]),
        Entry(name="Bo", blocks=[("Bo wore", [" red."])]),
        Entry(name="Cid", text="Cid wears red.", use="text"),
        Entry(name="Dot", text="Dot wears red."),
    ]
    composer = ContextComposer(model, entries, prompts)
    plan = composer.plan(StorySettings(), ["Ada, Bo, Cid and Dot came in."])
    assert plan.why == {
        "Ada": "what its soft prompt and its text gain is being measured",
        "Bo": "it has no text",
        "Cid": "text only",
        "Dot": "it has no soft prompt for this model; train it",
    }
    assert plan.lore["Ada"] == "soft"  # of unknown gain: used until it is measured
    composer.gains.wait()
    plan = composer.plan(StorySettings(), ["Ada, Bo, Cid and Dot came in."])
    assert re.fullmatch(r"soft prompt gains .* nats a token, text .*", plan.why["Ada"])
    assert plan.to_dict()["why"] == plan.why


def test_learn_lists_kept_turns_of_other_branches(tmp_path):
    lore = tmp_path / "lore.yaml"
    Lorebook(name="lore", entries=[Entry(name="Ada", text="Ada wears red.")]).save(lore)
    with StoryLibrary(tmp_path).create("a") as story:
        first = story.add("Ada came in.")
        kept = story.add(" She wore a green hat.", by="model")
        story.mark(kept)
        assert story.kept_elsewhere() == []
        story.edit(first, "Ada came out.")  # the marked turn is copied, with its mark
        assert story.kept_elsewhere() == []
        story.go_to(first)
        story.add(" It rained.", by="model")
        copy = next(turn for turn in story.kept_elsewhere() if turn.id != kept.id)
        assert [turn.id for turn in story.kept_elsewhere()] == [kept.id, copy.id]
        story.set(lorebook=str(lore))
    listed = softlore("learn", "a", "--stories", tmp_path, "--list")
    assert listed.code == 0
    assert "kept on another branch: “She wore a green hat.”" in listed.err
    assert f"/go {kept.id} in `softlore story a`" in listed.err
