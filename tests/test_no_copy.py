"""No copying: known responses are not repeated past a length, and from a file nobody reads them."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlore import SoftPrompt, WorldInfoTrainer, generate
from softlore.decode import write
from softlore.errors import ConfigError
from softlore.measure import copied
from softlore.model.tiny import tiny_model
from softlore.prompts.responses import KEY, MAX_RUNS, RUN, HashedResponses

MODEL = tiny_model("llama")
SAID = " a crisp black pantsuit."
IDS = st.lists(st.integers(0, 9), max_size=20)


def prompt(text=SAID):
    kept = HashedResponses.of([MODEL.encode(text)]).as_text()
    return SoftPrompt.from_text("Emma", MODEL, name="Emma").replace(training={KEY: kept})


@given(st.lists(IDS, max_size=4), IDS)
def test_what_goes_on_is_known_exactly(responses, text):
    known = HashedResponses.from_text(HashedResponses.of(responses).as_text())
    last = text[-(RUN - 1) :]
    expected = {
        ids[at + RUN - 1]
        for ids in responses
        for at in range(len(ids) - RUN + 1)
        if len(last) == RUN - 1 and ids[at : at + RUN - 1] == last
    }
    assert known.next(text) == expected


@given(st.binary(max_size=60))
def test_whatever_a_file_says_is_harmless(data):
    HashedResponses.from_text(base64.b64encode(data).decode())
    assert HashedResponses.from_text(data) == HashedResponses({})
    assert HashedResponses.from_text("*" * 9) == HashedResponses({})


def test_there_is_an_end_to_it():
    many = HashedResponses.of([range(i, i + 900) for i in range(0, 90_000, 900)])
    assert sum(map(len, many.following.values())) == MAX_RUNS
    assert HashedResponses.from_text(many.as_text()) == many


def test_no_text_stands_in_the_file(tmp_path):
    path = tmp_path / "emma.safetensors"
    prompt().save(path)
    assert b"pantsuit" not in path.read_bytes()
    told = SoftPrompt.load(path).training[KEY]
    assert HashedResponses.from_text(told).next(MODEL.encode(" a c"))


@pytest.fixture(scope="module")
def parrot():
    """A prompt that makes the model say its response word for word."""
    return WorldInfoTrainer(
        MODEL, blocks=[("Emma wore", [SAID])], name="Emma", n_tokens=16, max_steps=300,
        max_spacing=0, drift_guard=0, min_loss=0.05, seed=0,
    ).train()  # fmt: skip


def test_a_parrot_is_steered_off(parrot):
    context = parrot + "Emma wore"
    told = generate(MODEL, context, 30, temperature=0)
    assert told.startswith(SAID[:16])
    for most in (4, 8):
        writing = write(MODEL, context, 60, temperature=0, no_copy=most)
        assert list(writing)
        # The longest run that stands in the response as well.
        assert copied([writing.ids], [MODEL.encode(SAID)]).run < most


def test_what_is_no_copy_is_left_alone(parrot):
    plain = SoftPrompt.from_text("Emma", MODEL, name="Emma", kind="prefix")
    context = plain + "Emma wore"
    assert generate(MODEL, context, 20, temperature=0, no_copy=4) == generate(
        MODEL, context, 20, temperature=0
    )


@pytest.mark.parametrize("most", [1, 3, -2, 4.5, True])
def test_lengths_that_cannot_be_told(most):
    with pytest.raises(ConfigError, match="no_copy is"):
        write(MODEL, prompt() + "Emma", 5, no_copy=most)
