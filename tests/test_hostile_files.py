"""Files that are made to break a reader: each raises the reader's own errors."""

import json

import pytest
import safetensors.torch
import torch

from softlore.errors import ConfigError, PromptFileError, StorageError, StoryFileError
from softlore.lore import Entry, Lorebook, check
from softlore.lore.patterns import compile_pattern
from softlore.prompts import SoftPrompt
from softlore.prompts.native import read_header
from softlore.story.files import read_story
from softlore.tune.checkpoint import (
    VERSION,
    content_hash,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from softlore.tune.groups import GroupRecord


@pytest.mark.parametrize("facts", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, "[]", "7", "null"])
def test_a_checkpoint_with_hostile_facts(tmp_path, monkeypatch, facts):
    path = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("softlore.tune.checkpoint.json.dumps", lambda value: facts)
        save_checkpoint(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(StorageError, match="can't be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("depth", [200, 500, 900, 980, 100_000])
def test_a_checkpoint_of_another_run_nested_deep(tmp_path, depth):
    """Whatever the depth, the file is refused in words, or is of another run."""
    text = f'{{"signature": {{"settings": {{"lr": {"[" * depth}{"]" * depth}}}, "entries": {{}}, '
    text += '"company": {}, "model": {}}}'
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.zeros(1)}
    metadata = {"softlore_checkpoint": str(VERSION), "facts": text}
    metadata["hash"] = content_hash(tensors, text)
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    now = {"settings": {"lr": 0.1}, "entries": {}, "company": {}, "model": {}}
    with pytest.raises((ConfigError, StorageError), match=r"; expected .+; .+"):
        find_checkpoint(path, now)
    assert find_checkpoint(path, now, overwrite=True) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 200_000, "nested too deep"),
        *[(text, "no JSON object") for text in ("[]", "7", "null", '"x"')],
        ('{"softlore_groups": 7}', "not a record of this version"),
        ("{", "Expecting"),
    ],
)
def test_a_hostile_record_of_groups(tmp_path, text, why):
    path = tmp_path / "x.groups.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=rf"can't be read \(.*{why}.*; expected .*; to start"):
        GroupRecord.load(path)


@pytest.mark.parametrize("signature", [None, 3, "x", {}, {"model": {"a": "b"}}, {"model": 3}])
def test_a_checkpoint_with_a_hostile_signature(tmp_path, signature):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, {"signature": signature})
    now = {"settings": {}, "entries": {}, "company": {}, "model": {"a": [1.0]}}
    with pytest.raises(ConfigError, match="is of another run"):
        find_checkpoint(path, now)
    assert find_checkpoint(path, now, overwrite=True) is None


@pytest.mark.parametrize("field", ["training", "metrics", "fingerprint"])
@pytest.mark.parametrize("text", ['"x"', "[]", "3", "null"])
def test_a_prompt_whose_json_field_is_no_object(tmp_path, field, text):
    path = tmp_path / "x.safetensors"
    SoftPrompt(name="x", kind="embedding", tensor=torch.ones(1, 2)).save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][field] = text
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])
    with pytest.raises(PromptFileError, match="expected an object"):
        SoftPrompt.load(path)
    with pytest.raises(PromptFileError, match="expected an object"):
        read_header(path).fields()


@pytest.mark.parametrize("pattern", ["(" * 5000 + "a" + ")" * 5000, "(" * 900 + "a" + ")" * 900])
def test_a_key_of_nested_groups(pattern):
    book = Lorebook(name="b", entries=[Entry(name="A", text="x", keys=[f"/{pattern}/"])])
    assert any("matches nothing: " in warning for warning in check(book))
    compiled, problem = compile_pattern(pattern, "")
    assert compiled is None
    assert "longer than" in problem or "nested more than 50 deep" in problem


def test_a_key_of_nested_sets():
    assert "nested more than 50 deep" in compile_pattern("[" * 200 + "a" + "]" * 200, "v")[1]
    assert compile_pattern("(" * 40 + "a" + ")" * 40, "")[0].search("a")


def test_front_matter_whose_first_field_is_another(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("---\nsoftlore-story:1 0@memory: a\n---\ntext")
    with pytest.raises(StoryFileError, match="front matter is of version None"):
        read_story(path)
