"""Real models in GGUF files: the same file in torch and in llama.cpp.

Runs on the files `*.gguf` in the folder that SOFTLORE_TEST_MODELS names.

llama.cpp multiplies quantized matrices by activations that it rounds to 8 bits first, which torch
does not: on one and the same file log-probabilities differ by some tenths of a nat, with a soft
prompt or without, and near ties fall the other way. So two things are tested. On a copy of the file
whose matrices llama.cpp has unpacked to float32, greedy texts are equal, token by token. On the
file itself, a prompt adds nothing to what the rounding does to plain text, and choices differ only
where the two tokens are nearer to each other than that.
"""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("llama_cpp", reason="make llamacpp installs it")

from softlore import Context, FrozenModel, SoftPrompt, WorldInfoTrainer
from softlore.context import compose
from softlore.decode import TorchModelRunner
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.model.gguf import CacheTypes, GGUFModel
from softlore.model.gguf.library import llama

FOLDER = os.environ.get("SOFTLORE_TEST_MODELS", "")
FILES = sorted(Path(FOLDER).glob("*.gguf")) if FOLDER else []
pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not FILES, reason="SOFTLORE_TEST_MODELS names no folder of GGUF files"),
]
TOKENS = 30
CONTEXT = 512
BEGINNING = "The old woman opened the door. "
FACTS = "Marta wore a long red coat and round brass spectacles. Marta"
BLOCKS = [
    ("Marta wore", [" a long red coat and round brass spectacles."]),
    ("Marta lived in", [" a house with two doors."]),
]
TEXTS = [
    "The dog's 12 bones — “yes”, she said:\n\n  Émile ran (home).\tIt was 1999.",
    "don't I'll we've YOU'RE 3.14 12,345 x=1;y+=2 // c   three\n\n\nfour",
    "日本語 and émigré naïve 😀 \u00a0nbsp",
    BEGINNING,
]


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def real(request, tmp_path_factory):
    found = Real(request.param, tmp_path_factory.mktemp("unpacked"))
    yield found
    found.unpacked.path.unlink()  # a gigabyte


class Real:
    """A file in llama.cpp and in torch, and its float32 copy in llama.cpp."""

    def __init__(self, file, folder):
        self.gguf = GGUFModel(file, context_length=CONTEXT)
        self.model = FrozenModel.from_pretrained(file, dtype="float32")
        unpacked = folder / file.name
        lib = llama()
        given = lib.llama_model_quantize_default_params()
        given.ftype, given.allow_requantize = 0, True  # all float32
        assert not lib.llama_model_quantize(str(file).encode(), str(unpacked).encode(), given)
        self.unpacked = GGUFModel(unpacked, context_length=CONTEXT)
        self.prompts = {kind: self.train(kind) for kind in ("prefix", "embedding")}
        read = SoftPrompt.from_text(FACTS, self.model, name="Facts", kind="prefix")
        self.prompts["late"] = read.replace(training={"placement": "late"})

    def train(self, kind):
        steps = {"n_tokens": 8, "max_steps": 4, "max_spacing": 16, "drift_guard": 0}
        return WorldInfoTrainer(self.model, BLOCKS, name="Marta", kind=kind, **steps).train()

    def context(self, kind):
        if kind == "plain":
            return Context([BEGINNING + "Marta wore"])
        if kind == "prefix":
            return Context([self.prompts[kind], BEGINNING + "Marta wore"])
        # The late prefix wakes here too, and all before it is the bare model's.
        return Context([BEGINNING, self.prompts[kind], "Marta wore"])

    def both(self, gguf, kind):
        """Logits `[TOKENS, vocab]` by torch and by llama.cpp after torch's greedy tokens."""
        ours = TorchModelRunner(self.model)
        theirs = LlamaCppModelRunner(gguf, 1, CacheTypes("f32", "f32"))
        context, places = self.context(kind), 32 if kind == "late" else 0
        runs = [(r, r.start(compose(r.model, context, reserved=places))) for r in (ours, theirs)]
        for runner, sequence in runs:
            while sequence.logits is None:
                runner.prefill([sequence], 512)
        logits = [[sequence.logits.flatten()] for _, sequence in runs]
        for _ in range(TOKENS - 1):
            chosen = int(logits[0][-1].argmax())
            for (runner, sequence), rows in zip(runs, logits, strict=True):
                rows.append(runner.step([sequence], [chosen]).flatten())
        theirs.close()
        return [torch.stack(rows).log_softmax(-1) for rows in logits]


def test_tokens_and_special_ids_are_llama_cpps_own(real):
    lib = llama()
    vocab = lib.llama_model_get_vocab(real.gguf.handle)
    for text in TEXTS:
        raw = text.encode()
        ids = (lib.llama_token * 500)()
        count = lib.llama_tokenize(vocab, raw, len(raw), ids, 500, False, True)
        assert real.model.encode(text) == list(ids[:count])
    adds = lib.llama_vocab_get_add_bos(vocab)
    assert real.model.bos_id == (lib.llama_vocab_bos(vocab) if adds else None)
    assert real.model.tokenizer.eos_token_id == lib.llama_vocab_eos(vocab)
    assert real.model.eos_ids == real.gguf.eos_ids
    assert all(lib.llama_vocab_is_eog(vocab, i) for i in real.model.eos_ids)


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_each_accepts_the_prompts_of_the_other(real, kind):
    assert real.model.tokenizer_fingerprint == real.gguf.tokenizer_fingerprint
    assert real.prompts[kind].base_model == real.gguf.name
    real.gguf.check_prompt(real.prompts[kind])
    made = SoftPrompt.from_text("an old dog", real.model, kind=kind).made_for(real.gguf)
    real.model.check_prompt(made)


@pytest.mark.parametrize("kind", ["plain", "prefix", "embedding", "late"])
def test_greedy_texts_on_the_unpacked_file_are_equal(real, kind):
    ours, theirs = real.both(real.unpacked, kind)
    assert ours.argmax(1).tolist() == theirs.argmax(1).tolist()
    likely = ours > -10
    assert float((ours - theirs)[likely].abs().max()) < 0.05


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_on_the_file_itself_choices_differ_in_near_ties_only(real, kind):
    plain = rounding(*real.both(real.gguf, "plain"))
    ours, theirs = real.both(real.gguf, kind)
    assert rounding(ours, theirs) < 2 * plain
    noise = float((ours - theirs)[ours > -4].abs().max())
    for mine, other in zip(ours, theirs, strict=True):
        assert float(mine.max() - mine[other.argmax()]) <= 2 * noise
    same = (ours.argmax(1) == theirs.argmax(1)).float().mean()
    assert same >= 0.8


def rounding(ours, theirs):
    """The mean difference of log-probabilities of likely tokens."""
    return float((ours - theirs)[ours > -4].abs().mean())
