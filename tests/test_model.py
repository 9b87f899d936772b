"""FrozenModel: loading by name and folder, what it says of itself, and what it refuses."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch

from softlore import FrozenModel, SoftPrompt, logits
from softlore.errors import ContextError, ModelError, SoftloreError, UnsupportedModelError
from softlore.model import DEFAULT_MODEL, prompt_shape, verify
from softlore.model.fingerprint import COLUMNS, ROWS, difference
from softlore.model.tiny import CONFIGS, byte_tokenizer, tiny_hf, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny llama"
    tiny_hf("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """The folder, to be spoiled."""
    return shutil.copytree(folder, tmp_path / "copy")


# loading -----------------------------------------------------------------------------------------


def test_a_folder_gives_the_model_that_was_saved(folder):
    model = FrozenModel.from_pretrained(folder)
    assert model.name == folder.name
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    text = "Down the lane"
    assert torch.equal(logits(model, text), logits(tiny_model("llama"), text))
    model.check_prompt(SoftPrompt.from_text(text, tiny_model("llama"), kind="prefix"))
    assert repr(model) == f"FrozenModel({folder.name!r}, llama, torch.float32, cpu)"


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16", "float32"], ids=str)
def test_dtype_and_device(folder, dtype):
    model = FrozenModel.from_pretrained(str(folder), dtype=dtype, device="cpu")
    assert model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    assert logits(model, "Down").dtype == torch.float32


def test_the_model_is_frozen(folder):
    model = FrozenModel.from_pretrained(folder)
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_the_default_model_is_the_one_inside_the_package():
    model = FrozenModel.from_pretrained()
    assert model.name == DEFAULT_MODEL == "storyteller"
    assert model.context_length >= 512
    assert not model.takes_prefix or prompt_shape(model, "prefix", 3)[3] == 3


def test_a_folder_of_the_default_models_name_comes_first(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / DEFAULT_MODEL)
    monkeypatch.chdir(tmp_path)
    assert FrozenModel.from_pretrained(DEFAULT_MODEL).width == 32


# what does not load: one clear line --------------------------------------------------------------


def refused(name, **settings):
    with pytest.raises(ModelError) as caught:
        FrozenModel.from_pretrained(name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "softlore/no-such-model", ""])
def test_unknown_names(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert repr(name) in refused(name)


def test_a_folder_that_is_no_model(tmp_path):
    assert "could not be loaded" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "expected a folder with config.json, weights and tokenizer" in refused(tmp_path)


def without(name):
    return lambda folder: (folder / name).unlink()


def cut_short(name):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def config(**changes):
    def spoil(folder):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))

    return spoil


def wrong_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "none"}}')


@pytest.mark.parametrize(
    "spoil",
    [
        without("config.json"),
        without("model.safetensors"),
        without("tokenizer.json"),
        cut_short("config.json"),
        cut_short("model.safetensors"),
        cut_short("tokenizer.json"),
        wrong_tokenizer,
        config(model_type="no_such_type"),
        config(model_type="t5"),
        config(hidden_size=64),
        config(num_attention_heads=5),
    ],
    ids=[
        "no config",
        "no weights",
        "no tokenizer",
        "half a config",
        "half the weights",
        "half a tokenizer",
        "another file for a tokenizer",
        "unknown type",
        "no causal model",
        "other sizes",
        "sizes that do not divide",
    ],
)
def test_spoiled_folders(copy, spoil):
    spoil(copy)
    assert "could not be loaded (" in refused(copy)


@pytest.mark.parametrize("dtype", ["int8", "float99", "Tensor", torch.int64, 16], ids=str)
def test_unknown_dtypes(folder, dtype):
    assert f"unknown dtype {dtype!r}; expected float32" in refused(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x"])
def test_unknown_devices(folder, device):
    assert repr(device) in refused(folder, device=device)


def test_the_whole_tree_of_errors_is_one():
    assert issubclass(UnsupportedModelError, ModelError)
    assert issubclass(ModelError, SoftloreError)


# what a strange model raises ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [TypeError("two\nlines"), KeyError("k"), RuntimeError()], ids=repr
)
def test_whatever_a_strange_model_raises_is_one_refusal(error):
    with pytest.raises(UnsupportedModelError) as caught, verify.rejecting_unsupported("odd"):
        raise error
    message = str(caught.value)
    assert message.startswith("model type 'odd' cannot be run on embeddings, positions and masks")
    assert type(error).__name__ in message
    assert "\n" not in message
    assert caught.value.__cause__ is error


def test_spent_memory_is_no_fault_of_the_family():
    with (
        pytest.raises(ModelError, match="does not fit into memory") as caught,
        verify.rejecting_unsupported("big"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")
    assert not isinstance(caught.value, UnsupportedModelError)


def test_a_model_that_does_not_heed_its_mask_is_refused():
    """Causal by itself, it gives the right logits on plain text: a tree shows the difference."""
    hf = tiny_hf("llama")
    body = hf.model.forward
    hf.model.forward = lambda **given: body(**given | {"attention_mask": None})
    with pytest.raises(UnsupportedModelError, match="other logits through softlore's forward"):
        FrozenModel(hf, byte_tokenizer())


def test_a_model_that_does_not_heed_positions_is_refused():
    hf = tiny_hf("llama")
    body = hf.model.forward
    hf.model.forward = lambda position_ids=None, **given: body(**given)
    with pytest.raises(UnsupportedModelError, match="gives other logits"):
        FrozenModel(hf, byte_tokenizer())


def test_keys_unlike_values_leave_the_embedding_kind():
    model = FrozenModel(multi_head_latent_attention(), byte_tokenizer())
    assert not model.takes_prefix
    assert len(logits(model, "See " + SoftPrompt.from_text("a dog", model) + " run")) == 13
    for ask in (
        lambda: SoftPrompt.from_text("a dog", model, kind="prefix"),
        lambda: prompt_shape(model, "prefix", 4),
        lambda: model.fingerprint("prefix"),
    ):
        with pytest.raises(UnsupportedModelError, match="use kind='embedding'"):
            ask()


def multi_head_latent_attention():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=264,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


# what it says of itself --------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_shapes_and_context_length(family):
    model = tiny_model(family)
    assert model.context_length == (None if family == "bloom" else 256)
    assert model.layers == 4
    assert model.takes_prefix
    assert model.embed_ids([1, 2]).shape == (2, model.width)
    shape = tuple(model.keys_values([5, 6, 7]).shape)
    assert shape == prompt_shape(model, "prefix", 3)
    assert model.keys_values([5]).dtype == torch.float32
    # One token more than the context holds is refused by us, the last one is not by the model.
    if model.context_length is not None:
        assert len(logits(model, "x" * 256)) == 256


def test_families_differ_in_what_their_configs_call_it():
    widths = {family: tiny_model(family).width for family in CONFIGS}
    assert widths.pop("opt") == 16  # its embeddings are narrower than its layers
    assert set(widths.values()) == {32}
    heads = {family for family in CONFIGS if tiny_model(family).kv_heads == 2}
    assert {"llama", "mistral", "gemma2", "qwen3"} <= heads  # grouped queries
    assert tiny_model("falcon").kv_heads == 1  # one for all
    tied = {f for f in CONFIGS if tiny_hf(f).config.tie_word_embeddings}
    assert {"gpt2", "gemma", "bloom"} <= tied
    assert "llama" not in tied


def test_longrope_reads_up_to_where_its_keys_turn_otherwise():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    }
    model = FrozenModel(tiny_hf("llama", rope_parameters=rope), byte_tokenizer())
    assert model.context_length == 64
    text = "x" * 64
    with torch.no_grad():
        expected = model.hf(input_ids=torch.tensor([model.encode(text)])).logits[0]
    torch.testing.assert_close(logits(model, text), expected)


def test_fingerprints_are_stable_and_small():
    first, same = (tiny_model("llama").fingerprint("prefix") for _ in range(2))
    assert first == same
    assert set(first) == {"embeddings", "keys"}
    assert set(tiny_model("llama").fingerprint("embedding")) == {"embeddings"}
    assert (first["embeddings"]["rows"], first["embeddings"]["columns"]) == (264, 32)
    assert len(json.dumps(first)) < 3 * ROWS * COLUMNS * 4
    other = tiny_model("llama", seed=1).fingerprint("prefix")
    assert difference(first["embeddings"], other["embeddings"]) > 1
    assert difference(first["keys"], other["keys"]) > 0.5
    assert difference(first["embeddings"], first["keys"]) == float("inf")


def test_tokenizers_have_fingerprints_too():
    model = tiny_model("llama")
    assert model.tokenizer_fingerprint == tiny_model("gpt2").tokenizer_fingerprint
    assert model.tokenizer_fingerprint.startswith("sha256:")
    model.tokenizer.add_tokens(["<new>"])
    del model.__dict__["tokenizer_fingerprint"]
    assert model.tokenizer_fingerprint != tiny_model("gpt2").tokenizer_fingerprint


def test_special_tokens_are_known():
    model = tiny_model("llama")
    assert model.special_ids == {0}
    assert model.bos == []
    assert tiny_model("llama", bos=True).bos == [0]


def test_no_tokens_have_no_keys():
    model = tiny_model("llama")
    for ids, n_tokens in (([], None), ([5, 6], 0), ([5, 6], 3)):
        with pytest.raises(ContextError, match=f"but the text has {len(ids)} tokens"):
            model.keys_values(ids, n_tokens)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "gemma3_text"])
def test_a_text_read_whole_in_fewer_tokens(family):
    """The last token of each run is prefix: where its run stands, and having read what precedes."""
    model, ids = tiny_model(family), [5, 6, 7, 8, 9, 10, 11]
    prefix = model.keys_values(ids, 3)  # runs 5 6 7, 8 9, 10 11
    alone = model.keys_values([7, 9, 11])
    assert prefix.shape == alone.shape
    torch.testing.assert_close(prefix[0], alone[0])  # below the first attention: word and place
    assert not torch.allclose(prefix[1:], alone[1:])
    changed = model.keys_values([50, *ids[1:]], 3)
    assert not torch.allclose(prefix[1:, :, :, -1], changed[1:, :, :, -1])
    assert torch.equal(model.keys_values(ids, 7), model.keys_values(ids))


def test_tiny_models_are_named_families():
    with pytest.raises(
        ModelError, match="no tiny model of family 'elephant'; expected one of bloom"
    ):
        tiny_model("elephant")
    assert torch.equal(tiny_hf("gpt2").lm_head.weight, tiny_hf("gpt2").lm_head.weight)
    before = torch.random.get_rng_state()
    tiny_model("gpt2")
    assert torch.equal(torch.random.get_rng_state(), before)
