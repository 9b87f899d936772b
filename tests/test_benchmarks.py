"""Benchmarks on data of others: the readers of each layout, odd files, scores, and one command."""

from __future__ import annotations

import json
import math

import pytest

import measuring
from benchmarks import run as benchmark
from benchmarks.readers import Question, read_fairytaleqa, read_lorebooks, read_mctest
from benchmarks.scoring import overlap, score
from running import save_tiny_model
from softlore.errors import SoftloreError
from softlore.model.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("default")  # PEFT's own are not our concern

STORY = 'section,text\n1,"A man had a cap.\nIt was red."\n2,"He sold it, and bought a cow."\n'
# The columns are in different orders in the files of the public repository.
QUESTIONS = (
    "question_id,local-or-sum,cor_section,attribute1,question,ex-or-im1,answer1,answer2,answer4\n"
    "1,local,1,character,Who had a cap?,explicit,a man,,A man\n"
    '2,local,2,action,What did he buy?,explicit,a cow,"a cow, it is said",cow\n'
    '3,summary,"1, 2",action,What did he sell?,explicit,the cap,,his red cap\n'
    "4,local,9,action,What of a section that is not there?,explicit,nothing,,\n"
    "5,local,1,action,What of no answer?,explicit,,,\n"
)
TESTS = (
    "mc160.dev.0\tAuthor: A;Work Time(s): 9\tTom had a dog.\\newlineIt ran to the pond."
    "\tone: Who had a dog?\tTim\tTom\tthe dog\tthe pond"
    "\tmultiple: Where did it run?\tthe pond\thome\tto Tom\taway\n"
)
ANSWERS = "B\tA\n"


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_tsv", ".tsv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def fairytaleqa(folder, story=STORY, questions=QUESTIONS):
    (folder / "questions").mkdir(parents=True)
    (folder / "section-stories").mkdir()
    (folder / "questions" / "the-cap-questions.csv").write_text(questions, "utf-8")
    (folder / "section-stories" / "the-cap-story.csv").write_text(story, "utf-8")
    return folder


def mctest(folder, tests=TESTS, answers=ANSWERS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mc160.dev.tsv").write_text(tests, "utf-8")
    (folder / "mc160.dev.ans").write_text(answers, "utf-8")
    return folder


# readers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "data-by-origin", "FairytaleQAData/data-by-train-split"])
def test_fairytaleqa_is_read_flat_and_as_its_repository_has_it(tmp_path, below):
    fairytaleqa(tmp_path / below)
    sentences = tmp_path / below / "sentence-stories" / "the-cap-story.csv"
    sentences.parent.mkdir()
    sentences.write_text("sentence\nA man had a cap.\n")  # the same tale, as other files have it
    (tale,) = read_fairytaleqa(tmp_path)
    assert tale.name == "The cap"
    (text,) = tale.cut(0, len)
    assert text.entry.text == "A man had a cap.\nIt was red.\n\nHe sold it, and bought a cow."
    asked = {question.call: question for question in text.questions}
    assert list(asked) == [
        "Q: Who had a cap?\nA:",
        "Q: What did he buy?\nA:",
        "Q: What did he sell?\nA:",
    ]
    bought = asked["Q: What did he buy?\nA:"]
    assert bought.answers == ("A cow", "A cow, it is said", "Cow")
    assert bought.choices[0] == "A cow"
    assert set(bought.choices[1:]) == {"A man", "The cap"}
    assert bought.place == 1


def test_a_tale_is_cut_at_its_sections_and_keeps_the_questions_of_each(tmp_path):
    (tale,) = read_fairytaleqa(fairytaleqa(tmp_path))
    first, second = tale.cut(40, len)
    assert [question.answers[0] for question in first.questions] == ["A man"]
    # What he sold is asked of both sections.
    assert [question.answers[0] for question in second.questions] == ["A cow"]
    assert first.name != second.name


def test_mctest_is_read_with_its_choices(tmp_path):
    (tale,) = read_mctest(mctest(tmp_path))
    (text,) = tale.cut(10, len)
    assert text.entry.text == "Tom had a dog.\nIt ran to the pond."
    who, where = text.questions
    assert who.call == "Q: Who had a dog?\nA:"
    assert who.answers == ("Tom",)
    assert who.choices == ("Tom", "Tim", "The dog", "The pond")
    assert who.sections == text.entry.text
    assert where.choices[0] == "The pond"
    assert len(where.choices) == 4


def test_mctests_answers_may_lie_in_a_folder_of_their_own(tmp_path):
    mctest(tmp_path / "MCTest")
    (tmp_path / "MCTestAnswers").mkdir()
    (tmp_path / "MCTest/mc160.dev.ans").rename(tmp_path / "MCTestAnswers/mc160.dev.ans")
    assert len(read_mctest(tmp_path)) == 1


def test_lorebooks_of_other_programs_are_read_and_other_files_left_out(tmp_path):
    world = {"entries": {"0": {"key": ["Ada"], "content": "Ada is a smith. She has one eye."}}}
    (tmp_path / "world.json").write_text(json.dumps(world))
    (tmp_path / "settings.json").write_text("[1, 2]")
    (tmp_path / "notes.txt").write_text("Ada")
    (text,) = read_lorebooks(tmp_path)
    assert text.is_lore
    assert text.entry.text.startswith("Ada is a smith.")
    assert [question.answers for question in text.questions]
    assert not text.entry.blocks


ODD = {
    "no folder": lambda folder: folder / "none",
    "a file": lambda folder: (folder / "x").write_text("x") and folder / "x",
    "empty": lambda folder: folder,
    "stories alone": lambda folder: write(folder, **{"a-story_csv": STORY}),
}


@pytest.mark.parametrize("read", [read_fairytaleqa, read_mctest, read_lorebooks])
@pytest.mark.parametrize("odd", ODD)
def test_a_folder_without_the_data_is_a_clear_error(tmp_path, read, odd):
    with pytest.raises(SoftloreError, match=r"; expected .*; (check|name)"):
        read(ODD[odd](tmp_path))


@pytest.mark.parametrize(
    ("story", "questions"),
    [
        ("", QUESTIONS),
        ("section,text\n", QUESTIONS),
        ("section,words\n1,A man\n", QUESTIONS),
        ("section,text\none,A man\n", QUESTIONS),
        (STORY, "question\nWho?\n"),
        (STORY, "\x00\x00"),
        (f'section,text\n1,"{"a" * 200_000}"\n', QUESTIONS),
    ],
)
def test_odd_tables_are_clear_errors(tmp_path, story, questions):
    with pytest.raises(SoftloreError, match=r"csv' .*; expected .*; use"):
        read_fairytaleqa(fairytaleqa(tmp_path, story, questions))


@pytest.mark.parametrize(
    ("tests", "answers"),
    [
        (TESTS, ""),
        (TESTS, ANSWERS * 2),
        (TESTS, "B\tE\n"),
        (TESTS, "B\n"),
        (TESTS.rstrip("\n").rpartition("\t")[0], ANSWERS),
        ("no tabs at all", ANSWERS),
    ],
)
def test_odd_tests_are_clear_errors(tmp_path, tests, answers):
    with pytest.raises(SoftloreError, match=r"; expected .*; (use|name)"):
        read_mctest(mctest(tmp_path, tests, answers))


def test_a_table_in_windows_letters_is_read(tmp_path):
    fairytaleqa(tmp_path)
    path = tmp_path / "section-stories" / "the-cap-story.csv"
    path.write_bytes(STORY.replace("cap", "café").encode("cp1252"))
    (tale,) = read_fairytaleqa(tmp_path)
    assert "café" in tale.sections[0].text


# scores ------------------------------------------------------------------------------------------


def test_overlap_is_that_of_squad():
    assert overlap("The cow!", "a cow") == 1
    assert overlap("a red cow", "the cow") == pytest.approx(2 / 3)
    assert overlap("", "cow") == 0


def test_the_answer_that_the_text_makes_likely_is_chosen():
    """The scores are those of the model itself, run on the whole text and answer."""
    import torch

    model = tiny_model("llama")
    answers = ["Cow", "Red cap of the man"]
    (row,) = score(model, "Text.\n", [Question.asked("What?", answers[:1], answers)])
    before = model.encode("Text.\nQ: What?\nA:")
    losses = []
    for answer in answers:
        ids = model.encode(" " + answer)
        with torch.no_grad():
            logits = model.hf(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        chances = logits.log_softmax(-1)
        losses.append(-chances.gather(1, torch.tensor(ids)[:, None])[:, 0])
    means, sums = ([float(f(loss)) for loss in losses] for f in (torch.mean, torch.sum))
    assert row["nll"] == pytest.approx(means[0], abs=1e-4)
    assert row["choice"] == (means[0] < means[1])
    assert row["choice_raw"] == (sums[0] < sums[1])


def test_a_text_that_does_not_fit_has_no_figures():
    model = tiny_model("llama")
    text = "word " * model.context_length
    assert score(model, text, [Question.asked("What?", ["a cow"])]) is None


# the command -------------------------------------------------------------------------------------


def test_every_method_is_measured_and_a_second_run_resumes(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "tiny", max_position_embeddings=1024)
    tales, lore, out = tmp_path / "tales", tmp_path / "lore", tmp_path / "rows.jsonl"
    fairytaleqa(tales)
    mctest(tmp_path / "tests", TESTS + TESTS.replace("dev.0", "dev.1"), ANSWERS * 2)
    lore.mkdir()
    world = {"entries": {"0": {"key": ["Ada"], "content": "Ada is a smith. She has one eye."}}}
    (lore / "world.json").write_text(json.dumps(world))
    arguments = [
        str(model), "--fairytaleqa", str(tales), "--mctest", str(tmp_path / "tests"),
        "--lorebooks", str(lore), "--steps", "1", "--tokens", "40", "--shares", "5",
        "--peft", "5", "--stories", "1", "--out", str(out),
    ]  # fmt: skip
    measuring.main("", benchmark.run, arguments=arguments)
    printed, rows = capsys.readouterr(), out.read_text()
    for data in ("FairytaleQA", "MCTest", "lorebooks"):
        assert f"### {data}" in printed.out
    for label in (
        "none", "text", "text, in company of 1", "soft at 1/5", "soft at 1/5, in company of 1",
        "PEFT's prompt tuning at 1/5", "PEFT's prefix tuning at 1/5",
    ):  # fmt: skip
        assert f"| {label} |" in printed.out, label
    measured = [json.loads(line) for line in rows.splitlines()]
    for row in measured:
        assert math.isfinite(row["nll"])
        assert (row["fidelity"] is not None) == (row["data"] == "lorebooks")
        assert (row["choice"] is not None) == (row["data"] != "lorebooks")
    measuring.main("", benchmark.run, arguments=arguments)
    assert out.read_text() == rows
    assert capsys.readouterr().out == printed.out


def test_without_data_the_command_says_what_to_give(capsys):
    with pytest.raises(SystemExit) as stopped:
        measuring.main("", benchmark.run, arguments=["storyteller"])
    assert stopped.value.code == 2
    assert "give --fairytaleqa, --mctest or --lorebooks" in capsys.readouterr().err
