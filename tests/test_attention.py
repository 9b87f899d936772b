"""Attention for training on a processor: transformers' own, with a backward pass of its own."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from softlore.context import Branch, Node, Tree, TreeBatch, backward, hidden_states, splice
from softlore.model import FrozenModel
from softlore.model.attention import NAME, attention, kernels
from softlore.model.kv_cache import MarkedLayer
from softlore.model.tiny import byte_tokenizer, tiny_hf


class Layer(torch.nn.Module):
    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("mask_heads", [1, 6])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize(("scaling", "chunk"), [(None, 2**20), (0.3, 1), (0.3, 1200)])
def test_it_is_transformers_own(kv_heads, mask_heads, scaling, chunk, monkeypatch):
    monkeypatch.setattr("softlore.model.attention.CHUNK", chunk)  # in parts of the heads, or rows
    drawn = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    query = tensor(2, 6, 5, 8)
    key, value = tensor(2, kv_heads, 9, 8), tensor(2, kv_heads, 9, 8)
    hidden = torch.rand(2, mask_heads, 5, 9, generator=drawn) > 0.6
    hidden[..., 4] = False  # each row sees something
    mask = torch.where(hidden, torch.finfo(torch.float64).min, tensor(2, mask_heads, 5, 9))
    wanted = tensor(2, 5, 6, 8)
    results = []
    for function in (attention, sdpa_attention_forward):
        inputs = [t.clone().requires_grad_() for t in (query, key, value)]
        out, weights = function(Layer(6 // kv_heads), *inputs, mask, scaling=scaling)
        assert weights is None
        (out * wanted).sum().backward()
        results.append([out.detach(), *(t.grad for t in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n_constant", [0, 6])
@pytest.mark.parametrize("rows", [3, 4, 64])
def test_rows_of_a_packed_tree_are_run_with_the_keys_that_they_see(rows, n_constant, monkeypatch):
    """A trunk of 6 tokens that all see, and branches of 4 that are hidden from each other."""
    monkeypatch.setattr("softlore.model.attention.ROWS", rows)  # of a branch, across two, of all
    drawn = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    branch = torch.arange(12) // 4
    own = (branch[:, None] == branch) & (torch.arange(12)[:, None] >= torch.arange(12))
    seen = torch.cat([torch.ones(12, 6, dtype=torch.bool), own], dim=1).expand(2, 1, 12, 18).clone()
    seen[1, :, 4:8, :3] = False  # a branch that hangs on an earlier node, in another tree
    mask = torch.zeros(seen.shape, dtype=torch.float64)
    mask.masked_fill_(~seen, torch.finfo(torch.float64).min)
    query, key, value, wanted = (
        tensor(2, heads, n, 8) for heads, n in ((6, 12), (2, 18), (2, 18), (6, 12))
    )
    results = []
    for function in (attention, sdpa_attention_forward):
        inputs = [t.clone().requires_grad_() for t in (query, key, value)]
        given = [inputs[0], *(t * 1 for t in inputs[1:])]
        given[1].n_constant = n_constant
        for _ in range(2):  # as in two layers, which have the same mask
            out, _ = function(Layer(3), *given, mask)
            (out * wanted.transpose(1, 2)).sum().backward(retain_graph=True)
        gradients = [inputs[0].grad, *(t.grad[:, :, n_constant:] for t in inputs[1:])]
        results.append([out.detach(), *gradients])
        with torch.no_grad():
            results[-1].append(function(Layer(3), *given, mask)[0])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_keys_alone_may_need_a_gradient():
    """As in a model's first layer, where the queries are of text and the keys of a prefix."""
    query, key, value = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (3, 5, 5))
    mask = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    gradients = []
    for function in (attention, sdpa_attention_forward):
        own = key.clone().requires_grad_()
        function(Layer(1), query, own, value, mask)[0].square().sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


def test_constant_keys_get_no_gradient_and_change_no_other():
    query, key, value = (torch.randn(2, 2, n, 4, dtype=torch.float64) for n in (3, 7, 7))
    mask = torch.zeros(2, 1, 3, 7, dtype=torch.float64)
    gradients = []
    for n_constant in (0, 5):
        inputs = [t.clone().requires_grad_() for t in (query, key, value)]
        given = [inputs[0], *(t * 1 for t in inputs[1:])]
        given[1].n_constant = n_constant
        attention(Layer(1), *given, mask)[0].square().sum().backward()
        gradients.append([t.grad for t in inputs])
    whole, part = gradients
    torch.testing.assert_close(part[0], whole[0])
    for of_part, of_whole in zip(part[1:], whole[1:], strict=True):
        torch.testing.assert_close(of_part[:, :, 5:], of_whole[:, :, 5:])
        assert not of_part[:, :, :5].any()


def test_text_that_was_read_before_training_is_constant(monkeypatch):
    """A prefix's gradient behind such text is that of torch's own attention."""
    seen = []
    own = MarkedLayer.update

    def update(layer, *args, **kwargs):
        seen.append(layer.n_constant)
        return own(layer, *args, **kwargs)

    monkeypatch.setattr(MarkedLayer, "update", update)
    model = FrozenModel(tiny_hf("llama").to(torch.bfloat16), byte_tokenizer(), "bf16")
    prompt = model.keys_values([3, 4, 5, 6]).requires_grad_()
    text = splice(model, [Tree([Node(list(range(3, 30)))], at=4)])
    with torch.no_grad():
        _, kept = model.hidden(text.embeds, text.positions, text.visible, keep=True)
    trunk = Tree([], [prompt]).then(text.after(kept), sees=())
    batch = [TreeBatch(trunk, [Branch([5, 6, 7, 8, 9], trunk.end, 2, -1)])]

    def gradient():
        prompt.grad = None
        backward(model, batch, lambda hidden, _: model.logits(hidden).log_softmax(-1)[:, 5].sum())
        return prompt.grad.clone()

    seen.clear()
    ours = gradient()
    assert set(seen) == {27}
    model.hf.set_attn_implementation("sdpa")
    theirs = gradient()
    assert theirs.norm() > 0
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_model_in_bfloat16_is_trained_with_it():
    """Its gradient is nearer to that of SDPA than that of transformers' eager attention is."""
    model = FrozenModel(tiny_hf("llama").to(torch.bfloat16), byte_tokenizer(), "bf16")
    assert model.hf.config._attn_implementation == NAME
    prompt = model.keys_values([3, 4, 5, 6]).requires_grad_()
    trunk = Tree([Node(list(range(3, 20)))], [prompt])
    batch = [TreeBatch(trunk, [Branch([5, 6, 7, 8, 9], 0, 2, -1), Branch([7, 8, 9], 0, 1, -1)])]

    def gradient():
        prompt.grad = None
        backward(model, batch, lambda hidden, _: model.logits(hidden).log_softmax(-1)[:, 5].sum())
        return prompt.grad.clone()

    ours = gradient()
    model.hf.set_attn_implementation("sdpa")
    theirs = gradient()
    model.hf.set_attn_implementation("eager")
    eager = gradient()
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
    assert (ours - theirs).norm() < (eager - theirs).norm()


@pytest.mark.parametrize("family", ["gpt_neo", "bloom", "mpt", "xglm", "falcon", "gemma2"])
def test_families_without_that_interface_keep_their_own(family, caplog):
    model = FrozenModel(tiny_hf(family).to(torch.bfloat16), byte_tokenizer(), family)
    assert model.hf.config._attn_implementation in ("eager", "sdpa")
    assert not caplog.records


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, NAME), (torch.float16, "sdpa")])
def test_models_in_float32_use_it_and_others_keep_their_own(dtype, name):
    hf = FrozenModel(tiny_hf("llama").to(dtype), byte_tokenizer(), "a model").hf
    assert hf.config._attn_implementation == name


def test_in_float32_gradients_and_hidden_states_are_those_of_torch():
    model = FrozenModel(tiny_hf("llama"), byte_tokenizer(), "float32")
    prompt = model.keys_values([3, 4, 5, 6]).requires_grad_()
    trunk = Tree([Node(list(range(3, 40)))], [prompt])
    texts = [[3 + (7 * i + j) % 200 for j in range(24)] for i in range(12)]  # 288 rows: 3 blocks
    batch = [TreeBatch(trunk, [Branch(text, 0, 4, -1) for text in texts])]

    def run(name):
        model.hf.set_attn_implementation(name)
        prompt.grad = None
        with torch.no_grad():
            states = hidden_states(model, batch)
        backward(model, batch, lambda hidden, _: model.logits(hidden).log_softmax(-1)[:, 5].sum())
        return states, prompt.grad.clone()

    for ours, theirs in zip(run(NAME), run("sdpa"), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_no_kernel_is_used_that_plans_each_new_shape():
    flags = torch.backends.cuda
    before = flags.cudnn_sdp_enabled(), flags.mem_efficient_sdp_enabled()
    with kernels(torch.device("cpu")):
        assert (flags.cudnn_sdp_enabled(), flags.mem_efficient_sdp_enabled()) == before
    with kernels(torch.device("cuda")):
        assert (flags.cudnn_sdp_enabled(), flags.mem_efficient_sdp_enabled()) == (False, True)
    assert (flags.cudnn_sdp_enabled(), flags.mem_efficient_sdp_enabled()) == before
