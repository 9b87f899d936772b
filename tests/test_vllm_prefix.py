"""What vLLM's connector reads: placeholders, files, and keys turned so that company is the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from running import save_tiny_model, softlore
from softlore import FrozenModel, SoftPrompt, logits
from softlore.context import Node, Tree, splice
from softlore.model.families import PROVEN
from softlore.model.rotary import rotary_of
from softlore.model.tiny import tiny_model
from softlore.prompts.formats import vllm_prefix
from softlore.vllm_connector.files import read, read_folder, side_by_side
from softlore.vllm_connector.placeholders import of_set, placeholder

ROTARY = sorted(PROVEN - set("bloom ctrl gpt2 gpt_neo mpt opt xglm".split()))


def prefixes(model):
    texts = {"dog": "Dog is a good boy", "cat": "Cat is not", "owl": "Owls know"}
    return [SoftPrompt.from_text(t, model, name=n, kind="prefix") for n, t in texts.items()]


@pytest.mark.parametrize("family", ROTARY)
def test_keys_that_are_turned_on_make_company_the_same(family, tmp_path):
    """As on vLLM: each prefix at positions of its own, and the text after all of them."""
    model = tiny_model(family)
    if model.family.slides:
        pytest.skip("such models are refused: layers that slide see less of what is further off")
    prompts = prefixes(model)
    for prompt in prompts:
        vllm_prefix.write(prompt, model, tmp_path / f"{prompt.name}.safetensors")
    whole = side_by_side(read_folder(tmp_path))
    assert whole.shape[3] == sum(map(len, prompts))
    ids = model.bos + model.encode("The dog ran")
    spliced = splice(model, [Tree([Node(ids)], [whole])])
    with torch.no_grad():
        hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
        theirs = model.logits(hidden[0])
    ours = logits(model, prompts[0] + prompts[1] + prompts[2] + "The dog ran")
    assert torch.allclose(ours, theirs, atol=2e-4)
    assert not torch.allclose(ours, logits(model, prompts[0] + "The dog ran"), atol=1e-2)


def test_positions_that_are_not_rotary_are_known():
    assert all(rotary_of(tiny_model(family)) is None for family in PROVEN - set(ROTARY))
    layouts = {rotary_of(tiny_model(family)).layout for family in ROTARY}
    assert layouts == {"halves", "neighbours"}


def test_placeholders_are_of_the_tensor_and_of_ordinary_ids():
    model = tiny_model("llama")
    dog, cat, owl = prefixes(model)
    ids = vllm_prefix.placeholder_of(dog, model)
    assert len(ids) == len(dog)
    assert ids == vllm_prefix.placeholder_of(dog.replace(name="another"), model)
    assert ids != vllm_prefix.placeholder_of(dog.replace(tensor=dog.tensor * 1.01), model)
    assert not set(ids) & model.special_ids
    pair = vllm_prefix.company_of([dog, cat], model)
    assert pair == vllm_prefix.company_of([cat, dog], model)
    assert sorted(pair) == sorted([*ids, *vllm_prefix.placeholder_of(cat, model)])
    assert pair[: len(ids)] != ids  # else vLLM would take keys that stand elsewhere for these
    assert vllm_prefix.company_of([dog, dog], model) == ids
    assert len(vllm_prefix.company_of([dog, cat, owl], model)) == len(dog) + len(cat) + len(owl)


def test_placeholders_never_change():
    """Files that were converted long ago are found by them."""
    assert placeholder("ab", 4, range(1000)) == [352, 339, 455, 109]
    assert of_set({"b": [1, 2], "a": [3, 4]}) == [3, 2, 4, 1]


def test_convert_writes_what_the_connector_reads(tmp_path, monkeypatch):
    folder = save_tiny_model(tmp_path / "tiny")
    model = FrozenModel.from_pretrained(folder)
    dog = prefixes(model)[0]
    dog.save(tmp_path / "dog.safetensors")
    told = ["dog.safetensors", "--to", "vllm", "--model", folder]
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert softlore("convert", *told, "--out", "out/").code == 0
    [file] = read_folder("out")
    assert (file.name, file.ids) == ("dog", vllm_prefix.placeholder_of(dog, model))
    assert torch.equal(file.key_values, dog.key_values)
    again = softlore("convert", *told, "--out", "out/")
    assert again.code == 2
    assert "--force" in again.err
    refused = softlore("convert", *told, "--text", "[[soft:dog]]")
    assert refused.code == 2
    assert "is of the prefix kind" in refused.err


def test_other_files_are_refused(tmp_path):
    model = tiny_model("llama")
    dog = prefixes(model)[0]
    dog.save(tmp_path / "native.safetensors")
    vllm_prefix.write(dog, model, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    (tmp_path / "bytes.safetensors").write_bytes(b"{" * 99)
    told = {"format": "softlore-vllm-prefix-1", "name": "x", "digest": "00", "layout": ""}
    for name, ids in (("few", "[1]"), ("text", '"abc"'), ("deep", "[" * 9999)):
        save_file(
            {"key_values": dog.key_values}, tmp_path / f"{name}.safetensors", told | {"ids": ids}
        )
    assert read(tmp_path / "good.safetensors").name == "dog"
    for name in ("native", "cut", "bytes", "few", "text", "deep", "missing"):
        with pytest.raises(ValueError, match="is no prefix for the connector"):
            read(tmp_path / f"{name}.safetensors")
