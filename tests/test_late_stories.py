"""Stories with late prefixes: waking lore costs its turn's text, and changes no other."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import Entry, FrozenModel, Lorebook, SoftPrompt, runner_for
from softlore.decode.prefix_cache import TextKeys
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model
from softlore.story import StoryLibrary, StorySettings
from softlore.story.composing import ContextComposer
from softlore.story.layout import MAX_NEWEST, NEWEST, StoryText, TokenCounter
from softlore.story.session import StorySession

LENGTH = 2048
MODEL = FrozenModel(
    tiny_hf("llama", max_position_embeddings=LENGTH), byte_tokenizer(bos=True), "tiny-long"
)


def late(name, text, model=MODEL):
    prompt = classic(name, text, model)
    return prompt.replace(training={**prompt.training, "placement": "late"})


def classic(name, text, model=MODEL):
    return SoftPrompt.from_text(text, model, name=name, kind="prefix")


EMMA, BRAM = late("Emma", "a black suit"), late("Bram", "the inn by the road")
LATE = {"Emma": EMMA, "Bram": BRAM}
CLASSIC = {name: classic(name, "a black suit") for name in LATE}
BOOK = Lorebook(
    name="town",
    entries=[
        Entry(name="Emma", text="Emma wears a suit.", use="soft"),
        Entry(name="Bram", text="Bram keeps the inn.", use="soft"),
    ],
)
OPENING = "A dog ran down the lane to the sea, and it rained on the roofs of the town. " * 3
LINE = " The day went by in the old house, and nobody came to the door, as it rained all day long."
NO_TEXT = sorted(set(range(1, 264)) - set(MODEL.encode("abc defghijklmnopqrstuvwxyz.,")))
WRITTEN = 20  # tokens, here bytes, of a turn of the model


@pytest.fixture
def library(tmp_path):
    return StoryLibrary(tmp_path)


def session_of(story, prompts=LATE, model=MODEL, book=BOOK):
    session = StorySession(story, model, book, prompts)
    story.set(seed=1, sampling={"banned": NO_TEXT})
    return session


def told(session, *lines):
    """A turn of the writer's and one of the model's for each line; the last turn's text."""
    for line in lines:
        session.add(line)
        text = "".join(session.continue_story(WRITTEN))
    return text


def plan(texts, prompts=LATE, entries=BOOK.entries, **options):
    settings = StorySettings(**options)
    return ContextComposer(MODEL, entries, prompts).plan(settings, texts, WRITTEN)


def sight(tree):
    """For each token of a context, the indices of the prefixes that it sees."""
    return [tuple(node.sees) for node in tree.nodes for _ in range(len(node))]


# where late prefixes stand ------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from([*"ab .\n", "a day", "Emma", "Bram"]), max_size=60)
TEXTS = st.lists(WORDS.map("".join), max_size=9)


def newest(texts):
    return StoryText(texts, {}, TokenCounter(MODEL)).newest()


@given(TEXTS)
@settings(max_examples=150)
def test_the_newest_text_is_the_last_turn_or_whole_turns_of_some_length(texts):
    place, whole = newest(texts), "".join(texts)
    starts = [0, *itertools.accumulate(map(len, texts))]
    assert place in starts
    assert len(whole) - place >= NEWEST or place == 0
    later = [start for start in starts if place < start < len(whole)]
    assert all(len(whole) - start < NEWEST for start in later)


@given(TEXTS, st.text("ab .\n", max_size=200))
def test_new_turns_only_move_it_on(texts, new):
    """What was before it stays before it, and none of that has to be read again."""
    assert newest(texts) <= newest([*texts, new])


@given(st.lists(st.text("ab ", max_size=40), min_size=1, max_size=60), st.integers(0, 400))
def test_of_a_long_turn_it_is_the_end(sentences, more):
    text = ". ".join(sentences) + "x" * more
    texts = [text[:50], text[50:]] if more % 2 else [text]
    place = newest(texts)
    assert len(text) - place <= max(MAX_NEWEST, NEWEST + len(texts[0]))
    assert len(text) - place >= NEWEST or place == 0
    assert newest([text]) <= newest([text + " And on."])


def test_in_a_long_turn_it_is_at_a_sentence_and_never_in_a_tag():
    text = "Emma ran. " * 200
    place = newest([text])
    assert text[place - 1 : place + 5] == " Emma "
    tags = "".join(f"word{n} [[soft:Emma]] " for n in range(100))
    for cut in range(30):
        turn = tags[: len(tags) - cut]
        read = plan([turn]).context
        assert read.body.text == turn.replace("[[soft:Emma]]", "")


@given(TEXTS, st.booleans(), st.integers(0, 3))
@settings(max_examples=60)
def test_the_tokens_of_the_text_are_those_without_lore(texts, note, depth):
    given_note = {"note": "slow" if note else "", "note_depth": depth}
    bare = plan(texts, {}, [Entry(name="nobody", text="x")], **given_note)
    with_lore = plan(texts, budget=99, **given_note)
    assert TextKeys(with_lore.tree).tokens == TextKeys(bare.tree).tokens
    assert with_lore.tree.start == bare.tree.start
    assert with_lore.omitted == bare.omitted


def test_only_the_newest_text_sees_late_lore():
    texts = [OPENING, LINE + " Emma and Bram came."]
    tree = plan(texts).tree
    history = len(MODEL.bos) + len(OPENING)
    assert sight(tree) == [()] * history + [(0, 1)] * len(texts[1])


def test_a_place_before_an_author_s_note_is_still_before_the_newest_turn():
    read = plan([OPENING, LINE, " Emma came." * 9], note="Slow", note_depth=1).context
    (at,) = [i for i, piece in enumerate(read.pieces) if piece == EMMA]
    assert read.pieces[at - 1].endswith("[Author's note: Slow]\n")
    assert read.pieces[at + 1].startswith(" Emma came.")


def test_classic_lore_is_seen_by_everything():
    texts = [OPENING, LINE, "Then came [[soft:Emma]] and Bram. " * 4]
    tree = plan(texts, CLASSIC).tree
    assert set(sight(tree)) == {(0, 1)}
    mixed = plan(texts, {"Emma": EMMA, "Bram": CLASSIC["Bram"]}).tree
    assert set(sight(mixed)) == {(0,), (0, 1)}


def test_memory_note_and_prompts_that_are_always_there_join_them():
    tags = {"memory": "A tale. [[soft:Emma]]", "note": "[[soft:Bram]]", "note_depth": 2}
    read = plan([OPENING, LINE], entries=(), **tags).context
    assert read.pieces[-3:] == (EMMA, BRAM, LINE)
    composer = ContextComposer(MODEL)
    read = composer.plan(StorySettings(), [OPENING, LINE], always=[BRAM]).context
    assert read.pieces == (OPENING, BRAM, LINE)


def test_tags_in_old_text_join_them_and_those_in_the_newest_stay():
    texts = ["Here is [[soft:Emma]] again. ", OPENING, LINE + "[[soft:Bram]]" + LINE]
    read = plan(texts, entries=()).context
    assert read.pieces == ("Here is  again. " + OPENING, EMMA, LINE, BRAM, LINE)


def test_without_a_story_they_come_last():
    read = plan([], entries=(), memory="A tale of [[soft:Emma]].").context
    assert read.pieces == ("A tale of .\n", EMMA)


# the places before the text -----------------------------------------------------------------------


def test_text_stays_where_it_is_whatever_lore_is_awake():
    names = ["", " Emma", " Bram", " Emma and Bram", " [[soft:Emma]]"]
    for prompts in (LATE, CLASSIC):
        starts = {plan([OPENING, LINE + name], prompts).tree.start for name in names}
        assert starts == {32}
    assert plan([OPENING], {}, ()).tree.start == 0
    long = late("Emma", "a black suit " * 4)
    assert plan([LINE + " Emma"], {"Emma": long}).tree.start == 64


def test_an_engine_s_places_are_kept_without_a_text():
    read = plan([], entries=(), memory="")
    assert (read.places, read.positions) == (32, 32 + len(MODEL.bos))


# what a turn costs --------------------------------------------------------------------------------


def cost_of(session, line):
    """The tokens of a turn that are read, and those of the last turn and the new text."""
    last = "".join(turn.text for turn in session.story.turns[-2:])  # the writer's, the model's
    told(session, line)
    return session.cache_usage.read, len(MODEL.encode(last + line)) + 1


def test_waking_sleeping_and_swapping_read_the_last_turn_and_the_new_text(library):
    with library.create("a") as story:
        session = session_of(story)
        told(session, OPENING, LINE)
        lore = []
        for name in ["Emma", "", "", "", "Bram", "Emma", "", "", "", "", "Bram and Emma"]:
            read, most = cost_of(session, LINE + name)
            lore.append(sorted(session.plan.lore))
            assert read <= most, (name, read, most)
        assert lore[0] == ["Emma"]
        assert [] in lore
        assert ["Bram"] in lore
        assert lore[-1] == ["Bram", "Emma"]
        list(session.retry(WRITTEN))
        assert session.cache_usage.read == 1


def test_classic_lore_costs_the_whole_story_as_before(library):
    with library.create("a") as story:
        session = session_of(story, CLASSIC)
        told(session, OPENING, LINE)
        told(session, LINE + "Emma")
        assert session.cache_usage.reused == 0
        told(session, LINE)
        assert session.cache_usage.read <= len(LINE) + WRITTEN


def test_turns_equal_those_without_a_cache(library):
    """Waking, sleeping, swapping; a turn again, an edited one, another branch."""
    with library.create("warm") as warm, library.create("cold") as cold:
        runner = runner_for(MODEL, n_sequences=8)
        sessions = [session_of(warm, model=runner), session_of(cold, model=runner_for(MODEL))]
        texts = [[], []]
        for place, session in enumerate(sessions):

            def fresh(place=place, session=session):
                if place:
                    session._runnable = runner_for(MODEL, cached=False)

            for line in [OPENING, LINE + " Emma", LINE, LINE + "Bram", *[LINE] * 3]:
                fresh()
                texts[place].append(told(session, line))
            fresh()
            texts[place].append("".join(session.retry(WRITTEN)))
            session.story.edit(session.story.turns[-2].id, " Then Emma went home." + LINE)
            fresh()
            texts[place].append(told(session, LINE))
            session.story.go_to(session.story.turns[3].id)
            fresh()
            texts[place].append(told(session, " And Bram." + LINE))
        assert texts[0] == texts[1]
        assert sessions[0].cache_usage.reused > len(OPENING)
        assert sessions[1].cache_usage.reused == 0


def test_stories_with_the_same_text_share_it_whatever_their_lore(library):
    runner = runner_for(MODEL, n_sequences=4)
    written = {}
    for name, line in (("a", " Emma came."), ("b", " Bram came.")):
        with library.create(name) as story:
            session = session_of(story, model=runner)
            session.add(OPENING)
            session.add(LINE)
            told(session, LINE + line)
            written[name] = session.cache_usage
    assert written["b"].reused >= len(OPENING) + len(LINE)
    assert written["b"].read <= len(LINE) + len(" Bram came.")


def test_a_story_that_is_opened_anew_goes_on_as_it_would_have(library):
    lines = [OPENING, LINE + " Emma", LINE, LINE + " Bram"]
    with library.create("a") as story, library.create("b") as other:
        session = session_of(story)
        expected = [told(session, line) for line in lines]
        session_of(other)
        found = []
        for line in lines:
            with library.open("b") as again:
                found.append(told(StorySession(again, MODEL, BOOK, LATE), line))
        assert found == expected


def test_a_conditioning_s_strength_and_lore_change_without_reading_the_story(library):
    """A conditioning runs the story behind it and, for the mixture, without it."""
    runner = runner_for(MODEL, n_sequences=9)
    with library.create("a") as story:
        session = session_of(story, model=runner)
        for name, strength in [("", 0.5), ("Emma", 0.5), ("Bram", 1.5), ("", 1.5)]:
            session.add(LINE * 3 + name)
            list(session.continue_story(WRITTEN, conditioning=[("A sad tale. ", strength)]))
            if strength == 1.5 or name:
                assert session.cache_usage.read <= 6 * len(LINE) + WRITTEN + 9


# the cache of many stories ------------------------------------------------------------------------


def test_a_story_s_last_turn_takes_the_place_of_the_one_before(library):
    """Keys and values are kept by the stories' texts, not by texts times lore."""
    runner = runner_for(MODEL, n_sequences=99)
    with library.create("a") as story, library.create("b") as other:
        sessions = [session_of(story, model=runner), session_of(other, model=runner)]
        sessions[1].story.set(seed=2)
        for line in [OPENING, LINE + "Emma", LINE + "Bram", LINE, LINE + "Emma"]:
            for number, session in enumerate(sessions):
                told(session, f"{number} {line}")
        assert len(runner.prefix_cache) == 2
        assert runner.prefix_cache.tokens < 2 * len(story.text) + 99


# a full context -----------------------------------------------------------------------------------


def starts_of(limit, turn, count, model=MODEL):
    """Where the context begins in each of `count` turns of `turn` tokens."""
    composer = ContextComposer(model, BOOK.entries, LATE)
    texts, starts = [], []
    for number in range(count):
        texts.append(f"{number:04} ".ljust(turn - 1, "a") + "\n")
        plan = composer.plan(StorySettings(context_tokens=limit), texts, turn)
        starts.append((plan.omitted, plan.tokens))
    return starts


def test_the_beginning_gives_way_in_large_steps():
    limit, turn = 1024, 40
    starts = starts_of(limit, turn, 100)
    omitted = [start for start, _ in starts]
    assert omitted == sorted(omitted)
    moves = [i for i, pair in enumerate(itertools.pairwise(omitted), 1) if pair[0] != pair[1]]
    room = limit - 32 - turn - 8
    full = moves[0]
    assert 0.9 * room < full * turn
    assert (len(moves) - 1) * 6 <= 100 - full  # a move in six turns or more
    assert all(tokens >= room / 4 for _, tokens in starts[full:])


def test_lore_that_wakes_as_text_does_not_move_the_beginning():
    book = [Entry(name="Emma", text="Emma wears a suit.", use="text"), *BOOK.entries[1:]]
    texts = [f"{number:04} ".ljust(79, "a") + "\n" for number in range(40)]
    composer = ContextComposer(MODEL, book, LATE)
    limit = StorySettings(context_tokens=1024)
    calm = composer.plan(limit, texts, WRITTEN)
    awake = composer.plan(limit, [*texts[:-1], "Emma ".ljust(79, "a") + "\n"], WRITTEN)
    assert awake.lore == {"Emma": "text"}
    assert calm.omitted == awake.omitted > 0


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_write_with_late_lore(library, family):
    model = tiny_model(family)
    prompts = {name: late(name, "a suit", model) for name in LATE}
    with library.create("a") as story, library.create("b") as other:
        texts = []
        for one, runnable in ((story, runner_for(model)), (other, None)):
            session = session_of(one, prompts, runnable or runner_for(model, cached=False))
            texts.append([told(session, line) for line in ("At sea. ", LINE[:60], " Emma came.")])
        assert texts[0] == texts[1]
