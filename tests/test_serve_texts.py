"""From a client's text to the engine's request: tags, lore, what gives way, samplers, chats."""

import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import Entry, Lorebook, SoftPrompt
from softlore.context import free_places
from softlore.context.chat import render_chat
from softlore.decode.samplers import SamplingParams
from softlore.errors import InputError, PromptMismatchError, UnknownPromptError
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.serve.chat import ChatMessage
from softlore.serve.compose import RequestComposer
from softlore.serve.lenient import sampling_of
from softlore.serve.prompt_store import PromptStore
from softlore.serve.responses import event
from softlore.settings import ServeSettings

MODEL = tiny_model("llama")
LIMIT = MODEL.context_length
EMMA = SoftPrompt.from_text("a black suit", MODEL, name="Emma", kind="prefix")
DOG = SoftPrompt.from_text("good boy", MODEL, name="dog", kind="embedding")
OTHER = SoftPrompt.from_text("a cat", tiny_model("llama", seed=5), name="cat", kind="embedding")
BOOK = Lorebook(
    name="town",
    entries=[
        Entry(name="Emma", text="Emma wears a suit.", blocks=[("Emma wore", [" a black suit."])]),
        Entry(name="cat", text="The cat is grey."),
        Entry(name="Gate", text="The gate is shut.", keys=["gate"], position="at_depth", depth=1),
    ],
)
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def made(folder, book=None):
    library = PromptLibrary(folder)
    for prompt in (EMMA, DOG, OTHER):
        library.save(prompt)
    state = SimpleNamespace(
        engine=SimpleNamespace(model=MODEL),
        prompt_store=PromptStore(library, MODEL),
        book=book,
        settings=ServeSettings(),
    )
    return RequestComposer(state)


def positions(request):
    """What a request takes of the context, counted from its text."""
    longest = max(map(len, request.context.prefixes), default=1)
    tokens = len(MODEL.bos) + request.context.token_count(MODEL).context
    return free_places(longest, LIMIT) + tokens


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return made(tmp_path_factory.mktemp("prompts"))


def read(texts, text, **options):
    """The context of a client's text."""
    return texts.compose(text, **options).context


# tags --------------------------------------------------------------------------------------------


def test_tags_name_prompts_of_both_kinds_in_text_and_memory(texts):
    context = read(texts, "Then [[soft:dog]] ran.", memory="Of [[soft:Emma]].")
    assert context.prompts == (EMMA, DOG)
    assert context.body.text == "Of .\nThen [[soft:dog]] ran."
    assert read(texts, r"a [[soft:\dog]] b").pieces == ("a [[soft:dog]] b",)


@pytest.mark.parametrize("left", ["]]", "]", "g]]", "soft:dog]]", "[soft:Emma]]"])
def test_half_a_tag_at_the_start_is_dropped(texts, left):
    assert read(texts, left + " ran home").pieces == (" ran home",)
    assert read(texts, "It", memory=left + " sat").pieces == (" sat\nIt",)


def test_what_only_looks_like_half_a_tag_stays(texts):
    assert read(texts, "a[1]] ran").pieces == ("a[1]] ran",)


def test_a_tag_of_no_prompt_is_told_with_those_there_are(texts):
    with pytest.raises(UnknownPromptError, match=r"did you mean \[\[soft:dog\]\].*Emma, cat, dog"):
        read(texts, "The [[soft:dug]] ran.")
    with pytest.raises(UnknownPromptError, match="there are: Emma"):
        read(texts, "It", memory="[[soft:zzz]]")


def test_a_prompt_of_another_model_is_refused(texts):
    with pytest.raises(PromptMismatchError, match="another model"):
        read(texts, "The [[soft:cat]] ran.")
    with pytest.raises(PromptMismatchError):
        read(texts, "It ran.", always=["cat"])


def test_prompts_that_are_always_there_stand_first(texts):
    assert read(texts, "It ran.", always=["dog"], memory="A tale.").pieces[0] == DOG
    assert read(texts, "It ran.", always=["Emma"]).prefixes == (EMMA,)


def test_a_prompt_that_is_trained_anew_is_read_anew(tmp_path):
    texts = made(tmp_path)
    assert read(texts, "[[soft:dog]]").prompts == (DOG,)
    again = SoftPrompt.from_text("bad boy", MODEL, name="dog", kind="embedding")
    texts.store.library.save(again)
    assert read(texts, "[[soft:dog]]").prompts == (again,)
    texts.store.library.remove("dog")
    with pytest.raises(UnknownPromptError):
        read(texts, "[[soft:dog]]")
    assert "dog" not in texts.store.compatible()


def test_tokens_are_counted_with_those_of_prompts(texts):
    assert texts.count("abc") == (3, MODEL.encode("abc"))
    value, ids = texts.count("a[[soft:dog]]bc[[soft:Emma]]")
    assert value == 3 + len(DOG) + len(EMMA)
    assert ids == MODEL.encode("abc")
    assert texts.count("[[soft:do]]")[0] == texts.count("[[soft:cat]]")[0] - 1 == 11


# what gives way ----------------------------------------------------------------------------------


def test_a_long_text_loses_its_beginning_and_never_its_memory(texts):
    story = "".join(f"Line {n}.\n" for n in range(500))
    request = texts.compose(story, 30, memory="A tale of [[soft:Emma]].")
    context = request.context
    assert "A tale of ." in context.body.text
    assert context.body.text.endswith("Line 499.\n")
    assert context.prompts == (EMMA,)
    assert request.max_new_tokens == 30
    assert positions(request) + 30 <= LIMIT


@given(
    st.lists(st.sampled_from(["a", "bbb", " ", ".", "\n", "[[soft:dog]]"]), max_size=400),
    st.text(st.sampled_from("xy.\n"), max_size=700),
    st.sampled_from([0, -1, 1, 130, 200, 10**9]),
    st.sampled_from([1, 20, 120, 10**6, None]),
    st.booleans(),
    st.sampled_from([[], ["dog"], ["Emma"]]),
)
@settings(max_examples=80)
def test_whatever_is_asked_for_fits(texts, text, memory, limit, tokens, messages, always):
    text = "".join(text)
    turns = re.findall(r"[^\n]*\n|[^\n]+", text)
    request = texts.compose(
        turns if messages else text, tokens, memory=memory, context_tokens=limit, always=always
    )
    assert 1 <= request.max_new_tokens <= (tokens or LIMIT)
    most = min(LIMIT, max(limit, 128)) if limit > 0 else LIMIT
    assert positions(request) + request.max_new_tokens <= most
    assert positions(request) == request.tree.start + request.tree.length
    newest = turns[-1] if messages and turns else text
    assert request.context.text.endswith(newest[-3:])
    # A tag or a message that does not fit is left out as a whole; of what follows it, all is read.
    after_tags = newest.rpartition("]]")[2]
    assert request.context.text.endswith(after_tags[-12:])


def test_no_tag_is_cut_in_two(texts):
    for gap in range(40):
        text = ("x" * gap + "[[soft:dog]]") * 60 + " end"
        assert set(read(texts, text).body.text.replace("[[soft:dog]]", "")) <= set("x end")


def test_asking_for_more_than_the_context_gives_half_of_it_at_least(texts):
    assert texts.compose("Once", 5000).max_new_tokens == LIMIT - free_places(1, LIMIT) - 4
    long = texts.compose("word " * 500, 5000)
    assert long.max_new_tokens >= LIMIT // 2


def test_an_empty_text_is_gone_on_from(texts):
    assert read(texts, "").pieces == ("\n",)


def test_a_monstrous_text_is_refused(texts):
    with pytest.raises(InputError, match="characters"):
        read(texts, "x" * 5_000_000)


# the server's lore -------------------------------------------------------------------------------


def test_the_servers_lore_reaches_a_client_that_knows_nothing_of_it(tmp_path):
    texts = made(tmp_path, BOOK)
    context = read(texts, "A dog ran.\nEmma came to the gate.\nIt rained.")
    assert context.prefixes == (EMMA,)
    assert context.body.text.endswith("gate.\nThe gate is shut.\nIt rained.")
    far = "Emma came.\n" + "A dog ran.\n" * 8
    assert read(texts, far).text == far
    texts.state.book = None
    assert read(texts, "Emma came.").text == "Emma came."


def test_late_lore_is_seen_by_the_newest_lines_only(tmp_path):
    texts = made(tmp_path, BOOK)
    texts.store.library.save(EMMA.replace(training={"placement": "late"}))
    old, new = (
        "A dog ran.\n" * 4,
        "Emma came to see it, and it rained all day long on the roofs of the town.\n",
    )
    new = "It was late.\n" + new
    request = texts.compose(old + new)
    assert [piece for piece in request.context if isinstance(piece, str)] == [old, new]
    nodes = [(len(node), tuple(node.sees)) for node in request.tree.nodes]
    assert nodes == [(len(old), ()), (len(new), (0,))]
    without = texts.compose(old)
    assert without.tree.start == request.tree.start == 32
    always = texts.compose(old + new, always=["Emma"], memory="A tale.")
    assert [tuple(node.sees) for node in always.tree.nodes] == [(), (0,)]


def test_lore_whose_prompt_is_of_another_model_enters_as_text(tmp_path):
    texts = made(tmp_path, BOOK)
    assert read(texts, "The cat sat.").pieces == ("The cat is grey.\nThe cat sat.",)


def test_many_threads_compose_at_once(tmp_path):
    texts = made(tmp_path, BOOK)
    asked = [f"Emma and [[soft:dog]] {n}." for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: read(texts, text).text, asked))
    assert found == [read(texts, text).text for text in asked]


# samplers ----------------------------------------------------------------------------------------


def test_fields_of_koboldai_are_samplers():
    sent = {
        "rep_pen": 1.1, "rep_pen_range": 320, "rep_pen_slope": 0.7, "temperature": 0.7,
        "top_p": 0.92, "top_k": 100, "top_a": 0.1, "typical": 0.9, "tfs": 0.95, "min_p": 0.05,
        "nsigma": 1.5, "dynatemp_range": 0.3, "dynatemp_exponent": 1.2, "smoothing_factor": 0.2,
        "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2, "presence_penalty": 0.4,
        "dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ["\n", "*"], "xtc_probability": 0.5, "xtc_threshold": 0.2,
        "banned_tokens": ["suddenly"], "logit_bias": {"7": -2},
        "sampler_order": [6, 5, 0, 1, 3, 4, 2],
    }  # fmt: skip
    found = SamplingParams(**sampling_of(sent, MODEL))
    assert (found.repetition_penalty, found.repetition_range, found.repetition_slope) == (
        1.1, 320, 0.7,
    )  # fmt: skip
    assert (found.temperature, found.top_p, found.top_k, found.top_a) == (0.7, 0.92, 100, 0.1)
    assert (found.typical, found.tfs, found.min_p, found.top_n_sigma) == (0.9, 0.95, 0.05, 1.5)
    assert (found.dynatemp_range, found.dynatemp_exponent, found.smoothing) == (0.3, 1.2, 0.2)
    assert (found.mirostat, found.mirostat_tau, found.mirostat_eta) == (2, 4.0, 0.2)
    assert (found.dry_multiplier, found.dry_base, found.dry_allowed_length) == (0.8, 1.5, 3)
    assert (found.dry_range, found.dry_breakers) == (64, ("\n", "*"))
    assert (found.xtc_probability, found.xtc_threshold, found.presence_penalty) == (0.5, 0.2, 0.4)
    assert (found.banned_strings, found.logit_bias) == (("suddenly",), ((7, -2.0),))
    assert found.order[:2] == ("repetition_penalty", "temperature")


@pytest.mark.parametrize(
    "sent",
    [
        {
            "nsigma": -1,
            "dry_base": 0,
            "top_k": -1,
            "typical": 0,
            "tfs": 0,
            "top_p": -1,
            "top_a": -1,
        },
        {"rep_pen": 0, "rep_pen_range": -1, "dynatemp_exponent": 0, "mirostat": 7, "min_p": -1},
        {"temperature": None, "top_p": "x", "logit_bias": {"x": 1, "-4": 2, "99999": 1}},
        {"logit_bias": [], "banned_tokens": "", "banned_strings": [3], "sampler_order": ["x", 9]},
        {
            "bypass_eos": False,
            "temperature": float("nan"),
            "dry_sequence_breakers": "",
            "top_k": [],
        },
        {"temperature": "0.8", "min_p": {}, "xtc_threshold": [1]},
    ],
)
def test_what_clients_send_for_off_or_by_mistake_changes_nothing(sent):
    assert SamplingParams(**sampling_of(sent, MODEL)) in (SamplingParams(), SamplingParams(top_k=0))


def test_what_is_out_of_range_is_brought_back():
    sent = {"temperature": 1e9, "top_p": 3, "rep_pen": "1.2", "rep_pen_range": 10**9}
    sent |= {"logit_bias": {"3": 1e200}, "typical_p": 0.5, "sampler_order": [6, 0, 1, 3, 4, 2]}
    found = SamplingParams(**sampling_of(sent, MODEL))
    assert (found.temperature, found.top_p, found.repetition_penalty) == (100, 1, 1.2)
    assert found.repetition_range <= 2**20
    assert found.logit_bias == ((3, 100.0),)
    assert found.typical == 0.5
    assert SamplingParams(**sampling_of({"bypass_eos": True}, MODEL)).banned == tuple(MODEL.eos_ids)


# events and chats --------------------------------------------------------------------------------


def test_events_are_ascii_and_end_in_line_feeds():
    told = event({"token": "é\u2028\n\U0001f415", "finish_reason": None}, "message")
    assert told == (
        b'event: message\ndata: {"token": "\\u00e9\\u2028\\n\\ud83d\\udc15", '
        b'"finish_reason": null}\n\n'
    )


def messages(*said):
    return [ChatMessage(role=role, content=text) for role, text in said]


def test_a_chat_is_a_transcript_where_the_model_has_no_template():
    said = messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go"))
    chat = render_chat(MODEL, said)
    assert chat.memory == "Be kind."
    assert chat.turns == ["User: Hi\n", "Assistant: Yes?\n", "User: Go\nAssistant:"]
    assert "\nUser:" in chat.stop
    assert render_chat(MODEL, messages(("user", "Hi"), ("assistant", "It is"))).turns[-1] == (
        "Assistant: It is"
    )


def test_a_chat_is_rendered_by_the_models_template():
    model = tiny_model("llama")
    model.tokenizer.chat_template = CHATML
    said = messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go"))
    chat = render_chat(model, said)
    assert chat.memory == "<|system|>\nBe kind.</s>\n"
    assert chat.turns == [
        "<|user|>\nHi</s>\n", "<|assistant|>\nYes?</s>\n", "<|user|>\nGo</s>\n<|assistant|>\n",
    ]  # fmt: skip
    assert not chat.stop
    going_on = render_chat(model, messages(("user", "Hi"), ("assistant", "It is")))
    assert going_on.turns[-1] == "<|assistant|>\nIt is"
    model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        render_chat(model, said)


def test_old_messages_give_way_whole(texts):
    said = [("system", "Be kind."), *[("user", f"Question {n}?") for n in range(60)]]
    chat = render_chat(MODEL, messages(*said))
    request = texts.compose(chat.turns, None, memory=chat.memory, stop=chat.stop)
    text = request.context.text
    assert text.startswith("Be kind.\nUser: Question ")
    assert text.endswith("User: Question 59?\nAssistant:")
    assert request.max_new_tokens >= LIMIT // 4
