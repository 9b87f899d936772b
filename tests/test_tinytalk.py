"""Training on a real, if small, story model of other people's making, where it is at hand."""

import json
from pathlib import Path

import pytest
import torch

from softlore import FrozenModel, WorldInfoTrainer
from softlore.lore import Block
from softlore.measure import drift, recall

SHARED = Path(__file__).parent.parent.parent / "shared"
MODEL, LORE = SHARED / "models" / "tinytalk-3m", SHARED / "data" / "emma.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL.exists() and LORE.exists()), reason="tinytalk-3m is not at hand"),
]


@pytest.fixture(scope="module")
def model():
    return FrozenModel.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def blocks():
    pairs = json.loads(LORE.read_text(encoding="utf-8"))
    calls = dict.fromkeys(pair["call"] for pair in pairs)
    responses = {
        call: [pair["response"] for pair in pairs if pair["call"] == call] for call in calls
    }
    return [Block(call=call, responses=list(found)) for call, found in responses.items()]


def test_its_logits_are_those_of_transformers(model):
    from softlore import SoftPrompt, logits

    ids = model.bos + model.encode("Once upon a time there was a dog, and it ran home.")
    with torch.no_grad():
        expected = model.hf(input_ids=torch.tensor([ids])).logits[0].float()
    prompt = SoftPrompt.from_text(" there was a dog", model)
    got = logits(model, "Once upon a time" + prompt + ", and it ran home.")
    assert (got - expected).abs().max() < 1e-3 * expected.std()


@pytest.mark.parametrize(
    ("kind", "n_tokens", "updates", "lift"), [("prefix", 8, 30, 3.0), ("embedding", 20, 40, 1.5)]
)
def test_forty_updates_bring_the_lore_nearer(model, blocks, kind, n_tokens, updates, lift):
    bare = recall(model, "", blocks)
    trainer = WorldInfoTrainer(
        model,
        blocks=blocks,
        kind=kind,
        n_tokens=n_tokens,
        max_steps=updates,
        max_spacing=16,
        passage_tokens=24,
        seed=0,
    )
    prompt = trainer.train()
    assert recall(model, prompt, blocks) < bare - lift
    passages = [model.encode("The old mill stood still, and nobody came that day.")]
    assert drift(model, prompt, passages) < 3.0
