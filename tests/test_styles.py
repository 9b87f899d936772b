"""Authoring styles: blocks made from an entry's text, and training on them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import save_tiny_model, softlore
from softlore import PromptLibrary, SoftPrompt, WorldInfoTrainer, generate
from softlore.errors import ConfigError
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.styles import STYLES, blocks_of, style_blocks, with_blocks
from softlore.model.tiny import tiny_model

ADA = Entry(
    name="Ada",
    keys=["Ada"],
    text="Ada wears a long red coat. Her hair is white as snow. She speaks very fast. Hush!",
)


def pairs(style, entry=ADA):
    return [(b.call, r) for b in style_blocks(entry, style) for r in b.responses]


def test_noun_names_the_subject_and_cuts_after_the_verb():
    assert pairs("noun") == [
        ("Ada wears a", " long red coat."),
        ("Ada's hair is", " white as snow."),
        ("Ada speaks", " very fast."),
    ]


def test_pronoun_names_it_in_a_line_before():
    found = pairs("pronoun")
    assert [response for _, response in found] == [
        " long red coat.",
        " white as snow.",
        " very fast.",
    ]
    for (call, _), verb in zip(found, ("She wears a", "Her hair is", "She speaks"), strict=True):
        assert call.endswith(" " + verb)
        assert call.count("Ada") == 1


def test_mixed_is_both():
    assert pairs("mixed") == pairs("noun") + pairs("pronoun")


def test_sentences_style_has_uncut_sentences():
    found = dict.fromkeys(response for _, response in pairs("sentences"))
    assert list(found) == [
        " Ada wears a long red coat.",
        " Her hair is white as snow.",
        " She speaks very fast.",
    ]


def test_clouds_hold_keywords_of_the_lore():
    for call, response in pairs("cloud"):
        assert call == "Ada:"
        words = response.strip(" .").split(", ")
        assert set(words) <= {
            "wears",
            "red",
            "coat",
            "hair",
            "white",
            "snow",
            "speaks",
            "fast",
            "hush",
        }
        assert len(set(words)) == len(words)


def test_implicit_shows_each_fact_after_lines_of_story():
    found = pairs("implicit")
    assert len(found) == 9
    for call, response in found:
        assert "Ada" in call
        assert response.strip() in {
            "She wears a long red coat.", "Her hair is white as snow.", "She speaks very fast.",
        }  # fmt: skip


def test_bracketed_is_noun_in_brackets():
    assert pairs("bracketed")[0] == ("Ada wears a", " [long red coat.]")


@pytest.mark.parametrize("style", list(STYLES))
@given(text=st.text(max_size=200).filter(str.strip))
def test_any_text_gives_blocks_or_none(style, text):
    entry = Entry(name="Ada", text=text)
    first = style_blocks(entry, style)
    assert first == style_blocks(entry, style)
    calls = [block.call for block in first]
    assert len(set(calls)) == len(calls)
    assert all(r.strip() for block in first for r in block.responses)


def test_a_text_alone_makes_blocks_by_itself():
    assert blocks_of(ADA, "auto") == style_blocks(ADA, "implicit")
    assert blocks_of(ADA, "none") == []
    own = ADA.model_copy(update={"blocks": [Block(call="Ada wore", responses=[" red."])]})
    assert blocks_of(own, "auto") == blocks_of(own, "noun") == own.blocks


@pytest.mark.parametrize(
    "text",
    [
        "Ada trägt einen langen roten Mantel. Sie spricht sehr schnell.",
        "エイダは長い赤いコートを着ている。彼女はとても早口だ。",
        " ".join(f"In the house of Ada there is a room with the number {n}." for n in range(99)),
        "...",
    ],
    ids=["German", "Japanese", "long", "no words"],
)
def test_other_texts_are_distilled_alone(text):
    assert blocks_of(Entry(name="Ada", text=text), "auto") == []


def test_a_corpus_and_a_hard_prompt_make_no_blocks_of_their_text():
    model = tiny_model()
    for source in ({"corpus": {"Ada": ADA.text}}, {"conditionings": {"Ada": ADA.text}}):
        trainer = WorldInfoTrainer(model, max_steps=1, **source)
        assert trainer.config.style == "none"
    assert WorldInfoTrainer(model, entries=[ADA]).config.style == "auto"


def test_an_unknown_style():
    with pytest.raises(ConfigError, match="did you mean 'noun'"):
        style_blocks(ADA, "nuon")
    with pytest.raises(ConfigError, match="did you mean 'noun'"):  # even if none is needed
        with_blocks(Lorebook(name="empty", entries=[]), "nuon")
    with pytest.raises(ConfigError, match="style is 'nuon'"):
        WorldInfoTrainer(tiny_model(), entries=[ADA], style="nuon")


def test_training_in_a_style(tmp_path):
    lore = {"name": "town", "entries": [{"name": "Ada", "text": ADA.text}]}
    (tmp_path / "lore.json").write_text(json.dumps(lore))
    model = save_tiny_model(tmp_path / "model")
    ended = softlore(
        "train", tmp_path / "lore.json", "--model", model, "--out", tmp_path / "out",
        "--style", "bracketed", "--distil-weight", "0", "--max-steps", "3", "--json", "-",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "last_response" in json.loads(ended.out)["trained"][0]["metrics"]
    prompt = PromptLibrary(tmp_path / "out")["Ada"]
    assert prompt.training["style"] == "bracketed"


def test_a_prompt_that_was_bracketed_writes_no_brackets():
    model = tiny_model("llama")
    plain = SoftPrompt.from_text("[[[]]] [", model, name="ada", kind="prefix")
    bracketed = plain.replace(training={"style": "bracketed"})
    shown = []
    for seed in range(6):
        drawn = {"temperature": 3.0, "top_k": 0, "seed": seed}
        shown += set("[]") & set(generate(model, plain + "Ada [", 100, **drawn))
        assert not set("[]") & set(generate(model, bracketed + "Ada [", 100, **drawn))
    assert shown


def test_compare_styles(tmp_path):
    lore = {"name": "town", "entries": [
        {"name": "Ada", "text": ADA.text, "blocks": [["Ada wears", " a red coat"]]},
    ]}  # fmt: skip
    (tmp_path / "lore.json").write_text(json.dumps(lore))
    ended = softlore(
        "compare", tmp_path / "lore.json", "--styles", "--model", save_tiny_model(tmp_path / "m"),
        "--seeds", "1", "--time-budget", "1", "--distances", "0", "--stories", "1",
        "--story-tokens", "4", "--html", tmp_path / "page.html", "--json", "-",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    total = json.loads(ended.out)["total"]
    assert list(total) == ["nothing", *STYLES, "distilled", "own calls"]
    assert all(figures["recall_0"]["mean"] > 0 for figures in total.values())
