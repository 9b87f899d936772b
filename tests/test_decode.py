"""Writing on: how tokens are chosen, where writing stops, and that no text is lost or broken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softlore import FrozenModel, SoftPrompt, generate
from softlore.context import compose
from softlore.decode import OutputStream, Sampler, SamplingParams, Token, sample_ids
from softlore.errors import ConfigError, InputError
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

MODEL = tiny_model("llama")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def scripted(text, **settings):
    """The text of a model that writes `text`, a byte a token."""
    return written(MODEL, MODEL.encode(text), **settings)


def written(model, ids, stop=(), stream=False):
    output = OutputStream(model, [stop] if isinstance(stop, str) else stop, 80)
    pieces = []
    for i in ids:
        pieces.append(output.append(Token("", i)).text)
        if output.finish:
            break
    pieces += [token.text for token in output.flush()]
    pieces = [piece for piece in pieces if piece]
    assert "".join(pieces) == output.text
    return pieces if stream else output.text


# choosing ----------------------------------------------------------------------------------------


def draws(count=4000, **settings):
    """The share of each of six tokens in many draws."""
    chosen = Sampler(SamplingParams(**settings), seed=0)(LOGITS.expand(count, -1), [[]] * count)
    return torch.bincount(chosen, minlength=len(LOGITS)) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature):
    expected = (LOGITS / temperature).softmax(0)
    assert (draws(temperature=temperature, top_k=0) - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_k": 0}, 6),
        ({"top_k": 99}, 6),
        ({"top_k": 0, "top_p": 0.5}, 1),  # the likeliest token has 0.53
        ({"top_k": 0, "top_p": 0.6}, 2),
        ({"top_k": 0, "min_p": 0.2}, 3),  # the third has 0.22 of the first's chance
        ({"top_k": 2, "top_p": 0.99, "min_p": 0.01}, 2),
    ],
    ids=str,
)
def test_what_is_cut_off_is_never_drawn(settings, kept):
    shares = draws(temperature=1.0, **settings)
    expected = LOGITS[:kept].softmax(0)
    assert not shares[kept:].any()
    assert (shares[:kept] - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.0, "top_k": 0, "top_p": 0.1},
        {"temperature": 1e-40},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_greedy_in_every_way(settings):
    assert draws(count=50, **settings)[0] == 1
    greedy = generate(MODEL, "The dog", 12, temperature=0)
    assert generate(MODEL, "The dog", 12, **settings) == greedy


def test_the_penalty_falls_on_what_stands_in_the_rows_own_text():
    chooser = Sampler(SamplingParams(temperature=0, repetition_penalty=1.5))
    logits = torch.tensor([[1.0, 0.9, -1.0]] * 4)
    assert chooser(logits, [[], [0], [0, 1], [1, 2]]).tolist() == [0, 1, 0, 0]
    assert logits.tolist() == torch.tensor([[1.0, 0.9, -1.0]] * 4).tolist()


def test_the_penalty_changes_what_is_written():
    plain = generate(MODEL, "aaaa", 20, temperature=0)
    assert generate(MODEL, "aaaa", 20, temperature=0, repetition_penalty=1.0) == plain
    assert generate(MODEL, "aaaa", 20, temperature=0, repetition_penalty=50.0) != plain


def test_a_penalty_where_only_a_soft_prompt_stands():
    prompt = SoftPrompt.from_text("a dog", MODEL)
    assert generate(MODEL, prompt, 3, repetition_penalty=1.3, seed=0) is not None


def test_seeds_repeat_the_draws():
    told = [generate(MODEL, "The dog", 30, seed=seed, temperature=1.5) for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
    assert len({generate(MODEL, "The dog", 30, temperature=1.5) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a number from 0 to 100"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1; expected a whole number from 0"),
        ({"top_k": 2.5}, "top_k is 2.5; expected a whole number"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"stop": ""}, "stop is ''; expected strings of at least one character"),
        ({"stop": ["a", ""]}, "stop is"),
        ({"stop": [3]}, "stop is"),
        ({"stop": None}, "stop is None; expected strings"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected at least 1"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"banned": 5}, "banned is 5; expected token ids"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_settings_are_refused_at_once(settings, message, stream):
    with pytest.raises(ConfigError) as refused:
        generate(MODEL, "The dog", stream=stream, **settings)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("context", [None, 5, MODEL, [None], "a \ud800"], ids=str)
def test_what_is_no_context_is_refused(context):
    with pytest.raises(InputError, match="expected"):
        generate(MODEL, context, 1)


# where it ends -----------------------------------------------------------------------------------


def cut(text, stops):
    """What is left of a text that comes a character at a time: up to the first stop made whole."""
    for end in range(len(text) + 1):
        found = [at for at in (text[:end].find(stop) for stop in stops) if at >= 0]
        if found:
            return text[: min(found)]
    return text


CHARACTERS = st.sampled_from("ab\nc €é漢🐕\u0301")


@given(st.text(CHARACTERS, max_size=25), st.lists(st.text(CHARACTERS, min_size=1, max_size=4)))
@settings(max_examples=300)
def test_stops_are_found_across_tokens_and_no_stop_is_told(text, stops):
    expected = cut(text, stops)
    pieces = scripted(text, stop=stops, stream=True)
    assert "".join(pieces) == expected
    assert all(pieces)
    assert scripted(text, stop=stops) == expected


def test_one_stop_may_be_given_by_itself():
    assert scripted("He ran.\nShe", stop="\nS") == "He ran."
    assert scripted("He ran.\nShe", stop=["\n", "."]) == "He ran"
    assert scripted("He ran.\nShe", stop="no") == "He ran.\nShe"


def test_text_is_told_as_soon_as_it_is_sure():
    assert scripted("ab-c", stop="-->", stream=True) == ["a", "b", "-c"]
    assert scripted("a--", stop="-->", stream=True) == ["a", "--"]
    assert scripted("é漢", stream=True) == ["é", "漢"]


def test_no_broken_characters():
    euro = MODEL.encode("€")
    assert written(MODEL, euro[:2]) == ""  # the last character was not finished
    assert written(MODEL, MODEL.encode("a") + euro[:2]) == "a"
    assert written(MODEL, euro[:1] + MODEL.encode("b") + euro, stream=True) == ["b", "€"]
    assert written(MODEL, euro[1:] * 9 + MODEL.encode("ok")) == "ok"


@given(st.lists(st.integers(1, 256), max_size=30))
def test_any_bytes_make_whole_characters(ids):
    text = written(MODEL, ids)
    assert "\ufffd" not in text
    assert "".join(written(MODEL, ids, stream=True)) == text
    assert text == MODEL.decode(ids).replace("\ufffd", "")


def test_the_models_own_end():
    end = MODEL.tokenizer.eos_token_id
    assert MODEL.eos_ids == {end}
    assert written(MODEL, [*MODEL.encode("The end"), end, *MODEL.encode("no")]) == "The end"
    hf = tiny_hf("llama")
    hf.generation_config.eos_token_id = [5, 6]
    model = FrozenModel(hf, byte_tokenizer())
    assert model.eos_ids == {0, 5, 6}
    assert written(model, [70, 6, 71]) == model.decode([70])


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_the_contexts_end(kind):
    prompt = SoftPrompt.from_text("a dog", MODEL, kind=kind)
    limit = MODEL.context_length
    for left in (0, 1, 5):
        context = prompt + "x" * (limit - len(prompt) - left)
        (new,) = sample_ids(MODEL, [(compose(MODEL, context), [])], SamplingParams(), 80)
        assert len(new) == left + 1  # the last one is never run
    assert isinstance(generate(MODEL, context, 80), str)


def test_each_text_of_a_batch_ends_by_itself():
    trees = [compose(MODEL, text) for text in ("x" * (MODEL.context_length - 3), "x", "y")]
    new = sample_ids(MODEL, [(tree, []) for tree in trees], SamplingParams(), [80, 80, 9])
    assert list(map(len, new)) == [4, 80, 9]


# streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_whole_in_pieces(seed):
    settings = {"seed": seed, "temperature": 1.0, "stop": ["e", "\n"]}
    pieces = list(generate(MODEL, "The dog", 60, stream=True, **settings))
    assert "".join(pieces) == generate(MODEL, "The dog", 60, **settings)


def test_streams_do_not_mix_and_leave_gradients_alone():
    whole = generate(MODEL, "The dog", 10, temperature=0)
    streams = [generate(MODEL, text, 10, temperature=0, stream=True) for text in ("The dog", "A")]
    told = ""
    for pieces in zip(*streams, strict=False):
        assert torch.is_grad_enabled()
        told += pieces[0]
    assert whole.startswith(told)


# tokenizers that put a space before every text ---------------------------------------------------

TALE = "Down the lane came a dog, and he barked at the moon. The dog's tail wagged!\n"


def spacing_tokenizer(old):
    """In the manner of Llama 2 and Mistral, or of Llama 2 as it was first converted."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if old:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        core.normalizer = normalizers.Sequence(steps)
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    core.train_from_iterator([word + " " for word in TALE.split()] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(params=[False, True], ids=["metaspace", "prepend"], scope="module")
def spacing(request):
    hf = tiny_hf("llama")
    hf.resize_token_embeddings(400, mean_resizing=False)
    return FrozenModel(hf, spacing_tokenizer(request.param))


@pytest.mark.parametrize("text", ["the dog", " the dog", "'s", "\nThe", " ", "€ 漢", "\n\n", ""])
def test_text_that_goes_on_keeps_the_spaces_it_has(spacing, text):
    ids = spacing.encode(text, inside=True)
    assert spacing.decode(ids, inside=True) == text
    assert spacing.decode(spacing.encode("dog") + ids) == "dog" + text


def test_pieces_after_the_first_go_on(spacing):
    prompt = SoftPrompt.from_text("dog", spacing)
    nodes = compose(spacing, "The " + prompt + "'s tail").nodes
    assert spacing.decode(nodes[0].content) == "The "
    assert nodes[2].content == spacing.encode("'s tail", inside=True)
    assert len(nodes[2].content) < len(spacing.encode("'s tail"))


def test_what_is_written_begins_with_its_space(spacing):
    ids = spacing.encode(" barked at €", inside=True)
    assert written(spacing, ids) == " barked at €"
    assert "".join(written(spacing, ids, stream=True)) == " barked at €"


@pytest.mark.parametrize("text", ["the dog", " the dog", "\n\n dog", "🐕"])
def test_byte_tokens_are_the_same_inside_and_outside(text):
    assert MODEL.encode(text, inside=True) == MODEL.encode(text)
    assert MODEL.decode(MODEL.encode(text), inside=True) == text
