"""A tree batch gives the loss and the gradients of the plain way, in every layout and family.

The plain way: each branch is a row by itself, its soft prompt and filler in front, through the
transformers model (`inputs_embeds`, or a cache that holds the prefix).
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from softlore.context import ROOT, Branch, Node, Tree, TreeBatch, backward, hidden_states, splice
from softlore.model import FrozenModel, prompt_shape
from softlore.model.tiny import CONFIGS, byte_tokenizer, tiny_hf, tiny_model

every_family = pytest.mark.parametrize("family", sorted(CONFIGS))
LAYOUTS = [("packed", None), ("expanded", None), ("expanded", 2)]
FILLERS = ["Once, in a far-off land, ", "It rained, and so the "]
# Call and response; the last of each trunk hangs before the filler, as a guard's passage does.
PAIRS = [
    [
        ("Emma wears", " a crisp black suit."),
        ("Emma", " smiles"),
        ("", "The old mill stood still."),
    ],
    [("Her dog is", " called Rex"), ("", "Nobody came that day, or the next.")],
]


@cache
def plain(family):
    return tiny_hf(family).requires_grad_(False)


@cache
def ours(family):
    return tiny_model(family)


def new_prompts(family, kind):
    """Two soft prompts of 5 and 11 tokens, as autograd leaves that collect a gradient."""
    model = ours(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        scale = model.embed_ids([5, 6, 7]).std().item() if kind == "embedding" else 0.7
        shapes = [prompt_shape(model, kind, n) for n in (5, 11)]
        return [(scale * torch.randn(shape)).requires_grad_() for shape in shapes]


def branches_of(family, pairs, filler):
    """Branches that hang on the filler, and a guard branch before it."""
    made = []
    for i, (call, response) in enumerate(pairs):
        call, response = ours(family).encode(call), ours(family).encode(response)
        guard = i == len(pairs) - 1
        start = 0 if guard else len(call) - 1
        made.append(Branch(call + response, filler - 1 if guard else filler, start, -1))
    return made


def trees(family, kind, prompts, company=True):
    """The first trunk holds the first prompt, the second both (or the second alone)."""
    batch = []
    sets = [prompts[:1], prompts[::-1] if company else prompts[1:]]
    for group, filler, pairs in zip(sets, FILLERS, PAIRS, strict=True):
        text = ours(family).encode(filler)
        if kind == "prefix":
            batch.append(TreeBatch(Tree([Node(text)], group), branches_of(family, pairs, 0)))
            continue
        nodes = [Node(rows, i - 1) for i, rows in enumerate(group)]
        trunk = Tree([*nodes, Node(text, len(nodes) - 1)])
        batch.append(TreeBatch(trunk, branches_of(family, pairs, len(nodes))))
    return batch


def nll(logits, branch):
    """Mean over a branch's wanted tokens of what the next one costs."""
    ids = torch.tensor(branch.ids)
    return cross_entropy(logits, ids[branch.start + 1 :])


def rows_of_branches(model, batch):
    """Each branch with its hidden states, run by itself with its trunk in front."""
    for tree in batch:
        for branch in tree.branches:
            path = tree.trunk.path(branch.parent)
            nodes = [Node(tree.trunk.nodes[n].content, i - 1) for i, n in enumerate(path)]
            nodes.append(Node(branch.ids, len(nodes) - 1))
            spliced = splice(model, [Tree(nodes, tree.trunk.prefixes)])
            hidden = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)[
                0
            ][0]
            yield branch, hidden[len(hidden) - len(branch.ids) :][branch.rows]


def row_by_row(family, batch):
    """The loss and gradient of a batch whose branches are rows of their own, trunks run again."""
    model = ours(family)
    costs = [nll(model.logits(rows), branch) for branch, rows in rows_of_branches(model, batch)]
    total = torch.stack(costs).sum()
    total.backward()
    return float(total.detach())


def in_a_tree(family, batch, layout, micro_batch):
    model = ours(family)
    flat = [branch for tree in batch for branch in tree.branches]

    def loss(hidden, which):
        parts = hidden.split([flat[i].n_rows for i in which])
        costs = [nll(model.logits(p), flat[i]) for p, i in zip(parts, which, strict=True)]
        return torch.stack(costs).sum()

    return backward(model, batch, loss, layout, micro_batch)


def plainly(family, kind, batch):
    """The same loss, with every branch a row by itself through the transformers model."""
    hf, total = plain(family), 0.0
    for tree in batch:
        trunk = tree.trunk
        for branch in tree.branches:
            path = trunk.path(branch.parent) if branch.parent != ROOT else []
            contents = [trunk.nodes[node].content for node in path] + [branch.ids]
            if kind == "embedding":
                table = hf.get_input_embeddings()
                rows = [c if torch.is_tensor(c) else table(torch.tensor(c)) for c in contents]
                logits = hf(inputs_embeds=torch.cat(rows)[None].clone()).logits[0]
            else:
                logits = after_prefix(hf, trunk.prefixes, [i for c in contents for i in c])
            cost = nll(logits[len(logits) - len(branch.ids) :][branch.rows], branch)
            cost.backward()
            total += float(cost.detach())
    return total


def after_prefix(hf, prefixes, ids):
    """Logits of a text over a cache of transformers' own that holds one prefix."""
    (prefix,) = prefixes
    cache = DynamicCache(config=hf.config)
    for layer, (key, value) in enumerate(prefix):
        cache.update(key[None], value[None], layer)
    return hf(input_ids=torch.tensor([ids]), cache=cache).logits[0]


def gradients(prompts, run):
    for prompt in prompts:
        prompt.grad = None
    return run(), [prompt.grad.clone() for prompt in prompts]


def assert_equal(got, expected, within=1e-4):
    assert got[0] == pytest.approx(expected[0], rel=within)
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert theirs.abs().max() > 0
        assert (ours - theirs).abs().max() <= within * theirs.abs().max()


@every_family
def test_embedding_prompts(family):
    prompts = new_prompts(family, "embedding")
    batch = trees(family, "embedding", prompts)
    expected = gradients(prompts, lambda: plainly(family, "embedding", batch))
    for layout in LAYOUTS:
        got = gradients(prompts, lambda layout=layout: in_a_tree(family, batch, *layout))
        assert_equal(got, expected)


@every_family
def test_prefix_prompts_each_alone(family):
    prompts = new_prompts(family, "prefix")
    batch = trees(family, "prefix", prompts, company=False)
    expected = gradients(prompts, lambda: plainly(family, "prefix", batch))
    for layout in LAYOUTS:
        got = gradients(prompts, lambda layout=layout: in_a_tree(family, batch, *layout))
        assert_equal(got, expected)


@every_family
def test_prefix_prompts_side_by_side(family):
    """Transformers has no cache for this: the layouts agree, and so does the slope of the loss."""
    prompts = new_prompts(family, "prefix")
    batch = trees(family, "prefix", prompts)
    expected = gradients(prompts, lambda: row_by_row(family, batch))
    for layout in LAYOUTS:
        got = gradients(prompts, lambda layout=layout: in_a_tree(family, batch, *layout))
        assert_equal(got, expected)
    steps = [0.02 * torch.randn(p.shape, generator=torch.manual_seed(2)) for p in prompts]
    up = [(p + s).detach().requires_grad_() for p, s in zip(prompts, steps, strict=True)]
    down = [(p - s).detach().requires_grad_() for p, s in zip(prompts, steps, strict=True)]
    ends = [in_a_tree(family, trees(family, "prefix", p), "packed", None) for p in (up, down)]
    slope = 2 * sum((g * s).sum() for g, s in zip(expected[1], steps, strict=True))
    assert ends[0] - ends[1] == pytest.approx(float(slope), rel=0.05, abs=2e-3)


def read_filler(model, ids, at):
    """The filler as a node that the bare model has read, from position `at` on."""
    spliced = splice(model, [Tree([Node(ids)], at=at)])
    with torch.no_grad():
        _, pairs = model.hidden(spliced.embeds, spliced.positions, spliced.visible, keep=True)
    return spliced.after(pairs)


def late_trees(family, prompts):
    """The trees of `trees`, whose prompts are seen late: by calls, some from their middle on."""
    batch, at = [], max(prompt.shape[3] for prompt in prompts)
    for group, filler, pairs in zip([prompts[:1], prompts], FILLERS, PAIRS, strict=True):
        ids = ours(family).encode(filler)
        branches = branches_of(family, pairs, 0)
        branches[0] = replace(branches[0], sees_from=3)
        node = Node(read_filler(ours(family), ids, at), sees=())
        batch.append((TreeBatch(Tree([node], group, at), branches), ids))
    return batch


def masked_rows(family, batch):
    """Each branch as a row of one plain forward: prefixes, filler and branch under a mask."""
    model, total = ours(family), 0.0
    for tree, filler in batch:
        prefixes, at = tree.trunk.prefixes, tree.trunk.at
        n = sum(prefix.shape[3] for prefix in prefixes)
        for branch in tree.branches:
            ids = [*(filler if branch.parent != ROOT else []), *branch.ids]
            before = len(ids) - len(branch.ids)
            spliced = splice(model, [Tree([Node(ids)], prefixes, at)])
            visible = torch.zeros(1, len(ids), n + len(ids), dtype=torch.bool)
            visible[0, :, n:] = torch.ones(len(ids), len(ids)).tril() > 0
            visible[0, before + branch.sees_from :, :n] = True
            hidden = model.hidden(spliced.embeds, spliced.positions, visible, spliced.past)[0][0]
            cost = nll(model.logits(hidden[before:][branch.rows]), branch)
            cost.backward()
            total += float(cost.detach())
    return total


@every_family
def test_late_prefixes(family, monkeypatch):
    """Filler that was read without the prefixes is as good as a forward with that mask.

    Two passes round otherwise than one, and CTRL's gradients show it but in double precision.
    """
    prompts = new_prompts(family, "prefix")
    if family == "ctrl":
        exact = FrozenModel(tiny_hf(family).double(), byte_tokenizer(), family)
        prompts = [p.detach().double().requires_grad_() for p in prompts]
        monkeypatch.setitem(globals(), "ours", lambda family: exact)
    batch = late_trees(family, prompts)
    expected = gradients(prompts, lambda: masked_rows(family, batch))
    for layout in LAYOUTS:
        got = gradients(
            prompts, lambda layout=layout: in_a_tree(family, [t for t, _ in batch], *layout)
        )
        assert_equal(got, expected, within=1e-3)


@every_family
def test_prefixes_and_rows_in_one_trunk(family):
    rows, head = new_prompts(family, "embedding")[0], new_prompts(family, "prefix")[1]
    text = ours(family).encode(FILLERS[0])
    trunk = Tree([Node(rows), Node(text, 0)], [head])
    batch = [TreeBatch(trunk, branches_of(family, PAIRS[0], 1))]
    expected = gradients([rows, head], lambda: row_by_row(family, batch))
    for layout in LAYOUTS:
        got = gradients([rows, head], lambda layout=layout: in_a_tree(family, batch, *layout))
        assert_equal(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_added_to_what_is_there(layout):
    prompts = new_prompts("llama", "prefix")
    batch = trees("llama", "prefix", prompts)
    _, once = gradients(prompts, lambda: in_a_tree("llama", batch, *layout))
    in_a_tree("llama", batch, *layout)
    for prompt, grad in zip(prompts, once, strict=True):
        torch.testing.assert_close(prompt.grad, 2 * grad)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "gpt_neo", "mpt"])
@torch.no_grad()
def test_hidden_states_come_leaf_by_leaf(family):
    prompts = new_prompts(family, "embedding")
    batch = trees(family, "embedding", prompts)
    expected = torch.cat([rows for _, rows in rows_of_branches(ours(family), batch)])
    assert len(expected) == sum(branch.n_rows for b in batch for branch in b.branches)
    for layout in ("packed", "expanded"):
        torch.testing.assert_close(hidden_states(ours(family), batch, layout), expected)


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_a_trunk_without_filler(kind):
    """`max_spacing=0`: branches hang on the soft prompt itself."""
    prompts = new_prompts("llama", kind)
    ids = ours("llama").encode("Dog is a good boy")
    trunk = Tree([], prompts[:1]) if kind == "prefix" else Tree([Node(prompts[0])])
    parent = ROOT if kind == "prefix" else 0
    batch = [TreeBatch(trunk, [Branch(ids, parent, 2, -1), Branch(ids[4:], parent, 0, -1)])]
    expected = gradients(prompts[:1], lambda: plainly("llama", kind, batch))
    for layout in LAYOUTS:
        assert_equal(
            gradients(prompts[:1], lambda layout=layout: in_a_tree("llama", batch, *layout)),
            expected,
        )


def test_no_weight_of_the_model_moves_or_collects_a_gradient():
    model = tiny_model("llama")
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    prompts = new_prompts("llama", "prefix")
    for layout in LAYOUTS:
        in_a_tree("llama", trees("llama", "prefix", prompts), *layout)
    assert all(parameter.grad is None for parameter in ours("llama").hf.parameters())
    for name, weight in ours("llama").hf.state_dict().items():
        assert torch.equal(weight, before[name])
