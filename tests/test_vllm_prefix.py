"""What vLLM's connector reads: placeholders, files, and keys turned so that company is the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from running import save_tiny_model, softlore
from softlore import FrozenModel, SoftPrompt, logits
from softlore.context import Node, Tree, splice
from softlore.model.families import TESTED_FAMILIES
from softlore.model.tiny import tiny_model
from softlore.prompts.formats import vllm
from softlore.vllm_connector.files import PrefixFolder, read, read_folder, side_by_side
from softlore.vllm_connector.placeholders import of_set, placeholder
from softlore.vllm_connector.prepared import PreparedPrefixes, set_key, slot_mapping

ROTARY = sorted(TESTED_FAMILIES - set("bloom ctrl gpt2 gpt_neo mpt opt xglm".split()))


def written(folder, prompts, model):
    """Files for the connector, in the prompts' order."""
    for prompt in prompts:
        vllm.write_prefix(prompt, model, folder / f"{prompt.name}.safetensors")
    return [read(folder / f"{prompt.name}.safetensors") for prompt in prompts]


def prefixes(model):
    texts = {"dog": "Dog is a good boy", "cat": "Cat is not", "owl": "Owls know"}
    return [SoftPrompt.from_text(t, model, name=n, kind="prefix") for n, t in texts.items()]


@pytest.mark.parametrize("family", ROTARY)
def test_keys_that_are_turned_on_make_company_the_same(family, tmp_path):
    """As on vLLM: each prefix at positions of its own, and the text after all of them."""
    model = tiny_model(family)
    if model.family.has_sliding_layers:
        pytest.skip("such models are refused: layers that slide see less of what is further off")
    prompts = prefixes(model)
    written(tmp_path, prompts, model)
    joined = side_by_side(read_folder(tmp_path))
    assert joined.shape[3] == sum(map(len, prompts))
    ids = model.bos + model.encode("The dog ran")
    spliced = splice(model, [Tree([Node(ids)], [joined])])
    with torch.no_grad():
        hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
        from_connector = model.logits(hidden[0])
    expected = logits(model, prompts[0] + prompts[1] + prompts[2] + "The dog ran")
    assert torch.allclose(expected, from_connector, atol=2e-4)
    assert not torch.allclose(expected, logits(model, prompts[0] + "The dog ran"), atol=1e-2)


def test_positions_that_are_not_rotary_are_known():
    assert all(tiny_model(family).rotary is None for family in TESTED_FAMILIES - set(ROTARY))
    layouts = {tiny_model(family).rotary.layout for family in ROTARY}
    assert layouts == {"halves", "neighbours"}


def test_placeholders_are_of_the_tensor_and_of_ordinary_ids():
    model = tiny_model("llama")
    dog, cat, owl = prefixes(model)
    ids = vllm.prefix_ids(dog, model)
    assert len(ids) == len(dog)
    assert ids == vllm.prefix_ids(dog.replace(name="another"), model)
    assert ids != vllm.prefix_ids(dog.replace(tensor=dog.tensor * 1.01), model)
    assert not set(ids) & model.special_ids
    pair = vllm.prefix_set_ids([dog, cat], model)
    assert pair == vllm.prefix_set_ids([cat, dog], model)
    assert sorted(pair) == sorted([*ids, *vllm.prefix_ids(cat, model)])
    assert pair[: len(ids)] != ids  # else vLLM would take keys that stand elsewhere for these
    assert vllm.prefix_set_ids([dog, dog], model) == ids
    assert len(vllm.prefix_set_ids([dog, cat, owl], model)) == len(dog) + len(cat) + len(owl)


def test_placeholders_never_change():
    """Files that were converted long ago are found by them."""
    assert placeholder("ab", 4, range(1000)) == [352, 339, 455, 109]
    assert of_set({"b": [1, 2], "a": [3, 4]}) == [3, 2, 4, 1]


def test_convert_writes_what_the_connector_reads(tmp_path, monkeypatch):
    folder = save_tiny_model(tmp_path / "tiny")
    model = FrozenModel.from_pretrained(folder)
    dog = prefixes(model)[0]
    dog.save(tmp_path / "dog.safetensors")
    arguments = ["dog.safetensors", "--to", "vllm", "--model", folder]
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert softlore("convert", *arguments, "--out", "out/").code == 0
    [file] = read_folder("out")
    assert (file.name, file.ids) == ("dog", vllm.prefix_ids(dog, model))
    assert torch.equal(file.key_values, dog.key_values)
    again = softlore("convert", *arguments, "--out", "out/")
    assert again.code == 2
    assert "--force" in again.err
    refused = softlore("convert", *arguments, "--text", "[[soft:dog]]")
    assert refused.code == 2
    assert "is a prefix and has none" in refused.err


def test_other_files_are_refused(tmp_path):
    model = tiny_model("llama")
    dog = prefixes(model)[0]
    dog.save(tmp_path / "native.safetensors")
    vllm.write_prefix(dog, model, tmp_path / "good.safetensors")
    joined = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(joined[:-9])
    (tmp_path / "bytes.safetensors").write_bytes(b"{" * 99)
    fields = {"format": "softlore-vllm-prefix-1", "name": "x", "digest": "00", "layout": ""}
    for name, ids in (("few", "[1]"), ("text", '"abc"'), ("deep", "[" * 9999)):
        save_file(
            {"key_values": dog.key_values},
            tmp_path / f"{name}.safetensors",
            fields | {"ids": ids},
        )
    assert read(tmp_path / "good.safetensors").name == "dog"
    for name in ("native", "cut", "bytes", "few", "text", "deep", "missing"):
        with pytest.raises(ValueError, match="is not a prefix file for the connector"):
            read(tmp_path / f"{name}.safetensors")


def test_a_worker_keeps_its_heads_as_the_kernel_takes_them(tmp_path):
    model = tiny_model("llama")
    dog, cat, _ = files = written(tmp_path, prefixes(model), model)
    layers, _, heads, _, head_dim = dog.shape
    assert heads == 2
    prepared = PreparedPrefixes(layers, heads, head_dim, torch.float32)
    joined = prepared.prepare([dog])
    assert torch.equal(joined.transpose(2, 3), dog.key_values)
    assert prepared.get(set_key([dog])) is joined
    assert torch.equal(prepared.prepare([cat, dog]).transpose(2, 3), side_by_side([dog, cat]))
    for ranks in (2, 4):  # of four, two share each head
        for rank in range(ranks):
            shard = PreparedPrefixes(layers, 1, head_dim, torch.float32, rank, ranks).prepare([dog])
            assert torch.equal(shard[..., 0, :], dog.key_values[:, :, rank * heads // ranks])
            assert shard.untyped_storage().nbytes() == shard.nbytes == joined.nbytes // 2
    assert prepared.prepare(files).shape == (layers, 2, sum(len(f.ids) for f in files), 2, head_dim)


def test_what_was_longest_not_used_is_dropped(tmp_path):
    model = tiny_model("llama")
    dog, cat, owl = written(tmp_path, prefixes(model), model)
    layers, _, heads, _, head_dim = dog.shape
    sizes = [file.key_values.nbytes for file in (dog, cat, owl)]
    prepared = PreparedPrefixes(layers, heads, head_dim, torch.float32, max_bytes=sum(sizes) - 1)
    prepared.prepare([dog])
    prepared.prepare([cat])
    assert prepared.get(set_key([dog])) is not None
    prepared.prepare([owl])
    there = [prepared.get(set_key([file])) is not None for file in (dog, cat, owl)]
    assert there == [True, False, True]


def test_prefixes_of_another_model_or_version_are_refused(tmp_path):
    model = tiny_model("llama")
    prompts = prefixes(model)
    dog, *_ = written(tmp_path, prompts, model)
    layers, _, heads, _, head_dim = dog.shape
    for other in ((layers + 1, heads, head_dim), (layers, heads + 1, head_dim), (layers, heads, 3)):
        with pytest.raises(ValueError, match="is for another model"):
            PreparedPrefixes(*other, torch.float32).prepare([dog])
    changed = prompts[0].replace(tensor=prompts[0].tensor * 2)
    vllm.write_prefix(changed, model, tmp_path / "dog.safetensors")
    with pytest.raises(ValueError, match="another version"):
        PreparedPrefixes(layers, heads, head_dim, torch.float32).prepare([dog])


def test_slots_follow_the_blocks():
    assert slot_mapping([7, 3], 0, 4, 2).tolist() == [14, 15, 6, 7]
    assert slot_mapping([7, 3], 2, 4, 2).tolist() == [6, 7]


def test_a_folder_is_read_again_where_it_changed(tmp_path, monkeypatch, caplog):
    model = tiny_model("llama")
    dog, cat, owl = prefixes(model)
    written(tmp_path, [dog, cat], model)
    folder = PrefixFolder(str(tmp_path), 1)
    assert list(folder.files()) == ["cat", "dog"]
    ids = vllm.prefix_ids(dog, model)
    assert folder.starting([*ids, 5]).name == "dog"
    assert folder.starting(ids[:-1]) is None
    assert folder.starting(()) is None
    opened = []

    def noted(path):
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr("softlore.vllm_connector.files.read", noted)
    written(tmp_path, [owl.replace(name="again", tensor=cat.tensor)], model)
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    Path(tmp_path, "dog.safetensors").unlink()
    assert sorted(folder.files()) == ["again", "cat"]
    assert opened == ["again.safetensors", "bad.safetensors"]
    assert "is not a prefix file for the connector" in caplog.text
    assert folder.starting(ids) is None
    assert len(folder.named(["again", "cat", "dog"])) == 1  # one tensor under two names


def test_prompts_that_are_no_whole_blocks_stop_the_start(tmp_path):
    model = tiny_model("llama")
    written(tmp_path, prefixes(model), model)
    with pytest.raises(ValueError, match="expected a multiple of vLLM's block size, 64"):
        PrefixFolder(str(tmp_path), 64)
