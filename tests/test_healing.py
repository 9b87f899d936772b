"""Token healing: words at the seam between a text and what is generated after it."""

import math

import pytest
import torch

from softlore import FrozenModel, SoftPrompt
from softlore.context import compose
from softlore.decode import generate, write
from softlore.decode.healing import heal
from softlore.prompts import Context


@pytest.fixture(scope="module")
def model():
    return FrozenModel.from_pretrained("storyteller")


@pytest.mark.parametrize("text", ["The end.", "Down the lane.\n", "He said, “Go!”", "It was 1812"])
def test_texts_that_need_no_healing_go_on_as_without(model, text):
    for seed in range(3):
        plain, healed = (write(model, text, 20, seed=seed, heal=h).drained() for h in (False, True))
        assert healed.ids == plain.ids
        assert healed.text == plain.text


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Once there was a castle on a hill. The knight rode home to the ca", "stle"),
        ("She knocked, and the old woman opened the doo", "r"),
        ("He gave her a kiss, and she was very hap", "py"),
    ],
)
def test_a_text_that_ends_within_a_word_is_completed(model, text, rest):
    healed = generate(model, text, 8, temperature=0, heal=True)
    assert healed.startswith(rest)
    assert not generate(model, text, 8, temperature=0).startswith(rest + " ")


def test_a_space_at_the_end_is_not_doubled(model):
    for seed in range(8):
        assert not generate(model, "She walked to the ", 8, seed=seed, heal=True).startswith(" ")


def test_a_known_name_is_not_continued_within(model):
    text = "Odrin was the king. At the door stood Odrin"
    state, tree = heal(model, text, compose(model, text))
    assert tree.length == compose(model, text).length
    scores = state.apply(torch.zeros(1, model.vocab_size))[0]
    for i, token in enumerate(model.token_bytes(range(model.vocab_size))):
        first = token.decode("utf-8", "ignore")[:1]
        assert (scores[i] == -math.inf) == (first.lower() != first.upper())
    for seed in range(10):
        assert not generate(model, text, 6, seed=seed, heal=True)[:1].isalpha()


def test_the_names_of_soft_prompts_are_known(model):
    prompt = SoftPrompt.from_text("green cloak", model, "Odrin")
    context = Context(["At the door stood ", prompt, "Odrin"])
    state, _ = heal(model, context, compose(model, context))
    assert state is not None
    assert not state.ids


def test_healed_text_is_as_long_as_requested_and_its_stops_are_in_new_text_only(model):
    text = "She knocked, and the old woman opened the doo"
    stream = write(model, text, 5, seed=0, heal=True, logprobs=2)
    tokens = list(stream)
    assert len(stream.ids) == 5
    assert "".join(token.text for token in tokens) == stream.text
    assert all(token.logprob is not None for token in tokens if token.id is not None)
    assert generate(model, text, 5, seed=0, heal=True, stop="doo")


def test_a_grammar_begins_at_the_seam_as_it_is(model):
    assert generate(model, "the doo", 8, seed=0, heal=True, choice=["xyz"]) == "xyz"
