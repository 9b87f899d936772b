"""The one splice: where rows stand, what they see, what does not fit, whose prompt it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import Context, FrozenModel, SoftPrompt, embed, generate, logits
from softlore.context import ROOT, Node, Tree, compose, splice
from softlore.errors import ContextError, ContextOverflowError, PromptMismatchError
from softlore.model.fingerprint import TOLERANCE, difference
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

MODEL = tiny_model("llama")
SHAPE = (MODEL.layers, 2, MODEL.kv_heads, MODEL.head_dim)


# positions and visibility, against the plainest possible reference -------------------------------


@st.composite
def trees(draw):
    """A tree of up to 6 nodes, ids or rows, some of them empty; each sees some of 2 prefixes."""
    nodes = []
    lengths = draw(st.lists(st.integers(1, 4), max_size=2))
    which = st.none() | st.sets(st.sampled_from(range(len(lengths)))) if lengths else st.none()
    for i in range(draw(st.integers(0, 6))):
        size = draw(st.integers(0, 5))
        ids = draw(st.booleans())
        content = list(range(3, 3 + size)) if ids else torch.ones(size, MODEL.width)
        nodes.append(Node(content, draw(st.integers(ROOT, i - 1)), draw(which)))
    layers, pair, heads, columns = SHAPE
    prefixes = [torch.ones(layers, pair, heads, n, columns) for n in lengths]
    return Tree(nodes, prefixes)


def tokens_of(tree):
    """`(node, place in it)` of each row, as they are laid out."""
    return [(i, k) for i, node in enumerate(tree.nodes) for k in range(len(node))]


def line_of(tree, node):
    """The node and its ancestors, found by walking parents."""
    line = [node]
    while tree.nodes[line[-1]].parent != ROOT:
        line.append(tree.nodes[line[-1]].parent)
    return line


def kept_of(tree):
    """The prefixes in the cache: those that some node sees; all if there is no node."""
    if not tree.nodes:
        return tree.prefixes
    seen = [p for node in tree.nodes for p in tree.prefixes_of(node)]
    return [p for p in tree.prefixes if any(p is q for q in seen)]


@given(st.lists(trees(), min_size=1, max_size=3))
@settings(max_examples=80)
def test_rows_stand_and_see_as_the_tree_says(batch):
    spliced = splice(MODEL, batch)
    width = max(len(tokens_of(tree)) for tree in batch)
    longest = max(sum(p.shape[3] for p in kept_of(tree)) for tree in batch)
    assert spliced.embeds.shape == (len(batch), width, MODEL.width)
    assert spliced.visible.shape == (len(batch), width, longest + width)
    assert (0 if spliced.past is None else len(spliced.past)) == longest
    for row, tree in enumerate(batch):
        tokens = tokens_of(tree)
        start = max((p.shape[3] for p in tree.prefixes), default=0)
        for slot, (node, place) in enumerate(tokens):
            before = sum(len(tree.nodes[above]) for above in line_of(tree, node)[1:])
            assert spliced.positions[row, slot] == start + before + place
            assert spliced.nodes[row, longest + slot] == node
            first, stop = spliced.spans[row][node]
            assert (first + place, stop - first) == (slot, len(tree.nodes[node]))
            seen = tree.prefixes_of(tree.nodes[node])
            held = [any(p is q for q in seen) for p in kept_of(tree) for _ in range(p.shape[3])]
            expected = [*held, *[False] * (longest - len(held))] + [
                key < len(tokens)
                and (
                    tokens[key][0] in line_of(tree, node)[1:]
                    or (tokens[key][0] == node and tokens[key][1] <= place)
                )
                for key in range(width)
            ]
            assert spliced.visible[row, slot].tolist() == expected
        for slot in range(len(tokens), width):  # padding: no node, and sees itself alone
            assert spliced.nodes[row, longest + slot] == -1
            assert spliced.visible[row, slot, longest:].nonzero().flatten().tolist() == [slot]
            assert not spliced.embeds[row, slot].any()


def read(tree, upto):
    """The tree with its first nodes read: each by itself, behind what it follows."""
    nodes = list(tree.nodes)
    for i in range(upto):
        part = Tree(nodes[: i + 1], tree.prefixes, tree.start)
        spliced = splice(MODEL, [part])
        _, pairs = MODEL.hidden(
            spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
        )
        kept = spliced.after(pairs).cut(
            len(spliced.nodes[0]), len(spliced.nodes[0]) - len(nodes[i])
        )
        nodes[i] = Node(kept, nodes[i].parent, nodes[i].sees)
    return Tree(nodes, tree.prefixes, tree.at)


@given(trees(), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_text_that_was_read_already_is_as_good_as_run(tree, upto):
    upto = min(upto, len(tree.nodes))
    if not any(len(node) for node in tree.nodes[:upto]) or not tree.nodes[upto:]:
        return
    whole, rest = splice(MODEL, [tree]), splice(MODEL, [read(tree, upto)])
    n = sum(map(len, tree.nodes[upto:]))
    assert rest.embeds.shape[1] == n
    expected, got = (
        MODEL.hidden(s.embeds, s.positions, s.visible, s.past)[0] for s in (whole, rest)
    )
    torch.testing.assert_close(got, expected[:, expected.shape[1] - n :], atol=1e-5, rtol=1e-4)


@given(trees())
@settings(max_examples=40)
def test_rows_are_the_contents_in_order(tree):
    got = splice(MODEL, [tree]).embeds[0]
    parts = [
        node.content if torch.is_tensor(node.content) else MODEL.embed_ids(list(node.content))
        for node in tree.nodes
    ]
    assert torch.equal(got, torch.cat([torch.zeros(0, MODEL.width), *parts]))


def test_prefixes_share_their_places_and_are_padded():
    layers, pair, heads, columns = SHAPE
    one, two = (torch.full((layers, pair, heads, n, columns), float(n)) for n in (2, 3))
    past = splice(MODEL, [Tree([Node([5])], [one, two]), Tree([Node([5])], [one])]).past
    assert past.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert past.visible.tolist() == [[True] * 5, [True, True, False, False, False]]
    key, value = past.keys_values[0]
    assert key.shape == value.shape == (2, heads, 5, columns)
    assert key[0, 0, :, 0].tolist() == [2, 2, 3, 3, 3]
    assert value[1, 0, :, 0].tolist() == [2, 2, 0, 0, 0]


def test_what_is_spliced_is_cast_to_the_models_dtype_and_keeps_its_gradient():
    model = FrozenModel(tiny_hf("llama").to(torch.bfloat16), byte_tokenizer())
    rows = torch.randn(3, model.width, requires_grad=True)
    prefix = torch.randn(*SHAPE[:3], 2, SHAPE[3]).requires_grad_()
    spliced = splice(model, [Tree([Node(rows), Node([4, 5], 0)], [prefix])])
    assert spliced.embeds.dtype == torch.bfloat16
    hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
    model.logits(hidden[0, -1:]).sum().backward()
    assert rows.grad.dtype == prefix.grad.dtype == torch.float32
    assert rows.grad.abs().sum() > 0
    assert prefix.grad.abs().sum() > 0


# what does not fit -------------------------------------------------------------------------------


def test_a_context_that_does_not_fit_says_by_how_much():
    limit = MODEL.context_length
    assert logits(MODEL, "x" * limit).shape == (limit, MODEL.vocab_size)
    with pytest.raises(ContextOverflowError) as refused:
        logits(MODEL, "x" * (limit + 1))
    told = str(refused.value)
    assert f"{limit + 1} tokens do not fit 'tiny-llama', whose context is {limit}" in told
    assert f"expected at most {limit}; shorten the text" in told


def test_a_context_far_too_long_is_refused_before_memory_is_taken_for_it():
    """A mask of so many tokens would take 40 GB."""
    with pytest.raises(ContextOverflowError, match="200000 tokens do not fit"):
        logits(MODEL, "x" * 200_000)


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_prompts_take_room_in_the_context(kind):
    prompt = SoftPrompt.from_text("ten tokens", MODEL, kind=kind)
    room = MODEL.context_length - len(prompt)
    logits(MODEL, prompt + "x" * room)
    with pytest.raises(ContextOverflowError, match="soft prompts"):
        logits(MODEL, prompt + "x" * (room + 1))


def test_branches_do_not_add_up():
    """The context holds the longest branch, not all of them."""
    half = MODEL.context_length // 2
    trunk = Node([5] * half)
    splice(MODEL, [Tree([trunk, *(Node([6] * half, 0) for _ in range(4))])])
    with pytest.raises(ContextOverflowError):
        splice(MODEL, [Tree([trunk, Node([6] * (half + 1), 0)])])


def test_bloom_has_no_end():
    model = tiny_model("bloom")
    assert model.context_length is None
    assert len(logits(model, "x" * 300)) == 300


# compose, embed, logits --------------------------------------------------------------------------


def test_compose_makes_a_branch_of_nodes_and_prefixes():
    rows = SoftPrompt.from_text("rows", MODEL)
    head = SoftPrompt.from_text("head", MODEL, name="head", kind="prefix")
    tree = compose(MODEL, "one " + rows + " two" + head + rows)
    assert [len(node) for node in tree.nodes] == [4, 4, 4, 4]
    assert [node.parent for node in tree.nodes] == [ROOT, 0, 1, 2]
    assert tree.nodes[0].content == MODEL.encode("one ")
    assert torch.equal(tree.nodes[3].content, rows.embeddings)
    assert len(tree.prefixes) == 1
    assert torch.equal(tree.prefixes[0], head.key_values)
    assert tree.start == 4


@pytest.mark.parametrize("context", ["", Context(), Context([""])], ids=repr)
def test_nothing_to_read_is_refused(context):
    for read in (logits, embed, generate):
        with pytest.raises(ContextError, match="holds no text; expected at least one token"):
            read(MODEL, context)
    prefix = SoftPrompt.from_text("head", MODEL, kind="prefix")
    with pytest.raises(ContextError, match="holds no text"):
        logits(MODEL, prefix + context)
    with_bos = tiny_model("llama", bos=True)
    assert len(logits(with_bos, context)) == 1


def test_embed_gives_the_rows_that_the_forward_takes():
    prompt = SoftPrompt.from_text("a dog", MODEL)
    rows = embed(MODEL, "See " + prompt + " run")
    assert rows.shape == (len("See a dog run"), MODEL.width)
    assert torch.equal(rows, MODEL.embed_ids(MODEL.encode("See a dog run")))
    with torch.no_grad():
        out = MODEL.hf(inputs_embeds=rows[None]).logits[0]
    torch.testing.assert_close(out, logits(MODEL, "See " + prompt + " run"))


def test_embed_refuses_prefix_prompts():
    prefix = SoftPrompt.from_text("a dog", MODEL, name="rex", kind="prefix")
    with pytest.raises(ContextError) as refused:
        embed(MODEL, prefix + " ran")
    assert str(refused.value).startswith("'rex' is of kind 'prefix': keys and values")
    assert "use logits() or generate(), or train kind='embedding'" in str(refused.value)


def test_logits_has_a_row_a_token_and_none_for_prefix_tokens():
    rows = SoftPrompt.from_text("a dog", MODEL)
    prefix = SoftPrompt.from_text("a tale", MODEL, name="tale", kind="prefix")
    context = prefix + "See " + rows + " run"
    got = logits(MODEL, context)
    assert got.shape == (context.token_count(MODEL).context, MODEL.vocab_size)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    low = FrozenModel(tiny_hf("llama").to(torch.bfloat16), byte_tokenizer())
    assert logits(low, "See").dtype == torch.float32


# a prompt knows its model ------------------------------------------------------------------------


@pytest.fixture(params=["embedding", "prefix"])
def prompt(request):
    return SoftPrompt.from_text("a good dog", MODEL, name="rex", kind=request.param)


@pytest.mark.parametrize("other", [("llama", 1), ("qwen3", 1), ("gpt2", 0)], ids=str)
def test_prompts_of_another_model_are_refused(prompt, other):
    model = tiny_model(*other)
    for use in (model.check_prompt, lambda p: logits(model, p + "!"), lambda p: compose(model, p)):
        with pytest.raises(PromptMismatchError, match=r"'rex'.*expected.*load "):
            use(prompt)
    with pytest.raises(PromptMismatchError):
        generate(model, prompt + "!", 1)


def test_the_check_can_be_left_out(prompt):
    model = tiny_model("llama", seed=1)
    assert generate(model, prompt + "!", 2, temperature=0, check=False) is not None
    assert compose(model, prompt + "!", check=False).nodes
    wide = SoftPrompt("wide", "embedding", torch.ones(2, model.width + 1))
    with pytest.raises(PromptMismatchError, match="'wide' has shape"):
        generate(model, wide + "!", 2, check=False)
    nameless = SoftPrompt("nameless", "embedding", torch.ones(2, model.width))
    assert len(embed(model, nameless.made_for(model) + "!")) == 3 + len(model.bos)


def test_a_prompt_of_another_width_is_refused_by_its_shape():
    wide = FrozenModel(tiny_hf("llama", hidden_size=64, head_dim=8), byte_tokenizer(), "wide")
    prompt = SoftPrompt.from_text("a dog", MODEL)
    with pytest.raises(PromptMismatchError, match=r"\(5, 32\) .*expected \(5, 64\) for model"):
        wide.check_prompt(prompt)


def test_a_prompt_without_a_fingerprint_is_refused():
    prompt = SoftPrompt.from_text("a dog", MODEL).replace(fingerprint={})
    with pytest.raises(PromptMismatchError, match="carries no sketch of its model's embeddings"):
        MODEL.check_prompt(prompt)
    broken = {"embeddings": {"rows": 264, "columns": 32, "values": "!"}}
    with pytest.raises(PromptMismatchError, match="made for another model"):
        MODEL.check_prompt(prompt.replace(fingerprint=broken))


def rounded(bits, group):
    """The same model with each group of a row's weights rounded to `bits`, as quantizers do."""
    hf = tiny_hf("llama")
    for weight in hf.parameters():
        if weight.dim() == 2:
            parts = weight.data.view(weight.shape[0], -1, group)
            step = parts.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
            weight.data = ((parts / step).round() * step).view_as(weight)
    return FrozenModel(hf, byte_tokenizer(), "rounded")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_model_in_another_dtype_takes_the_prompt(prompt, dtype):
    FrozenModel(tiny_hf("llama").to(dtype), byte_tokenizer()).check_prompt(prompt)


def test_a_copy_in_eight_bits_takes_the_prompt(prompt):
    model = rounded(8, group=16)
    model.check_prompt(prompt)
    logits(model, prompt + "!")


def test_a_copy_in_four_bits_takes_embedding_prompts():
    """Rounding to 4 bits leaves rows within the tolerance, and far from another model's."""
    model = rounded(4, group=16)
    prompt = SoftPrompt.from_text("a good dog", MODEL)
    model.check_prompt(prompt)
    ours, theirs = (m.fingerprint("embedding")["embeddings"] for m in (MODEL, model))
    another = tiny_model("llama", seed=1).fingerprint("embedding")["embeddings"]
    assert 0.01 < difference(ours, theirs) < TOLERANCE < 1 < difference(ours, another)


def test_the_last_layers_keys_tell_apart_models_that_share_their_embeddings():
    """A fine-tuned copy often keeps its embeddings; a prefix is bound to more than those."""
    hf = tiny_hf("llama")
    for layer in hf.model.layers:
        for weight in layer.parameters():
            weight.data += 0.3 * weight.data.std() * torch.randn_like(weight)
    tuned = FrozenModel(hf, byte_tokenizer(), "tuned")
    tuned.check_prompt(SoftPrompt.from_text("a dog", MODEL))
    with pytest.raises(PromptMismatchError, match="its keys differ"):
        tuned.check_prompt(SoftPrompt.from_text("a dog", MODEL, kind="prefix"))
