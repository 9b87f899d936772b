"""Recall, drift, fidelity and fluency, against the plain way, on a tiny model."""

import math

import pytest
import torch

from softlore import Context, SoftPrompt, logits
from softlore.decode import sample_passages
from softlore.errors import ContextError
from softlore.lore import Block, Entry
from softlore.lore.study import openers
from softlore.measure import divergence, drift, fidelity, perplexity, recall
from softlore.measure.material import gather
from softlore.measure.score import (
    SINK_TOKENS,
    fits,
    fits_after,
    passage_hidden_states,
    recall_at,
    response_losses,
    token_losses,
    trunk,
)
from softlore.measure.stories import write_stories
from softlore.model.tiny import tiny_model

BLOCKS = [Block(call="Emma wears", responses=[" red", " a hat"]), Block(call="He", responses="!")]
PASSAGES = [[5, 6, 7, 8], [9, 10, 11]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "llama with BOS"])
def model(request):
    return tiny_model(request.param.split()[0], bos="BOS" in request.param)


@pytest.fixture(scope="module", params=["prefix", "embedding"])
def prompt(model, request):
    return SoftPrompt.from_text("She has a dog", model, name="dog", kind=request.param)


def plain_nll(model, context, response):
    """One response by itself, as a plain text with the prompt in front."""
    rows = logits(model, context + response).log_softmax(-1)
    ids = model.encode(response)
    return -sum(float(rows[i - len(ids) - 1, token]) for i, token in enumerate(ids)) / len(ids)


@pytest.mark.parametrize("distance", [0, 3])
def test_recall_is_the_plain_mean(model, prompt, distance):
    story = [model.encode("It rains."), model.encode("Go")]
    fillers = ["It ", "GoG"] if distance else [""]
    expected = [
        sum(plain_nll(model, prompt + filler + b.call, r) for filler in fillers) / len(fillers)
        for b in BLOCKS
        for r in b.responses
    ]
    losses = response_losses(model, prompt, BLOCKS, distance, story)
    assert losses == pytest.approx(expected, rel=1e-4)
    whole = recall(model, prompt, BLOCKS, distance, story)
    assert whole == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_a_distance_needs_a_story(model):
    with pytest.raises(ContextError, match="story"):
        recall(model, "", BLOCKS, 4)


STORY = [list(range(5, 25)), list(range(40, 60))]


def test_recall_at_several_distances_is_that_of_each(model, prompt):
    late = SoftPrompt.from_text("He is late", model, kind="prefix").replace(
        training={"placement": "late"}
    )
    assert late.late
    cases = [(BLOCKS, 9), (BLOCKS[:1], 0), ([], 3), (BLOCKS[1:], 30), (BLOCKS, 3), (BLOCKS, 10**9)]
    for conditioning in ("", "Emma has a dog.\n", prompt, late, prompt + "x"):
        together = recall_at(model, conditioning, cases, STORY)
        assert together[2] is None
        assert (together[5] is None) == (model.context_length is not None)
        alone = [recall(model, conditioning, b, d, STORY) for b, d in cases[:2] + cases[3:5]]
        assert together[:2] + together[3:5] == pytest.approx(alone, rel=1e-4)


def test_many_branches_are_those_of_each_and_the_trunk_is_run_once(monkeypatch):
    model = tiny_model("llama")
    pairs = [([5, 6 + i % 200], [7, 8 + i % 90]) for i in range(300)]
    tree = trunk(model, "He has a dog", [9, 10, 11])
    alone = [float(token_losses(model, tree, [pair])[0].sum()) for pair in pairs]
    runs, plain = [], model.hidden

    def counted(embeds, *rest, **options):
        runs.append(embeds.shape[1])
        return plain(embeds, *rest, **options)

    monkeypatch.setattr(model, "hidden", counted)
    together = [float(losses.sum()) for losses in token_losses(model, tree, pairs)]
    assert together == pytest.approx(alone, rel=1e-4)
    assert runs.count(tree.n_rows) == 1


def test_drift_is_the_plain_kl(model, prompt):
    total, count = 0.0, 0
    for ids in PASSAGES:
        text = model.decode(ids)
        first = min(0 if model.bos else SINK_TOKENS, len(ids) - 1)  # the bare sink is left out
        skip = len(model.bos) if prompt.kind == "prefix" else len(model.bos) + len(prompt)
        bare = logits(model, text)[len(model.bos) :].log_softmax(-1)
        ours = logits(model, prompt + text)[skip:].log_softmax(-1)
        total += float((bare.exp() * (bare - ours))[first:].sum())
        count += len(ids) - first
    assert drift(model, prompt, PASSAGES) == pytest.approx(total / count, rel=1e-3)


def test_nothing_drifts_not_at_all_and_a_text_is_its_own_prompt(model):
    text = "She has a dog"
    same = SoftPrompt.from_text(text, model, kind="embedding")
    assert drift(model, "", PASSAGES) == 0
    assert divergence(model, text, same, PASSAGES) == pytest.approx(0, abs=1e-5)
    bare, after, soft = (passage_hidden_states(model, c, PASSAGES) for c in ("", text, same))
    assert fidelity(model, after, bare, soft) == pytest.approx(1, abs=1e-4)
    assert fidelity(model, after, bare, bare) == 0
    assert math.isnan(fidelity(model, bare, bare, bare))


def test_perplexity_is_that_of_what_was_written(model):
    opening, written = model.encode("Emma"), model.encode(" wears red")
    nll = plain_nll(model, Context("Emma"), " wears red")
    assert perplexity(model, [(opening, written), ([], [])]) == pytest.approx(math.exp(nll), 1e-4)
    assert perplexity(model, []) is None


def test_fits_counts_the_head_the_distance_and_the_longest_pair():
    model = tiny_model("llama")  # a byte a token, 256 of them
    longest = len("Emma wears a hat")
    assert fits(model, "x" * 6, BLOCKS, 250 - longest)
    assert not fits(model, "x" * 7, BLOCKS, 250 - longest)
    assert fits_after(tiny_model("bloom"), "x", 10**6)


def test_trunks_of_nothing():
    model = tiny_model("llama")
    assert trunk(model, "").nodes == []
    assert [len(node) for node in trunk(model, "", [1, 2]).nodes] == [2]


def test_material_is_drawn_anew_by_seed_or_cut_from_a_story():
    model = tiny_model("llama")
    one, same, other = (gather(model, 100, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert all(len(filler) >= 100 for filler in one.fillers)
    story = "".join(f"Sentence {i} of the tale. " for i in range(60))
    given = gather(model, 100, 0, story)
    assert model.decode(given.unrelated[0]) in story
    assert "tale" in given.known


def test_passages_and_stories_are_repeatable_and_end_where_the_model_ends_them():
    model = tiny_model("llama")
    entry = Entry(name="Emma", keys=["cat"], text="A cat.")
    assert {"Emma", "One day, cat"} <= set(openers(entry))
    before = trunk(model, "A cat.\n")
    passages = sample_passages(model, before, openers(entry), 5, 12, seed=3)
    assert passages == sample_passages(model, before, openers(entry), 5, 12, seed=3)
    assert all(len(ids) <= 12 for ids in passages)
    jobs = [("", [[5, 6]]), ("x" * 254, [[5, 6]]), ("He", [[5, 6], [7]])]
    torch.manual_seed(0)  # draws do not hang on torch's own
    first = write_stories(model, jobs, 6, seed=1)
    torch.manual_seed(1)
    assert first == write_stories(model, jobs, 6, seed=1)
    assert [one and len(one) for one in first] == [1, None, 2]
    assert write_stories(model, jobs[2:] * 2, 6, 1, [2, 2]) == [first[2]] * 2
    assert all(0 not in ids for job in first if job for ids in job)
