"""SoftPrompt: names, tensors, metadata, and prompts made from text."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from softlore import Context, SoftPrompt
from softlore.errors import PromptError


class TinyModel:
    """One token a character; rows and keys that tell which token, layer and head they are of."""

    name = "tiny"
    tokenizer_fingerprint = "sha256:tiny"

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def embed_ids(self, ids: Tensor) -> Tensor:
        assert ids.dtype == torch.int64
        return torch.stack([ids.float(), ids.float() / 2], dim=1).requires_grad_()

    def keys_values(self, ids: list[int], n_tokens: int | None = None) -> Tensor:
        ids = ids[-(n_tokens or len(ids)) :]
        place = torch.arange(3 * 2 * 2).reshape(3, 2, 2, 1, 1) * 1000.0
        return place + torch.tensor(ids).reshape(1, 1, 1, -1, 1).expand(3, 2, 2, -1, 4)

    def fingerprint(self, kind: str) -> dict[str, object]:
        return {"of": kind}


def embedding(name: str = "dog", rows: int = 3, **fields: object) -> SoftPrompt:
    tensor = torch.arange(rows * 4, dtype=torch.float32).reshape(rows, 4)
    return SoftPrompt(name, "embedding", tensor, **fields)  # type: ignore[arg-type]


def prefix(name: str = "Emma", tokens: int = 5) -> SoftPrompt:
    return SoftPrompt(name, "prefix", torch.ones(3, 2, 1, tokens, 4))


def test_embeddings_and_key_values_are_for_their_kind_only() -> None:
    assert embedding().embeddings.shape == (3, 4)
    assert prefix().key_values.shape == (3, 2, 1, 5, 4)
    assert (len(embedding()), len(prefix())) == (3, 5)
    with pytest.raises(PromptError, match=r"'dog' is of the embedding kind; .* \.embeddings"):
        embedding().key_values  # noqa: B018
    with pytest.raises(PromptError, match=r"'Emma' is of the prefix kind; .* \.key_values"):
        prefix().embeddings  # noqa: B018


def test_shown_as_tag_and_described() -> None:
    assert str(embedding()) == "[[soft:dog]]"
    assert f"The {embedding()} ran" == "The [[soft:dog]] ran"
    assert repr(embedding(base_model="gpt2")) == (
        "SoftPrompt('dog', embedding, 3 tokens, 3×4, for 'gpt2')"
    )


def test_tensor_is_an_own_float32_copy() -> None:
    given = torch.ones(4, 3, dtype=torch.float64, requires_grad=True).T
    prompt = SoftPrompt("dog", "embedding", given)
    with torch.no_grad():
        given.zero_()
    assert prompt.tensor.dtype == torch.float32
    assert prompt.tensor.is_contiguous()
    assert not prompt.tensor.requires_grad
    assert prompt.tensor.eq(1).all()


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedding().name = "cat"  # type: ignore[misc]


def test_equal_by_content() -> None:
    prompt = embedding(uuid="u", created="")
    assert prompt == embedding(uuid="u", created="")
    assert hash(prompt) == hash(embedding(uuid="u", created=""))
    assert prompt != prompt.replace(name="cat")
    assert prompt != prompt.replace(metrics={"recall": 1.0})
    assert prompt != prompt.replace(tensor=prompt.tensor + 1)
    assert prompt != "[[soft:dog]]"


@pytest.mark.parametrize(
    "name", ["dog", "Emma's house", "R2-D2", "St. Ives", "Zoë", "犬", "a_b", "हिन्दी", "x" * 128]
)
def test_names_that_serve(name: str) -> None:
    assert embedding(name).name == name


def test_names_are_composed() -> None:
    assert embedding("Zoe\u0308").name == "Zo\u00eb"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("...", "no letter or digit"),
        (" dog", "begins or ends with a space"),
        ("dog ", "begins or ends with a space"),
        ("a]b", "holds ']'"),
        ("a[b", r"holds '\['"),
        ("a:b", "holds ':'"),
        ("a/b", "holds '/'"),
        ("a\\b", "holds"),
        ("a\nb", "holds"),
        ("a\u200bb", "holds"),
        ("a\ud800", "holds"),
        ("x" * 129, "129 characters long"),
        (7, "a string; got int 7"),
    ],
)
def test_names_that_do_not(name: object, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        SoftPrompt(name, "embedding", torch.ones(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "tensor", "why"),
    [
        ("suffix", torch.ones(1, 2), "kind 'suffix' is unknown"),
        ("embedding", [[1.0]], "given list; expected a torch.Tensor"),
        ("embedding", torch.ones(2, 2, dtype=torch.int64), "int64; expected floating point"),
        ("embedding", torch.ones(3), "1 axes; expected 2"),
        ("embedding", torch.ones(0, 4), "0 for n_tokens; expected 1 to 2047"),
        ("embedding", torch.ones(2048, 1), "2048 for n_tokens"),
        ("embedding", torch.ones(2, 0), "0 for width"),
        ("prefix", torch.ones(3, 4), "2 axes; expected 5"),
        ("prefix", torch.ones(3, 3, 1, 5, 4), "3 for key and value; expected 2 to 2"),
        ("prefix", torch.ones(3, 2, 1, 2048, 1), "2048 for n_tokens"),
        ("embedding", torch.tensor([[1.0, float("nan")]]), "1 values of 2 that are NaN"),
        ("embedding", torch.tensor([[1.0, float("inf")]]), "NaN or infinite"),
        ("embedding", torch.tensor([[1e300]], dtype=torch.float64), "infinite in float32"),
    ],
)
def test_tensors_that_do_not_serve(kind: str, tensor: object, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        SoftPrompt("dog", kind, tensor)  # type: ignore[arg-type]


def test_a_tensor_too_large_is_refused_by_its_shape() -> None:
    huge = torch.ones(1).expand(1024, 2, 1024, 2000, 1)  # takes no memory
    with pytest.raises(PromptError, match="bytes in float32; expected at most 2,147,483,648"):
        SoftPrompt("dog", "prefix", huge)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("author", None, "author is NoneType None; expected a string"),
        ("description", "\udc80", "lone surrogate"),
        ("created", "yesterday", "expected ISO 8601 in UTC"),
        ("created", "2026-01-01T00:00:00", "expected ISO 8601 in UTC"),
        ("created", "2026-01-01T00:00:00+02:00", "expected ISO 8601 in UTC"),
        ("training", [1], "training is list; expected a dict"),
        ("training", {"seed": {1}}, "training cannot be stored as JSON"),
        ("training", {1: 2}, "a key of training is int"),
        ("training", {"a": "\ud800"}, "lone surrogate"),
        ("metrics", {"loss": float("nan")}, "metrics cannot be stored as JSON"),
        ("metrics", {"loss": torch.ones(1)}, "metrics cannot be stored as JSON"),
        ("extra", {"name": "cat"}, "'name', a key of the format itself"),
        ("extra", {"a": 1}, "expected a string"),
        ("extra", [], "extra is list"),
    ],
)
def test_metadata_that_a_file_could_not_hold(field: str, value: object, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        embedding(**{field: value})


def test_metadata_nested_too_deep() -> None:
    deep: dict[str, object] = {}
    for _ in range(15):
        deep = {"a": deep}
    embedding(training=deep)
    with pytest.raises(PromptError, match="more than 16 deep"):
        embedding(training={"a": deep})


def test_metadata_is_copied_and_reads_as_from_a_file() -> None:
    training = {"betas": (0.9, 0.99)}
    prompt = embedding(training=training)
    training["seed"] = (1,)
    assert prompt.training == {"betas": [0.9, 0.99]}


def test_from_text_keeps_every_token() -> None:
    prompt = SoftPrompt.from_text("abc", TinyModel(), name="dog", author="me")
    assert prompt.embeddings.tolist() == [[97, 48.5], [98, 49], [99, 49.5]]
    assert (prompt.base_model, prompt.tokenizer_fingerprint) == ("tiny", "sha256:tiny")
    assert (prompt.fingerprint, prompt.author) == ({"of": "embedding"}, "me")
    assert prompt.data_hash.startswith("sha256:ba7816bf")
    assert not prompt.embeddings.requires_grad


def test_from_text_as_prefix() -> None:
    prompt = SoftPrompt.from_text("abcde", TinyModel(), kind="prefix", n_tokens=3)
    assert prompt.key_values.shape == (3, 2, 2, 3, 4)
    assert prompt.key_values[0, 0, 0, :, 0].tolist() == [99, 100, 101]
    assert prompt.key_values[2, 1, 1, :, 3].tolist() == [11099, 11100, 11101]
    assert prompt.fingerprint == {"of": "prefix"}


@pytest.mark.parametrize(
    ("n_tokens", "expected"), [(1, "f"), (2, "aj"), (3, "afj"), (4, "adgj"), (10, "abcdefghij")]
)
def test_from_text_takes_evenly_spaced_places(n_tokens: int, expected: str) -> None:
    prompt = SoftPrompt.from_text("abcdefghij", TinyModel(), n_tokens=n_tokens)
    assert "".join(chr(int(row[0])) for row in prompt.embeddings) == expected


@pytest.mark.parametrize("n_tokens", [0, -1, 4])
def test_from_text_refuses_other_counts(n_tokens: int) -> None:
    with pytest.raises(PromptError, match=f"n_tokens is {n_tokens}, but the text has 3"):
        SoftPrompt.from_text("abc", TinyModel(), n_tokens=n_tokens)


def test_from_text_refuses_no_text() -> None:
    with pytest.raises(PromptError, match="has no tokens"):
        SoftPrompt.from_text("", TinyModel())


def test_adding_makes_a_context() -> None:
    dog, emma = embedding(), prefix()
    assert "The " + dog + " ran" == Context(["The ", dog, " ran"])
    assert dog + emma == Context([dog, emma])
    assert dog + ("a" + emma) == Context([dog, "a", emma])
    for wrong in (lambda: dog + 3, lambda: 3 + dog, lambda: dog + None):
        with pytest.raises(TypeError):
            wrong()
