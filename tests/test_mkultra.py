"""mkultra's names: what its notebooks do, they do here; where it had a bug, this has none."""

import base64
import gc
import json
import pickle
import weakref

import pytest
import torch

from running import save_tiny_model
from softlore import load_prompt
from softlore.errors import ContextError, PromptFileError, PromptMismatchError
from softlore.mkultra import (
    GPT2PromptTuningLM,
    GPT2SoftPromptLM,
    GPT2SPTokenizerFast,
    GPT2TokenizerFast,
    GPTJPromptTuningLM,
    GPTJSoftPromptLM,
    GPTNeoPromptTuningLM,
    GPTNeoSoftPromptLM,
    SoftPrompt,
)
from softlore.model.tiny import byte_tokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return GPT2SoftPromptLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return GPT2SPTokenizerFast.from_pretrained(folder)


@pytest.fixture
def tuned(folder):
    return GPT2PromptTuningLM.from_pretrained(folder)


def ids_of(tokenizer, text):
    return tokenizer(text, return_tensors="pt").input_ids


# tags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", " a b c d e f g"])
def test_a_tag_is_plain_text_of_as_many_tokens(model, tokenizer, text):
    sp = SoftPrompt.from_string(text, model=model, tokenizer=tokenizer)
    joined = "The " + sp + " ran"
    assert type(joined) is str
    assert joined == f"The {sp.get_tag_str()} ran"
    assert sp + "!" == sp.get_tag_str() + "!"
    assert len(sp) == len(text)
    assert len(tokenizer.encode(sp.get_tag_str())) == len(sp)
    assert len(tokenizer.encode(joined)) == len(sp) + len("The  ran")
    assert tokenizer.decode(tokenizer.encode(joined)) == joined


def test_a_tag_tells_its_prompt(model, tokenizer):
    sp = SoftPrompt.from_string("dog", model, tokenizer, {"name": "dog", "description": "A dog."})
    first, *rest = tokenizer.encode(sp.get_tag_str())
    assert SoftPrompt.from_input_id(first) is sp
    assert SoftPrompt.from_input_id(rest[0]) is None
    assert {first, *rest} <= set(SoftPrompt.get_special_token_ids())
    assert sp._unique_token_str() in SoftPrompt.get_special_token_strs()
    assert sp.get_metadata()["uuid"][:8] in sp.get_tag_str()
    assert str(sp).startswith("dog (")
    assert "Length: 3" in str(sp)
    assert "A dog." in str(sp)


def test_prompts_made_before_the_tokenizer_are_known_to_it(tmp_path):
    folder = save_tiny_model(tmp_path, "gpt2", n_embd=16)
    sp = SoftPrompt.from_inputs_embeds(torch.randn(4, 16), {"name": "early"})
    tokenizer = GPT2SPTokenizerFast.from_pretrained(folder)
    assert len(tokenizer.encode(sp.get_tag_str())) == 4
    assert (
        GPT2SoftPromptLM.from_pretrained(folder)(ids_of(tokenizer, sp + "a")).logits.shape[1] == 5
    )


# reading and writing ----------------------------------------------------------------------------


def test_tags_are_replaced_by_rows(model, tokenizer):
    sp = SoftPrompt.from_string(" 4 5 6", model=model, tokenizer=tokenizer)
    rows = model.replace_special_tokens(ids_of(tokenizer, " 1 2 3" + sp + " 7 8 9"))
    plain = ids_of(tokenizer, " 1 2 3 4 5 6 7 8 9")
    assert torch.equal(rows, model.get_input_embeddings()(plain))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "gemma2", "bloom", "ctrl"])
def test_a_prompt_made_of_text_is_that_text(tmp_path, family):
    folder = save_tiny_model(tmp_path, family)
    names = {"gpt_neo": GPTNeoSoftPromptLM, "gptj": GPTJSoftPromptLM}
    model = names.get(family, GPT2SoftPromptLM).from_pretrained(folder)
    tokenizer = GPT2SPTokenizerFast.from_pretrained(folder)
    sp = SoftPrompt.from_string(" brown fox", model=model, tokenizer=tokenizer)
    soft, plain = ids_of(tokenizer, "The" + sp + " ran"), ids_of(tokenizer, "The brown fox ran")
    soft_logits, plain_logits = model(soft).logits, model(plain).logits
    assert torch.allclose(soft_logits[:, -1], plain_logits[:, -1], atol=1e-5)
    for use_cache in (True, False):
        with_soft = model.generate(soft, use_cache=use_cache, **GREEDY)
        with_text = model.generate(input_ids=plain, use_cache=use_cache, **GREEDY)
        assert torch.equal(with_soft[:, soft.shape[1] :], with_text[:, plain.shape[1] :])


def test_no_placeholder_is_ever_written_and_no_weight_resized(model, tokenizer):
    sp = SoftPrompt.from_string("The quick brown fox", model=model, tokenizer=tokenizer)
    prompt = ids_of(tokenizer, sp + " jumps")
    before = model.get_input_embeddings().weight.shape
    output = model.generate(
        prompt,
        do_sample=True,
        temperature=50.0,
        top_k=0,
        repetition_penalty=1.7,
        no_repeat_ngram_size=2,
        bad_words_ids=[[3]],
        min_length=prompt.shape[1] + 40,
        max_length=prompt.shape[1] + 40,
        num_return_sequences=3,
        return_full_text=True,  # mkultra's notebooks give it, though it is a pipeline's
    )
    assert output.shape == (3, prompt.shape[1] + 40)
    banned = set(SoftPrompt.get_special_token_ids())
    assert not banned & set(output[:, prompt.shape[1] :].flatten().tolist())
    text = tokenizer.decode(output[0])
    assert text.count(sp._unique_token_str()) == 1
    assert text.count(SoftPrompt.GENERIC_SOFT_TOKEN_STR) == len(sp) - 1
    assert model(prompt).logits[..., sorted(banned)].isinf().all()
    assert model.get_input_embeddings().weight.shape == before


def test_the_pipeline(model, tokenizer):
    from transformers import pipeline

    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    sp = SoftPrompt.from_string("The quick brown fox", model=model, tokenizer=tokenizer)
    prompt = sp + " jumps over"
    length = len(tokenizer.encode(prompt))
    text = generator(
        prompt, do_sample=False, min_length=length + 4, max_length=length + 4, use_cache=True
    )[0]["generated_text"]
    plain = generator("The quick brown fox jumps over", return_full_text=False, **GREEDY)
    assert text.startswith(prompt)
    assert plain[0]["generated_text"].startswith(text.removeprefix(prompt))
    assert text.count(sp._unique_token_str()) == 1


def test_a_padded_batch_is_its_rows(model, tokenizer):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    sp = SoftPrompt.from_string("brown fox", model=model, tokenizer=tokenizer)
    texts = ["The " + sp + " ran", sp + " and then " + sp + " slept"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    output = model.generate(**batch, **GREEDY)
    for row, text in zip(output, texts, strict=True):
        ids = ids_of(tokenizer, text)
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
        assert torch.equal(row[batch.input_ids.shape[1] :], alone[0, ids.shape[1] :])


def test_labels_pass_over_tags(model, tokenizer):
    sp = SoftPrompt.from_string("fox", model=model, tokenizer=tokenizer)
    ids = ids_of(tokenizer, "The " + sp + " ran")
    labels = ids.clone()
    labels[:, 4:7] = -100
    assert torch.equal(model(ids, labels=ids.clone()).loss, model(ids, labels=labels).loss)


def test_what_cannot_be_read_is_refused(model, tokenizer):
    sp = SoftPrompt.from_string("brown fox", model=model, tokenizer=tokenizer)
    ids = ids_of(tokenizer, sp + "!")
    with pytest.raises(ContextError, match="only part of it"):
        model(ids[:, :5])
    with pytest.raises(ContextError, match="missing its first token"):
        model(ids[:, 2:])
    with pytest.raises(ContextError, match="neither a token"):
        model(torch.tensor([[9999]]))
    narrow = SoftPrompt.from_inputs_embeds(torch.zeros(2, 8))
    with pytest.raises(PromptMismatchError, match="8 wide"):
        model(ids_of(tokenizer, narrow + "!"))


def test_several_models_and_tokenizers_at_once(model, tokenizer, tmp_path):
    other = save_tiny_model(tmp_path, "llama", bos=True)
    other_tokenizer = GPT2SPTokenizerFast.from_pretrained(other)
    other_tokenizer.add_tokens(["[their own]"])  # so that ids differ from now on
    other_model = GPTNeoSoftPromptLM.from_pretrained(other)
    again = GPT2SPTokenizerFast.from_pretrained(tokenizer.name_or_path)
    sp = SoftPrompt.from_string(" fox", model=model, tokenizer=tokenizer)
    other_sp = SoftPrompt.from_string(" fox", model=other_model, tokenizer=other_tokenizer)
    assert torch.equal(ids_of(tokenizer, "a" + sp), ids_of(again, "a" + sp))
    for m, t, p in ((model, again, sp), (other_model, other_tokenizer, other_sp)):
        soft, plain = m(ids_of(t, "The" + p + "!")).logits, m(ids_of(t, "The fox!")).logits
        assert torch.allclose(soft[:, -1], plain[:, -1], atol=1e-5)
    assert len(other_sp) == 4  # no BOS among its rows


def test_the_registry_keeps_nothing_alive(tmp_path):
    folder = save_tiny_model(tmp_path, "gpt2", n_embd=8)
    own = byte_tokenizer()
    own.add_tokens(["[a vocabulary of its own]"])
    own.save_pretrained(folder)
    tokenizer = GPT2SPTokenizerFast.from_pretrained(folder)
    model = GPT2SoftPromptLM.from_pretrained(folder)
    text = SoftPrompt.from_string("a fox", model, tokenizer) + " ran"  # only its tag is kept
    assert torch.isfinite(model(ids_of(tokenizer, text)).logits[:, :, :9]).all()
    first = tokenizer.encode(text)[0]
    held = (model, tokenizer, model.vocabulary, model.vocabulary.prompts[first])
    gone = [weakref.ref(thing) for thing in held]
    del model, tokenizer, held
    gc.collect()
    assert [ref() for ref in gone[:3]] == [None] * 3


# files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 32), (1, 5, 32)])
def test_json_and_file_round_trips(tmp_path, shape):
    metadata = {"name": "Emma", "description": "An assassin", "step": 7, "loss": 2.5}
    sp = SoftPrompt.from_inputs_embeds(torch.randn(shape), metadata)
    sp.to_file(tmp_path / "emma.json")
    outer = json.loads(json.dumps({"more": 1, "sp": sp.to_json()}))
    for back in (SoftPrompt.from_json(outer["sp"]), SoftPrompt.from_file(tmp_path / "emma.json")):
        assert torch.equal(back.get_inputs_embeds(), sp.get_inputs_embeds())
        assert back.get_metadata().items() >= metadata.items()
        assert back.get_tag_str() == sp.get_tag_str()
    assert load_prompt(tmp_path / "emma.json").name == "Emma"
    assert len(sp.prompt) == 5


def test_metadata_is_made_where_there_is_none():
    metadata = SoftPrompt.from_inputs_embeds(torch.zeros(1, 4)).get_metadata()
    assert metadata["name"] == "Untitled"
    assert set(metadata) == {"name", "uuid", "description", "epoch"}


def test_mkultra_itself_can_read_what_is_written():
    sp = SoftPrompt.from_inputs_embeds(torch.randn(3, 4), {"name": "x"})
    data = json.loads(sp.to_json())
    tensor = pickle.loads(base64.b64decode(data["tensor"]))  # as mkultra does
    assert torch.equal(tensor, sp.get_inputs_embeds())
    assert data["metadata"]["uuid"] == sp.get_metadata()["uuid"]


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_no_pickle_is_ever_run(tmp_path):
    tensor = base64.b64encode(pickle.dumps(Trap())).decode()
    text = json.dumps({"metadata": {"name": "x"}, "tensor": tensor})
    (tmp_path / "trap.json").write_text(text)
    with pytest.raises(PromptFileError):
        SoftPrompt.from_json(text)
    with pytest.raises(PromptFileError):
        SoftPrompt.from_file(tmp_path / "trap.json")


def test_a_uuid_is_kept_unless_it_is_another_prompts():
    # mkultra compared each uuid with itself, so that every load got a new first.
    first = SoftPrompt.from_inputs_embeds(torch.zeros(2, 4), {"name": "x"})
    same = SoftPrompt.from_json(first.to_json())
    other = SoftPrompt.from_inputs_embeds(torch.ones(2, 4), first.get_metadata())
    assert same.get_metadata()["uuid"] == first.get_metadata()["uuid"]
    assert other.get_metadata()["uuid"] != first.get_metadata()["uuid"]
    assert other.get_tag_str() != first.get_tag_str()


def test_of_two_equal_prompts_the_tag_outlives_either(tmp_path):
    first = SoftPrompt.from_inputs_embeds(torch.zeros(2, 16), {"name": "twin"})
    SoftPrompt.from_json(first.to_json())  # gone at once
    gc.collect()
    tokenizer = GPT2SPTokenizerFast.from_pretrained(save_tiny_model(tmp_path, "gpt2", n_embd=16))
    assert len(tokenizer.encode(first.get_tag_str())) == 2


# tuning models ----------------------------------------------------------------------------------


def test_the_learned_embedding_stands_before_the_text(tuned, folder):
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    sp = SoftPrompt.from_string(" 1 2 3", model=tuned, tokenizer=tokenizer)
    tuned.set_soft_prompt(sp)
    full, rest = ids_of(tokenizer, " 1 2 3 4 5 6"), ids_of(tokenizer, " 4 5 6")
    rows = tuned._cat_learned_embedding_to_input(rest)
    assert torch.equal(rows, tuned.get_input_embeddings()(full))
    assert torch.equal(rows, tuned._cat_learned_embedding_to_input(rest[0]))
    labels = torch.cat([torch.full((1, len(sp)), -100), rest], dim=1)
    assert torch.equal(tuned._extend_labels(rest), labels)
    assert torch.equal(tuned._extend_labels(rest[0]), labels)
    mask = torch.tensor([[0] + [1] * 5])
    assert tuned._extend_attention_mask(mask).tolist() == [[1] * len(sp) + [0] + [1] * 5]
    output = tuned(rest, attention_mask=torch.ones_like(rest), labels=rest)
    plain = tuned(inputs_embeds=tuned.get_input_embeddings()(full), labels=labels)
    assert output.logits.shape[1] == full.shape[1]
    assert torch.allclose(output.loss, plain.loss, atol=1e-6)


@pytest.mark.parametrize("name", [GPT2PromptTuningLM, GPTNeoPromptTuningLM, GPTJPromptTuningLM])
def test_a_tuning_model_writes(name, folder, model, tokenizer):
    tuned = name.from_pretrained(folder)
    assert isinstance(tuned, name)
    tuned.set_soft_prompt(SoftPrompt.from_string("The quick", model, tokenizer))
    rest, full = ids_of(tokenizer, " brown fox"), ids_of(tokenizer, "The quick brown fox")
    expected = model.generate(full, do_sample=False, max_new_tokens=6)[:, full.shape[1] :]
    longest = rest.shape[1] + 6
    for use_cache in (True, False):
        output = tuned.generate(
            input_ids=rest,
            attention_mask=torch.ones_like(rest),
            do_sample=False,
            min_length=longest,
            max_length=longest,
            repetition_penalty=1.0,
            use_cache=use_cache,
        )
        assert torch.equal(output, torch.cat([rest, expected], dim=1))
    output = tuned.generate(rest, return_dict_in_generate=True, repetition_penalty=1.3, **GREEDY)
    assert torch.equal(output.sequences[:, : rest.shape[1]], rest)


def test_only_the_learned_embedding_learns(tuned):
    assert tuned.learned_embedding.shape == (20, 32)
    tuned.initialize_soft_prompt(n_tokens=7)
    assert torch.equal(tuned.learned_embedding, tuned.get_input_embeddings().weight[:7])
    assert [n for n, p in tuned.named_parameters() if p.requires_grad] == ["learned_embedding"]
    tuned.set_soft_prompt_embeds(torch.ones(1, 3, 32))
    assert tuned.learned_embedding.shape == (3, 32)
    with pytest.raises(PromptMismatchError, match="shape"):
        tuned.set_soft_prompt_embeds(torch.ones(3, 8))
    with pytest.raises(ContextError, match="not a token id"):
        tuned(torch.tensor([[9999]]))


def test_soft_params_are_taken_as_mkultra_gives_them(tuned):
    ids = torch.tensor([[5, 6, 7, 8]])
    for give in (lambda p: p, lambda p: [p]):
        optimizer = torch.optim.Adafactor(params=give(tuned.get_soft_params()), lr=0.1)
        before = tuned.learned_embedding.detach().clone()
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(tuned.get_soft_params(), before)
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    assert tuned.get_soft_params().shape == (20, 32)
    assert torch.equal(
        SoftPrompt.from_tuning_model(tuned).get_inputs_embeds(), tuned.learned_embedding
    )
