"""A text's keys and values, compacted to a prefix in closed form; and how its text is studied."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from softlore import FrozenModel, WorldInfoTrainer
from softlore.context import Branch, Node, Tree, TreeBatch, hidden_states
from softlore.decode import sample_passages
from softlore.lore import Block, Entry
from softlore.lore.study import KINDS, study_openings
from softlore.measure.losses import fidelity
from softlore.measure.score import hidden_states_after, recall
from softlore.model.tiny import tiny_model
from softlore.settings import TrainingConfig
from softlore.tune import Execution, compaction
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.compaction import can_compact, compact
from softlore.tune.examples import make_examples
from softlore.tune.initial import initial_value
from softlore.tune.topics import lore_tree

ADA = Entry(
    name="Ada",
    keys=["engineer"],
    text="Ada is the engineer of the town. She wears a green hat, and keeps a small brass bird.",
)
# Rotary positions (in all columns, in some), learned positions.
FAMILIES = ("llama", "gpt_neox", "phi", "gpt2")


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_as_long_as_the_text_is_the_text(family, bos):
    """Nothing is left out then: what follows reads the same, whatever places are kept free."""
    model = tiny_model(family, bos=bos)
    ids, passages = model.encode("Ada wears hats."), [model.encode(t) for t in ("She", "One day,")]
    at = len(ids) if model.rotary is None else 32
    prefix = compact(model, ids, passages, len(ids), at, farthest=0)
    after_text = hidden_states_after(model, Tree([Node(model.bos + ids)]), passages)
    bos_node = [Node(model.bos, sees=())] if model.bos else []
    soft = Tree(bos_node, [prefix], at)
    branches = [Branch(passage, soft.end) for passage in passages]
    after_prefix = hidden_states(model, [TreeBatch(soft, branches)])
    if not model.bos:
        torch.testing.assert_close(after_prefix, torch.cat(after_text), atol=1e-3, rtol=1e-3)
    else:  # BOS itself is elsewhere: before the text, and behind the prefix
        assert float((after_prefix - torch.cat(after_text)).pow(2).mean()) < 0.1


def test_at_once_a_compacted_text_does_most_of_what_the_text_does():
    model = FrozenModel.from_pretrained("storyteller")
    before, seeds = lore_tree(model, ADA.text), (1, 2)
    reference, held_out = (
        sample_passages(model, before, study_openings(ADA, 12), 12, 24, seed) for seed in seeds
    )
    plain = TrainingConfig(n_tokens=8, initial="text")
    examples = make_examples(model, ADA, plain.changed(patience=None))
    examples.source.ids.extend(reference)
    auto = plain.changed(initial="auto")
    values = [
        initial_value(model, ADA, plain),
        initial_value(model, ADA, auto, examples),
    ]
    bos = [Node(model.bos, sees=())] if model.bos else []
    text, bare, *soft = (
        hidden_states_after(model, tree, held_out, 2)
        for tree in (before, Tree(bos), *(Tree(bos, [value], 32) for value in values))
    )
    thinned, compacted = (fidelity(model, text, bare, states) for states in soft)
    assert compacted > 0.5
    assert compacted > thinned


def test_no_update_keeps_what_a_prompt_starts_from(tmp_path):
    model, settings = tiny_model("llama"), {"n_tokens": 4, "passage_tokens": 8}
    file = Checkpointing(tmp_path / "run.ckpt")
    trainer = WorldInfoTrainer(model, entries=[ADA], max_steps=0, checkpointing=file, **settings)
    trained = trainer.train()["Ada"]
    longer = WorldInfoTrainer(model, entries=[ADA], max_steps=3, **settings)
    longer.prepare()
    assert trained.training["steps"] == 0
    assert trained.tensor.shape == longer.prompts()["Ada"].tensor.shape
    assert float(trained.tensor.abs().max()) > 0
    assert trainer.progress().done == 1


def test_models_whose_attention_cant_be_matched_start_as_before():
    model = tiny_model("bloom")  # its attention has a bias by distance
    assert not can_compact(model)
    config = TrainingConfig(n_tokens=4)
    examples = make_examples(model, ADA, config)
    expected = initial_value(model, ADA, config.changed(initial="text"))
    torch.testing.assert_close(initial_value(model, ADA, config, examples), expected)


def test_calls_and_responses_are_recalled_at_once():
    model = FrozenModel.from_pretrained("storyteller")
    pairs = [
        ("Ada wore", [" a green hat."]),
        ("In the evening Ada", [" oiled a small brass bird."]),
    ]
    blocks = [Block(call=call, responses=responses) for call, responses in pairs]
    at_once, before, bare = (
        recall(model, conditioning, blocks)
        for conditioning in (
            WorldInfoTrainer(model, pairs, n_tokens=8, max_steps=0).train(),
            WorldInfoTrainer(model, pairs, n_tokens=8, max_steps=0, initial="responses").train(),
            "",
        )
    )
    assert at_once < before
    assert at_once < bare - 0.3


def test_entries_start_plainly_where_the_time_budget_has_no_room_for_more():
    model = tiny_model("llama")

    def started(**settings):
        return WorldInfoTrainer(model, entries=[ADA], n_tokens=4, max_steps=0, **settings).train()

    in_time = Execution(100, started=0.0, clock=lambda: 10.0)
    late = Execution(100, started=0.0, clock=lambda: 50.0)
    closed = started()["Ada"].tensor
    plain = started(initial="text")["Ada"].tensor
    assert not torch.equal(closed, plain)
    assert torch.equal(started(execution=in_time)["Ada"].tensor, closed)
    assert torch.equal(started(execution=late)["Ada"].tensor, plain)


def test_rotation_is_known_in_16_bits_too():
    exact = tiny_model("llama").rotary
    model = tiny_model("llama")
    model.hf.to(torch.bfloat16)
    assert model.rotary is not None
    torch.testing.assert_close(model.rotary.inv_freq, exact.inv_freq, atol=1e-3, rtol=0)


def test_a_teacher_reads_a_text_behind_the_same_filler_as_its_prompt():
    model = tiny_model("llama")
    trainer = WorldInfoTrainer(
        model, entries=[ADA], n_tokens=4, max_steps=30, max_spacing=40, passage_tokens=8
    )
    trainer.prepare()
    lore, far = trainer.data.examples["Ada"].lore, 0
    for step in range(12):
        trainer.step = step
        batch = trainer.draw()
        (tree,) = batch.trees
        read = sum(len(node) for node in tree.trunk.nodes)
        for branch, term in zip(tree.branches, batch.terms, strict=True):
            if term.loss != "distil" or branch.parent != tree.trunk.end or not read:
                continue
            far += 1
            unseen = [node for node in tree.trunk.nodes if node.sees == ()]
            seen = [i for node in tree.trunk.nodes if node.sees is None for i in node.ids]
            path = Tree(unseen, at=tree.trunk.start).then([*lore, *seen])
            (expected,) = hidden_states_after(model, path, [branch.ids])
            torch.testing.assert_close(term.target, expected, atol=1e-4, rtol=1e-4)
    assert far > 12


# openings ----------------------------------------------------------------------------------------


def test_a_text_is_studied_by_all_kinds_of_openings_in_their_shares():
    openings = study_openings(ADA, 200)
    assert openings == study_openings(ADA, 200)
    assert study_openings(ADA, 20) == openings[:20]
    of_kind = {kind: set(make(ADA)) for kind, (_, make) in KINDS.items()}
    counts = Counter(next(k for k, some in of_kind.items() if o in some) for o in openings)
    for kind, (share, _) in KINDS.items():
        assert counts[kind] == pytest.approx(200 * share, abs=25), kind
    assert {"Ada wears a", "Ada wore a"} < set(openings)  # facts where they stand, and in the past
    assert any(o.endswith("She wears a green") and "Ada" in o for o in openings)
    assert all(name in " ".join(openings) for name in ("engineer", "Ada?", "Describe Ada."))


@pytest.mark.parametrize(
    "text", ["!", "Ада.", "時計屋のマルタは赤い外套を着ている。", "One. Two. Three."]
)
def test_any_text_has_openings(text):
    assert len(study_openings(Entry(name="Ада", text=text), 40)) == 40


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_queries_in_parts_give_what_all_at_once_give(family, bos, monkeypatch):
    """Also where a sliding window has left the text behind."""
    model = tiny_model(family, bos=bos)
    ids = [3 + i % 90 for i in range(40)]
    passages = [[5 + (i * k) % 80 for i in range(20 + k)] for k in range(1, 6)]
    others = [[7 + (i * 3) % 80 for i in range(15)]]
    made = []
    for rows in (10**6, 64, 7):
        monkeypatch.setattr(compaction, "ROWS", rows)
        made.append(compact(model, ids, passages, 6, 8, 100, others=others, weight=0.5))
    for parted in made[1:]:
        torch.testing.assert_close(parted, made[0], rtol=1e-3, atol=1e-3)
