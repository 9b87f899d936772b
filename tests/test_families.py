"""Every tested family gives through softlore's splice the logits that it gives by itself.

The references come from the plain transformers model, fed with ids or rows, never through
softlore's forward. Sliding windows are 8 tokens here and the texts are longer, so that a wrong one
shows.
"""

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from softlore import Context, FrozenModel, SoftPrompt, generate, logits
from softlore.context import compose, embed, splice
from softlore.decode import (
    RunningBatch,
    Sampler,
    SamplingParams,
    SequenceGroup,
    TorchModelRunner,
    sample_ids,
)
from softlore.decode.samplers.steps import Step
from softlore.errors import UnsupportedModelError
from softlore.model import TESTED_FAMILIES
from softlore.model.tiny import CONFIGS, WINDOW, byte_tokenizer, tiny_hf, tiny_model

BEFORE, SOFT, AFTER = "Down the lane there came ", "a dog who loved all pets", ", and he barked."
GREEDY = SamplingParams(temperature=0)
every_family = pytest.mark.parametrize("family", sorted(CONFIGS))


@cache
def plain(family):
    return tiny_hf(family).requires_grad_(False)


@cache
def wrapped(family):
    return tiny_model(family)


@torch.no_grad()
def hf_logits(family, text, bos=()):
    """The plain model's logits `[tokens, vocab]` for a text."""
    return plain(family)(input_ids=torch.tensor([[*bos, *wrapped(family).encode(text)]])).logits[0]


def assert_same(got, expected, within=1e-4):
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() <= within * expected.std()


def soft(family, text, kind="embedding", name="soft"):
    return SoftPrompt.from_text(text, wrapped(family), name=name, kind=kind)


def test_all_tested_families_are_here():
    assert set(CONFIGS) == TESTED_FAMILIES


# (a) embedding prompts ---------------------------------------------------------------------------


@every_family
def test_rows_made_from_text_are_that_text(family):
    model, prompt = wrapped(family), soft(family, SOFT)
    assert_same(logits(model, prompt), hf_logits(family, SOFT))
    assert_same(logits(model, prompt + AFTER), hf_logits(family, SOFT + AFTER))
    assert_same(logits(model, BEFORE + prompt + AFTER), hf_logits(family, BEFORE + SOFT + AFTER))
    twice = prompt + BEFORE + prompt
    assert_same(logits(model, twice), hf_logits(family, SOFT + BEFORE + SOFT))


@every_family
@torch.no_grad()
def test_rows_made_from_text_are_that_text_in_a_padded_batch(family):
    model, prompt = wrapped(family), soft(family, SOFT)
    contexts = [Context(prompt), BEFORE + prompt + AFTER, prompt + AFTER, Context(BEFORE)]
    batch = splice(model, [compose(model, context) for context in contexts])
    hidden, _ = model.hidden(batch.embeds, batch.positions, batch.visible, batch.past)
    for row, context in zip(hidden, contexts, strict=True):
        text = context.text.replace(prompt.tag, SOFT)
        expected = hf_logits(family, text)
        assert_same(model.logits(row[: len(expected)]), expected)


@pytest.mark.parametrize(
    "family", [f for f in sorted(CONFIGS) if wrapped(f).family.has_sliding_layers]
)
def test_the_window_would_show(family):
    assert wrapped(family).family.sliding_window == WINDOW
    key = "window_size" if family == "gpt_neo" else "sliding_window"
    ids = torch.tensor([wrapped(family).encode(BEFORE)])
    with torch.no_grad():
        wide = tiny_hf(family, **{key: 200})(input_ids=ids).logits[0]
    assert (wide - hf_logits(family, BEFORE))[WINDOW:].abs().max() > 0.1 * wide.std()


def test_the_windows_are_those_of_eight_families():
    sliding = {f for f in CONFIGS if wrapped(f).family.has_sliding_layers}
    assert sliding == set("gpt_neo mistral qwen2 qwen3 gemma2 gemma3_text phi3 starcoder2".split())
    assert {f for f in sliding if wrapped(f).family.sight is not None} == {
        "mistral",
        "phi3",
        "starcoder2",
    }


@every_family
def test_rows_are_scaled_as_the_forward_takes_them(family):
    rows = embed(wrapped(family), SOFT)
    table = plain(family).get_input_embeddings().weight[wrapped(family).encode(SOFT)]
    scale = (rows / table).mean()
    torch.testing.assert_close(rows, table * scale)
    if family in {"gemma", "gemma2", "gemma3_text", "xglm"}:
        assert scale == pytest.approx(rows.shape[1] ** 0.5)
    else:
        assert scale == pytest.approx(1.0)


# (c) greedy generation ---------------------------------------------------------------------------


def greedy_ids(family, text, count):
    model = tiny_hf(family)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([wrapped(family).encode(text)])
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@every_family
def test_greedy_generation_is_that_of_the_text(family):
    model, count = wrapped(family), 20
    expected = greedy_ids(family, BEFORE + SOFT + AFTER, count)
    for context in (
        BEFORE + soft(family, SOFT) + AFTER,
        soft(family, BEFORE + SOFT, "prefix") + AFTER,
        soft(family, BEFORE, "prefix") + soft(family, SOFT, name="two") + AFTER,
    ):
        assert sample_ids(model, [(compose(model, context), [])], GREEDY, count) == [expected]
        end = expected.index(0) if 0 in expected else count
        written = generate(model, context, count, temperature=0)
        assert written == model.decode(expected[:end], inside=True).replace("\ufffd", "")


class Dictated:
    """Leaves one token by a rule of its own, and records the logits that it was given."""

    def __init__(self, row):
        self.row, self.seen = row, []

    def __call__(self, input_ids, scores):
        self.seen.append(scores[0].clone())
        only = torch.full_like(scores, -torch.inf)
        only[:, [7, 40, 99, 3][len(self.seen) % 4] + self.row] = 0.0
        return only


@every_family
def test_each_step_of_a_padded_batch_has_the_logits_of_its_text(family):
    """Greedy ids may repeat themselves; logits after dictated tokens cannot hide a mistake."""
    model = wrapped(family)
    texts = [BEFORE + SOFT, SOFT + BEFORE, AFTER, SOFT + AFTER]
    contexts = [
        BEFORE + soft(family, SOFT),
        soft(family, SOFT, "prefix") + BEFORE,
        Context(AFTER),
        soft(family, SOFT) + AFTER,
    ]
    batch, dictated, groups = RunningBatch(TorchModelRunner(model)), [], []
    for row, context in enumerate(contexts):
        dictated.append(Dictated(row))
        sampler = Sampler(GREEDY, before=[Step("dictated", dictated[row], "text")])
        trees = [(compose(model, context), 1.0)]
        groups.append(batch.add(SequenceGroup.from_trees(batch.runner, trees, sampler, 12)))
    while len(batch):
        batch.step()
    for text, group, processor in zip(texts, groups, dictated, strict=True):
        before = model.encode(text)
        ids = torch.tensor([[*before, *group.output.ids[:-1]]])
        with torch.no_grad():
            expected = plain(family)(input_ids=ids).logits[0, len(before) - 1 :]
        assert_same(torch.stack(processor.seen), expected)


# (d) prefix prompts ------------------------------------------------------------------------------


@every_family
def test_a_prefix_made_from_text_is_a_context_that_begins_so(family):
    model, prompt = wrapped(family), soft(family, SOFT, "prefix")
    expected = hf_logits(family, SOFT + BEFORE + AFTER)[len(prompt) :]
    assert_same(logits(model, prompt + BEFORE + AFTER), expected)
    rows = soft(family, BEFORE, name="rows")
    assert_same(logits(model, prompt + rows + AFTER), expected)


@every_family
@torch.no_grad()
def test_prefixes_in_a_padded_batch(family):
    model = wrapped(family)
    long, short = soft(family, SOFT, "prefix"), soft(family, "a cat", "prefix", "short")
    contexts = [long + AFTER, short + BEFORE, Context(AFTER)]
    batch = splice(model, [compose(model, context) for context in contexts])
    hidden, _ = model.hidden(batch.embeds, batch.positions, batch.visible, batch.past)
    for row, conditioning, text in zip(
        hidden, (SOFT, "a cat", ""), (AFTER, BEFORE, AFTER), strict=True
    ):
        expected = hf_logits(family, conditioning + text)[len(conditioning) :]
        assert_same(model.logits(row[: len(expected)]), expected)


@every_family
def test_prefixes_side_by_side_have_no_order(family):
    model = wrapped(family)
    # Nearly as long as the other, so that it stands within a window of the text.
    one, two = soft(family, SOFT, "prefix"), soft(family, "a cat that slept a lot", "prefix", "two")
    both = logits(model, one + two + AFTER)
    assert_same(logits(model, two + one + AFTER), both)
    assert (both - logits(model, one + AFTER)).abs().max() > 0.01 * both.std()
    assert compose(model, two + one + AFTER).start == len(one)


def side_by_side(family, prefixes, ids):
    """The plain model over the keys of two prefixes and a text that starts after the longer."""
    cache = DynamicCache()
    keys = torch.cat([prefix.key_values for prefix in prefixes], dim=3)
    for layer, (key, value) in enumerate(keys):
        cache.update(key[None], value[None], layer)
    start = max(map(len, prefixes))
    places = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        return plain(family)(
            input_ids=torch.tensor([ids]), position_ids=places, cache=cache
        ).logits[0]


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"bloom", "mpt"}))
def test_prefixes_side_by_side_start_the_text_after_the_longest(family):
    if wrapped(family).family.has_sliding_layers:
        pytest.skip("the plain model takes no positions for the keys of two prefixes")
    prefixes = [soft(family, SOFT, "prefix"), soft(family, "a cat", "prefix", "two")]
    expected = side_by_side(family, prefixes, wrapped(family).encode(AFTER))
    assert_same(logits(wrapped(family), prefixes[0] + prefixes[1] + AFTER), expected)


# (e) the plain model stays as it was -------------------------------------------------------------


@every_family
@torch.no_grad()
def test_an_adapted_model_still_does_all_it_did(family):
    native, adapted = tiny_hf(family), tiny_hf(family)
    for _ in range(2):  # twice over does no harm
        FrozenModel(adapted, byte_tokenizer())
    ids = torch.tensor([wrapped(family).encode(BEFORE), wrapped(family).encode(SOFT + "!")])
    padded = torch.ones_like(ids)
    padded[1, :6] = 0  # left padding
    for mask in (None, torch.ones_like(ids), padded):
        expected = native(input_ids=ids, attention_mask=mask)
        got = adapted(input_ids=ids, attention_mask=mask)
        assert torch.equal(got.logits[0], expected.logits[0])
        assert torch.equal(got.logits[1, 6:], expected.logits[1, 6:])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = native.generate(ids, attention_mask=padded, **settings)
    assert torch.equal(adapted.generate(ids, attention_mask=padded, **settings), expected)
    # … on a cache of its own, too.
    first, rest = ids[:, :10], ids[:, 10:]
    expected = native(rest, cache=native(first, use_cache=True).cache)
    got = adapted(rest, cache=adapted(first, use_cache=True).cache)
    assert torch.equal(got.logits, expected.logits)


# other dtypes, BOS, attention --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_neo", "gemma3_text", "bloom", "mpt", "ctrl"])
def test_sixteen_bits(family, dtype):
    hf = tiny_hf(family).to(dtype)
    ids = torch.tensor([wrapped(family).encode(SOFT + BEFORE + AFTER)])
    with torch.no_grad():
        expected = hf(input_ids=ids).logits[0].float()
    model = FrozenModel(hf, byte_tokenizer())
    for kind in ("embedding", "prefix"):
        prompt = SoftPrompt.from_text(SOFT, model, kind=kind)
        assert prompt.tensor.dtype == torch.float32
        got = logits(model, prompt + BEFORE + AFTER)
        assert_same(got, expected[-len(got) :], within=0.25)


def test_mpt_in_bfloat16_knows_its_neighbours_far_into_a_text():
    """Its bias, counted from the start, would be rounded to steps of 4 by then."""
    shape = {"n_heads": 16, "d_model": 64, "max_seq_len": 1024}
    hf = tiny_hf("mpt", **shape).to(torch.bfloat16)
    model = FrozenModel(hf, byte_tokenizer())
    text = (BEFORE + SOFT + AFTER) * 12
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor([model.encode(text)])).logits[0].float()
    got = logits(model, text)
    assert_same(got[-50:], expected[-50:], within=0.25)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "gemma2", "gpt_neo", "mpt"])
def test_a_bos_stands_once(family):
    model = tiny_model(family, bos=True)
    assert model.bos_id == 0
    assert wrapped(family).bos_id is None
    rows, prefix = soft(family, SOFT), soft(family, SOFT, "prefix", "head")
    # … before embedding prompts,
    assert_same(logits(model, BEFORE), hf_logits(family, BEFORE, bos=[0]))
    assert_same(logits(model, rows + AFTER), hf_logits(family, SOFT + AFTER, bos=[0]))
    assert len(embed(model, BEFORE + rows)) == 1 + len(BEFORE + SOFT)
    # and first in the text after prefixes.
    got = logits(model, prefix + BEFORE)
    assert len(got) == 1 + len(BEFORE)
    ids = torch.tensor([[*model.encode(SOFT), 0, *model.encode(BEFORE)]])
    with torch.no_grad():
        assert_same(got, plain(family)(input_ids=ids).logits[0, len(prefix) :])


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"bloom", "mpt", "ctrl"}))
def test_plain_attention_code_does_as_well(family):
    """`eager` and `sdpa` read masks in their own ways."""
    for attention in ("eager", "sdpa"):
        hf = tiny_hf(family)
        try:
            hf.set_attn_implementation(attention)
        except ValueError:
            continue
        model = FrozenModel(hf, byte_tokenizer())
        prompt = soft(family, SOFT, "prefix")
        assert_same(logits(model, prompt + AFTER), hf_logits(family, SOFT + AFTER)[len(prompt) :])


# settings of tested families, and other families -------------------------------------------------

UNUSUAL = [
    ("gpt_neo", {"attention_types": [[["local"], 4]]}),
    ("opt", {"do_layer_norm_before": False}),
    ("bloom", {"n_head": 6, "hidden_size": 48}),
    ("mpt", {"n_heads": 6, "d_model": 48}),
    ("mpt", {"logit_scale": 0.3}),
    ("mpt", {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.7}}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("qwen2", {"use_sliding_window": False}),
    ("mistral", {"sliding_window": None}),
    ("gemma3_text", {"final_logit_softcapping": 2.0}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
]


@pytest.mark.parametrize(("family", "settings"), UNUSUAL)
def test_unusual_settings(family, settings):
    hf = tiny_hf(family, **settings)
    model = FrozenModel(hf, byte_tokenizer())
    ids = torch.tensor([model.encode(SOFT + AFTER)])
    with torch.no_grad():
        expected = hf(input_ids=ids).logits[0]
    for kind in ("embedding", "prefix"):
        got = logits(model, SoftPrompt.from_text(SOFT, model, kind=kind) + AFTER)
        assert_same(got, expected[-len(got) :])


def other_model(family, **settings):
    """A random model of a family that is not among CONFIGS."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = AutoConfig.for_model(
        family, vocab_size=264, bos_token_id=0, eos_token_id=0, pad_token_id=0, **shape | settings
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in hf.parameters():
            torch.nn.init.normal_(parameter, std=0.18)
    return hf.eval()


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("olmo", {}),
        ("glm", {}),
        ("helium", {}),
        ("qwen3_moe", MOE),
        ("cohere2", {"sliding_window": WINDOW}),
        ("gpt_oss", {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_a_family_that_nobody_named_is_proven_as_it_loads(family, settings):
    hf = other_model(family, **settings)
    model = FrozenModel(hf, byte_tokenizer())
    ids = torch.tensor([model.encode(SOFT + AFTER)])
    with torch.no_grad():
        expected = hf(input_ids=ids).logits[0]
    for kind in ("embedding", "prefix"):
        got = logits(model, SoftPrompt.from_text(SOFT, model, kind=kind) + AFTER)
        assert_same(got, expected[-len(got) :])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: other_model("mamba", state_size=4), "layers of type ['linear_attention']"),
        (lambda: other_model("bert", is_decoder=True), "gives other logits"),
        (lambda: other_model("trocr", d_model=32, decoder_layers=2), "gives other logits"),
        (lambda: other_model("modernbert-decoder"), "cannot be run on embeddings"),
        (lambda: tiny_hf("falcon", alibi=True), "falcon models with ALiBi"),
        (lambda: tiny_hf("gemma", use_bidirectional_attention=True), "as configured, gives other"),
    ],
    ids=["mamba", "bert", "trocr", "modernbert-decoder", "falcon-rw", "gemma both ways"],
)
def test_unsupported_models_are_rejected(make, message):
    with pytest.raises(UnsupportedModelError, match="; use a") as refused:
        FrozenModel(make(), byte_tokenizer())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
