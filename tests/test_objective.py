"""The objective on tree batches equals transformers, a row a branch, in every layout and part."""

import math
from itertools import count

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers.cache_utils import DynamicCache

from softlore import WorldInfoTrainer
from softlore.cli import progress
from softlore.context import ROOT, Node, Tree
from softlore.decode import sample_passages
from softlore.lore import Entry
from softlore.lore.study import OPENERS
from softlore.measure.losses import response_nll
from softlore.model.tiny import tiny_model
from softlore.tune import (
    LOSSES,
    Checkpointing,
    Loss,
    TrainingBatch,
    TrainingConfig,
    make_examples,
    objective,
    run,
)
from softlore.tune.examples import CallResponse
from softlore.tune.initial import initial_value
from softlore.tune.losses import curve_names, last_loss, loss_term, row_losses
from softlore.tune.passages import run_teacher, write_passages
from softlore.tune.topics import bare_tree
from softlore.tune.training_data import draw_batch
from softlore.tune.trunk import TrainingData

FAMILIES = ("gpt2", "llama", "gemma2")  # learned places; rotary ones; every other layer slides
DOG = Entry(
    name="dog",
    text="Dog is a good boy.",
    blocks=[("Description of dog:", [" Dog is a good boy", " Dog loves pets"]), ("Dog", [" ran"])],
)
CAT = Entry(name="cat", blocks=[("Cat wears", [" a tall black hat, and boots that it stole"])])


def drawn(model, kind, together=False, **settings):
    """An update's batch as the trainer draws it, and the tensors that are to learn from it.

    `together`: both entries' prompts stand in one trunk, else each in its own.
    """
    config = TrainingConfig(
        kind=kind,
        n_tokens=5,
        max_spacing=12,
        company_size=2,
        distil_passages=4,
        passage_tokens=10,
        **settings,
    )
    examples = {entry.name: make_examples(model, entry, config) for entry in (DOG, CAT)}
    sources = [examples.source for examples in examples.values() if examples.source]
    write_passages(model, config, [(source, 8) for source in sources])
    passages = sample_passages(model, bare_tree(model), OPENERS, 4, 10, 0)
    data = TrainingData(examples, run_teacher(model, bare_tree(model), passages), passages)
    prompts = {e.name: initial_value(model, e, config).requires_grad_() for e in (DOG, CAT)}
    learning = list(prompts)
    draws = (draw_batch(model, config, data, prompts, learning, step) for step in count())
    batch = next(drawn for drawn in draws if len(drawn.trees) == (1 if together else 2))
    return batch, prompts


def plain(model, batch):
    """The batch's losses by transformers alone: each branch is a row of its own, run by itself."""
    branches = [(b.trunk, branch) for b in batch.trees for branch in b.branches]
    losses = {}
    for (trunk, branch), term in zip(branches, batch.terms, strict=True):
        path = trunk.path(branch.parent) if branch.parent != ROOT else []
        contents = [trunk.nodes[n].content for n in path]
        rows = [c if isinstance(c, torch.Tensor) else model.embed_ids(c) for c in contents]
        before = sum(map(len, contents))
        embeds = torch.cat([*rows, model.embed_ids(branch.ids)])[None]
        past, seen = None, 0
        if trunk.prefixes:
            seen = sum(p.shape[3] for p in trunk.prefixes)
            layers = torch.cat(trunk.prefixes, dim=3)
            past = DynamicCache([(layer[0][None], layer[1][None]) for layer in layers])
        out = model.hf(
            inputs_embeds=embeds,
            cache=past,
            position_ids=torch.arange(trunk.start, trunk.start + embeds.shape[1])[None],
            attention_mask=torch.ones(1, seen + embeds.shape[1], dtype=torch.long),
            labels=torch.tensor([labels_of(before, branch, term)]),
        )
        if term.loss == "response":
            loss = out.loss
        else:
            with torch.no_grad():
                theirs = log_softmax(model.logits(term.target), dim=-1)
            ours = log_softmax(out.logits[0, before:], dim=-1)
            loss = kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean()
        losses.setdefault((term.owners, term.loss), []).append((term.weight, loss))
    sum(weight * loss for terms in losses.values() for weight, loss in terms).backward()
    return {
        key: sum(float(x.detach()) for _, x in terms) / len(terms) for key, terms in losses.items()
    }


def labels_of(before, branch, term):
    """Labels as transformers wants them: -100 wherever nothing is to be learned."""
    if term.loss != "response":
        return [-100] * (before + len(branch.ids))
    answer = len(term.target)
    return [-100] * (before + len(branch.ids) - answer) + list(branch.ids[-answer:])


def taken(prompts):
    """The gradients that have come together; then there are none."""
    gradients = {name: tensor.grad.clone() for name, tensor in prompts.items()}
    for tensor in prompts.values():
        tensor.grad = None
    return gradients


def assert_same(ours, theirs, gradients, expected, tolerance=1e-4):
    assert ours == pytest.approx(theirs, rel=tolerance, abs=1e-5)
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < tolerance, f"{name}: {float(error)}"


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_equals_transformers_row_by_row(family, kind):
    model = tiny_model(family, bos=family == "llama")
    # Plain transformers has no prefixes side by side under a sliding window.
    batch, prompts = drawn(model, kind, together=family != "gemma2")
    assert {term.loss for term in batch.terms} == {"response", "guard", "distil"}
    theirs = plain(model, batch)
    expected = taken(prompts)
    for layout, micro_batch in (
        ("expanded", None),
        ("expanded", 2),
        ("packed", None),
    ):
        ours = run(model, batch, layout, micro_batch)
        assert_same(ours, theirs, taken(prompts), expected)


def test_only_responses_count():
    """What stands in a call has no label: other calls of the same length may be read unlearned."""
    model = tiny_model("llama")
    config = TrainingConfig(n_tokens=4, distil_weight=0)
    pair = make_examples(model, DOG, config).pairs[0]
    assert model.decode(pair.ids[: pair.response_start]) == "Description of dog:"
    branch, term = pair.branch(ROOT), loss_term(pair, ("dog",), "response")
    assert model.decode(term.target) == " Dog is a good boy"
    assert branch.n_rows == len(term.target)  # no other row gets logits
    assert branch.ids[branch.start + 1 :] == term.target

    batch = TrainingBatch()
    batch.add(Tree([]), [(branch, term)])
    row = torch.tensor([pair.ids])
    labels = row.clone()
    labels[0, : pair.response_start] = -100
    expected = float(model.hf(input_ids=row, labels=labels).loss)
    with torch.no_grad():
        rows = model.hf.get_decoder()(row)[0][0, branch.start : branch.stop]
        losses = row_losses(model, rows, [term])
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-5)


def test_the_guard_is_the_divergence_from_the_bare_model():
    """KL(bare ‖ with the prompt), mean over tokens; nothing where the prompt changes nothing."""
    model = tiny_model("gpt2")
    ids = model.encode("Rain fell on the harbour.")
    (passage,) = run_teacher(model, bare_tree(model), [ids])
    prompt = model.embed_ids(model.encode("wolf")).detach().requires_grad_()
    batch = TrainingBatch()
    batch.add(Tree([Node(prompt)]), [(passage.branch(0), loss_term(passage, ("dog",), "guard"))])
    found = run(model, batch)[("dog",), "guard"]

    with torch.no_grad():
        bare_logits = model.hf(input_ids=torch.tensor([ids])).logits[0].double()
        rows = torch.cat([prompt, model.embed_ids(ids)])
        soft_logits = model.hf(inputs_embeds=rows[None]).logits[0, 4:].double()
    p, q = bare_logits.softmax(-1), soft_logits.softmax(-1)
    assert found == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)

    bare_batch = TrainingBatch()
    bare_batch.add(Tree([]), [(passage.branch(ROOT), loss_term(passage, ("dog",), "guard"))])
    with torch.no_grad():
        hidden = model.hf.get_decoder()(torch.tensor([ids]))[0][0]
        assert row_losses(model, hidden, bare_batch.terms).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_logits_made_in_chunks_are_the_same(kind, monkeypatch):
    model = tiny_model("llama")
    batch, prompts = drawn(model, kind, together=True)
    whole = run(model, batch)
    expected = taken(prompts)
    monkeypatch.setattr("softlore.measure.losses.LOGITS_AT_ONCE", 3 * model.vocab_size)
    assert_same(run(model, batch), whole, taken(prompts), expected, 1e-5)


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
@pytest.mark.parametrize("most", [1, 60, 150, 400])
def test_in_parts_as_in_one_go(kind, most):
    model = tiny_model("gemma2")
    batch, prompts = drawn(model, kind)
    assert len(batch.trees) == 2
    assert batch.tokens > 150
    whole = run(model, batch)
    expected = taken(prompts)
    parts = objective.run_in_parts(model, batch, objective.MemoryPlan(most, 1))
    assert_same(parts, whole, taken(prompts), expected)


def test_a_long_trunk_runs_expanded_and_a_short_one_packed():
    model = tiny_model("llama")
    batch, _ = drawn(model, "prefix")
    assert objective.choose_layout(batch.trees, 10_000) == ("packed", None)
    layout, micro_batch = objective.choose_layout(batch.trees, 100)
    assert layout == "expanded"
    assert micro_batch is not None
    assert micro_batch >= 1


def test_the_plan_is_the_same_every_time():
    model = tiny_model("llama")
    batch, _ = drawn(model, "prefix")
    first = objective.measure_memory_plan(model, batch)
    assert (
        first
        == objective.measure_memory_plan(model, batch)
        == objective.MemoryPlan(**first.to_dict())
    )
    assert first.bytes_per_token > 100
    assert math.log2(first.tokens_at_once) > 8


def test_nothing_reaches_the_frozen_weights():
    model = tiny_model("gpt2")
    batch, _ = drawn(model, "prefix")
    run(model, batch)
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())


# a loss of one's own -----------------------------------------------------------------------------


@pytest.fixture
def toy_loss(monkeypatch):
    """A registered loss: half of the NLL of calls, which are otherwise not predicted."""

    def half_nll(model, hidden, ids):
        return 0.5 * response_nll(model, hidden, ids)

    def draw_calls(trunk, names):
        (name,) = names
        pairs = trunk.data.examples[name].pairs
        calls = [CallResponse(pair.ids[: pair.response_start], 1) for pair in pairs]
        return trunk.sample(calls, len(calls), trunk.end)

    loss = Loss("toy", half_nll, "ids", draw_calls, label="calls", counts_for_min_loss=True)
    monkeypatch.setitem(LOSSES, "toy", loss)


def test_a_registered_loss_is_trained_shown_and_resumed(toy_loss, tmp_path):
    settings = {"n_tokens": 3, "max_steps": 4, "max_spacing": 4, "passage_tokens": 6}

    def trainer(**options):
        blocks = [("Description of dog:", [" Dog is a good boy"])]
        return WorldInfoTrainer(tiny_model("llama"), blocks, **settings, **options)

    unbroken = trainer()
    prompt = unbroken.train()
    history = unbroken.trainables["prompt"].history
    assert len(history["toy"]) == len(history["response"]) == 4
    assert history["toy"][-1] < history["toy"][0] < 0.7 * history["response"][0]
    assert prompt.metrics["last_toy"] == pytest.approx(history.recent("toy"), abs=1e-6)

    path = Checkpointing(tmp_path / "a.checkpoint")
    trainer(checkpointing=path, on_step=lambda progress: progress.step == 2).train()
    resumed = trainer(checkpointing=path)
    assert torch.equal(resumed.train().tensor, prompt.tensor)
    assert resumed.trainables["prompt"].history == history

    table = progress._table(unbroken.progress())
    headings = [column.header for column in table.columns]
    assert headings[2:-1] == ["recall", "drift", "calls"]  # nothing is distilled
    response, toy = history.recent("response"), history.recent("toy")
    assert trainer(min_loss=response).train().training["stopped"] == "max_steps"
    assert trainer(min_loss=response + toy).train().training["stopped"] == "min_loss"


def test_a_new_loss_has_its_curve(monkeypatch):
    draw = LOSSES["response"].draw
    loss = Loss("toy", response_nll, "ids", draw, weight="distil_weight", curve="toy")
    monkeypatch.setitem(LOSSES, "toy", loss)
    assert curve_names() == ("loss", "drift", "toy")
    assert last_loss({"last_toy": 1.5}, "toy") == 1.5
    assert last_loss({"last_distil": 2.5, "last_guard": 1.0}) == 2.5
