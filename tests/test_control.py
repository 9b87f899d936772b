"""Control codes: found, written under, and whose a text is."""

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CTRLTokenizer, RepetitionPenaltyLogitsProcessor

from running import save_tiny_model, softlore
from softlore import FrozenModel, SoftPrompt, WorldInfoTrainer, generate, logits
from softlore.control import Code, attribute, codes_of, find_codes
from softlore.decode.samplers import PenalizedLogitsProcessor
from softlore.errors import (
    ConfigError,
    ContextError,
    ContextOverflowError,
    LoreError,
    ModelError,
    UnknownPromptError,
)
from softlore.lore.corpora import holds_corpora, read_corpora
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

CTRL_FILES = Path(__file__).parent.parent.parent / "shared" / "data" / "ctrl"


@pytest.fixture(scope="module")
def storyteller():
    return FrozenModel.from_pretrained("storyteller")


@pytest.fixture(scope="module")
def ctrl(tmp_path_factory):
    """A tiny CTRL whose own small tokenizer knows three of the codes."""
    words = ["<unk>", "Horror", "Wikipedia", "Links", "the", "old", "house", "was", "http://x", "."]
    words += [f"{letter}@@" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder = tmp_path_factory.mktemp("ctrl")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges = []
    for word in words[1:9]:  # a merge a letter, so that each word becomes one token
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = [parts[0] + parts[1]]
    (folder / "merges.txt").write_text("\n".join(["#version", *dict.fromkeys(merges), ""]))
    tokenizer = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.control_codes = {"Horror": 1, "Wikipedia": 2, "Links": 3, "Books": 6665}
    hf = tiny_hf("ctrl", n_positions=32, vocab_size=len(words))
    return FrozenModel(hf, tokenizer, "tiny-ctrl")


@pytest.fixture(scope="module")
def real_ctrl():
    """A tiny CTRL with the real tokenizer of 246,534 words."""
    if not CTRL_FILES.exists():
        pytest.skip("needs ../shared/data/ctrl")
    files = [str(CTRL_FILES / name) for name in ("ctrl-vocab.json", "ctrl-merges.txt")]
    tokenizer = CTRLTokenizer(*files)
    hf = tiny_hf("ctrl", vocab_size=len(tokenizer), n_positions=32)
    return FrozenModel(hf, tokenizer, "tiny-ctrl")


# which codes there are ---------------------------------------------------------------------------


def test_storyteller_names_its_codes(storyteller):
    codes = codes_of(storyteller)
    assert list(codes) == sorted(
        "Adventure Detective Fairytale Horror Humor Quest Romance SciFi".split()
    )
    for name, code in codes.items():
        assert code.conditioning == f"<|{name}|>"
        assert storyteller.encode(code.conditioning) == [code.token]


def test_ctrl_has_its_fifty_five(real_ctrl):
    codes = codes_of(real_ctrl)
    assert len(codes) == 55
    assert codes["Horror"] == Code("Horror", "Horror", "{code} Title: {title} Text: {text}", 37793)
    assert codes["Questions"].template == "{code} Q: {question} A: {answer}"
    for code in codes.values():
        assert real_ctrl.encode(code.conditioning) == [code.token]


def test_a_model_without_codes():
    assert codes_of(tiny_model("gpt2")) == {}
    with pytest.raises(ConfigError, match="no control codes"):
        find_codes(tiny_model("gpt2"), [], {})


@pytest.mark.parametrize(
    "wrong", [{"A": 9999}, {"A": -1}, {"A": True}, {"A": "1"}, {5: 3}, ["A"], {"A": 0.5}, "A"]
)
def test_a_config_that_names_wrong_codes_is_refused(wrong):
    hf = tiny_hf("gpt2")
    hf.config.control_codes = wrong
    model = FrozenModel(hf, byte_tokenizer(), "wrong")
    with pytest.raises(ModelError, match="control_codes in the config"):
        codes_of(model)


def test_codes_are_found_by_name(storyteller):
    ghost = SoftPrompt.from_text("a ghost", storyteller, name="ghost")
    found = find_codes(storyteller, ["Horror", "ghost"], {"ghost": ghost})
    assert found["ghost"].conditioning is ghost
    with pytest.raises(UnknownPromptError, match=r"'Horor' is neither .* did you mean 'Horror'"):
        find_codes(storyteller, ["Horor"], {})


# whose a text is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neo", "bloom", "gemma2"])
@pytest.mark.parametrize("kind", ["text", "embedding", "prefix"])
@pytest.mark.parametrize("bos", [False, True])
def test_attribution_is_bayes_rule_over_plain_logits(family, kind, bos):
    model = tiny_model(family, bos=bos)
    text, conditionings = "The house was old.", ["A tale: ", "News"]
    codes = {}
    for conditioning in conditionings:
        soft = kind != "text"
        made = (
            SoftPrompt.from_text(conditioning, model, name=conditioning[0], kind=kind)
            if soft
            else conditioning
        )
        codes[conditioning] = Code(conditioning, made)
    ids = model.encode(text, inside=True)
    skipped = 1 if kind == "prefix" and not bos else 0
    expected = {}
    for conditioning, code in codes.items():
        logp = logits(
            model, "" + code.conditioning + text if kind != "text" else conditioning + text
        )
        logp = logp.log_softmax(-1)
        rows = logp[len(logp) - len(ids) - 1 + skipped : -1]
        expected[conditioning] = -float(rows[range(len(rows)), ids[skipped:]].sum())
    found = attribute(model, text, codes, {"A tale: ": 3, "News": 1})
    weights = {
        h: math.exp(-expected[h]) * {"A tale: ": 0.75, "News": 0.25}[h] for h in conditionings
    }
    assert [one.code for one in found] == sorted(
        conditionings, key=lambda conditioning: -weights[conditioning]
    )
    for one in found:
        assert one.nll == pytest.approx(expected[one.code], abs=1e-3)
        assert one.perplexity == pytest.approx(math.exp(one.nll / (len(ids) - skipped)), rel=1e-5)
        share = weights[one.code] / sum(weights.values())
        assert one.posterior == pytest.approx(share, abs=1e-4)


def test_a_long_text_is_read_in_windows_each_after_the_code():
    model = tiny_model("gpt2")  # reads 256
    codes = {name: Code(name, name) for name in ("One: ", "Two: ")}
    text = "".join(f"{i} sheep went over the bridge. " for i in range(30))
    ids = model.encode(text)
    assert len(ids) > 3 * 251
    size = -(-len(ids) // 4)
    parts = [model.decode(ids[at : at + size]) for at in range(0, len(ids), size)]
    whole = {one.code: one.nll for one in attribute(model, text, codes)}
    by_part = [{one.code: one.nll for one in attribute(model, part, codes)} for part in parts]
    for name in codes:
        assert whole[name] == pytest.approx(sum(part[name] for part in by_part), rel=1e-4)


def test_many_codes_at_once_are_each_what_they_are_alone(monkeypatch):
    model = tiny_model("llama")
    codes = {letter: Code(letter, letter * (1 + i % 3)) for i, letter in enumerate("abcdefghij")}
    text = "It was late, and nobody came."
    together = {one.code: one.nll for one in attribute(model, text, codes)}
    monkeypatch.setattr("softlore.control.attribution.TOKENS_AT_ONCE", 70)
    monkeypatch.setattr("softlore.measure.losses.LOGITS_AT_ONCE", 7 * model.vocab_size)
    for name, code in codes.items():
        assert attribute(model, text, {name: code})[0].nll == pytest.approx(together[name], 1e-5)
    apart = {one.code: one.nll for one in attribute(model, text, codes)}
    assert apart == pytest.approx(together, rel=1e-5)


def test_what_cannot_be_attributed_is_refused():
    model = tiny_model("llama")
    codes = {"a": Code("a", "a"), "b": Code("b", "b")}
    with pytest.raises(ContextError, match="0 tokens; expected at least 1"):
        attribute(model, "", codes)
    for prior in ({"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": math.inf}, {"a": 1, "b": math.nan}):
        with pytest.raises(ConfigError, match="the prior of code 'b'"):
            attribute(model, "x", codes, prior)
    with pytest.raises(ContextOverflowError, match="use a shorter code"):
        attribute(model, "x", {"a": Code("a", "a" * 255)})


def test_storyteller_tells_a_quest_from_a_tale(storyteller):
    quest = (
        "You are standing in the great hall. Long tables stand under torn banners. You see a lamp "
        "and an iron key here. Ways lead north and down from here.\n> take iron key\nTaken.\n"
        "> go north\nYou are in the kitchen. Copper pots hang in rows. A path leads south."
    )
    tale = "Once upon a time there was a King who had three daughters, and the youngest was fair."
    codes = codes_of(storyteller)
    assert attribute(storyteller, quest, codes)[0].code == "Quest"
    assert attribute(storyteller, tale, codes)[0].code == "Fairytale"


# CTRL's penalty ----------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    theta=st.floats(1.0, 5.0),
    temperature=st.floats(0.1, 2.0),
    text=st.lists(st.integers(0, 29), max_size=20),
)
@settings(max_examples=60)
def test_penalized_sampling_is_the_formula(seed, theta, temperature, text):
    x = 4 * torch.randn(1, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = [
        math.exp(float(x[0, i]) / (temperature * (theta if i in text else 1.0))) for i in range(30)
    ]
    expected = torch.tensor([[weight / sum(weights) for weight in weights]], dtype=torch.float64)
    seen = torch.tensor([text]).long()
    ours = (PenalizedLogitsProcessor(theta)(seen, x.clone()) / temperature).softmax(-1)
    assert (ours - expected).abs().max() < 1e-6


def test_transformers_penalty_is_another():
    x = torch.tensor([[2.0, -2.0, 1.0]])
    seen = torch.tensor([[0, 1, 1]])
    ours = PenalizedLogitsProcessor(2.0)(seen, x.clone())
    theirs = RepetitionPenaltyLogitsProcessor(2.0)(seen, x.clone())
    assert ours.tolist() == [[1.0, -1.0, 1.0]]  # a seen token below 0 gains
    assert theirs.tolist() == [[1.0, -4.0, 1.0]]  # and loses there


# writing under a code ----------------------------------------------------------------------------


def test_a_head_stands_before_the_text(storyteller):
    conditioning = codes_of(storyteller)["Horror"].conditioning
    told = generate(storyteller, "The house", 12, conditioning=conditioning, temperature=0)
    assert told == generate(storyteller, conditioning + "The house", 12, temperature=0)
    assert told != generate(storyteller, "The house", 12, conditioning="<|Quest|>", temperature=0)


def test_ctrl_writes_under_a_code_and_never_links_or_unknown_words(ctrl):
    assert ctrl.banned_ids == (0, 8)
    code = codes_of(ctrl)["Horror"]
    text = generate(
        ctrl, "the old house", 100, conditioning=code.conditioning, penalized=1.2, top_k=0, seed=1
    )
    assert "http" not in text
    assert "<unk>" not in text
    assert list(codes_of(ctrl)) == ["Horror", "Links", "Wikipedia"]  # no Books in its vocabulary


def test_bans_hold_for_what_is_likeliest(ctrl):
    free = generate(ctrl, "the old house", 5, temperature=0)
    first = ctrl.encode(free)[0]
    banned = generate(ctrl, "the old house", 5, temperature=0, banned=(first,))
    assert ctrl.encode(banned)[0] != first


def window_by_hand(model, conditioning, text, count):
    """Greedy tokens, the window slid as the plain way would: read anew for each token."""
    length, kept = model.context_length, []
    start = 0
    for _ in range(count):
        if len(conditioning) + len(text) - start > length:
            start = len(text) - (length - len(conditioning)) // 2
        ids = torch.tensor([[*conditioning, *text[start:]]])
        with torch.no_grad():
            row = model.hf(input_ids=ids, use_cache=False).logits[0, -1].clone()
        row[list(model.banned_ids)] = -math.inf
        kept.append(int(row.argmax()))
        text = [*text, kept[-1]]
    return kept


@pytest.mark.parametrize("family", ["ctrl", "llama"])
def test_the_window_slides_and_keeps_the_code(ctrl, family):
    if family == "ctrl":
        model, conditioning, text = ctrl, "Horror", "the old house was"
    else:
        hf = tiny_hf("llama", max_position_embeddings=32)
        model, conditioning, text = FrozenModel(hf, byte_tokenizer(), "short"), "#", "an old house"
    told = generate(model, text, 90, conditioning=conditioning, temperature=0)
    expected = window_by_hand(model, model.encode(conditioning), model.encode(text), 90)
    assert told == model.decode(expected, inside=True).replace("\ufffd", "")
    longer = generate(
        model, text * 20, 5, conditioning=conditioning, temperature=0
    )  # too long to begin with
    assert len(longer) >= 1


def test_a_prefix_as_head_stays_while_the_window_slides():
    hf = tiny_hf("llama", max_position_embeddings=32)
    model = FrozenModel(hf, byte_tokenizer(), "short")
    dog = SoftPrompt.from_text("a dog", model, name="dog", kind="prefix")
    assert len(generate(model, "an old house", 90, conditioning=dog, top_k=0, seed=1)) > 40
    with pytest.raises(ContextOverflowError, match="leaves room for 0 tokens"):
        generate(model, "x" * 40, 90, conditioning="y" * 32)


def test_soft_prompts_train_on_ctrl(ctrl):
    trainer = WorldInfoTrainer(
        ctrl, blocks=[("the house was", ["old ."])], n_tokens=4, max_steps=40, passage_tokens=6,
        max_spacing=4, drift_guard=0.0, name="house",
    )  # fmt: skip
    from softlore.lore import Block
    from softlore.measure import recall

    blocks = [Block(call="the house was", responses=["old ."])]
    prompt = trainer.train()
    assert recall(ctrl, prompt, blocks) < recall(ctrl, "", blocks) - 1


@pytest.mark.slow
def test_the_real_tokenizer_all_the_way(real_ctrl):
    codes = codes_of(real_ctrl)
    found = attribute(real_ctrl, "It was a dark night, and he was afraid.", codes)
    assert len(found) == 55
    assert sum(one.posterior for one in found) == pytest.approx(1, abs=1e-6)
    banned = {real_ctrl.tokenizer.convert_ids_to_tokens(i) for i in real_ctrl.banned_ids}
    assert "<unk>" in banned
    assert all("http" in token or token == "<unk>" for token in banned)
    text = generate(real_ctrl, "The house", 60, conditioning="Horror", penalized=1.2, seed=0)
    assert len(text.split()) > 20


# the commands ------------------------------------------------------------------------------------


def test_codes_command(tmp_path):
    ended = softlore("codes", "--json", tmp_path / "codes.json")
    assert ended.code == 0, ended.err
    assert "<|Horror|>" in ended.out
    rows = json.loads((tmp_path / "codes.json").read_text())
    assert {
        "code": "Horror",
        "token": 4,
        "conditioning": "<|Horror|>",
        "template": "{code}{text}",
    } in rows
    ended = softlore("codes", "--model", save_tiny_model(tmp_path / "tiny"))
    assert ended.code == 0
    assert "no control codes of its own" in ended.out


def test_attribute_command(tmp_path):
    ended = softlore("attribute", "-", "--json", "-", stdin="Once upon a time there was a King.")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert len(rows) == 8
    assert set(rows[0]) == {"code", "nll", "perplexity", "posterior"}
    chances = [row["posterior"] for row in rows]
    assert chances == sorted(chances, reverse=True)
    (tmp_path / "prior").write_text("0.9\tHorror\n\n0.1 Humor\n")
    named = ["--codes", "Horror, Humor", "--prior", tmp_path / "prior"]
    ended = softlore("attribute", "It was", *named)
    assert ended.code == 0, ended.err
    assert ended.out.split()[-6] == "Horror"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--codes", "Horror"], "the text has 0 tokens"),
        (["x", "--codes", "Horor"], "did you mean 'Horror'"),
        (["x", "--prior", "{tmp}"], "can't be read"),
        (["x", "--prior", "{tmp}/prior"], "line 1 of"),
    ],
)
def test_attribute_refuses(tmp_path, arguments, said):
    (tmp_path / "prior").write_text("much Horror\n")
    ended = softlore("attribute", *(part.replace("{tmp}", str(tmp_path)) for part in arguments))
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.lines) == 1


def test_write_under_a_code():
    told = softlore("write", "The old", "--code", "Horror", "--tokens", "8", "--seed", "1")
    assert told.code == 0, told.err
    assert told.out.startswith("The old")
    other = softlore("write", "The old", "--code", "Quest", "--tokens", "8", "--seed", "1")
    assert other.out != told.out
    assert softlore("write", "x", "--code", "Nope").code == 2


# strengths ---------------------------------------------------------------------------------------


def test_a_mixture_is_the_formula():
    from softlore.decode.conditioning import mix_logits

    logits_of = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    p, q, bare = logits_of.softmax(-1)
    weights = torch.tensor([0.5, 0.7, -0.2])  # bare: 1 - 0.5 - 0.7
    expected = bare * (p / bare) ** 0.5 * (q / bare) ** 0.7
    found = mix_logits(logits_of, weights).exp()
    kept = found > 0
    ratio = found[kept] / expected[kept]
    assert kept.sum() > 3
    assert ratio.max() / ratio.min() == pytest.approx(1, abs=1e-4)
    # What is left out is what p and q, weighed, hold for implausible.
    likely = (p**0.5 * q**0.7) ** (1 / 1.2)
    assert (likely[~kept] < 0.02 * likely.max()).all()
    assert (likely[kept] >= 0.02 * likely.max() * 0.999).all()


@pytest.mark.parametrize("kind", ["embedding", "prefix"])
def test_strength_goes_from_the_bare_model_to_the_head_and_on(kind):
    model = tiny_model("llama", bos=True)
    dog = SoftPrompt.from_text("a dog ran", model, name="dog", kind=kind)
    told = {
        s: generate(model, "And", 20, conditioning=[(dog, s)], temperature=0)
        for s in (0.0, 1.0, 3.0)
    }
    assert told[0.0] == generate(model, "And", 20, temperature=0)
    assert told[1.0] == generate(model, "And", 20, conditioning=dog, temperature=0)
    assert len(set(told.values())) == 3


def test_two_heads_of_half_a_strength_leave_no_weight_to_the_bare_model():
    model = tiny_model("llama")
    conditionings = [("Cats. ", 0.5), ("Dogs. ", 0.5)]
    shown = 0
    for text in ("And", "The", "Of", "Why", "No", "So", "A man", "Rain"):
        rows = [
            logits(model, conditioning + text)[-1].log_softmax(-1)
            for conditioning, _ in conditionings
        ]
        expected = model.decode([int(sum(rows).argmax())], inside=True).replace("\ufffd", "")
        assert generate(model, text, 1, conditioning=conditionings, temperature=0) == expected
        shown += bool(expected)
    assert shown


def test_a_mixture_slides_all_its_windows_together():
    hf = tiny_hf("llama", max_position_embeddings=32)
    model = FrozenModel(hf, byte_tokenizer(), "short")
    conditionings = [("Cats. ", 1.5), ("Dog ", -0.5)]
    once = generate(model, "an old house", 90, conditioning=conditionings, top_k=0, seed=3)
    assert once == generate(model, "an old house", 90, conditioning=conditionings, top_k=0, seed=3)
    assert len(once) > 40


@pytest.mark.parametrize("strength", ["1", math.nan, math.inf, True, None, 1e9])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(ConfigError, match="expected a number from -100 to 100"):
        generate(tiny_model(), "x", 2, conditioning=[("a", strength)])


def test_too_many_conditionings_are_rejected():
    with pytest.raises(ConfigError, match="17 conditionings were given"):
        generate(tiny_model(), "x", 2, conditioning=[("a", 0.1)] * 17)


def test_write_with_strengths():
    ended = softlore(
        "write", "The", "--code", "Horror=1.5", "--code", "Humor=-0.5", "--tokens", "5"
    )
    assert ended.code == 0, ended.err
    ended = softlore("write", "The", "--code", "Horror=much", "--tokens", "5")
    assert ended.code == 2
    assert "has strength 'much'; expected a number" in ended.err


# learned codes -----------------------------------------------------------------------------------


@pytest.fixture
def two_tongues(tmp_path):
    """A folder with two codes: texts of vowels in one, of consonants in the other."""
    (tmp_path / "texts" / "low").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "texts" / "low" / f"{number}.txt").write_text("aeiou " * 40)
    (tmp_path / "texts" / "high.txt").write_text("xyz pqr " * 90)
    return tmp_path / "texts"


def test_a_folder_of_texts_becomes_a_set_of_codes(two_tongues, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    trained = softlore(
        "train", two_tongues, "--model", model, "--out", tmp_path / "out", "--max-steps", "30",
        "--n-tokens", "2", "--json", "-",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    report = json.loads(trained.out)
    assert [one["name"] for one in report["trained"]] == ["high", "low"]
    assert all(not one["in_company"] for one in report["trained"])
    asked = ["--model", model, "--prompts", tmp_path / "out", "--codes", "low,high", "--json", "-"]
    for text, code in (("aeiou aeiou", "low"), ("xyz pqr xyz", "high")):
        found = softlore("attribute", text, *asked)
        assert found.code == 0, found.err
        assert json.loads(found.out)[0]["code"] == code
    told = softlore(
        "write", "aeiou", "--model", model, "--prompts", tmp_path / "out", "--code", "low=1.5",
        "--tokens", "8", "--seed", "1",
    )  # fmt: skip
    assert told.code == 0, told.err


def test_corpora_are_read_from_json_lines(tmp_path):
    rows = [
        {"code": "B", "text": "two"},
        {"code": "A", "text": "one\n"},
        {"code": "B", "text": "3"},
    ]
    plain = tmp_path / "books.jsonl"
    plain.write_text("\n".join(map(json.dumps, rows)))
    packed = tmp_path / "books.jsonl.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    for path in (plain, packed):
        assert holds_corpora(path)
        assert read_corpora(path) == {"A": "one", "B": "two\n\n3"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"code": "A"}', "line 1 of"),
        ("a.jsonl", b'{"code": "A", "text": "x"}\n[1]', "line 2 of"),
        ("a.jsonl", b"[" * 100_000, "line 1 of"),
        ("a.jsonl", b'{"code": "A", "text": ""}', "holds no texts"),
        ("a.jsonl", b"\xff\xfe", "can't be read"),
        ("a.jsonl.xz", b"not packed", "can't be read"),
        ("folder/a.md", b"text", "holds no texts"),
    ],
)
def test_what_is_no_corpora_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    ended = softlore("train", path.parent if "/" in name else path, "--out", tmp_path / "out")
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.lines) == 1


def test_corpora_of_no_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("softlore.lore.corpora.MAX_BYTES", 100)
    (tmp_path / "a.jsonl").write_text('{"code": "A", "text": "' + "x" * 101 + '"}')
    with pytest.raises(LoreError, match="more than"):
        read_corpora(tmp_path / "a.jsonl")
