"""Texts written side by side are what each would be alone."""

import pytest

from batches import write_batch
from softlore import SoftPrompt
from softlore.decode import GenerationRequest, write
from softlore.model.families import TESTED_FAMILIES
from softlore.model.tiny import tiny_model

MODEL = tiny_model("llama")
DOG = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
ROW = SoftPrompt.from_text("a red coat", MODEL, name="coat", kind="embedding")
REQUESTS = [
    GenerationRequest(DOG + "The dog", 20, seed=1, sampling={"temperature": 1.0}),
    GenerationRequest(
        "Down the " + ROW + " lane", 9, seed=2, sampling={"top_k": 5, "dry_multiplier": 0.8}
    ),
    GenerationRequest(
        "A", 14, seed=3, stop=["e"], sampling={"repetition_penalty": 1.3}, logprobs=2
    ),
    GenerationRequest("The sea " * 9, 3, sampling={"temperature": 0}),
]


def alone(model, request):
    return write(
        model, request.context, request.max_new_tokens, stop=request.stop, seed=request.seed,
        logprobs=request.logprobs, **request.sampling,
    ).drained()  # fmt: skip


def test_each_is_what_it_would_be_alone():
    outputs, tokens = write_batch(MODEL, REQUESTS)
    told = list(tokens)
    for row, (request, output) in enumerate(zip(REQUESTS, outputs, strict=True)):
        single = alone(MODEL, request)
        assert output.ids == single.ids
        assert output.text == single.text
        assert output.finish == single.finish
        assert "".join(token.text for at, token in told if at == row) == output.text
    assert all(len(token.top) == 2 for at, token in told if at == 2 and token.id is not None)


@pytest.mark.parametrize("family", sorted(TESTED_FAMILIES))
def test_in_every_family(family):
    model = tiny_model(family)
    requests = [
        GenerationRequest(text, 6, sampling={"temperature": 0})
        for text in ("The dog ran", "A", "So it")
    ]
    outputs, tokens = write_batch(model, requests)
    list(tokens)
    assert [output.ids for output in outputs] == [alone(model, request).ids for request in requests]


def test_it_may_be_left_at_any_time():
    outputs, tokens = write_batch(MODEL, REQUESTS)
    for _ in range(6):
        next(tokens)
    tokens.close()
    assert all(len(output.ids) <= 2 for output in outputs)
