"""How an update is shared out between processes: all of it, once, and to the same gradient."""

import pytest
import torch

from softlore import Entry, WorldInfoTrainer
from softlore.model.tiny import tiny_model
from softlore.tune.distributed import share_of, under_torchrun
from softlore.tune.objective import run_in_parts

ENTRIES = [
    Entry(name="Ada", text="Ada is a witch.", blocks=[("Ada wears", [" a hat", " a red coat"])]),
    Entry(name="Bo", blocks=[("Bo wears", [" a coat"])]),
    Entry(name="Cid", text="Cid keeps a shop."),
]


def batch_of(kind, company_size):
    """The first update's batch, its trainer, and the gradients that it comes to as a whole."""
    trainer = WorldInfoTrainer(
        tiny_model("llama"),
        entries=ENTRIES,
        kind=kind,
        n_tokens=3,
        passage_tokens=6,
        distil_passages=4,
        max_spacing=6,
        company_size=company_size,
    )
    trainer.prepare()
    return trainer, trainer.draw()


def gradients(trainer):
    return {name: one._live.grad.clone() for name, one in trainer.trainables.items()}


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
@pytest.mark.parametrize(("size", "company_size"), [(2, 1), (3, 1), (2, 3), (5, 3), (99, 3)])
def test_the_parts_are_the_whole(size, company_size, kind):
    trainer, batch = batch_of(kind, company_size)
    run_in_parts(trainer.model, batch, trainer.plan)
    whole = gradients(trainer)
    for trainable in trainer.trainables.values():
        trainable._live.grad = None

    parts = [share_of(batch, rank, size) for rank in range(size)]
    terms = [id(term) for part in parts for term in part.terms]
    assert sorted(terms) == sorted(id(term) for term in batch.terms)
    if len(batch.trees) >= size:
        assert all(part.trees for part in parts)
    for part in parts:
        assert len(part.terms) == sum(len(b.branches) for b in part.trees)
        if part.trees:
            run_in_parts(trainer.model, part, trainer.plan)
    for name, gradient in gradients(trainer).items():
        scale = float(whole[name].abs().max())
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, True),
    ],
)
def test_whether_it_was_torchrun(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert under_torchrun() == expected
