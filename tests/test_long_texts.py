"""Texts longer than a chunk, or than the context: studied chunk by chunk, by one prompt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from running import softlore
from softlore import FrozenModel, WorldInfoTrainer
from softlore.context import Node, Tree
from softlore.context.activation import activate
from softlore.decode import sample_passages
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.chunks import chunks, split_entries
from softlore.measure.losses import fidelity
from softlore.measure.score import hidden_states_after, trunk
from softlore.model.tiny import byte_tokenizer, tiny_hf
from softlore.tune.checkpoint import Checkpointing

PEOPLE = ("Ada", "Bram", "Cora", "Dirk", "Edda", "Finn", "Gerd", "Hugo")
SAGA = "\n\n".join(
    f"{name} lives in house number {number}. There is a lamp in the window, and {name} sits below "
    f"it every night. On the wall hangs a picture of a ship with {number} masts."
    for number, name in enumerate(PEOPLE, start=2)
)


@given(st.text(max_size=300), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_chunks_joined_are_the_text(text, most):
    parts = chunks(text, most, len)
    assert "".join(parts) == text
    assert all(len(part) <= most for part in parts)


def test_chunks_end_with_paragraphs_and_are_of_one_length():
    parts = chunks(SAGA, len(SAGA) // 4 + 40, len)
    assert len(parts) == 4
    assert all(part.startswith(PEOPLE) for part in parts)
    assert max(map(len, parts)) < 1.5 * min(map(len, parts))


def short_model(bos=False):
    """A random model with a context of 300 tokens, of which the text has over a thousand."""
    return FrozenModel(tiny_hf("llama", max_position_embeddings=300), byte_tokenizer(bos), "short")


def long_trainer(model, **settings):
    entry = Entry(name="Saga", text=SAGA)
    options = {"n_tokens": 12, "passage_tokens": 8, "max_spacing": 16, "distil_passages": 64}
    return WorldInfoTrainer(model, entries=[entry], **{**options, **settings})


@pytest.mark.parametrize("options", [{}, {"placement": "classic"}, {"kind": "embedding"}])
def test_a_text_longer_than_the_context_becomes_one_prompt(options):
    model = short_model()
    assert len(model.encode(SAGA)) > 2 * model.context_length
    trainer = long_trainer(model, max_steps=3, **options)
    prompt = trainer.train()["Saga"]
    assert len(prompt) == 12
    assert prompt.tensor.isfinite().all()
    examples = trainer.data.examples["Saga"]
    studied = {tuple(topic.lore) for topic in examples.source.topics}
    assert len(studied) > 3
    assert {tuple(p.lore) for p in [*examples.passages, *examples.source.held_out]} == studied
    assert all(len(lore) + 8 + 12 <= model.context_length for lore in studied)


@pytest.mark.parametrize("bos", [False, True])
def test_every_chunk_has_its_share_of_the_start_in_closed_form(bos):
    """Each passage's teacher is the model that has read the chunk that the passage is about."""
    model = short_model(bos)
    trainer = long_trainer(model, max_steps=0)
    prompt = trainer.train()["Saga"]
    assert prompt.tensor.shape[3] == 12
    assert prompt.tensor.isfinite().all()
    for passage in trainer.data.examples["Saga"].passages:
        before = Tree([Node(model.bos + list(passage.lore))])
        (states,) = hidden_states_after(model, before, [passage.ids])
        torch.testing.assert_close(passage.target, states, atol=1e-4, rtol=1e-4)


def test_training_on_a_long_text_resumes_where_it_was(tmp_path):
    model = short_model()
    whole = long_trainer(model, max_steps=10).train()["Saga"]
    file = tmp_path / "run.ckpt"
    options = {"max_steps": 10, "checkpointing": Checkpointing(file)}
    long_trainer(model, on_step=lambda progress: progress.step == 9, **options).train()
    resumed = long_trainer(model, **options).train()["Saga"]
    torch.testing.assert_close(resumed.tensor, whole.tensor)


def test_a_long_texts_beginning_middle_and_end_are_learned_alike(monkeypatch):
    model = FrozenModel.from_pretrained("storyteller")
    monkeypatch.setattr("softlore.tune.topics.MAX_CHUNK", 120)
    trainer = long_trainer(model, n_tokens=32, max_steps=8, passage_tokens=24)
    prompt = trainer.train()["Saga"]
    topics = trainer.data.examples["Saga"].source.topics
    assert len(topics) > 3
    shares = []
    for number, topic in enumerate(topics):
        before = topic.before[0][0]
        passages = sample_passages(model, before, topic.openers, 8, 24, 100 + number)
        text, bare, soft = (
            hidden_states_after(model, tree, passages, 2)
            for tree in (before, trunk(model, ""), trunk(model, prompt))
        )
        shares.append(fidelity(model, text, bare, soft))
    assert min(shares) > 0.5


# split -------------------------------------------------------------------------------------------


def test_a_long_text_is_split_into_entries_with_keys_of_their_own(tmp_path):
    text, out = tmp_path / "saga.txt", tmp_path / "saga.yaml"
    text.write_text("In the old town the neighbours know everybody.\n\n" + SAGA, "utf-8")
    ended = softlore("lore", "split", text, "--characters", "300", "--out", out)
    assert ended.code == 0, ended.err
    book = Lorebook.load(out)
    assert len(book) > 3
    assert [entry.name for entry in book][:2] == ["saga 1", "saga 2"]
    for entry in book:
        assert len(entry.text) <= 300
        named = {name for name in PEOPLE if name in entry.text}
        assert named & set(entry.keys)  # names first; what all parts have is no key
        assert not {"picture", "lamp", "window"} & set(entry.keys)
    assert all(any(name in entry.text for entry in book) for name in PEOPLE)
    active = activate(book, ["Then Edda laughed."]).active
    assert [one.entry.name for one in active] == [e.name for e in book if "Edda" in e.text]


def test_splitting_keeps_short_entries_and_takes_blocks_along():
    block = Block(call="Gerd lives in", responses=[" house number 8"])
    book = Lorebook(
        name="town",
        entries=[Entry(name="Saga", text=SAGA, blocks=[block]), Entry(name="Ada", text="A smith.")],
    )
    parts = split_entries(book, 400)
    assert parts["Ada"] == book["Ada"]
    (owner,) = [entry for entry in parts if entry.blocks]
    assert "Gerd" in owner.text


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00"])
def test_a_text_that_cannot_be_split_is_a_clear_error(tmp_path, content):
    path = tmp_path / "saga.txt"
    path.write_bytes(content)
    ended = softlore("lore", "split", path)
    assert ended.code == 2
    assert "; expected " in ended.err
