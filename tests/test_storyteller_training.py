"""The real training scripts, end to end, on a generated corpus and the tiny setting."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from waiting import wait_until

TOOLS = Path(__file__).resolve().parent.parent / "tools"
HELD_OUT = {"Adventure": "120", "Detective": "108", "Fairytale": "27826", "Horror": "11438"}
HELD_OUT |= {"Humor": "8164", "Romance": "105", "SciFi": "456"}
SETTINGS = ["--size", "tiny", "--tokens", "30e3", "--warmup", "2000", "--no-compile"]
SETTINGS += ["--precision", "float32", "--threads", "1", "--device", "cpu"]


def story(code: str, seed: int) -> str:
    """Some 14 000 characters of prose, no two paragraphs alike, with junk among them."""
    rng = random.Random(f"{code} {seed}")
    who = ["the old man", "Emma", "the captain", "his sister", "the doctor", "a boy"]
    did = ["walked to", "looked at", "ran from", "spoke of", "came back to", "slept in"]
    what = ["the house", "the sea", "the dark wood", "the ship", "the garden", "the mill"]
    said = ["I am not afraid", "It is late", "We must go on", "Who is there", "Say no more"]
    lines = ["CHAPTER I. The Beginning", "[Illustration: a mill]"]
    while sum(map(len, lines)) < 14_000:
        parts = [f"{rng.choice(who)} {rng.choice(did)} {rng.choice(what)}" for _ in range(5)]
        text = ", and ".join(parts) + f" for {rng.randrange(2, 999)} days."
        lines.append(f'{text[0].upper()}{text[1:]} "{rng.choice(said)}," said {rng.choice(who)}.')
    return "\n".join(lines)


@pytest.fixture(scope="module")
def tools():
    """The scripts as modules, for one module of tests."""
    sys.path.insert(0, str(TOOLS))
    try:
        import corpus
        import evaluate_storyteller
        import quests
        import train_storyteller
        import windows
    finally:
        sys.path.remove(str(TOOLS))
    yield {
        "corpus": corpus,
        "evaluate": evaluate_storyteller,
        "quests": quests,
        "train": train_storyteller,
        "windows": windows,
    }
    for name in ("corpus", "evaluate_storyteller", "quests", "train_storyteller", "windows"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    with (folder / "stories.jsonl").open("w") as file:
        for code, held_out in HELD_OUT.items():
            for pg in (f"{code}-1", held_out, ""):
                book = {"code": code, "author": "A. Writer", "title": f"Tales {pg}", "pg": pg}
                file.write(json.dumps({**book, "text": story(code, len(pg))}) + "\n")
    tools["corpus"].QUESTS = 20
    tools["corpus"].prepare(folder / "stories.jsonl", folder, vocabulary=400)
    return folder


@pytest.fixture(scope="module")
def unbroken(tools, data, tmp_path_factory):
    """A whole run; it keeps at its end only."""
    out = tmp_path_factory.mktemp("unbroken")
    with single_thread():
        tools["train"].main(
            ["--data", str(data), "--out", str(out), *SETTINGS, "--log-every", "0.2"]
        )
    return out


class single_thread:
    """Sums in one order: the same weights every time; torch's thread count is put back."""

    def __enter__(self):
        self.threads = torch.get_num_threads()

    def __exit__(self, *error):
        torch.set_num_threads(self.threads)


def test_cleaning_keeps_prose_and_says_why_a_book_is_left_out(data):
    books = json.loads((data / "books.json").read_text())
    assert {(b["code"], b["use"]) for b in books} == {
        (code, use) for code in HELD_OUT for use in ("train", "held out")
    }
    dropped = json.loads((data / "dropped.json").read_text())
    assert {b["reason"] for b in dropped} == {"no Gutenberg number"}
    held_out = [json.loads(line) for line in (data / "held-out.jsonl").read_text().splitlines()]
    assert "CHAPTER" not in held_out[0]["text"]
    assert "Illustration" not in held_out[0]["text"]


@pytest.mark.parametrize(
    ("line", "cleaned"),
    [
        ("“Stay,” she _said_--‘now’.", "\"Stay,\" she said—'now'."),
        ("THE MAN who held the paper smiled.", "The man who held the paper smiled."),
        ("CHAPTER IV. The Storm.", None),
        ("The boughs hung low, And over them The moon, And Stars, And in The sky Was None,", None),
        ("I. The Start II. The Middle III. The Storm IV. The End.", None),
        ("[Illustration: the mill]", None),
        ("See http://www.gutenberg.org for more.", None),
    ],
)
def test_a_paragraph(tools, line, cleaned):
    padding = '"' * 200 if "“" not in line else ""  # enough double quotes: not a single-quoted book
    marks = tools["corpus"].plain_marks(line + "\n" + padding).split("\n")[0]
    assert tools["corpus"].clean_paragraph(marks) == cleaned


def test_single_quoted_dialogue_becomes_double(tools):
    line = "'It's late,' said Tom, 'and the \"Mary\" waits.' The boys' boat was 'tis said lost."
    book = line + "\n" + "The rain fell on the roof. " * 200
    cleaned = tools["corpus"].plain_marks(book).split("\n")[0]
    assert cleaned == (
        "\"It's late,\" said Tom, \"and the 'Mary' waits.\" The boys' boat was 'tis said lost."
    )


def test_artefacts_load_with_plain_transformers(unbroken):
    assert sorted(p.name for p in (unbroken / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(unbroken / "model")
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    inputs = tokenizer("<|Horror|>", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 1)
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert out.shape[0] == 1


def test_loss_falls(unbroken):
    rows = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert rows[-1]["rate"] == 0
    assert rows[-1]["window"] == 128
    assert 0 < rows[-1]["held_out"] < 3


@pytest.mark.parametrize(
    "text",
    ["", " a  b .\n\n\tc\r\n", "Café — “naïve”, 42 ’tis", "日本 🙂 \u0000\ufeff", "<|Horror|> <|"],
)
def test_tokenizer_round_trip(unbroken, text):
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids


def test_control_codes_are_one_token_each(unbroken, tools):
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    names = [f"<|{code}|>" for code in (*tools["windows"].CODES, "Quest")]
    assert [tokenizer.encode(name) for name in names] == [[i] for i in range(1, 9)]
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == 0


def test_killed_and_resumed_gives_the_same_weights(tools, data, unbroken, tmp_path):
    command = ["--data", str(data), "--out", str(tmp_path), *SETTINGS]
    # Logs and keeps after every step, and is killed wherever that happens to be.
    often = ["--log-every", "0", "--keep-every", "0"]
    script = TOOLS / "train_storyteller.py"
    process = subprocess.Popen(
        [sys.executable, str(script), *command, *often], stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "log.jsonl"
    wait_until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= 5,
        alive=lambda: process.poll() is None,
    )
    process.kill()
    process.communicate()
    assert process.returncode == -9, "the run ended before it could be killed"
    with single_thread():
        tools["train"].main([*command, "--log-every", "60"])
    weights = [
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        for folder in (unbroken, tmp_path)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_every_window_is_drawn_once_a_pass(tools, data, unbroken):
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    windows = tools["windows"].Windows(data, tokenizer, seed=3)
    batch = windows.batch(64 * 64, 64)
    assert batch.shape == (64, 64)
    codes = set(windows.code.values())
    opened = [row[0].item() in codes or row[1].item() in codes for row in batch]
    assert 0.6 < sum(opened) / len(opened) < 1
    saved = json.loads(json.dumps(windows.state()))
    expected = windows.batch(512, 64)
    again = tools["windows"].Windows(data, tokenizer, seed=99)
    again.seed = 3
    again.load(saved)
    assert torch.equal(again.batch(512, 64), expected)


def test_the_tokenizer_carries_no_state_of_the_training(unbroken, data):
    saved = json.loads((unbroken / "model" / "tokenizer.json").read_text())
    trained = json.loads((data / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None
    assert saved["model"] == trained["model"]


def test_evaluation_scores_a_model_like_itself(tools, data, unbroken, monkeypatch):
    evaluate = tools["evaluate"]
    monkeypatch.setattr(evaluate, "PASSAGE", 150)  # the tiny context holds no more
    scorer = evaluate.Scorer(str(unbroken / "model"))
    *rows, mean = evaluate.compare(scorer, scorer, data, count=3)
    assert [row["code"] for row in rows] == list(HELD_OUT)
    for row in rows:
        assert row["other"] == pytest.approx(row["without"], rel=1e-4)
    assert mean["with code"] == pytest.approx(sum(row["with code"] for row in rows) / 7)
    with pytest.raises(ValueError, match="the context is 128"):
        scorer.bits([[0]], story("Horror", 1))


def test_attribution_and_naive_bayes_on_the_same_passages(tools, data, unbroken, monkeypatch):
    evaluate = tools["evaluate"]
    monkeypatch.setattr(evaluate, "ATTRIBUTED", 40)
    *rows, over_all = evaluate.attribution(str(unbroken / "model"), data, count=3)
    assert [row["code"] for row in rows] == list(HELD_OUT)
    for column in ("named right", "naive Bayes"):
        assert all(0 <= row[column] <= 1 for row in rows)
        right = sum(row[column] * row["passages"] for row in rows)
        assert over_all[column] == pytest.approx(right / over_all["passages"])


def test_naive_bayes_knows_a_genre_by_its_words(tools, data, unbroken):
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    bayes = tools["evaluate"].bayes_of_corpus(data, tokenizer)
    assert (
        bayes.name("You are standing in the tavern. > take lamp Taken. You see a lamp.") == "Quest"
    )


def test_codes_loss_is_the_posterior_of_the_right_code(tools, data, unbroken):
    """Against Bayes' rule written out, a passage at a time."""
    model = AutoModelForCausalLM.from_pretrained(unbroken / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    rows = tools["windows"].Windows(data, tokenizer, seed=5).contrast(3, 32)
    assert rows.shape == (3, 3, 32)
    assert all(len(set(codes)) == 3 for codes in rows[:, :, 0].tolist())
    assert (rows[:, :1, 1:] == rows[:, :, 1:]).all()  # one passage under each of its codes
    losses = []
    with torch.no_grad():
        for codes in rows:
            scores = []
            for row in codes:
                logp = model(row[None]).logits[0, :-1].log_softmax(-1)
                scores.append(float(logp[range(31), row[1:]].sum()))
            losses.append(-torch.tensor(scores).log_softmax(0)[0] / 31)
        found = tools["train"].code_loss(model, rows)
    assert float(found) == pytest.approx(float(sum(losses) / 3), abs=1e-4)


def test_a_passage_stands_under_its_own_genres_code_in_row_0(tools, data, unbroken):
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    windows = tools["windows"].Windows(data, tokenizer, seed=5)
    names = {i: code for code, i in windows.code.items()}
    for codes in windows.contrast(12, 24):
        own = windows.tokens[names[int(codes[0, 0])]].astype("<u2").tobytes()
        assert codes[0, 1:].numpy().astype("<u2").tobytes() in own


# quests ------------------------------------------------------------------------------------------


def test_a_quest_keeps_to_its_own_world(tools):
    """What is taken can be dropped, and a way back leads back, in every quest."""
    quests, back = tools["quests"], tools["quests"].WORDS["directions"]
    assert quests.quests(3, seed=1) == quests.quests(3, seed=1)
    for seed in range(60):
        quest = quests.Quest(seed)
        everything = sorted(t for things in quest.things.values() for t in things)
        for room, ways in quest.exits.items():
            for way, there in ways.items():
                assert quest.exits[there][back[way]] == room
        lines = quest.play()
        eaten = [line.split(" the ")[-1] for line in lines if line.startswith("You eat the")]
        left = quest.carried + [t for things in quest.things.values() for t in things]
        assert sorted(left + [line.split(". ")[0] for line in eaten]) == everything
        assert all(line and "{" not in line and "|" not in line for line in lines)
