"""A running batch: whoever joins and leaves beside it, each text is what it would be alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import SoftPrompt
from softlore.context.compose import compose, logits
from softlore.decode import GenerationRequest, PrefixCache, RunningBatch, TorchModelRunner, write
from softlore.decode import batch as batches
from softlore.decode.prefix_cache import TextKeys
from softlore.errors import ConfigError, ContextOverflowError
from softlore.model import FrozenModel, KVCache, KVSlots
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

MODEL = tiny_model("llama")
DOG = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
CAT = SoftPrompt.from_text("Cat is not", MODEL, name="cat", kind="prefix")
ROW = SoftPrompt.from_text("a red coat", MODEL, name="coat", kind="embedding")
REQUESTS = [
    GenerationRequest(DOG + "The dog", 12, seed=1, sampling={"temperature": 1.0}),
    GenerationRequest(
        DOG + "The dog ran " + CAT, 5, seed=9, sampling={"temperature": 1.0, "min_p": 0.1}
    ),
    GenerationRequest(
        "Down the " + ROW + " lane", 9, seed=2, sampling={"top_k": 5, "dry_multiplier": 0.8}
    ),
    GenerationRequest(
        "A", 14, seed=3, stop=["e"], sampling={"repetition_penalty": 1.3}, logprobs=2
    ),
    GenerationRequest("The sea " * 9, 3, sampling={"temperature": 0}),
    GenerationRequest("The sea", 20, seed=4, conditioning=[(DOG, 1.5), ("Horror ", -0.5)]),
    GenerationRequest("By night", 11, seed=5, conditioning="Horror "),
]


def alone(request, model=MODEL):
    return write(
        model, request.context, request.max_new_tokens, stop=request.stop, seed=request.seed,
        conditioning=request.conditioning, logprobs=request.logprobs, **request.sampling,
    ).drained()  # fmt: skip


ALONE = [alone(request) for request in REQUESTS]


def short_model(tokens):
    return FrozenModel(tiny_hf("llama", max_position_embeddings=tokens), byte_tokenizer())


def run(batch, most=10_000):
    """All tokens of all texts, by text."""
    told = {}
    for _ in range(most):
        if not len(batch):
            break
        for text, token in batch.step():
            told.setdefault(text, []).append(token)
    return told


# What is done before each step: texts that join, by number, and None for one that leaves.
COMINGS = st.lists(
    st.lists(st.one_of(st.integers(0, len(REQUESTS) - 1), st.none()), max_size=4), max_size=10
)


@given(COMINGS, st.booleans(), st.sampled_from([1, 7, 512]))
@settings(max_examples=60)
def test_joining_and_leaving_changes_no_text(comings, keeps, read):
    kept = PrefixCache(2**20) if keeps else None
    batch, here, left = RunningBatch(TorchModelRunner(MODEL, kept)), [], set()
    before, batches.PREFILL_TOKENS = batches.PREFILL_TOKENS, read
    try:
        for coming in comings:
            for number in coming:
                if number is not None:
                    here.append((batch.add(REQUESTS[number]), ALONE[number]))
                elif here:
                    gone = here[len(left) % len(here)][0]
                    batch.remove(gone)
                    left.add(gone)
            batch.step()
        run(batch)
    finally:
        batches.PREFILL_TOKENS = before
    for text, single in here:
        if text in left:
            assert text.output.ids == single.ids[: len(text.output.ids)]
        else:
            assert text.output.ids == single.ids
            assert (text.output.text, text.output.finish) == (single.text, single.finish)
    assert (len(batch), batch.memory_usage().bytes, batch.memory_usage().tokens) == (0, 0, 0)


def test_logprobs_are_those_of_the_text_alone():
    batch = RunningBatch(TorchModelRunner(MODEL))
    texts = [batch.add(request) for request in REQUESTS]
    told = run(batch)
    request = REQUESTS[3]
    single = list(
        write(
            MODEL,
            request.context,
            14,
            stop=request.stop,
            seed=3,
            repetition_penalty=1.3,
            logprobs=2,
        )
    )
    mine = told[texts[3]]
    assert [token.id for token in mine] == [token.id for token in single]
    for one, other in zip(mine, single, strict=True):
        assert one.top == pytest.approx(other.top, abs=1e-4)


def test_a_text_ends_where_the_context_does_and_the_others_go_on():
    model = short_model(24)
    requests = [
        GenerationRequest("x" * 20, 30, seed=1),
        GenerationRequest("y", 15, seed=2),
        GenerationRequest("z" * 24, 30, seed=3),
    ]
    batch = RunningBatch(TorchModelRunner(model))
    texts = [batch.add(request) for request in requests]
    run(batch)
    for request, text in zip(requests, texts, strict=True):
        single = alone(request, model)
        assert (text.output.ids, text.output.finish) == (single.ids, single.finish)
    assert [text.output.finish for text in texts] == ["context", "length", "context"]
    with pytest.raises(ContextOverflowError, match="expected at most 24"):
        batch.add(GenerationRequest("x" * 25))


def test_a_window_slides_under_its_head_beside_others():
    model = short_model(40)
    requests = [
        GenerationRequest("By night", 90, seed=1, conditioning="Horror "),
        GenerationRequest("By day", 80, seed=2, conditioning=[("Humor ", 2.0), ("Horror ", -1.0)]),
        GenerationRequest("x" * 70, 20, seed=3, conditioning="A "),
        GenerationRequest("Plain", 30, seed=4),
    ]
    batch = RunningBatch(TorchModelRunner(model, PrefixCache(2**20)))
    texts = [batch.add(request) for request in requests]
    run(batch)
    for request, text in zip(requests, texts, strict=True):
        assert text.output.ids == alone(request, model).ids


def test_what_was_read_is_not_read_again():
    batch = RunningBatch(TorchModelRunner(MODEL, PrefixCache(2**20)))
    story = "The dog ran down the lane and over the hill."
    first = batch.add(GenerationRequest(DOG + story, 6, seed=1))
    run(batch)
    assert first.cache_usage.reused == 0
    second = batch.add(GenerationRequest(DOG + (story + first.output.text + " Then"), 6, seed=2))
    third = batch.add(GenerationRequest(DOG + (story[:20] + "!"), 6, seed=3))
    other = batch.add(GenerationRequest(CAT + story, 6, seed=4))
    run(batch)
    assert second.cache_usage.reused >= len(MODEL.encode(story))
    assert (third.cache_usage.reused, third.cache_usage.read) == (20, 1)
    assert other.cache_usage.reused == 0
    for text, request in (
        (second, GenerationRequest(DOG + (story + first.output.text + " Then"), 6, seed=2)),
        (third, GenerationRequest(DOG + (story[:20] + "!"), 6, seed=3)),
        (other, GenerationRequest(CAT + story, 6, seed=4)),
    ):
        assert text.output.ids == alone(request).ids


def test_what_is_kept_stays_within_its_size():
    size = 60_000
    kept = PrefixCache(size)
    batch = RunningBatch(TorchModelRunner(MODEL, kept))
    for number in range(12):
        batch.add(
            GenerationRequest(
                f"{number} The dog ran down the lane and over the hill.", 8, seed=number
            )
        )
        run(batch)
        assert kept.bytes <= size
    assert 1 < len(kept) < 12
    nothing = RunningBatch(TorchModelRunner(MODEL, PrefixCache(0)))
    nothing.add(GenerationRequest("The dog", 4))
    run(nothing)
    assert nothing.memory_usage().cached_tokens == 0


def test_a_longer_text_takes_the_place_of_its_beginning():
    batch = RunningBatch(TorchModelRunner(MODEL, PrefixCache(2**22)))
    text = "The dog"
    for _ in range(5):
        text += " ran on and on"
        batch.add(GenerationRequest(text, 1, seed=0))
        run(batch)
    assert len(batch.runner.prefix_cache) == 1


def test_long_contexts_are_read_while_others_are_written():
    batch = RunningBatch(TorchModelRunner(MODEL))
    quick = batch.add(GenerationRequest("The dog", 40, seed=1))
    batch.step()
    before, batches.PREFILL_TOKENS = batches.PREFILL_TOKENS, 16
    try:
        slow = batch.add(GenerationRequest("The sea was wide. " * 5, 5, seed=2))
        batch.step()
        batch.step()
        assert not slow.output.ids
        assert len(quick.output.ids) == 3
    finally:
        batches.PREFILL_TOKENS = before
    run(batch)
    assert slow.output.ids == alone(GenerationRequest("The sea was wide. " * 5, 5, seed=2)).ids


def test_a_wish_that_cannot_be_is_refused_and_the_batch_goes_on():
    batch = RunningBatch(TorchModelRunner(MODEL))
    text = batch.add(REQUESTS[0])
    with pytest.raises(ConfigError, match="temperature"):
        batch.add(GenerationRequest("A", sampling={"temperature": -1}))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        batch.add(GenerationRequest("A", 0))
    run(batch)
    assert text.output.ids == ALONE[0].ids


def test_slots_hold_what_was_put_there():
    slots, made = KVSlots(), {}
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        if len(slots) and float(torch.rand(1, generator=generator)) < 0.4:
            row = int(torch.randint(len(slots), (1,), generator=generator))
            moved = slots.remove(row)
            made[row] = made[moved]
            del made[moved]
        else:
            length = int(torch.randint(1, 150, (1,), generator=generator))
            past = _past(length, generator)
            made[slots.insert([past], [length])[0]] = past
        assert slots.lengths == [len(made[row]) for row in range(len(slots))]
        for row, past in made.items():
            held = slots.read(row)
            for (k, v), (wanted_k, wanted_v) in zip(
                held.keys_values, past.keys_values, strict=True
            ):
                assert torch.equal(k, wanted_k)
                assert torch.equal(v, wanted_v)
            assert torch.equal(held.positions, past.positions), step
    while len(slots):
        slots.remove(0)
    assert slots.bytes == 0


def _past(length, generator):
    def tensor():
        return torch.randn(1, 2, length, 4, generator=generator)

    return KVCache(
        [(tensor(), tensor()) for _ in range(2)],
        torch.arange(length)[None],
        torch.ones(1, length, dtype=torch.bool),
    )


# log-probabilities of the context -----------------------------------------------------------------


def likelihoods(context, runner=None, beside=(), **fields):
    """The tokens of a context, as a batch reports them beside other texts."""
    batch = RunningBatch(runner or TorchModelRunner(MODEL))
    for request in beside:
        batch.add(request)
    text = batch.add(GenerationRequest(context, **{"prompt_logprobs": 2, **fields}))
    run(batch)
    return text.output


@pytest.mark.parametrize("context", [
    "The dog ran after the cat, and the cat up the tree. " * 4,
    DOG + "The dog ran",
    "Down the " + ROW + " lane",
    "By night " + CAT + "came",
], ids=["long", "prefix", "rows", "late"])  # fmt: skip
@pytest.mark.parametrize("beside", [(), REQUESTS[:3]], ids=["alone", "beside others"])
def test_tokens_of_a_context_have_the_log_probabilities_of_a_forward(context, beside, monkeypatch):
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 50 if beside else 512)  # read in parts
    tree = compose(MODEL, context)
    logp = logits(MODEL, context).log_softmax(-1)
    output = likelihoods(context, beside=beside, max_new_tokens=0)
    assert (output.finish, output.ids, output.text) == ("length", [], "")
    expected = [i for node in tree.nodes for i in node.ids]
    assert [token.id for token in output.prompt] == expected
    at = [i for i, key in enumerate(TextKeys(tree).tokens) if isinstance(key, int)]
    assert output.prompt[0].logprob is None or at[0] > 0
    for token, place in zip(output.prompt, at, strict=True):
        if place:
            row = logp[place - 1]
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            assert list(token.top.values()) == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_a_cached_context_is_read_again_for_its_log_probabilities():
    runner = TorchModelRunner(MODEL, PrefixCache(2**24))
    first = likelihoods("The dog ran", runner, max_new_tokens=3, sampling={"temperature": 0})
    again = likelihoods("The dog ran", runner, max_new_tokens=3, sampling={"temperature": 0})
    assert [t.logprob for t in first.prompt] == pytest.approx([t.logprob for t in again.prompt])
    assert first.ids == again.ids
    assert not likelihoods("The dog ran", runner, prompt_logprobs=None).prompt


def test_logits_of_a_long_context_are_never_computed_at_once(monkeypatch):
    model, rows = tiny_model("llama"), []
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: rows.append(len(hidden)) or plain(hidden))
    output = likelihoods("The sea " * 25, TorchModelRunner(model), max_new_tokens=0)
    assert sum(rows) >= len(output.prompt) - 1 > 150
    assert max(rows) <= 64


def test_prompt_logprobs_beside_conditionings_are_refused():
    with pytest.raises(ConfigError, match=r"prompt_logprobs .*; expected .*; leave one out"):
        likelihoods("The sea", conditioning=[(DOG, 1.5)])
