"""Models in GGUF files as weights."""

import contextlib
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_writer import write_llama
from softlore import Entry, FrozenModel, Lorebook, SoftPrompt, storyteller
from softlore.errors import ModelError, UnsupportedModelError
from softlore.model.gguf import weights
from softlore.model.gguf.header import is_gguf, read_header
from softlore.model.loading import load_tokenizer
from softlore.model.tiny import tiny_hf

TEXT = "The dog's 12 bones — “yes”, she said:\n\n  Émile ran (home).\tIt was 1999."
IDS = torch.tensor([[7, 30, 5, 99, 3, 20, 44, 8]])


def tiny(**changes):
    return tiny_hf("llama", vocab_size=4096, hidden_size=64, **changes)


@pytest.fixture(scope="module")
def teller():
    return FrozenModel.from_pretrained("storyteller")


@pytest.fixture(scope="module")
def teller_file(tmp_path_factory, teller):
    folder = tmp_path_factory.mktemp("gguf")
    return write_llama(folder / "my-teller.Q8_0.gguf", teller.hf, name="A Teller")


def logits_of(hf):
    with torch.no_grad():
        return hf(input_ids=IDS).logits


def test_a_file_gives_the_logits_tokens_and_codes_of_the_model_it_was_made_from(
    teller, teller_file
):
    model = FrozenModel.from_pretrained(teller_file)
    assert torch.allclose(logits_of(model.hf), logits_of(teller.hf), atol=1e-4)
    assert model.encode(TEXT) == teller.encode(TEXT)
    assert model.encode("<|endoftext|>") == teller.encode("<|endoftext|>") == [0]
    assert model.decode(model.encode(TEXT)) == TEXT
    assert (model.bos_id, model.eos_ids) == (teller.bos_id, teller.eos_ids)
    assert model.control_codes == teller.control_codes
    assert model.tokenizer_fingerprint == teller.tokenizer_fingerprint
    assert model.name == "my-teller"
    said = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said == "<user>Hi\n"


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_prompts_of_a_model_are_accepted_by_its_quantized_file_and_back(tmp_path, teller, kind):
    file = write_llama(tmp_path / "model.gguf", teller.hf, kind="Q8_0", name="A Teller")
    model = FrozenModel.from_pretrained(file)
    model.check_prompt(SoftPrompt.from_text("An old dog", teller, kind=kind))
    made = SoftPrompt.from_text("An old dog", model, kind=kind)
    teller.check_prompt(made)
    assert made.base_model == "A Teller"  # "model" tells nothing


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_blocks_are_unpacked_as_by_gguf(kind):
    kind = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, kind)
    expected = gguf.quants.dequantize(packed, kind)
    assert np.allclose(weights.unpack(packed, kind), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_S"])
def test_blocks_that_only_llama_cpp_packs_are_unpacked_as_by_gguf(kind):
    kind = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    # no half of random bytes with an exponent of ones, which is no number
    packed = np.random.default_rng(1).integers(0, 60, (9, 2 * size), dtype=np.uint8)
    expected = gguf.quants.dequantize(packed, kind)
    assert np.allclose(weights.unpack(packed, kind), expected, rtol=1e-4, atol=1e-4)


def test_loading_leaves_the_package_gguf_as_it_was(teller_file):
    before = gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map
    FrozenModel.from_pretrained(teller_file, dtype="bfloat16")
    assert (gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map) == before


def test_other_files_in_its_folder_are_ignored(tmp_path, teller_file):
    file = tmp_path / "a.gguf"
    file.write_bytes(teller_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert (
        FrozenModel.from_pretrained(file).encode("dog")
        == load_tokenizer("storyteller")("dog")["input_ids"]
    )


def test_the_weights_can_be_saved_as_a_folder(tmp_path, teller_file):
    model = FrozenModel.from_pretrained(teller_file)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = FrozenModel.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again.hf), logits_of(model.hf))


def test_scaled_rotary_positions_are_read(tmp_path):
    hf = tiny()
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    plain = FrozenModel.from_pretrained(write_llama(tmp_path / "plain.gguf", hf))
    scaled = FrozenModel.from_pretrained(write_llama(tmp_path / "far.gguf", hf, values=linear))
    at = torch.arange(8)[None]
    with torch.no_grad():
        expected = plain.hf(input_ids=IDS, position_ids=at).logits
        stretched = scaled.hf(input_ids=IDS, position_ids=4 * at).logits
    assert torch.allclose(stretched, expected, atol=1e-4)
    unknown = linear | {"llama.rope.scaling.type": "longrope"}
    with pytest.raises(UnsupportedModelError, match="longrope"):
        FrozenModel.from_pretrained(write_llama(tmp_path / "odd.gguf", hf, values=unknown))


def test_the_command_line_trains_evaluates_and_writes_with_a_file(tmp_path, teller_file):
    book = tmp_path / "lore.yaml"
    entry = Entry(name="Emma", text="Emma wore a red coat.",
                  blocks=[{"call": "Emma wears", "responses": [" a red coat."]}])  # fmt: skip
    Lorebook(name="lore", entries=[entry]).save(book)

    def softlore(*arguments):
        command = [sys.executable, "-m", "softlore", *map(str, arguments), "--model", teller_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = tmp_path / "prompts"
    softlore("train", book, "--out", out, "--max-steps", 2, "--n-tokens", 4,
             "--drift-guard", 0, "--max-spacing", 8)  # fmt: skip
    prompt = SoftPrompt.load(out / "emma.safetensors")
    assert prompt.base_model == "my-teller"
    FrozenModel.from_pretrained("storyteller").check_prompt(prompt)
    text = softlore("write", "[[soft:Emma]]Emma wore", "--prompts", out, "--tokens", 4)
    assert text.strip()


# files that are refused ------------------------------------------------------------------------


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, teller_file):
    monkeypatch.setattr(weights, "PACKAGES", ("gguf", "no_such_package"))
    with pytest.raises(ModelError, match=r"no_such_package is not.*pip install 'softlore\[gguf\]'"):
        FrozenModel.from_pretrained(teller_file)


@pytest.mark.parametrize(
    ("values", "omit", "told"),
    [
        ({"llama.block_count": 1_000_000_000}, (), "1000000000 layers"),
        ({"llama.embedding_length": 1 << 30}, (), "describes a model of"),
        ({"llama.vocab_size": 1 << 40}, (), "describes a model of"),
        ({"llama.attention.head_count": 7}, (), "could not be loaded|describes|no weights"),
        ({"general.architecture": "other-family"}, (), "architecture other is not"),
        ({}, ("blk.1.ffn",), "describes a model of|no weights for"),
        ({}, ("blk.1.attn_norm",), "no weights for"),
        ({"tokenizer.ggml.eos_token_id": 1 << 30}, (), "could not be loaded"),
        ({"tokenizer.ggml.model": "no-such-kind"}, (), "tokenizer 'no-s'"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, monkeypatch, values, omit, told):
    file = write_llama(tmp_path / "bad.gguf", tiny(), omit=tuple(omit))
    header = read_header(file)
    changed = {**header.values, **values}
    monkeypatch.setattr(
        weights, "read_header", lambda _: type(header)(file, changed, header.tensors, header.size)
    )
    if any(key.startswith(("tokenizer", "general")) for key in values):
        file = write_changed(file, values)
        monkeypatch.undo()
    with pytest.raises(ModelError, match=told):
        FrozenModel.from_pretrained(file)


def write_changed(file, values):
    """The file with values in place of equally long ones."""
    ((key, value),) = values.items()
    data = file.read_bytes()
    at = data.index(key.encode()) + len(key) + 4
    if isinstance(value, str):
        begin, end = at + 8, at + 8 + struct.unpack_from("<Q", data, at)[0]
        data = data[:begin] + value[: end - begin].encode() + data[end:]
    else:
        data = data[:at] + struct.pack("<I", value) + data[at + 4 :]
    changed = file.with_name("changed.gguf")
    changed.write_bytes(data)
    return changed


def small_file(tmp_path_factory):
    return write_llama(
        tmp_path_factory.mktemp("small") / "small.gguf",
        tiny_hf("llama", vocab_size=4096, hidden_size=16, num_hidden_layers=1),
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_file(tmp_path_factory).read_bytes()


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path, small):
    cuts = {*range(40), *np.linspace(40, len(small) - 1, 60).astype(int).tolist()}
    for cut in cuts:
        (tmp_path / "cut.gguf").write_bytes(small[:cut])
        with pytest.raises(ModelError):
            load_tokenizer(str(tmp_path / "cut.gguf"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_header_with_changed_bytes_is_read_or_refused(tmp_path_factory, small, data):
    header_size = small.index(b"token_embd.weight") + 200
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_size))
        changed[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    file = tmp_path_factory.mktemp("hostile") / "x.gguf"
    file.write_bytes(changed)
    with contextlib.suppress(ModelError):  # nothing else
        read_header(file)


def told(*counts, body=b""):
    return b"GGUF" + struct.pack("<IQQ", *counts) + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GG",
        b"PK\x03\x04" + bytes(100),
        told(1, 1, 1),  # version
        told(3, 1 << 60, 1),
        told(3, 0, 1 << 60),
        told(3, 0, 1, body=struct.pack("<Q", 1 << 62)),  # a key
        told(3, 0, 1, body=struct.pack("<QcIIQ", 1, b"a", 9, 9, 1 << 30)),  # a list of lists
        told(3, 0, 1, body=struct.pack("<QcIIQ", 1, b"a", 9, 4, 1 << 24)),  # more than there is
        told(3, 0, 1, body=struct.pack("<QcI", 1, b"a", 77)),
        told(3, 1, 0, body=struct.pack("<QcI", 1, b"a", 1 << 31)),  # dimensions
        told(3, 1, 0, body=struct.pack("<QcI2QIQ", 1, b"a", 2, 1 << 40, 1 << 40, 0, 0)),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_one_line(tmp_path, content):
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        FrozenModel.from_pretrained(file)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_file_is_known_by_its_name_or_its_beginning(tmp_path, small):
    (tmp_path / "blob").write_bytes(small)
    (tmp_path / "notes.txt").write_text("GGU")
    assert is_gguf(tmp_path / "blob")
    assert not is_gguf(tmp_path / "notes.txt")
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "none.gguf")
    assert not is_gguf(storyteller.path())


@pytest.mark.parametrize(
    ("file", "own", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Smollm2 Mix1", "SmolLM2-135M-Instruct"),
        ("gemma-3-270m-q4_k_m.gguf", "", "gemma-3-270m"),
        ("Qwen3-0.6B-UD-IQ2_XXS.gguf", "", "Qwen3-0.6B-UD"),
        ("llama-2-7b.gguf", "Other", "llama-2-7b"),
        ("model.gguf", "Llama 2", "Llama 2"),
        ("ggml-model-f16.gguf", "/home/me/llama", "ggml-model-f16"),
        ("sha256-0123456789abcdef", "Llama\n2", "Llama 2"),
    ],
)
def test_a_name_tells_the_model_and_no_path(tmp_path, small, file, own, name):
    (tmp_path / file).write_bytes(small)
    header = read_header(tmp_path / file)
    header.values["general.name"] = own
    assert header.name == name
