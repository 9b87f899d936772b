"""What was read is not read again: every turn with a memory equals the same turn without one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import SoftPrompt, generate, logits
from softlore.decode import TextCache, write
from softlore.errors import ConfigError, ContextOverflowError
from softlore.model.families import TESTED_FAMILIES
from softlore.model.tiny import tiny_model

MODEL = tiny_model("llama")
DOG = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
CAT = SoftPrompt.from_text("Cat is not", MODEL, name="cat", kind="prefix")
ROW = SoftPrompt.from_text("a red coat", MODEL, name="coat", kind="embedding")
PIECES = st.sampled_from(["The ", "dog ", "ran.\n", "é", DOG, CAT, ROW])


def ids(context, memory=None, count=6, model=MODEL, **sampling):
    sampling = sampling or {"temperature": 0}
    return list(write(model, context, count, memory=memory, **sampling)), memory


def written(context, memory=None, **settings):
    return [token.id for token in ids(context, memory, **settings)[0] if token.id is not None]


def context_of(pieces):
    context = "The"
    for piece in pieces:
        context = context + piece
    return context


@given(st.lists(st.lists(PIECES, max_size=6), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=60)
def test_turns_with_a_memory_equal_turns_without(turns, seed):
    memory = TextCache()
    for pieces in turns:
        context = context_of(pieces)
        wanted = written(context, seed=seed, temperature=1.0)
        assert written(context, memory, seed=seed, temperature=1.0) == wanted


@pytest.mark.parametrize("family", sorted(TESTED_FAMILIES))
def test_every_family_goes_on_from_what_it_has_read(family):
    model = tiny_model(family)
    memory = TextCache()
    text = "The old dog "
    for addition in ("ran", " to the sea", " and"):
        text += addition
        assert written(text, memory, model=model) == written(text, model=model)
    assert memory.cache_usage.reused > 10
    assert memory.cache_usage.read < 6


def test_only_the_tail_is_read():
    memory = TextCache()
    text = "The dog ran down the lane."
    told = generate(MODEL, text, 8, temperature=0, memory=memory)
    assert memory.cache_usage.reused == 0
    assert memory.cache_usage.why == "nothing was read before"
    tokens = len(MODEL.encode(text))
    generate(MODEL, text + "x", 4, temperature=0, memory=memory)
    assert (memory.cache_usage.reused, memory.cache_usage.read) == (tokens, 1)
    assert not memory.cache_usage.why
    generate(MODEL, text[:10] + "!", 4, temperature=0, memory=memory)
    assert (memory.cache_usage.reused, memory.cache_usage.read) == (10, 1)
    assert told == generate(MODEL, text, 8, temperature=0)


def test_what_was_written_need_not_be_read_when_it_is_kept():
    memory = TextCache()
    text = "The dog"
    writing = write(MODEL, text, 8, temperature=0, memory=memory)
    tokens = [token.id for token in writing]
    after = text + MODEL.decode(tokens, inside=True)
    if MODEL.encode(after) == MODEL.encode(text) + tokens:
        generate(MODEL, after + " and", 4, temperature=0, memory=memory)
        # All but the last token, which was chosen and never read, and what was added.
        assert memory.cache_usage.read == 1 + len(MODEL.encode(" and"))


def test_other_prefixes_void_it_and_it_says_so():
    memory = TextCache()
    generate(MODEL, DOG + "The dog ran", 4, memory=memory)
    generate(MODEL, DOG + "The dog ran far", 4, memory=memory)
    assert memory.cache_usage.reused
    generate(MODEL, DOG + CAT + "The dog ran far", 4, memory=memory)
    assert memory.cache_usage.why == "other soft prompts stand at its head"
    assert not memory.cache_usage.reused
    generate(MODEL, CAT + DOG + "The dog ran far away", 4, memory=memory)
    assert memory.cache_usage.reused  # prefixes have no order
    generate(MODEL, CAT + DOG + "A dog ran far away", 4, memory=memory)
    assert memory.cache_usage.why == "its beginning has changed"


def test_a_prompt_read_again_from_its_file_is_the_same(tmp_path):
    memory = TextCache()
    generate(MODEL, DOG + "The " + ROW + " dog", 4, memory=memory)
    again = []
    for prompt in (DOG, ROW):
        prompt.save(tmp_path / f"{prompt.name}.safetensors")
        again.append(SoftPrompt.load(tmp_path / f"{prompt.name}.safetensors"))
    generate(MODEL, again[0] + "The " + again[1] + " dog ran", 4, memory=memory)
    assert not memory.cache_usage.why
    assert memory.cache_usage.read == 4


def test_a_closed_writing_leaves_a_sound_memory():
    memory = TextCache()
    for closed_after in (0, 1, 3):
        writing = write(MODEL, "The dog ran", 20, temperature=0, memory=memory)
        for _ in range(closed_after):
            next(writing)
        writing.close()
        assert list(writing) == []
    assert written("The dog ran", memory) == written("The dog ran")


def test_a_refused_turn_leaves_a_sound_memory():
    memory = TextCache()
    generate(MODEL, "The dog ran", 4, memory=memory)
    with pytest.raises(ContextOverflowError):
        generate(MODEL, "The dog ran" + "x" * 5000, 4, memory=memory)
    assert written("The dog ran to", memory) == written("The dog ran to")


# what a writing tells ----------------------------------------------------------------------------


def test_logprobs_are_the_models_own():
    for seed, text in enumerate(["The dog", "A", "Down the lane"]):
        context = DOG + text
        (token,) = write(MODEL, context, 1, seed=seed, temperature=0.7, top_k=3, logprobs=4)
        logp = logits(MODEL, context)[-1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logp[token.id]), abs=1e-4)
        assert list(token.top) == logp.topk(4).indices.tolist()
        assert list(token.top.values()) == pytest.approx(logp.topk(4).values.tolist(), abs=1e-4)


def test_how_it_ended():
    writing = write(MODEL, "The dog", 5, temperature=0)
    list(writing)
    assert (writing.finish, len(writing.ids)) == ("length", 5)
    limit = MODEL.context_length
    writing = write(MODEL, "x" * (limit - 2), 50, temperature=0)
    list(writing)
    assert writing.finish in ("context", "end")
    whole = generate(MODEL, "The dog", 12, temperature=0)
    if len(whole) > 4:
        writing = write(MODEL, "The dog", 12, temperature=0, stop=whole[2:4])
        assert (
            "".join(token.text for token in writing)
            == writing.text
            == whole[: whole.find(whole[2:4])]
        )
        assert (writing.finish, writing.stopped_by) == ("stop", whole[2:4])


@pytest.mark.parametrize("logprobs", [-1, 1001])
def test_logprobs_out_of_range(logprobs):
    with pytest.raises(ConfigError, match="logprobs is"):
        write(MODEL, "The dog", 5, logprobs=logprobs)
