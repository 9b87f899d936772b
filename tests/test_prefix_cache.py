"""Turns with a prefix cache equal turns without one, and read only what is new."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import SoftPrompt, generate, logits
from softlore.decode import runner_for, write
from softlore.errors import ConfigError, ContextOverflowError
from softlore.model.families import TESTED_FAMILIES
from softlore.model.tiny import tiny_model

MODEL = tiny_model("llama")
DOG = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
CAT = SoftPrompt.from_text("Cat is not", MODEL, name="cat", kind="prefix")
ROW = SoftPrompt.from_text("a red coat", MODEL, name="coat", kind="embedding")
PIECES = st.sampled_from(["The ", "dog ", "ran.\n", "é", DOG, CAT, ROW])


def turn(runner, context, count=6, **sampling):
    """A text that was generated to its end."""
    return write(runner, context, count, **(sampling or {"temperature": 0})).drained()


def context_of(pieces):
    context = "The"
    for piece in pieces:
        context = context + piece
    return context


@given(st.lists(st.lists(PIECES, max_size=6), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=60)
def test_turns_with_a_cache_equal_turns_without(turns, seed):
    runner = runner_for(MODEL)
    for pieces in turns:
        context = context_of(pieces)
        expected = turn(MODEL, context, seed=seed, temperature=1.0).ids
        assert turn(runner, context, seed=seed, temperature=1.0).ids == expected


@pytest.mark.parametrize("family", sorted(TESTED_FAMILIES))
def test_every_family_continues_from_its_cache(family):
    model = tiny_model(family)
    runner = runner_for(model)
    text = "The old dog "
    for addition in ("ran", " to the sea", " and"):
        text += addition
        stream = turn(runner, text)
        assert stream.ids == turn(model, text).ids
    assert stream.cache_usage.reused > 10
    assert stream.cache_usage.read < 6


def test_only_the_tail_is_read():
    runner = runner_for(MODEL)
    text = "The dog ran down the lane."
    first = turn(runner, text, 8)
    assert first.cache_usage.reused == 0
    assert first.cache_usage.why == "nothing was read before"
    tokens = len(MODEL.encode(text))
    second = turn(runner, text + "x", 4)
    assert (second.cache_usage.reused, second.cache_usage.read) == (tokens, 1)
    assert not second.cache_usage.why
    third = turn(runner, text[:10] + "!", 4)
    assert (third.cache_usage.reused, third.cache_usage.read) == (10, 1)
    assert first.text == generate(MODEL, text, 8, temperature=0)


def test_generated_tokens_are_cached_too():
    runner = runner_for(MODEL)
    text = "The dog"
    ids = turn(runner, text, 8).ids
    after = text + MODEL.decode(ids, inside=True)
    if MODEL.encode(after) == MODEL.encode(text) + ids:
        second = turn(runner, after + " and", 4)
        # All but the last token, which was sampled and never run, and what was added.
        assert second.cache_usage.read == 1 + len(MODEL.encode(" and"))


def test_other_prefixes_void_it_and_it_says_so():
    runner = runner_for(MODEL)
    turn(runner, DOG + "The dog ran", 4)
    assert turn(runner, DOG + "The dog ran far", 4).cache_usage.reused
    other = turn(runner, DOG + CAT + "The dog ran far", 4).cache_usage
    assert other.why == "other soft prompts stand before the text"
    assert not other.reused
    swapped = turn(runner, CAT + DOG + "The dog ran far away", 4)
    assert swapped.cache_usage.reused  # prefixes have no order
    changed = turn(runner, CAT + DOG + "A dog ran far away", 4)
    assert changed.cache_usage.why == "its beginning has changed"


def test_a_prompt_read_again_from_its_file_is_the_same(tmp_path):
    runner = runner_for(MODEL)
    turn(runner, DOG + "The " + ROW + " dog", 4)
    loaded = []
    for prompt in (DOG, ROW):
        prompt.save(tmp_path / f"{prompt.name}.safetensors")
        loaded.append(SoftPrompt.load(tmp_path / f"{prompt.name}.safetensors"))
    usage = turn(runner, loaded[0] + "The " + loaded[1] + " dog ran", 4).cache_usage
    assert not usage.why
    assert usage.read == 4


def test_a_closed_stream_leaves_a_sound_cache():
    runner = runner_for(MODEL)
    for closed_after in (0, 1, 3):
        stream = write(runner, "The dog ran", 20, temperature=0)
        for _ in range(closed_after):
            next(stream)
        stream.close()
        assert list(stream) == []
    assert turn(runner, "The dog ran").ids == turn(MODEL, "The dog ran").ids
    assert runner.memory_usage().tokens == 0


def test_a_refused_turn_leaves_a_sound_cache():
    runner = runner_for(MODEL)
    turn(runner, "The dog ran", 4)
    with pytest.raises(ContextOverflowError):
        turn(runner, "The dog ran" + "x" * 5000, 4)
    assert turn(runner, "The dog ran to").ids == turn(MODEL, "The dog ran to").ids


def test_streams_of_one_runner_do_not_disturb_each_other():
    runner = runner_for(MODEL)
    texts = ["The dog ran", "A", DOG + "Down the lane"]
    streams = [write(runner, text, 9, seed=seed) for seed, text in enumerate(texts)]
    for _ in range(4):
        for stream in streams:
            next(stream, None)
    for seed, (text, stream) in enumerate(zip(texts, streams, strict=True)):
        assert stream.drained().ids == turn(MODEL, text, 9, seed=seed).ids


# what a stream reports ----------------------------------------------------------------------------


def test_logprobs_are_the_models_own():
    for seed, text in enumerate(["The dog", "A", "Down the lane"]):
        context = DOG + text
        (token,) = write(MODEL, context, 1, seed=seed, temperature=0.7, top_k=3, logprobs=4)
        logp = logits(MODEL, context)[-1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(logp[token.id]), abs=1e-4)
        assert list(token.top) == logp.topk(4).indices.tolist()
        assert list(token.top.values()) == pytest.approx(logp.topk(4).values.tolist(), abs=1e-4)


def test_how_it_ended():
    stream = write(MODEL, "The dog", 5, temperature=0)
    list(stream)
    assert (stream.finish, len(stream.ids)) == ("length", 5)
    limit = MODEL.context_length
    stream = write(MODEL, "x" * (limit - 2), 50, temperature=0)
    list(stream)
    assert stream.finish in ("context", "end")
    whole = generate(MODEL, "The dog", 12, temperature=0)
    if len(whole) > 4:
        stream = write(MODEL, "The dog", 12, temperature=0, stop=whole[2:4])
        assert (
            "".join(token.text for token in stream)
            == stream.text
            == whole[: whole.find(whole[2:4])]
        )
        assert (stream.finish, stream.stopped_by) == ("stop", whole[2:4])


@pytest.mark.parametrize("logprobs", [-1, 1001])
def test_logprobs_out_of_range(logprobs):
    with pytest.raises(ConfigError, match="logprobs is"):
        write(MODEL, "The dog", 5, logprobs=logprobs)
