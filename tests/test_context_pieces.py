"""Context: joining, tags in text, and what it counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlore import Context, SoftPrompt
from softlore.errors import ContextError, UnknownPromptError
from softlore.prompts import TokenCount

DOG = SoftPrompt("dog", "embedding", torch.ones(3, 4))
CAT = SoftPrompt("Cat's-eye", "embedding", torch.ones(2, 4))
EMMA = SoftPrompt("Emma Zoë", "prefix", torch.ones(1, 2, 1, 7, 2))
PROMPTS = [DOG, CAT, EMMA]

# Text made of the very bits that tags are made of, so that near misses are common.
TAGGISH = st.lists(
    st.sampled_from(
        ["[", "]", "[[soft:", "soft:", "\\", "dog", "]]", " ", "\n", "ran", "[[soft:dog]]"]
    )
).map("".join)
TEXT = st.one_of(TAGGISH, st.text(max_size=20))
PIECES = st.lists(st.one_of(TEXT, st.sampled_from(PROMPTS)), max_size=8)


@given(PIECES)
def test_parse_gives_back_what_text_rendered(pieces: list[str | SoftPrompt]) -> None:
    context = Context(pieces)
    assert Context.parse(context.text, PROMPTS) == context
    assert Context.parse(context.text, {p.name: p for p in PROMPTS}) == context
    assert Context.parse(str(context), context.prompts) == context


@given(TEXT)
def test_rendering_gives_back_what_was_parsed(text: str) -> None:
    assert Context.parse(text, PROMPTS).text == text


@given(PIECES, PIECES)
def test_joining_is_of_the_pieces(
    left: list[str | SoftPrompt], right: list[str | SoftPrompt]
) -> None:
    joined = Context(left) + Context(right)
    assert joined == Context([*left, *right])
    for before, after in zip(joined.pieces, joined.pieces[1:], strict=False):
        assert not (isinstance(before, str) and isinstance(after, str))
    assert "" not in joined.pieces


def test_joins_from_both_sides() -> None:
    context = "Down " + ("the lane " + DOG + " came")
    assert context.pieces == ("Down the lane ", DOG, " came")
    assert (context + "!" + DOG).pieces == ("Down the lane ", DOG, " came!", DOG)
    assert (CAT + context).pieces == (CAT, "Down the lane ", DOG, " came")
    assert Context() + "a" == Context("a") == Context(Context("a"))
    assert Context().pieces == ()
    with pytest.raises(TypeError):
        context + 3
    with pytest.raises(TypeError):
        3 + context


def test_immutable_and_hashable() -> None:
    context = Context([DOG, "a"])
    assert {context: 1}[Context([DOG, "a"])] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.pieces = ()  # type: ignore[misc]


def test_parses_tags() -> None:
    text = "The [[soft:dog]] and [[soft: Emma Zoe\u0308 ]] met [[soft:dog]]"
    context = Context.parse(text, PROMPTS)
    assert context.pieces == ("The ", DOG, " and ", EMMA, " met ", DOG)
    assert context.prompts == (DOG, EMMA)
    assert repr(context) == ("Context('The ', '<dog>', ' and ', '<Emma Zoë>', ' met ', '<dog>')")


@pytest.mark.parametrize(
    "text",
    [
        "[[",
        "[[dog]]",
        "[[soft:dog]",
        "[[soft:]]",
        "[[soft: ]]",
        "[[soft:a:b]]",
        "[[soft:do\ng]]",
        "[[Soft:dog]]",
        "a[b[c]]",
        "soft:dog]]",
        "[[soft:" + "x" * 129 + "]]",
    ],
)
def test_lookalikes_stay_text(text: str) -> None:
    assert Context.parse(text, PROMPTS).pieces == (text,)


def test_brackets_around_a_tag_stay_text() -> None:
    assert Context.parse("[[[soft:dog]]]", PROMPTS).pieces == ("[", DOG, "]")
    assert Context.parse("[[soft:[[soft:dog]]]]", PROMPTS).pieces == ("[[soft:", DOG, "]]")


def test_backslash_makes_a_tag_mere_text() -> None:
    context = Context.parse(r"write [[soft:\dog]] for [[soft:dog]]", [DOG])
    assert context.pieces == ("write [[soft:dog]] for ", DOG)
    assert Context.parse(r"[[soft:\nobody]]", []).pieces == ("[[soft:nobody]]",)


@pytest.mark.parametrize(
    ("prompts", "name", "hint"),
    [
        (PROMPTS, "dgo", r"did you mean \[\[soft:dog\]\]\?"),
        (PROMPTS, "DOG", r"did you mean \[\[soft:dog\]\]\?"),
        (PROMPTS, "Zebra", "known: \"Cat's-eye\", 'Emma Zoë', 'dog'"),
        ([], "dog", "no prompts were given"),
    ],
)
def test_unknown_names_say_what_is_known(prompts: list[SoftPrompt], name: str, hint: str) -> None:
    with pytest.raises(UnknownPromptError, match=rf"\[\[soft:{name}\]\], .*{hint}"):
        Context.parse(f"The [[soft:{name}]] ran", prompts)


def test_two_prompts_of_a_name_are_refused() -> None:
    other = SoftPrompt("dog", "embedding", torch.zeros(3, 4))
    with pytest.raises(ContextError, match="two different prompts are named 'dog'"):
        DOG + other
    with pytest.raises(ContextError, match="two different prompts are named 'dog'"):
        Context.parse("[[soft:dog]]", [DOG, other])
    assert Context.parse("[[soft:dog]]", [DOG, DOG]).prompts == (DOG,)


def test_other_pieces_are_refused() -> None:
    with pytest.raises(ContextError, match="was given int 3; expected strings and soft prompts"):
        Context([3])  # type: ignore[list-item]


@pytest.mark.parametrize("cut", range(1, len("[[soft:dog]]")))
def test_half_tags_are_dropped_on_request(cut: int) -> None:
    text = "[[soft:dog]]"[cut:] + " ran to [[soft:dog]]"
    assert Context.parse(text, PROMPTS).pieces == (text.removesuffix("[[soft:dog]]"), DOG)
    assert Context.parse(text, PROMPTS, repair=True).pieces == (" ran to ", DOG)


@pytest.mark.parametrize("text", ["zebra]] ran", "[[soft:dog]] ran", "a dog]] ran", "ran", "dog]"])
def test_only_half_tags_are_dropped(text: str) -> None:
    repaired = Context.parse(text, PROMPTS, repair=True)
    assert repaired == Context.parse(text, PROMPTS)
    assert repaired.text == text


def test_prefixes_leave_the_body() -> None:
    context = "Down " + EMMA + "the lane " + DOG + EMMA
    assert context.prefixes == (EMMA,)
    assert context.body.pieces == ("Down the lane ", DOG)


class Characters:
    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_counts_tokens() -> None:
    context = "ab" + DOG + "c" + EMMA + "de" + DOG + EMMA
    count = context.token_count(Characters())
    assert count == TokenCount(text=5, embedding=6, prefix=7)
    assert (count.context, count.total) == (11, 18)
    assert Context().token_count(Characters()).total == 0
