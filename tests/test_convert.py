"""softlore convert: every format to every other, what it says, and what it refuses."""

import base64
import io
import json
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from running import save_tiny_model, softlore
from softlore import Context, FrozenModel, PromptLibrary, SoftPrompt, embed, load_prompt
from softlore.cli.convert import FORMATS
from softlore.model.tiny import tiny_hf, tiny_model
from softlore.prompts import FORMATS as PROMPT_FORMATS
from softlore.prompts import WRITABLE, write_prompt
from test_cli import assert_refused
from test_prompts_native import TEXTS

READ_BACK = [to for to in FORMATS if to != "vllm"]
ROWS = SoftPrompt("Zoë's dog", "embedding", torch.arange(6.0).view(2, 3), description="a dog")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a prompt of each kind, and a prompts folder elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTLORE_PROMPTS", str(tmp_path / "prompts"))
    ROWS.save("dog.safetensors")
    SoftPrompt("Emma", "prefix", torch.ones(2, 2, 1, 3, 4)).save("emma.safetensors")
    return tmp_path


def convert(*arguments):
    ended = softlore("convert", *arguments)
    assert ended.code == 0, ended.err
    return ended


# round trips -------------------------------------------------------------------------------------

VALUES = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float16": st.floats(width=16, allow_nan=False, allow_infinity=False),
}


@st.composite
def embedding_prompts(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    elements = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    rows = torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=elements)))
    name = draw(st.text("abcéж09", min_size=1, max_size=20))
    return SoftPrompt(name, "embedding", rows, description=draw(TEXTS))


def bits(prompt):
    return prompt.tensor.shape, prompt.tensor.numpy().tobytes()


@pytest.mark.parametrize("way", list(permutations(READ_BACK, 2)), ids=" to ".join)
@settings(max_examples=12)
@given(prompt=embedding_prompts())
def test_every_pair_of_formats_keeps_every_bit(way, prompt):
    with tempfile.TemporaryDirectory() as folder:
        for to in way:
            path = Path(folder) / f"it{PROMPT_FORMATS[to].suffix}"
            write_prompt(prompt, to, path)
            loaded = load_prompt(path)
            assert bits(loaded) == bits(prompt)
            prompt = loaded


@settings(max_examples=25)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(*(st.integers(1, 3) for _ in range(4))),
        elements=VALUES["float32"],
    )
)
def test_a_prefix_keeps_every_bit(values):
    layers, heads, n, dim = values.shape
    tensor = torch.from_numpy(np.stack([values, -values], axis=1))
    prompt = SoftPrompt("Emma", "prefix", tensor)
    with tempfile.TemporaryDirectory() as folder:
        for to in ("peft", "safetensors", "peft"):
            path = Path(folder) / f"it{PROMPT_FORMATS[to].suffix}"
            write_prompt(prompt, to, path)
            assert load_prompt(path) == prompt
    assert tuple(prompt.tensor.shape) == (layers, 2, heads, n, dim)


def test_the_command_knows_every_writer():
    assert WRITABLE == FORMATS


# what it does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", READ_BACK)
def test_by_the_name_of_the_prompt(to, here):
    path = {"safetensors": "zoe-s-dog.safetensors", "kobold": "zoe-s-dog.zip"}
    path |= {"mkultra": "zoe-s-dog.json", "peft": "zoe-s-dog-peft"}
    ended = convert("dog.safetensors", "--to", to)
    assert ended.out.startswith(
        f'read embedding prompt "Zoë\'s dog" of 2 tokens from dog.safetensors; wrote {path[to]} ('
    )
    assert (f"--out {here / 'prompts'}" in ended.err) == (to == "safetensors")
    loaded = load_prompt(here / path[to])
    assert (loaded.name, loaded.description, bits(loaded)) == (
        ROWS.name,
        ROWS.description,
        bits(ROWS),
    )


def test_into_the_library_and_out_again(here):
    library = here / "prompts"
    ended = convert("dog.safetensors", "--to", "kobold", "--out", "dog.zip")
    assert ended.err == ""
    convert("dog.zip", "--to", "safetensors", "--out", library)
    assert bits(PromptLibrary()["Zoë's dog"]) == bits(ROWS)
    again = ["dog.zip", "--to", "safetensors", "--out", library]
    assert_refused(softlore("convert", *again), "exists already", "--force")
    convert(*again, "--force")
    assert len(PromptLibrary()) == 1
    convert(*again, "--name", "Bo")
    assert set(PromptLibrary()) == {"Bo", "Zoë's dog"}


def test_the_report(here):
    report = json.loads(convert("dog.safetensors", "--to", "peft", "--json", "-").out)
    size = sum(file.stat().st_size for file in (here / "zoe-s-dog-peft").iterdir())
    assert report == {
        "read": "dog.safetensors",
        "name": "Zoë's dog",
        "kind": "embedding",
        "n_tokens": 2,
        "to": "peft",
        "written": "zoe-s-dog-peft",
        "bytes": size,
    }


def test_what_is_there_stays_unless_forced(here):
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    (here / "empty").mkdir()
    for to, out in (("kobold", "a.zip"), ("peft", "a"), ("peft", "empty")):
        convert("dog.safetensors", "--to", to, "--out", out)
        again = ["dog.safetensors", "--to", to, "--out", out, "--name", "new"]
        assert_refused(softlore("convert", *again), f"{out!r} exists already", "--force")
        assert load_prompt(here / out).name == "Zoë's dog"
        convert(*again, "--force")
        assert load_prompt(here / out).name == "new"
    convert("dog.safetensors", "--to", "peft", "--out", "full")  # into it
    assert load_prompt(here / "full" / "zoe-s-dog-peft") == ROWS
    assert (here / "full" / "notes.txt").read_text() == "mine"


def test_a_prompt_learns_its_model(here):
    """Files of other programs name no model: --model says which, and puts in its fingerprint."""
    model = save_tiny_model(here / "tiny")
    rows = tiny_model().embed_ids(list(b"wolf")).clone()
    SoftPrompt("wolf", "embedding", rows).save("bare.safetensors")
    convert("bare.safetensors", "--to", "mkultra")
    assert load_prompt("wolf.json").fingerprint == {}
    convert("wolf.json", "--to", "safetensors", "--model", model)
    prompt = load_prompt("wolf.safetensors")
    assert prompt.base_model == "tiny"  # not the path, which is of this machine
    FrozenModel.from_pretrained(model).check_prompt(prompt)
    command = ["write", "[[soft:wolf]]A", "--prompts", here, "--tokens", 2, "--model", model]
    assert "made for another model" not in softlore(*command).err
    other = save_tiny_model(here / "other", hidden_size=16)
    command = ["convert", "wolf.json", "--to", "safetensors", "--out", "x", "--model", other]
    assert_refused(softlore(*command), "expected (4, 16) for model")
    command = [
        "convert",
        "wolf.safetensors",
        "--to",
        "peft",
        "--model",
        save_tiny_model("b", seed=1),
    ]
    assert_refused(softlore(*command), "was made for another model")


@pytest.mark.filterwarnings("default")  # PEFT's own are not our concern
def test_one_task_of_many(here):
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3
    )
    peft.get_peft_model(tiny_hf("gpt2"), config).save_pretrained("tasks")
    command = ["convert", "tasks", "--to", "safetensors", "--out", "two.safetensors"]
    assert_refused(softlore(*command), "3 tasks: 0, 1, 2", "--task")
    assert_refused(softlore(*command, "--task", 3), "holds the tasks 0, 1, 2")
    convert(*command[1:], "--task", 2)
    assert len(load_prompt("two.safetensors")) == 4
    command = ["convert", "dog.safetensors", "--to", "peft", "--task", 0]
    assert_refused(softlore(*command), "dog.safetensors")


def test_inspect_shows_a_folder_that_is_a_prompt(here):
    convert("emma.safetensors", "--to", "peft")
    ended = softlore("inspect", "emma-peft")
    assert ended.code == 0
    assert ended.out.startswith("name: Emma\nkind: prefix\nn_tokens: 3\n")


# vLLM --------------------------------------------------------------------------------------------


def rows_of(body):
    packed = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
    return torch.load(packed, weights_only=True)


def test_a_request_of_the_prompt_alone(here):
    convert("dog.safetensors", "--to", "vllm")
    body = json.loads(Path("zoe-s-dog.vllm.json").read_bytes())
    assert set(body) == {"prompt_embeds"}  # the file names no model, so the server takes its own
    assert rows_of(body).equal(ROWS.embeddings)
    ROWS.replace(base_model="tiny").save("named.safetensors")
    convert("named.safetensors", "--to", "vllm", "--out", "body.json")
    assert json.loads(Path("body.json").read_bytes())["model"] == "tiny"


def test_a_request_of_a_whole_context(here):
    """The rows are those that softlore itself reads, BOS included; no more is sent than they."""
    folder = save_tiny_model(here / "tiny", bos=True)
    model = FrozenModel.from_pretrained(folder)
    prompt = SoftPrompt.from_text("a wolf", model, name="wolf")
    prompt.save("wolf.safetensors")
    text = "There is [[soft:wolf]] at the door"
    command = ["wolf.safetensors", "--to", "vllm", "--model", folder, "--text", text]
    convert(*command, "--out", "body.json")
    body = json.loads(Path("body.json").read_bytes())
    expected = embed(model, Context.parse(text, [prompt]))
    assert rows_of(body).equal(expected)
    assert len(body["prompt_embeds"]) < 4 / 3 * (4 * expected.numel() + 4000)
    assert body["model"] == str(folder)
    convert(*command, "--out", "half.json", "--dtype", "bfloat16")
    assert rows_of(json.loads(Path("half.json").read_bytes())).dtype is torch.bfloat16


# what it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dog.safetensors"], "Missing option '--to'"),
        (["dog.safetensors", "--to", "gguf"], "'gguf' is not one of"),
        (["missing.json", "--to", "peft"], "there is no prompt file 'missing.json'"),
        (["dog.safetensors", "--to", "peft", "--task", "-1"], "-1 is not in the range"),
        (["dog.safetensors", "--to", "peft", "--text", "x"], "--text goes with --to vllm"),
        (["dog.safetensors", "--to", "llamacpp"], "expected the model's GGUF file"),
        (["dog.safetensors", "--to", "peft", "--gguf", "x"], "none with others"),
        (["dog.safetensors", "--to", "peft", "--name", "a/b"], "prompt name 'a/b' holds '/'"),
        (["dog.safetensors", "--to", "kobold", "--out", "no/a.zip"], "make the folder first"),
        (["emma.safetensors", "--to", "kobold"], "is of the prefix kind; KoboldAI"),
        (["emma.safetensors", "--to", "mkultra"], "is of the prefix kind; mkultra"),
        (["emma.safetensors", "--to", "vllm"], "expected (6, 2, 2, 3, 64) for model 'storyteller'"),
        ([".", "--to", "peft"], "is a folder"),
    ],
    ids=str,
)
def test_refused(arguments, message, here):
    before = sorted(path.name for path in here.iterdir())
    assert_refused(softlore("convert", *arguments), message)
    assert sorted(path.name for path in here.iterdir()) == before


def test_contexts_that_are_refused(here):
    model = tiny_model()
    folder = save_tiny_model(here / "tiny")
    SoftPrompt.from_text("a wolf", model, name="wolf").save("wolf.safetensors")
    SoftPrompt.from_text("a wolf", model, name="pre", kind="prefix").save("pre.safetensors")
    command = ["convert", "wolf.safetensors", "--to", "vllm", "--model", folder, "--text"]
    assert_refused(softlore(*command, "no tag"), "expected [[soft:wolf]] somewhere in it")
    assert_refused(softlore(*command, "[[soft:wolv]]"), "did you mean [[soft:wolf]]?")
    assert_refused(softlore(*command, "a \udcff"), "not UTF-8")
    command[1] = "pre.safetensors"
    assert_refused(softlore(*command, "[[soft:pre]]"), "leave --text out")


def test_damaged_files(here):
    content = Path("dog.safetensors").read_bytes()
    for damaged in (b"", content[:60], content[:-1], b"PK\x03\x04" + content, b"{" * 1000):
        Path("bad").write_bytes(damaged)
        assert_refused(softlore("convert", "bad", "--to", "peft"), "bad")
