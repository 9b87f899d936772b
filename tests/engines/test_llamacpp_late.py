"""Prefixes that are seen from where they stand, on llama.cpp: as transformers runs them."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("llama_cpp", reason="make engines installs it")

from batches import write_batch
from engines.gguf_files import gguf_file, gguf_model, transformers_model
from softlore import Context, SoftPrompt
from softlore.context import Node, Tree, compose
from softlore.decode import GenerationRequest, PrefixCache, TorchModelRunner
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.errors import ContextOverflowError
from softlore.model.gguf import CacheTypes, GGUFModel, LlamaCppContext
from softlore.model.gguf.runner import Tokens
from softlore.model.gguf.state import parse

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("default")]
PLACES = 32  # kept free before the text
TOKENS = 16
# The last two have sliding layers: of 8 tokens, which see no prefix before free places, and of 48.
FAMILIES = ("storyteller", "qwen3", "gpt2", "gemma3_text", "gemma3_text-wide")
ONE = "The rain fell on the roof of the old house, and the dog slept."
TWO = " In the morning the sea was calm and the boats went out."
THREE = " At the gate stood a man who"


def prefix(family, text, name):
    return SoftPrompt.from_text(text, transformers_model(family), name=name, kind="prefix")


def contexts(family):
    """A story's turns, in which lore wakes, is swapped and sleeps."""
    dog = prefix(family, "A big brown dog, he", "Dog")
    rain = prefix(family, "It rained for a week on the sea", "Rain")
    rows = SoftPrompt.from_text("the old fox", transformers_model(family), name="Fox")
    return {
        "none": Context([ONE, TWO, THREE]),
        "woken": Context([ONE, dog, TWO, THREE]),
        "woken one after the other": Context([ONE, dog, TWO, rain, THREE]),
        "swapped": Context([ONE, TWO, rain, THREE]),
        "woken together": Context([ONE, TWO, dog, rain, THREE]),
        "at the end": Context([ONE, TWO, THREE, dog]),
        "classic": Context([dog, ONE, TWO, THREE]),
        "one classic, one late": Context([rain, ONE, TWO, dog, THREE]),
        "asleep": Context([ONE, TWO, THREE]),
        "with rows": Context([ONE, dog, TWO, rows, THREE]),
    }


def run(runner, tree, tokens=TOKENS, at_once=7):
    """Greedy ids, log-probabilities `[tokens, vocab]`, and how much was cached."""
    sequence = runner.start(tree)
    while sequence.logits is None:
        runner.prefill([sequence], at_once)
    rows, ids = [sequence.logits.flatten()], []
    while len(rows) < tokens:
        ids.append(int(rows[-1].argmax()))
        rows.append(runner.step([sequence], [ids[-1]]).flatten())
    runner.remove(sequence)
    return ids, torch.stack(rows).log_softmax(-1), sequence.cache_usage


def off(ours, theirs):
    """The largest difference of log-probabilities."""
    return float((ours - theirs).abs().max())


def runners(family, cache=None, n_sequences=1):
    """transformers' and llama.cpp's, with room for as many texts."""
    cache = cache or CacheTypes("f32", "f32")
    ours = TorchModelRunner(transformers_model(family), PrefixCache(max_sequences=n_sequences))
    return ours, LlamaCppModelRunner(gguf_model(family), n_sequences, cache)


def check_alike(ours, theirs, context, reserved=PLACES, error=0.02):
    found = [run(r, compose(r.model, context, reserved=reserved)) for r in (ours, theirs)]
    assert off(found[0][1], found[1][1]) < error
    assert found[0][0] == found[1][0]
    return [usage.reused for _, _, usage in found]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reserved", [0, PLACES])
def test_each_token_sees_what_stands_before_it(family, reserved):
    ours, theirs = runners(family)
    seen = []
    for context in contexts(family).values():
        check_alike(ours, theirs, context, reserved)
        theirs.clear()
        seen.append(run(theirs, compose(theirs.model, context, reserved=reserved))[1][0])
        theirs.clear()
    theirs.close()
    if family != "gemma3_text" or not reserved:  # it matters what stands where
        assert all(off(a, b) > 0.02 for a, b in pairwise(seen))


@pytest.mark.parametrize("family", FAMILIES)
def test_waking_swapping_and_sleeping_read_only_the_new_text(family):
    ours, theirs = runners(family)
    found = contexts(family)
    cached = [check_alike(ours, theirs, context) for context in found.values()]
    theirs.close()
    assert all(mine == other for mine, other in cached)
    reused = dict(zip(found, (other for _, other in cached), strict=True))
    encode = theirs.model.encode
    assert reused["woken"] == len(encode(ONE))
    assert reused["swapped"] == len(encode(ONE))  # what was read after it had seen the other
    assert reused["woken together"] == len(encode(ONE + TWO))
    assert reused["at the end"] == len(encode(ONE + TWO))
    assert reused["classic"] == 0


@pytest.mark.parametrize("family", ["storyteller", "gemma3_text-wide"])
def test_a_story_goes_back_to_any_turn(family):
    """Also where sliding layers no longer see the text that it goes back to."""
    ours, theirs = runners(family)
    dog = prefix(family, "A big brown dog, he", "Dog")
    for turns in (1, 4, 2, 3, 1):
        for late in (True, False):
            text = [ONE + TWO] * turns
            check_alike(ours, theirs, Context([*text, *([dog] if late else []), THREE]))
    theirs.close()


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("family", ["storyteller", "gemma3_text-wide"])
def test_text_keeps_its_bytes_when_prefixes_come_and_go(family, kind, flash):
    model = gguf_model(family)
    context = LlamaCppContext(model, 2, 256, CacheTypes(kind, kind if flash else "f16", flash))
    one, two = (prefix(family, text, text).key_values for text in ("A big dog", "It rained"))
    ids = model.encode(ONE + TWO)[:32]
    context.decode([Tokens(1, PLACES, ids)])
    before = context.state(1)
    for prefixes in ([one], [two, one], [two], []):
        context.put(1, prefixes, PLACES)
        cells = parse(context.state(1))[0].positions(context.state(1))
        assert len(cells) == len(ids) + sum(prefix.shape[3] for prefix in prefixes)
    assert context.state(1) == before
    context.close()


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("family", ["storyteller", "gemma3_text-wide"])
def test_what_lore_was_awake_before_changes_no_bit(family, kind):
    found, logits = contexts(family), []
    for before in (Context([ONE]), found["woken"], found["woken one after the other"]):
        _, runner = runners(family, CacheTypes(kind, kind))
        run(runner, compose(runner.model, before, reserved=PLACES))
        _, rows, usage = run(runner, compose(runner.model, found["asleep"], reserved=PLACES))
        assert usage.reused == len(runner.model.encode(ONE))
        logits.append(rows)
        runner.close()
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_prefix_wakes_in_a_cache_of_any_type(kind):
    ours, theirs = runners("storyteller", CacheTypes(kind, kind))
    found = contexts("storyteller")
    for name in ("none", "woken", "woken one after the other", "asleep"):
        trees = [compose(r.model, found[name], reserved=PLACES) for r in (ours, theirs)]
        want, got = (run(r, tree, 1)[1] for r, tree in zip((ours, theirs), trees, strict=True))
        assert off(want, got) < 0.1
    theirs.close()


def test_texts_at_once_each_see_their_own():
    ours, theirs = runners("storyteller", n_sequences=4)
    requests = [
        GenerationRequest(context, 20, sampling={"temperature": 0})
        for context in contexts("storyteller").values()
    ]
    for start in (0, 3, 6):  # the second and third time on what the others left
        some = requests[start : start + 4]
        found, tokens = write_batch(theirs, some)
        list(tokens)
        want, tokens = write_batch(ours, some)
        list(tokens)
        assert [output.ids for output in found] == [output.ids for output in want]
    theirs.close()


def test_only_prefixes_that_are_seen_at_once_take_cells():
    model = GGUFModel(gguf_file("storyteller"), context_length=512)
    runner = LlamaCppModelRunner(model, 1)
    shape = (model.layers, 2, model.kv_heads, 300, model.head_dim)
    prefixes = [torch.randn(shape), torch.randn(shape)]
    ids = model.encode("dog " * 300)[:100]
    in_turn = Tree([Node(ids, -1, [0]), Node(ids, 0, [1])], prefixes)
    runner.check([in_turn])
    assert len(run(runner, in_turn, tokens=8, at_once=512)[0]) == 7
    with pytest.raises(ContextOverflowError, match="800 tokens, prefixes counted"):
        runner.check([Tree([Node(ids), Node(ids, 0)], prefixes)])
    runner.close()
