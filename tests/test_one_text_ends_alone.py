"""What one text raises ends it alone: the others of a batch go on as if it had never been there."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor

from serving import serving
from softlore import FrozenModel, embed, generate, logits
from softlore.context import Node, Tree, compose
from softlore.decode import (
    GenerationRequest,
    PrefixCache,
    RunningBatch,
    Sampler,
    SamplingParams,
    SequenceGroup,
    TorchModelRunner,
    write,
    write_request,
)
from softlore.decode.output import OutputStream
from softlore.decode.samplers.steps import Step
from softlore.errors import ContextError, InputError, SoftloreError
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model
from softlore.serve.engines.local import LocalEngine

MODEL = tiny_model("llama")
VARIED = {"temperature": 1.2, "xtc_probability": 0.5, "repetition_penalty": 1.2, "mirostat": 1}
REQUESTS = [
    GenerationRequest("The dog", 12, seed=1),
    GenerationRequest("A cat sat", 9, seed=2, sampling=VARIED),
    GenerationRequest("Once", 10, seed=3, conditioning=[("Horror ", 0.7)]),
    GenerationRequest("The dog barked at the moon", 12, seed=4, logprobs=2),
]
ALONE = [write_request(MODEL, request).drained().ids for request in REQUESTS]


class FaultError(Exception):
    """What the tests inject."""


class Raising(LogitsProcessor):
    """Raises from its `at`-th call on."""

    def __init__(self, at=3):
        self.calls, self.at = count(1), at

    def __call__(self, input_ids, scores):
        if next(self.calls) >= self.at:
            raise FaultError("a processor")
        return scores


class Misshapen(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores[:, :7]


class Odd(TorchModelRunner):
    """Fails for texts that begin with a word, in the methods named, or at some calls for all."""

    word = MODEL.encode("Bad")

    def __init__(self, *methods, at=()):
        super().__init__(MODEL, PrefixCache())
        self.methods, self.at, self.calls = methods, at, count(1)

    def _check(self, method, trees):
        for tree in trees:
            if method in self.methods and list(tree.nodes[0].ids[:3]) == self.word:
                raise FaultError(method)

    def start(self, tree, prompt_logprobs=None):
        self._check("start", [tree])
        return super().start(tree, prompt_logprobs)

    def prefill(self, sequences, max_tokens):
        self._check("prefill", [s.tree for s in sequences])
        super().prefill(sequences, max_tokens)

    def step(self, sequences, ids):
        self._check("step", [s.tree for s in sequences])
        if next(self.calls) in self.at:
            raise FaultError("now and then")
        return super().step(sequences, ids)


def finish(batch):
    while len(batch):
        batch.step()


def bad_group(batch, step=None, output=None, n_tokens=20, params=None):
    """A text whose sampler has another step, or whose output is another."""
    params = params or SamplingParams(temperature=1.0)
    sampler = Sampler(params, 5, MODEL, [step] if step else [])
    group = SequenceGroup.from_trees(
        batch.runner, [(compose(MODEL, "Bad"), 1.0)], sampler, n_tokens
    )
    if output is not None:
        group.output = output
    return group


def others_go_on(batch, *bad, kind=FaultError):
    """Runs the usual requests beside bad texts, which end with their errors."""
    groups = [batch.add(request) for request in REQUESTS[:2]]
    for group in bad:
        batch.add(group)
    groups += [batch.add(request) for request in REQUESTS[2:]]
    finish(batch)
    for group in bad:
        assert isinstance(group.error, kind)
    assert [group.output.ids for group in groups] == ALONE
    assert all(group.error is None for group in groups)
    assert batch.memory_usage().tokens == 0


@pytest.mark.parametrize(
    ("processor", "reads", "draws"),
    [
        (Raising, "nothing", False), (Raising, "nothing", True), (Raising, "text", False),
        (Raising, "written", False), (Misshapen, "text", False), (Misshapen, "written", True),
    ],
)  # fmt: skip
def test_a_processor_raises(processor, reads, draws):
    batch = RunningBatch(TorchModelRunner(MODEL, PrefixCache()))
    step = Step("odd", processor(), reads, draws)
    kind = FaultError if processor is Raising else Exception
    params = SamplingParams()  # as the others have, so that they are sampled together
    others_go_on(batch, *(bad_group(batch, step, params=params) for _ in range(2)), kind=kind)


def test_a_row_of_rows_that_are_sampled_together_raises():
    batch = RunningBatch(TorchModelRunner(MODEL))
    same = [Step("odd", Raising(at), "text") for at in (2, 99, 4)]
    groups = [batch.add(bad_group(batch, step)) for step in same]
    expected = bad_group(batch)
    finish(batch)
    assert [type(group.error) for group in groups] == [FaultError, type(None), FaultError]
    alone = RunningBatch(TorchModelRunner(MODEL))
    alone.add(expected)
    finish(alone)
    assert groups[1].output.ids == expected.output.ids


def test_a_bias_that_does_not_fit_the_logits():
    batch = RunningBatch(TorchModelRunner(MODEL))
    params = SamplingParams(logit_bias={MODEL.vocab_size + 9: 1.0}, banned=(3,))
    group = bad_group(batch)
    group.sampler = Sampler(params, 5)  # without a model, whose ids would be checked
    others_go_on(batch, group, kind=Exception)


def test_an_output_raises():
    class Broken(OutputStream):
        def append(self, token):
            if len(self.ids) == 3:
                raise FaultError("a callback")
            return super().append(token)

    batch = RunningBatch(TorchModelRunner(MODEL))
    others_go_on(batch, bad_group(batch, output=Broken(MODEL, (), 20)))


def test_a_window_that_cannot_slide(monkeypatch):
    batch = RunningBatch(TorchModelRunner(MODEL))
    long = GenerationRequest("x" * 240, 40, seed=1, conditioning="Horror ")
    group = batch.add(long)
    monkeypatch.setattr(group, "slide", lambda: (_ for _ in ()).throw(FaultError("a slide")))
    others_go_on(batch)
    assert isinstance(group.error, FaultError)


@pytest.mark.parametrize("method", ["start", "prefill", "step"])
def test_a_runner_raises_for_one_text(method):
    batch = RunningBatch(Odd(method))
    others_go_on(batch, bad_group(batch))


@settings(max_examples=25, deadline=None)
@given(at=st.sets(st.integers(1, 14), max_size=6), method=st.sampled_from(["", "prefill", "step"]))
def test_steps_fail_now_and_then(at, method):
    """Whatever fails, texts that go on are the same as without it, and all come to an end."""
    batch = RunningBatch(Odd(method, at=at))
    groups = [batch.add(request) for request in REQUESTS]
    bad = batch.add(bad_group(batch))
    finish(batch)
    for group, ids in zip(groups, ALONE, strict=True):
        assert group.output.ids == ids if group.error is None else ids[: len(group.output.ids)]
    assert not method or isinstance(bad.error, FaultError)
    assert batch.memory_usage().tokens == 0


def test_steps_that_never_succeed_end_the_newest_first():
    batch = RunningBatch(TorchModelRunner(MODEL))
    step = batch.runner.step

    def crowded(sequences, ids):
        if len(sequences) > 2:
            raise MemoryError
        return step(sequences, ids)

    batch.runner.step = crowded
    groups = [batch.add(GenerationRequest(f"Text {i}", 40, seed=i)) for i in range(4)]
    finish(batch)
    assert [group.error is None for group in groups] == [True, True, False, False]
    assert [len(group.output.ids) for group in groups[:2]] == [40, 40]


def test_a_lost_device_ends_all_and_the_batch_can_be_used_again():
    runner = Odd(at=range(3, 400))
    batch = RunningBatch(runner)
    groups = [batch.add(request) for request in REQUESTS]
    finish(batch)
    assert all(isinstance(group.error, FaultError) for group in groups)
    runner.at = ()
    others_go_on(batch)


def test_python_raises_what_its_text_raised():
    with pytest.raises(FaultError):
        list(write(Odd("prefill"), "Bad", 5))


# contexts that are refused before they join ------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [5, 264],
        [-1],
        torch.zeros(2, 32, dtype=torch.long),
        torch.zeros(2, 32, dtype=torch.bool),
        torch.zeros(2, 31),
        torch.zeros(32),
    ],
)
def test_contents_that_are_none_of_the_models(content):
    request = GenerationRequest("", tree=Tree([Node(content)]))
    with pytest.raises(ContextError, match="expected"):
        RunningBatch(TorchModelRunner(MODEL)).add(request)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_another_precision_end_nothing_else(dtype):
    batch = RunningBatch(TorchModelRunner(MODEL))
    tree = Tree([Node(torch.zeros(2, 32, dtype=dtype))])
    group = batch.add(GenerationRequest("", 4, seed=1, tree=tree))
    others_go_on(batch)
    assert group.error is not None or len(group.output.ids) == 4


@pytest.fixture(scope="module")
def larger():
    """A model whose tokenizer has a token more, as those of Gemma 3's text models have."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    return FrozenModel(tiny_hf("llama", vocab_size=257), tokenizer)


def test_a_token_beyond_the_table_is_refused_with_words(larger):
    for call in (generate, embed, logits, FrozenModel.encode):
        with pytest.raises(InputError, match=r"'<image_soft_token>', token 257 .*; expected .*; t"):
            call(larger, "Hi <image_soft_token>")
    assert generate(larger, "Hi image_soft_token", 3, seed=1) is not None
    with pytest.raises(InputError, match="image_soft_token"):
        generate(larger, "Hi", 3, conditioning="<image_soft_token>")
    assert "<image_soft_token>" not in larger.vocabulary.texts


def test_more_logprobs_than_tokens():
    tokens = list(write(MODEL, "The dog", 3, logprobs=1000, seed=1))
    assert [len(token.top) for token in tokens if token.id is not None] == [264] * 3


# the server's engine -----------------------------------------------------------------------------


def test_the_engines_texts_end_alone():
    """A text's processor and another's callback raise; the rest are as they are alone."""

    async def run():
        engine = LocalEngine(TorchModelRunner(MODEL, PrefixCache()))
        streams = [await engine.start(request) for request in REQUESTS]
        bad = engine.enqueue(bad_group(engine._batch, Step("odd", Raising(), "text")), None)
        streams[1].on_end = lambda stream: (_ for _ in ()).throw(FaultError("a callback"))
        for stream, ids in zip(streams, ALONE, strict=True):
            assert (await stream.drained()).ids == ids
        with pytest.raises(SoftloreError, match="FaultError"):
            await bad.drained()
        assert engine.counts() == (0, 0)
        await engine.close()

    asyncio.run(run())


def test_a_servers_other_clients_write_on(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_hf("llama", vocab_size=257, max_position_embeddings=2048).save_pretrained(
        tmp_path / "model"
    )
    long = {"prompt": "Hello there", "max_length": 400, "sampler_seed": 1, "bypass_eos": True}
    check, key = "/api/extra/generate/check", {"genkey": "A1"}
    with (
        serving(tmp_path, "--model", tmp_path / "model") as server,
        httpx.Client(base_url=server.url, timeout=300) as client,
        ThreadPoolExecutor() as pool,
    ):
        other = pool.submit(client.post, "/api/v1/generate", json=long | key)
        while not other.done() and not client.post(check, json=key).json()["results"][0]["text"]:
            pass
        told = client.post("/api/v1/generate", json={"prompt": "Hi <image_soft_token>"})
        assert told.status_code == 400
        assert "no embedding of; expected tokens below 257; take it out" in told.text
        beside = other.result()
        assert beside.status_code == 200
        assert beside.json() == client.post("/api/v1/generate", json=long).json()
