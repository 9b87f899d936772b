"""`evaluate` and its command, end to end on a tiny model."""

import io
import json
import re

import pytest
from click.testing import CliRunner
from rich.console import Console

from softlore import Lorebook, PromptLibrary, SoftPrompt
from softlore.cli.evaluate import command
from softlore.compare.tables import evaluation_table
from softlore.errors import ConfigError, LoreError, PromptMismatchError, UnknownPromptError
from softlore.measure import evaluate
from softlore.measure.evaluate import _companies
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

DATA = [
    {
        "name": "Marta",
        "text": "Marta wears a red coat.",
        "blocks": [("Marta wore", [" a red coat.", " red."])],
        "held_out": [("Marta had on", [" red."])],
    },
    {"name": "Tobias", "blocks": [("Tobias had", [" an otter."])]},
    {"name": "Ghost", "text": "A ghost."},
]
BOOK = Lorebook.from_data(DATA, "town")


def prompts_for(model):
    return {
        "Marta": SoftPrompt.from_text("Marta: red coat", model, name="Marta", kind="prefix"),
        "Tobias": SoftPrompt.from_text("otter", model, name="Tobias", kind="embedding"),
    }


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def evaluation(model):
    seen = []
    found = evaluate(
        model,
        BOOK,
        prompts_for(model),
        stories=2,
        story_tokens=8,
        on_progress=lambda done, doing: seen.append((done, doing)),
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 1
    return found


def test_every_measure_is_there(evaluation):
    marta, tobias = evaluation.entries
    assert evaluation.missing == ["Ghost"]
    assert (marta.kind, tobias.kind) == ("prefix", "embedding")
    assert marta.company == ["Marta", "Tobias"]
    for conditioning in ("none", "text", "soft", "company"):
        one = marta.conditionings[conditioning]
        assert one.recall[0] > 0
        assert one.recall[64] > 0
        assert one.recall[256] is None  # the tiny context holds 256 tokens
        assert one.held_out > 0
        assert (one.stories is None) == (conditioning == "company")
    assert marta.conditionings["none"].drift == 0
    assert marta.conditionings["none"].fidelity == 0
    assert marta.conditionings["text"].fidelity == 1
    assert marta.conditionings["soft"].fidelity < 1
    assert marta.conditionings["soft"].drift > 0
    assert marta.conditionings["soft"].tokens == len("Marta: red coat")
    assert marta.conditionings["soft"].stories.first.startswith("Marta")
    assert "coat" in marta.keywords
    assert marta.conditionings["texts"] is tobias.conditionings["text"] is None
    assert tobias.conditionings["soft"].fidelity is None
    assert tobias.conditionings["soft"].held_out is None
    both = evaluation.total()["soft"]
    assert both.recall[0] == pytest.approx(
        (marta.conditionings["soft"].recall[0] + tobias.conditionings["soft"].recall[0]) / 2
    )
    assert both.held_out == marta.conditionings["soft"].held_out


def test_the_json_is_plain_and_whole(evaluation):
    report = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert set(report) == {
        "lorebook", "model", "settings", "total", "entries", "missing", "seconds",
    }  # fmt: skip
    entry = report["entries"][0]
    assert set(entry) == {"name", "kind", "company", "keywords", "conditionings"}
    soft = entry["conditionings"]["soft"]
    assert set(soft) == {"tokens", "recall", "held_out", "drift", "fidelity", "stories"}
    assert set(soft["recall"]) == {"0", "64", "256"}
    assert soft["recall"]["256"] is None
    assert set(soft["stories"]) == {"copy", "lore_words", "perplexity", "distinct", "first"}
    assert set(report["total"]) == {"none", "text", "soft", "texts", "company"}


def test_the_table_fits_a_terminal_and_says_where_there_is_nothing(evaluation):
    console = Console(width=80, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    lines = console.file.getvalue().splitlines()
    assert "…" not in "".join(lines).replace("Tobias (embed…", "")
    assert " ".join(lines[0].split()).startswith("entry given tok at 0 at 64 at 256 held drift")
    _, tokens, at_0, at_64, at_256 = next(line.split()[:5] for line in lines if " soft " in line)
    assert tokens == str(len("Marta: red coat"))
    assert all(re.fullmatch(r"\d+\.\d\d", figure) for figure in (at_0, at_64))
    assert at_256 == "–"
    assert sum(line.startswith(("Marta", "Tobias", "all entries")) for line in lines) == 3


def test_a_text_too_long_for_the_context_is_a_dash(model):
    long = Lorebook.from_data([{"name": "Marta", "text": "long " * 60}])
    found = evaluate(model, long, prompts_for(model), stories=1, story_tokens=4, distances=[0])
    conditionings = found.entries[0].conditionings
    assert conditionings["text"] is None
    assert conditionings["soft"].stories is not None
    assert conditionings["soft"].recall == {0: None}
    assert conditionings["company"] is None


def test_the_same_seed_finds_the_same(model, evaluation):
    again = evaluate(model, BOOK, prompts_for(model), stories=2, story_tokens=8)
    assert again.entries == evaluation.entries


def test_a_story_of_the_writers_own(model):
    prompts = prompts_for(model)
    story = "The wind blew and the ship went down. " * 20
    found = evaluate(model, BOOK, prompts, stories=0, distances=[0, 9], story=story)
    assert found.settings["story"] == "given"
    assert found.entries[0].conditionings["soft"].recall[9] > 0
    assert found.entries[0].conditionings["soft"].stories is None
    with pytest.raises(ConfigError, match="story has 4 tokens"):
        evaluate(model, BOOK, prompts, story="Once")


@pytest.mark.parametrize(
    "wrong", [{"stories": -1}, {"story_tokens": 0}, {"distances": []}, {"distances": [-1]}]
)
def test_settings_out_of_range(model, wrong):
    with pytest.raises(ConfigError):
        evaluate(model, BOOK, prompts_for(model), **wrong)


def test_a_distance_beyond_the_context_takes_no_longer(model):
    found = evaluate(model, BOOK, prompts_for(model), stories=0, distances=[10**9])
    assert all(
        measures.recall == {10**9: None}
        for entry in found.entries
        for measures in entry.conditionings.values()
        if measures is not None
    )


def test_companies_are_even_and_hold_four_at_most():
    sizes = [list(map(len, _companies(list("abcdefghi"[:n])))) for n in range(1, 10)]
    assert sizes == [[], [2], [3], [4], [3, 2], [3, 3], [4, 3], [4, 4], [3, 3, 3]]
    assert _companies(list("abcde"))[-1] == ["d", "e"]


# the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A model, a lorebook and a folder of prompts on the disk."""
    place = tmp_path_factory.mktemp("evaluate")
    tiny_hf("llama").save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    BOOK.save(place / "town.yaml")
    for prompt in prompts_for(model).values():
        PromptLibrary(place / "prompts").save(prompt)
    return place


def run(folder, *more, prompts="prompts"):
    arguments = [
        str(folder / "town.yaml"), "--prompts", str(folder / prompts),
        "--model", str(folder / "model"), "--stories", "1", "--story-tokens", "4", *more,
    ]  # fmt: skip
    return CliRunner().invoke(command, arguments)


def test_the_command_prints_a_table_and_writes_json(folder):
    done = run(folder, "--json", str(folder / "report.json"))
    assert done.exit_code == 0, done.output
    assert "all entries" in done.stdout
    assert "'Ghost' has no prompt" in done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert [entry["name"] for entry in report["entries"]] == ["Marta", "Tobias"]


def test_a_dash_puts_nothing_but_json_on_standard_output(folder):
    done = run(folder, "--json", "-", "--distances", "0,5")
    assert json.loads(done.stdout)["settings"]["distances"] == [0, 5]


def test_the_commands_errors_are_of_the_tree(folder):
    assert isinstance(run(folder, prompts="nowhere").exception, ConfigError)
    (folder / "empty").mkdir()
    assert isinstance(run(folder, prompts="empty").exception, UnknownPromptError)
    assert isinstance(run(folder, "--model", "storyteller").exception, PromptMismatchError)
    assert isinstance(run(folder, "--story", "missing.txt").exception, ConfigError)
    done = CliRunner().invoke(command, ["missing.yaml"])
    assert isinstance(done.exception, LoreError)
    assert run(folder, "--distances", "near").exit_code == 2
    assert "Example:" in CliRunner().invoke(command, ["--help"]).output
