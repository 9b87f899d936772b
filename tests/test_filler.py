"""Filler that the bare model reads once, and late prefixes that join it."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import Entry, WorldInfoTrainer
from softlore.context import ROOT, Node, Tree, splice
from softlore.model import FrozenModel
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model
from softlore.settings import TrainingConfig
from softlore.tune import Checkpointing
from softlore.tune.filler import FillerStore
from softlore.tune.lengths import log_uniform, spacing

MODEL = tiny_model("llama")
WITH_BOS = FrozenModel(tiny_hf("llama"), byte_tokenizer(bos=True), "with BOS")
ENTRIES = [
    Entry(name="Ada", text="Ada wears a long red coat.", blocks=[("Ada wears", [" a red coat."])]),
    Entry(name="Bo", blocks=[("Bo keeps a", [" shop by the sea."]), ("Bo", [" has bees."])]),
]


def trainer(model=MODEL, entries=ENTRIES, **options):
    usual = {"n_tokens": 4, "max_steps": 20, "passage_tokens": 8, "distil_passages": 8}
    return WorldInfoTrainer(model, entries=entries, **{**usual, **options})


def drawn(training, updates):
    """The trees of some updates, each once."""
    training.prepare()
    for step in range(updates):
        training.step = step
        yield from training.draw().trees


@pytest.mark.parametrize("model", [MODEL, WITH_BOS], ids=["no BOS", "BOS"])
def test_nothing_of_the_filler_is_run_but_what_sees_the_prompts(model):
    lengths = set()
    for tree in drawn(trainer(model, max_spacing=100), 40):
        read = [node for node in tree.trunk.nodes if not node.n_rows]
        run = tree.trunk.nodes[len(read) :]
        assert all(node.sees == () for node in read)
        assert len(run) <= 1
        assert all(node.sees is None for node in run)
        lengths.add(tree.trunk.length - len(model.bos))
    assert 0 in lengths
    assert max(lengths) > 50


@pytest.mark.parametrize("model", [MODEL, WITH_BOS], ids=["no BOS", "BOS"])
def test_what_was_read_is_the_bare_models(model):
    training = trainer(model, max_spacing=60)
    training.prepare()
    store = training.data.filler_store
    text = store.texts[0]
    assert len(text.ids) > 60
    ids = [*model.bos, *text.ids]
    spliced = splice(model, [Tree([Node(ids)], at=store.at)])
    hidden, pairs = model.hidden(spliced.embeds, spliced.positions, spliced.visible, keep=True)
    trunk = text.trunk(30, store.at)
    kept = splice(model, [trunk.then([5])]).past
    for (k, v), (all_keys, all_values) in zip(kept.keys_values, pairs, strict=True):
        n = 30 + len(model.bos)
        torch.testing.assert_close(k, all_keys[:, :, :n])
        torch.testing.assert_close(v, all_values[:, :, :n])
    passage = text.passage(30, 8)
    assert passage.ids == text.ids[30:38]
    torch.testing.assert_close(passage.target, hidden[0, len(model.bos) + 30 :][:8])


def test_a_text_of_the_writers_own_is_read_as_it_is():
    story = " The rain came down on the harbour, and the lamps went out one by one." * 20
    training = trainer(max_spacing=80, story=story)
    training.prepare()
    for text in training.data.filler_store.texts:
        assert MODEL.decode(text.ids) in story


def test_some_calls_see_the_prompts_from_within():
    """Never later than the call's last token, which predicts the response's first one."""
    firsts = set()
    for tree in drawn(trainer(max_spacing=10, pairs_per_step=2), 60):
        for branch in tree.branches:
            if branch.sees_from:
                assert branch.sees_from <= branch.start
                firsts.add(branch.sees_from)
    assert len(firsts) > 3


def test_the_guard_goes_on_where_the_filler_ends():
    followed = 0
    for tree in drawn(trainer(max_spacing=100, distil_weight=0.0), 40):
        trunk = tree.trunk
        ends = {i for i, node in enumerate(trunk.nodes) if not node.n_rows}
        for branch in tree.branches:
            if branch.start == 0 and branch.parent in ends - {ROOT} and trunk.length:
                followed += 1
    assert followed > 10


def test_a_training_resumed_has_the_same_texts_and_bits(tmp_path):
    file = tmp_path / "run.checkpoint"
    options = {"max_steps": 60, "patience": None, "max_spacing": 60}
    whole = trainer(**options).train()
    broken = trainer(
        **options,
        checkpointing=Checkpointing(file, seconds=0),
        on_step=lambda progress: progress.step >= 37,
    )
    broken.train()
    made = list(broken.data.filler_store.made_of)
    assert len(made) > 2
    again = trainer(**options, checkpointing=Checkpointing(file))
    again.prepare()
    assert again.data.filler_store.made_of == made
    for one, other in zip(
        broken.data.filler_store.texts, again.data.filler_store.texts, strict=True
    ):
        assert one.ids == other.ids
    resumed = again.train()
    for name, prompt in whole.items():
        assert torch.equal(prompt.tensor, resumed[name].tensor)


def test_prompts_say_that_they_are_late():
    blocks = [("Ada wears", [" a red coat."])]
    usual = {"n_tokens": 3, "max_steps": 2, "passage_tokens": 6}
    kinds = [{}, {"placement": "classic"}, {"kind": "embedding"}]
    late = [WorldInfoTrainer(MODEL, blocks, **usual, **kind).train().late for kind in kinds]
    assert late == [True, False, False]


@pytest.mark.parametrize("settings", [{"drift_guard": 0, "max_spacing": 0}, {"filler": "random"}])
@pytest.mark.parametrize("model", [MODEL, WITH_BOS], ids=["no BOS", "BOS"])
def test_without_passages(model, settings):
    blocks = [("Ada wears", [" a red coat."])]
    prompt = WorldInfoTrainer(
        model, blocks, n_tokens=3, max_steps=2, passage_tokens=6, **settings
    ).train()
    assert prompt.late


def test_spacing_reaches_as_far_as_the_context():
    assert spacing(TrainingConfig()) == 2000
    assert spacing(TrainingConfig(placement="classic")) == 64
    assert spacing(TrainingConfig(kind="embedding")) == 64
    assert spacing(TrainingConfig(max_spacing=7)) == 7
    store = FillerStore.of(MODEL, TrainingConfig(n_tokens=4), None, 32, 100)
    assert store.length == MODEL.context_length - 32 - 100


@given(st.integers(0, 3000), st.integers(0, 10**6))
@settings(max_examples=60)
def test_a_length_is_within_bounds(most, seed):
    assert 0 <= log_uniform(random.Random(seed), most) <= most


def test_small_lengths_are_as_frequent_as_ten_times_as_large_ones():
    draw = random.Random(0)
    lengths = [log_uniform(draw, 2000) for _ in range(4000)]
    near, far = (sum(low <= n < high for n in lengths) for low, high in ((9, 99), (99, 999)))
    assert near == pytest.approx(far, rel=0.15)
