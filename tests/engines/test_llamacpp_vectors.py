"""Control vectors in llama.cpp add what they add in torch, each text its own."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("llama_cpp", reason="make llamacpp installs it")

from batches import write_batch
from engines.gguf_files import gguf_file, gguf_model, transformers_model
from engines.llama_servers import llama_server
from softlore import Context, ControlVector, SoftPrompt, logits
from softlore.context import compose
from softlore.decode import GenerationRequest, write_request
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.errors import UnsupportedModelError
from softlore.model.gguf import CacheTypes, GGUFModel
from softlore.model.steering import steered
from softlore.prompts.control_vector import sum_vectors

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("default")]
FAMILIES = ("storyteller", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2")
TEXT = "The dog ran down the lane and"
GREEDY = {"temperature": 0}


def vector(family, seed):
    """A random one, for the layers from 1 on; long enough to change what comes next."""
    model = transformers_model(family)
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(model.layers, model.width, generator=random)
    directions[0] = 0
    return ControlVector(f"v{seed}", directions)


def contexts(family):
    model = transformers_model(family)
    prefix = SoftPrompt.from_text("A big brown dog, he", model, kind="prefix")
    rows = SoftPrompt.from_text("the old fox", model, kind="embedding")
    return [Context([TEXT]), Context([prefix, TEXT]), Context([TEXT, rows, " and then the"])]


def read(runner, context, steering=None):
    sequence = runner.start(replace(compose(runner.model, context), steering=steering))
    while sequence.logits is None:
        runner.prefill([sequence], 5)
    runner.remove(sequence)
    return sequence.logits


def off(ours, theirs):
    """The largest difference of log-probabilities."""
    return float((ours.log_softmax(0) - theirs.log_softmax(0)).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_they_add_what_they_add_in_torch(family):
    model, gguf = transformers_model(family), gguf_model(family)
    runner = LlamaCppModelRunner(gguf, 2, CacheTypes("f32", "f32"))
    for context in contexts(family):
        plain = logits(model, context)[-1]
        for strengths in ([1.0], [-2.0, 0.5]):
            vectors = [(vector(family, seed), s) for seed, s in enumerate(strengths)]
            with steered(model, sum_vectors(model, vectors)[None]):
                want = logits(model, context)[-1]
            assert off(want, plain) > 0.3
            assert off(read(runner, context, sum_vectors(gguf, vectors)), want) < 0.05
            assert off(read(runner, context), plain) < 0.05
    runner.close()


def test_each_text_of_a_batch_has_its_own():
    model = transformers_model("storyteller")
    dark, other = vector("storyteller", 0), vector("storyteller", 1)
    plain, prefix, rows = contexts("storyteller")
    given = [
        (plain, []), (plain, [(dark, 1.0)]), (prefix, [(other, 1.0)]), (prefix, [(dark, 1.0)]),
        (rows, [(dark, 0.5), (other, -1.0)]), (prefix, []),
    ]  # fmt: skip
    requests = [
        GenerationRequest(context, 24, sampling=GREEDY, vectors=vectors)
        for context, vectors in given
    ]
    alone = [write_request(model, request).drained().ids for request in requests]
    assert alone[0] != alone[1]
    assert alone[3] != alone[5]
    gguf = GGUFModel(gguf_file("storyteller"))
    runner = LlamaCppModelRunner(gguf, len(requests), CacheTypes("f32", "f32"))
    for _ in range(2):  # the second time most of it is known
        outputs, tokens = write_batch(runner, requests)
        list(tokens)
        assert [output.ids for output in outputs] == alone
    runner.close()


def test_one_of_layer_0_is_refused_with_words():
    gguf = GGUFModel(gguf_file("storyteller"), context_length=64)
    first = ControlVector("dark", torch.ones(gguf.layers, gguf.width))
    runner = LlamaCppModelRunner(gguf, 1)
    with pytest.raises(UnsupportedModelError, match="changes layer 0"):
        write_batch(runner, [GenerationRequest("The dog", vectors=[(first, 1.0)])])
    runner.close()


def test_write_and_llama_server_take_the_same_vector(tmp_path):
    """`softlore write --gguf --vector`, and its GGUF file in an unmodified llama-server."""
    dark = vector("storyteller", 0)
    saved, converted = tmp_path / "dark.safetensors", tmp_path / "dark.gguf"
    dark.save(saved)
    softlore("vector", "convert", saved, "--to", "gguf", "--out", converted)
    request = GenerationRequest(TEXT, 30, sampling=GREEDY, vectors=[(dark, 0.5)])
    model = transformers_model("storyteller")
    alone = write_request(model, request).drained().text
    assert alone != write_request(model, replace(request, vectors=[])).drained().text

    file = gguf_file("storyteller")
    more = ["--tokens", 30, "--temperature", 0, "--cache-type", "f32"]
    told = softlore("write", TEXT, "--gguf", file, "--vector", f"{saved}=0.5", *more)
    assert told.strip().endswith(alone.strip())

    with llama_server(tmp_path, "--control-vector-scaled", f"{converted}:0.5") as client:
        body = {"prompt": TEXT, "n_predict": 30, "temperature": 0}
        assert client.post("/completion", json=body).json()["content"] == alone


def softlore(*arguments):
    command = [sys.executable, "-m", "softlore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
