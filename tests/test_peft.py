"""PEFT's folders: softlore's read by PEFT, PEFT's read by softlore, and invalid ones."""

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings

from softlore import SoftPrompt, disk, load_prompt, logits
from softlore.errors import ConfigError, PromptFileError, StorageError
from softlore.model import prompt_shape
from softlore.model.tiny import tiny_hf, tiny_model
from softlore.prompts import Reason
from softlore.prompts.formats.peft import CONFIG, PICKLE, TENSORS, write
from test_prompts_native import prompts

pytestmark = pytest.mark.filterwarnings("default")  # PEFT's own are not our concern

# Learned positions; positions from the mask; a window; grouped heads; a scale; one key head; ALiBi.
FAMILIES = ["gpt2", "opt", "gpt_neo", "llama", "qwen3", "gemma", "falcon", "bloom"]
TEXT = "The bell over the door rang."
KEYS = set(
    """auto_mapping base_model_name_or_path inference_mode modules_to_save num_attention_heads
    num_layers num_transformer_submodules num_virtual_tokens peft_type peft_version
    prompt_tuning_init prompt_tuning_init_text revision task_type token_dim tokenizer_kwargs
    tokenizer_name_or_path""".split()
)


def random_prompt(model, kind, n_tokens=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(prompt_shape(model, kind, n_tokens), generator=generator)
    fingerprint = model.fingerprint(kind)
    return SoftPrompt("Emma", kind, tensor, fingerprint=fingerprint, base_model=model.name)


def peft_logits(adapted, model, text=TEXT, **more):
    """What PEFT makes of a text: `[tokens, vocab]`, rows of virtual tokens left out."""
    ids = torch.tensor([[*model.bos, *model.encode(text)]])
    with torch.no_grad():
        result = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0]
    return result[-ids.shape[1] :]


def softlore_logits(model, prompt, text=TEXT):
    result = logits(model, prompt + text)
    return result[-len(model.encode(text)) - len(model.bos) :]


def apply(family, bos=False):
    """A tiny model as softlore drives it, and the same weights for PEFT to wrap."""
    return tiny_model(family, bos=bos), tiny_hf(family)


# the real PEFT -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_same_logits(family, kind, tmp_path):
    model, hf = apply(family)
    prompt = random_prompt(model, kind)
    write(prompt, tmp_path / "emma")
    adapted = peft.PeftModel.from_pretrained(hf, tmp_path / "emma")
    torch.testing.assert_close(
        peft_logits(adapted, model), softlore_logits(model, prompt), atol=1e-5, rtol=1e-5
    )
    assert load_prompt(tmp_path / "emma") == prompt


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix", "projected", "cartridge"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neo"])
def test_prompts_of_peft_give_the_same_logits(family, method, tmp_path):
    model, hf = apply(family)
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    config = {
        "prompt": lambda: peft.PromptTuningConfig(**options),
        "p-tuning": lambda: peft.PromptEncoderConfig(**options, encoder_hidden_size=12),
        "prefix": lambda: peft.PrefixTuningConfig(**options),
        "projected": lambda: peft.PrefixTuningConfig(
            **options, prefix_projection=True, encoder_hidden_size=12
        ),
        "cartridge": lambda: peft.CartridgeConfig(**options, num_frozen_tokens=1),
    }[method]()
    torch.manual_seed(3)
    adapted = peft.get_peft_model(hf, config).eval()
    adapted.save_pretrained(tmp_path / "a harbour.town")
    prompt = load_prompt(tmp_path / "a harbour.town")
    assert prompt.name == "a harbour.town"
    assert prompt.kind == ("embedding" if method in ("prompt", "p-tuning") else "prefix")
    assert tuple(prompt.tensor.shape) == prompt_shape(model, prompt.kind, 4)
    prompt = prompt.replace(fingerprint=model.fingerprint(prompt.kind))
    torch.testing.assert_close(
        peft_logits(adapted, model), softlore_logits(model, prompt), atol=1e-5, rtol=1e-5
    )


def test_a_trained_prompt_of_peft(tmp_path):
    model, hf = apply("llama")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(hf, config)
    ids = torch.tensor([model.encode(TEXT)])
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "trained")
    prompt = load_prompt(tmp_path / "trained")
    prompt = prompt.replace(fingerprint=model.fingerprint("prefix"))
    torch.testing.assert_close(
        peft_logits(adapted.eval(), model), softlore_logits(model, prompt), atol=1e-5, rtol=1e-5
    )


def test_a_task_of_many(tmp_path):
    model, hf = apply("gpt2")
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2
    )
    torch.manual_seed(3)
    adapted = peft.get_peft_model(hf, config).eval()
    with torch.no_grad():  # PEFT's own start is too near to zero for tasks to differ
        adapted.prompt_encoder["default"].prefix_task_cols.mul_(50)
    adapted.save_pretrained(tmp_path / "tasks")
    seen = []
    for task in range(3):
        prompt = load_prompt(tmp_path / "tasks", task)
        prompt = prompt.replace(fingerprint=model.fingerprint("embedding"))
        # PEFT multiplies its own embedding in place, when it runs: a fresh copy every time.
        fresh = peft.PeftModel.from_pretrained(tiny_hf("gpt2"), tmp_path / "tasks")
        from_peft = peft_logits(fresh, model, task_ids=torch.tensor([task]))
        torch.testing.assert_close(from_peft, softlore_logits(model, prompt), atol=1e-5, rtol=1e-5)
        seen.append(prompt.tensor)
    assert not torch.allclose(seen[0], seen[1], atol=0.1)
    with pytest.raises(PromptFileError, match=r"3 tasks: 0, 1, 2; .*--task 0") as caught:
        load_prompt(tmp_path / "tasks")
    assert caught.value.reason == Reason.SEVERAL_PROMPTS
    with pytest.raises(ConfigError, match="holds the tasks 0, 1, 2"):
        load_prompt(tmp_path / "tasks", 3)


def test_where_a_bos_stands(tmp_path):
    """A prefix comes before it, there as here. PEFT puts rows before it, softlore after it."""
    model, hf = apply("llama", bos=True)
    prefix = random_prompt(model, "prefix")
    write(prefix, tmp_path / "prefix")
    adapted = peft.PeftModel.from_pretrained(hf, tmp_path / "prefix")
    torch.testing.assert_close(
        peft_logits(adapted, model), softlore_logits(model, prefix), atol=1e-5, rtol=1e-5
    )
    rows = random_prompt(model, "embedding")
    with_bos = rows.replace(tensor=torch.cat([model.embed_ids(model.bos), rows.embeddings]))
    write(with_bos, tmp_path / "rows")  # so that it stands first there too
    adapted = peft.PeftModel.from_pretrained(tiny_hf("llama"), tmp_path / "rows")
    ids = torch.tensor([model.encode(TEXT)])
    with torch.no_grad():
        from_peft = adapted(input_ids=ids).logits[0, -ids.shape[1] :]
    from_softlore = logits(model, rows + TEXT)[-ids.shape[1] :]
    torch.testing.assert_close(from_peft, from_softlore, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_peft_writes_on_as_softlore_does(kind, tmp_path):
    model, hf = apply("llama")
    prompt = random_prompt(model, kind)
    write(prompt, tmp_path / "emma")
    adapted = peft.PeftModel.from_pretrained(hf, tmp_path / "emma")
    ids = torch.tensor([model.encode(TEXT)])
    out = ids
    with torch.no_grad():  # PEFT's generate, with a cache, strays from PEFT's own forward
        for _ in range(8):
            mask = torch.ones_like(out)
            best = adapted(input_ids=out, attention_mask=mask).logits[:, -1].argmax(dim=1)
            out = torch.cat([out, best[None]], dim=1)
    out = out[0, -8:]
    # Random bytes are no text to read on from: what PEFT wrote stands there as rows.
    written = SoftPrompt("written", "embedding", model.embed_ids(out))
    written = written.replace(fingerprint=model.fingerprint("embedding"))
    assert logits(model, prompt + TEXT + written)[-9:-1].argmax(dim=1).equal(out)


# round trips -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(prompts())
def test_round_trip_is_bit_equal(prompt):
    with tempfile.TemporaryDirectory() as folder:
        write(prompt, Path(folder, "x"))
        loaded = load_prompt(Path(folder, "x"))
        config = json.loads(Path(folder, "x", CONFIG).read_bytes())
    assert loaded == prompt
    assert loaded.tensor.numpy().tobytes() == prompt.tensor.numpy().tobytes()
    assert config["peft_type"] in ("PROMPT_TUNING", "PREFIX_TUNING")


def test_the_folder_that_is_written(tmp_path):
    rows = SoftPrompt("Zoë", "embedding", torch.arange(6.0).view(2, 3), base_model="tiny")
    write(rows, tmp_path / "rows")
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == [CONFIG, TENSORS]
    config = json.loads((tmp_path / "rows" / CONFIG).read_bytes())
    assert set(config) == KEYS
    assert (config["num_virtual_tokens"], config["token_dim"]) == (2, 3)
    assert config["base_model_name_or_path"] == "tiny"
    with safetensors.safe_open(tmp_path / "rows" / TENSORS, "pt") as file:
        assert list(file.keys()) == ["prompt_embeddings"]
        assert file.metadata()["format"] == "pt"
        assert file.get_tensor("prompt_embeddings").tolist() == [[0, 1, 2], [3, 4, 5]]
    # layers 2, keys and values, one head, two tokens, head_dim 1: key and value by turns
    prefix = SoftPrompt("Bo", "prefix", torch.arange(8.0).view(2, 2, 1, 2, 1))
    write(prefix, tmp_path / "prefix")
    flat = safetensors.torch.load_file(tmp_path / "prefix" / TENSORS)["prompt_embeddings"]
    assert flat.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    config = json.loads((tmp_path / "prefix" / CONFIG).read_bytes())
    assert [config[key] for key in ("num_layers", "num_attention_heads", "token_dim")] == [2, 1, 1]


def test_a_folder_is_replaced_only_by_its_like(tmp_path):
    prompt = SoftPrompt("Zoë", "embedding", torch.ones(2, 3))
    place = tmp_path / "zoe"
    write(prompt, place)
    write(prompt.replace(description="new"), place)
    assert load_prompt(place).description == "new"
    (place / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds 'notes.txt', which would be lost"):
        write(prompt, place)
    assert load_prompt(place).description == "new"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="not a folder is there"):
        write(prompt, tmp_path / "file")
    with pytest.raises(StorageError, match="make the folder first"):
        write(prompt, tmp_path / "none" / "zoe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "zoe"]


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch):
    prompt = SoftPrompt("Zoë", "embedding", torch.ones(2, 3))
    write(prompt, tmp_path / "zoe")

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(disk.os, name, full)
            with pytest.raises(StorageError, match="free some space"):
                write(prompt.replace(description="new"), tmp_path / "zoe")
        assert load_prompt(tmp_path / "zoe") == prompt
        assert [path.name for path in tmp_path.iterdir()] == ["zoe"]


# what is refused ---------------------------------------------------------------------------------

CONFIGURED = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 3}
PREFIX = {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": 2,
    "token_dim": 4,
    "num_layers": 3,
    "num_attention_heads": 2,
}
ROWS = {"prompt_embeddings": np.arange(6, dtype=np.float32).reshape(2, 3)}
FLAT = {"prompt_embeddings": np.arange(48, dtype=np.float32).reshape(2, 24)}
TASKS = {"peft_type": "MULTITASK_PROMPT_TUNING"}
R = Reason


def multitask(cols, rows):
    return ROWS | {
        "prefix_task_cols": np.ones(cols, np.float32),
        "prefix_task_rows": np.ones(rows, np.float32),
    }


REFUSED = {
    "lora": (CONFIGURED | {"peft_type": "LORA"}, ROWS, R.ADAPTER_TYPE, "'LORA', which holds no"),
    "no type": ({"num_virtual_tokens": 2}, ROWS, R.ADAPTER_TYPE, "peft_type is None"),
    "type is a list": (CONFIGURED | {"peft_type": []}, ROWS, R.ADAPTER_TYPE, "is []"),
    "encoder and decoder": (
        CONFIGURED | {"num_transformer_submodules": 2},
        ROWS,
        R.ADAPTER_TYPE,
        "is 2, as for an encoder",
    ),
    "by its task": (CONFIGURED | {"task_type": "SEQ_2_SEQ_LM"}, ROWS, R.ADAPTER_TYPE, "expected 1"),
    "rows": (CONFIGURED | {"num_virtual_tokens": 3}, ROWS, R.SHAPE, "num_virtual_tokens = 3 rows"),
    "columns": (CONFIGURED | {"token_dim": 4}, ROWS, R.SHAPE, "token_dim = 4 columns"),
    "true": (CONFIGURED | {"token_dim": True}, ROWS, R.ADAPTER_CONFIG, "token_dim is True"),
    "zero": (CONFIGURED | {"token_dim": 0}, ROWS, R.ADAPTER_CONFIG, "from 1 to 2,147,483,647"),
    "huge": (CONFIGURED | {"token_dim": 10**4000}, ROWS, R.ADAPTER_CONFIG, "token_dim is 1000"),
    "text": (CONFIGURED | {"num_layers": "3"}, ROWS, R.ADAPTER_CONFIG, "num_layers is '3'"),
    "model": (
        CONFIGURED | {"base_model_name_or_path": ["x"]},
        ROWS,
        R.ADAPTER_CONFIG,
        "base_model_name_or_path is list",
    ),
    "list": ([CONFIGURED], ROWS, R.ADAPTER_CONFIG, "is list; expected an object"),
    "not JSON": (b"{", ROWS, R.NOT_JSON, "is not JSON"),
    "not UTF-8": (b"{\xff}", ROWS, R.NOT_UTF8, "byte 1 of the configuration is not UTF-8"),
    "twice": (b'{"a": 1, "a": 2}', ROWS, R.DUPLICATE_KEY, "has the key 'a' twice"),
    "deep": (b"[" * 100_000, ROWS, R.TOO_DEEP, "100000 deep"),
    "large": (b" " * 300_000, ROWS, R.TOO_LARGE, "has 300,000 bytes; expected at most 262,144"),
    "no layers": (PREFIX | {"num_layers": None}, FLAT, R.ADAPTER_CONFIG, "is missing"),
    "heads": (PREFIX | {"num_attention_heads": 3}, FLAT, R.ADAPTER_CONFIG, "a multiple of"),
    "layers": (PREFIX | {"num_layers": 4}, FLAT, R.SHAPE, "2 × 4 layers × token_dim 4"),
    "rows as a prefix": (PREFIX, ROWS, R.SHAPE, "2 × 3 layers × token_dim 4"),
    "other tensors": (CONFIGURED, ROWS | {"lm_head": np.ones(1)}, R.OTHER_TENSORS, "'lm_head'"),
    "no tasks": (TASKS, ROWS, R.OTHER_TENSORS, "expected exactly these"),
    "tasks of two axes": (TASKS, multitask((2, 1), (1, 1, 3)), R.SHAPE, "[tasks, 2, rank]"),
    "ranks differ": (TASKS, multitask((1, 2, 1), (1, 2, 3)), R.SHAPE, "[tasks, rank, 3]"),
    "no rank": (TASKS, multitask((1, 2, 0), (1, 0, 3)), R.SHAPE, "[tasks, rank, 3]"),
    "NaN": (CONFIGURED, {"prompt_embeddings": np.full((2, 3), np.nan, "f4")}, R.NOT_FINITE, "6 of"),
    "2048 rows": (
        {"peft_type": "P_TUNING"},
        {"prompt_embeddings": np.ones((2048, 1), "f4")},
        R.SHAPE,
        "2048 for n_tokens",
    ),
}


def put(folder, config, tensors, metadata=None):
    folder.mkdir()
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / CONFIG).write_bytes(raw)
    safetensors.numpy.save_file(tensors, folder / TENSORS, metadata)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    config, tensors, reason, expected = REFUSED[case]
    with pytest.raises(PromptFileError) as caught:
        load_prompt(put(tmp_path / "adapter", config, tensors))
    assert caught.value.reason == reason
    message = str(caught.value)
    assert expected in message
    assert message.startswith("cannot read the prompt file '")
    assert "expected" in message
    assert len(message) < 700


def test_what_is_not_acted_upon(tmp_path):
    """Names to load and ways of loading are only ever text."""
    config = CONFIGURED | {
        "tokenizer_kwargs": {"trust_remote_code": True},
        "tokenizer_name_or_path": "../../secret",
        "auto_mapping": {"base_model_class": "os.system", "parent_library": "os"},
        "base_model_name_or_path": "/etc/passwd",
        "revision": "main",
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_state_dict_path": "/etc/passwd",
    }
    prompt = load_prompt(put(tmp_path / "xxx", config, ROWS))
    assert prompt.base_model == "/etc/passwd"
    assert prompt.training == {"method": "import", "format": "peft", "peft_type": "PROMPT_TUNING"}
    assert (prompt.name, prompt.created, prompt.library_version) == ("xxx", "", "")


def test_metadata_that_softlore_left(tmp_path):
    stored = SoftPrompt("Zoë", "embedding", torch.ones(2, 3)).metadata
    wrong = {
        "a list": ("[]", "is list"),
        "a number": ('{"name": 1}', "is int"),
        "no name": ('{"format": "softlore", "format_version": "1"}', "name is missing"),
        "the other kind": (
            json.dumps(stored | {"kind": "prefix", "convention": "past_key_values"}),
            "expected 5 for the prefix kind",
        ),
    }
    for case, (text, expected) in wrong.items():
        metadata = {"format": "pt", "softlore": text}
        with pytest.raises(PromptFileError, match=expected):
            load_prompt(put(tmp_path / case, CONFIGURED, ROWS, metadata))
    metadata = {"format": "pt", "softlore": json.dumps(stored)}
    assert load_prompt(put(tmp_path / "good", CONFIGURED, ROWS, metadata)).name == "Zoë"


def test_folders_that_lack_something(tmp_path):
    folder = put(tmp_path / "pickled", CONFIGURED, ROWS)
    (folder / TENSORS).unlink()
    with pytest.raises(PromptFileError, match=f"no prompt file '.*{TENSORS}'"):
        load_prompt(folder)
    (folder / PICKLE).write_bytes(b"\x80\x02.")
    with pytest.raises(PromptFileError, match=f"{PICKLE}, a pickle, .*save_pretrained") as caught:
        load_prompt(folder)
    assert caught.value.reason == R.OTHER_FORMAT
    (tmp_path / "tensors").mkdir()
    safetensors.numpy.save_file(ROWS, tmp_path / "tensors" / TENSORS, {"format": "pt"})
    with pytest.raises(PromptFileError, match=f"no prompt file '.*{CONFIG}'"):
        load_prompt(tmp_path / "tensors")
    with pytest.raises(PromptFileError, match="name its folder"):
        load_prompt(tmp_path / "tensors" / TENSORS)
    (folder / TENSORS).mkdir()
    with pytest.raises(PromptFileError, match="not a regular file"):
        load_prompt(folder)
    with pytest.raises(ConfigError, match="holds one prompt and no tasks"):
        load_prompt(put(tmp_path / "one", CONFIGURED, ROWS), task=0)
