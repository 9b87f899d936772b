"""Text as it comes: for any ids, tokenizer and chunking, the pieces joined are the whole text."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CTRLTokenizer, PreTrainedTokenizerFast

from softlore import FrozenModel, storyteller
from softlore.decode.detokenizer import Detokenizer
from softlore.model.loading import load_tokenizer
from softlore.model.tiny import byte_tokenizer, tiny_hf
from test_decode import spacing_tokenizer

TALE = "A dog, grey as ash, ran. ¿Qué? 漢字 and ✅ 😀 👩‍👩‍👧 — “naïve”…\nThe dog's tail\twagged! "
TEXTS = [" and on", "\n", "the", "😀", "✅", "é", "漢", "a\u0301", "👩‍👩‍👧", "  ", "'s", "\t—"]


def byte_level():
    """In the manner of GPT-2, Llama 3, Qwen and SmolLM2; some tokens are parts of characters."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    core.train_from_iterator([TALE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def gemma():
    """In the manner of Gemma: spaces are ▁, unknown characters are bytes, nothing is put before."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<eos>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    core.train_from_iterator([f" {word}" for word in TALE.split() if word.isascii()] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")


def unigram():
    """In the manner of XGLM: pieces of words without bytes."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in sorted(set(TALE) - set(" \n\t"))]
    core = Tokenizer(models.Unigram([*pieces, ("▁dog", -1.0), ("▁the", -1.0)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def words(folder):
    """CTRL's: a token is a word, or the beginning of one."""
    listed = ["<unk>", "the", "dog", "ran", ".", *(f"{c}@@" for c in "abcdefgh"), *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(listed)}))
    (folder / "merges.txt").write_text("#version\n")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


KINDS = {
    "bytes": byte_tokenizer,
    "byte-level": byte_level,
    "gemma": gemma,
    "llama 2": lambda: spacing_tokenizer(old=True),
    "mistral": lambda: spacing_tokenizer(old=False),
    "unigram": unigram,
    "storyteller": lambda: load_tokenizer(str(storyteller.path())),
}
FALLBACK = ("gemma", "llama 2", "mistral")
BYTES = (*FALLBACK, "bytes", "byte-level", "storyteller")


@functools.cache
def model_of(kind):
    """A tiny model with one of the tokenizers."""
    tokenizer = KINDS[kind]()
    return FrozenModel(tiny_hf("llama", vocab_size=len(tokenizer)), tokenizer)


def streamed(model, ids, stops=()):
    """The pieces of a text whose ids come one by one."""
    detokenizer, pieces = Detokenizer(model, stops), []
    for i in ids:
        pieces.append(detokenizer.add(i))
        if detokenizer.stopped_by is not None:
            return pieces
    return [*pieces, detokenizer.flush()]


def symbols(kind, data):
    """The ids of single bytes."""
    tokenizer = model_of(kind).tokenizer
    if kind in FALLBACK:
        return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    return [tokenizer.convert_tokens_to_ids(_symbol(byte)) for byte in data]


@functools.cache
def _symbol(byte):
    """The character that stands for a byte in byte-level tokenizers."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return chr(byte) if byte in shown else chr(256 + hidden.index(byte))


def ids_of(model):
    return st.lists(st.integers(0, len(model.tokenizer) - 1), max_size=90)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_the_pieces_are_the_whole(kind, data):
    model = model_of(kind)
    ids = data.draw(ids_of(model))
    whole = model.decode(ids, inside=True)
    assert "".join(streamed(model, ids)) == whole.replace("\ufffd", "")
    decoder, parts, at = model.decoder(), [], 0
    while at < len(ids):  # any chunks
        size = data.draw(st.integers(1, 9))
        parts.append(decoder.add(ids[at : at + size]))
        at += size
    assert "".join(parts) + decoder.flush() == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_the_whole_is_the_tokenizers_own(kind, data):
    """Where that has a text for all of the ids, after a word for them to continue."""
    model = model_of(kind)
    ids = data.draw(ids_of(model))
    word = list(model.tokenizer("a", add_special_tokens=False)["input_ids"])
    decode = functools.partial(model.tokenizer.decode, clean_up_tokenization_spaces=False)
    own = decode([*word, *ids])[len(decode(word)) :]
    if "\ufffd" not in own:
        assert model.decode(ids, inside=True) == own
        assert model.decode([*word, *ids]) == decode([*word, *ids])


@pytest.mark.parametrize("kind", BYTES)
@settings(max_examples=150)
@given(st.lists(st.sampled_from(TEXTS) | st.binary(min_size=1, max_size=5), max_size=40))
def test_characters_stay_beside_bytes_that_mean_nothing(kind, parts):
    model, ids, expected = model_of(kind), [], b""
    for part in parts:
        if isinstance(part, str):
            ids += model.encode(part, inside=True)
            expected += part.encode()
        else:
            ids += symbols(kind, part)
            expected += part
    text = expected.decode("utf-8", "ignore")
    assert "".join(streamed(model, ids)) == text
    assert model.decode(ids).replace("\ufffd", "").endswith(text.removeprefix(" "))


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("length", range(60, 68))
def test_a_character_of_several_tokens_begins_a_line_anywhere(kind, length):
    model = model_of(kind)
    newline, word = model.encode("\n", inside=True), model.encode("a", inside=True)
    ids = [*word * (length - len(newline)), *newline, *model.encode("😀 done", inside=True)]
    assert "".join(streamed(model, ids)) == "a" * (length - len(newline)) + "\n😀 done"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(data=st.data())
def test_a_stop_cuts_the_whole_where_it_is_first_complete(kind, data):
    model = model_of(kind)
    ids = data.draw(ids_of(model))
    whole = model.decode(ids, inside=True).replace("\ufffd", "")
    at = data.draw(st.integers(0, max(0, len(whole) - 1)))
    stop = whole[at : at + data.draw(st.integers(1, 4))]
    if stop:
        assert "".join(streamed(model, ids, [stop])) == whole[: whole.find(stop)]


@given(ids=st.lists(st.integers(1, 20), max_size=30))
def test_words_have_spaces_between_them(ids, tmp_path_factory):
    tokenizer = _words(tmp_path_factory)
    model = FrozenModel(tiny_hf("ctrl", vocab_size=len(tokenizer)), tokenizer)
    symbols = tokenizer.convert_ids_to_tokens(ids)
    expected = "".join(s[:-2] if s.endswith("@@") else s + " " for s in symbols)
    expected = f" {expected}".removesuffix(" ") if ids else ""
    assert "".join(streamed(model, ids)) == model.decode(ids, inside=True) == expected


_made = {}


def _words(factory):
    if not _made:
        _made["words"] = words(factory.mktemp("words"))
    return _made["words"]
