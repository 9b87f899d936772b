"""What follows a response: guarded, so that a fact is told and the story goes on."""

import pytest
import torch

from softlore import Entry, FrozenModel, WorldInfoTrainer
from softlore.measure.score import hidden_states_after
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model
from softlore.tune import Checkpointing
from softlore.tune.passage_sources import CONTINUATION, CONTINUATIONS_DRAWN
from softlore.tune.topics import bare_tree

TEXT = "The cat is black and old. It sleeps in the oven of the inn. It was never late for a meal."
TOLD = Entry(name="Cat", text=TEXT)
OWN = Entry(name="Cat", text=TEXT, blocks=[("The cat", [" is black.", " sleeps."])])
SMALL = {
    "n_tokens": 3,
    "max_steps": 3,
    "max_spacing": 24,
    "distil_passages": 4,
    "passage_tokens": 8,
    "continuation_guard": 1.0,
}


def trainer(*entries, model=None, **settings):
    return WorldInfoTrainer(
        model or tiny_model("llama"), entries=list(entries), **{**SMALL, **settings}
    )


def losses(training):
    training.prepare()
    return {term.loss for term in training.draw().terms}


@pytest.mark.parametrize("entry", [TOLD, OWN], ids=["calls of a text", "calls of its own"])
def test_it_is_there_where_it_is_asked_for(entry):
    assert "continuation" not in losses(trainer(entry, continuation_guard=0))
    assert "continuation" in losses(trainer(entry))


def test_only_what_follows_the_response_is_compared_with_the_bare_model():
    training = trainer(TOLD)
    training.prepare()
    examples, model = training.data.examples["Cat"], training.model
    told = {model.decode(pair.ids) for pair in examples.pairs}
    assert examples.continuations.passages
    for passage in examples.continuations.passages:
        assert model.decode(passage.ids[: passage.start + 1]) in told
        assert 1 < len(passage.target) <= examples.continuations.length
        (bare,) = hidden_states_after(model, bare_tree(model), [passage.ids], passage.start)
        torch.testing.assert_close(passage.target, bare, atol=1e-5, rtol=1e-4)
    longest = max(len(passage.target) for passage in examples.continuations.passages)
    assert longest >= CONTINUATION


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_prompts_of_both_kinds_are_trained_with_it(kind):
    training = trainer(TOLD, kind=kind, distil_weight=0)
    training.prepare()
    training.update()
    history = training.trainables["Cat"].history
    assert len(history["continuation"]) == 1
    assert history["continuation"][0] > 0


def test_more_weight_bends_what_follows_less():
    def bent(weight):
        training = trainer(TOLD, continuation_guard=weight, distil_weight=0, max_steps=25)
        training.train()
        return training.trainables["Cat"].history.recent("continuation")

    assert bent(20.0) < bent(0.05)


def test_half_of_them_are_where_the_calls_are_behind_the_filler():
    training = trainer(TOLD, max_spacing=64)
    training.prepare()
    for step in range(12):
        training.step = step
        batch = training.draw()
        terms = iter(batch.terms)
        for tree in batch.trees:
            drawn = {"response": [], "continuation": [], "guard": [], "distil": []}
            for branch in tree.branches:
                drawn[next(terms).loss].append(branch.parent)
            (behind,) = set(drawn["response"])
            assert len(drawn["continuation"]) == CONTINUATIONS_DRAWN
            assert drawn["continuation"].count(behind) in (CONTINUATIONS_DRAWN // 2, 2)


def test_a_resumed_run_goes_on_with_the_same_continuations(tmp_path):
    whole = trainer(TOLD, max_steps=6).train()["Cat"]
    saving = Checkpointing(tmp_path / "run")
    trainer(TOLD, max_steps=6, checkpointing=saving, on_step=lambda p: p.step == 3).train()
    resumed = trainer(TOLD, max_steps=6, checkpointing=saving).train()["Cat"]
    assert torch.equal(resumed.tensor, whole.tensor)


def test_texts_that_nothing_fits_behind_are_not_guarded():
    small = FrozenModel(tiny_hf("llama", max_position_embeddings=80), byte_tokenizer(), "small")
    entry = Entry(name="Cat", text="The cat is black.")
    assert losses(trainer(entry, model=small, max_spacing=0)) == {"response", "guard", "distil"}
