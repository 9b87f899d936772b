"""The comparison of methods: all made, all measured alike, and shown; and its harness."""

import html
import json
import math
import re
import time
from dataclasses import replace

import pytest

from running import save_tiny_model, softlore
from softlore.compare.comparison import Comparison, run_comparison
from softlore.compare.harness import grid, interval, run_cases, summarize
from softlore.compare.methods import TEMPLATES, MethodResult, best_template
from softlore.compare.plots import scatter
from softlore.compare.report import render_comparison
from softlore.compare.tables import NO_RECALL
from softlore.control.hard import Template
from softlore.errors import ConfigError, LoreError
from softlore.lore import Lorebook
from softlore.measure import recall
from softlore.model.tiny import tiny_model

LORE = """
name: town
entries:
  - name: Ada
    text: Ada wears a <red> hat. She sells clocks.
    blocks: [{call: Ada wears, responses: [" a red hat"]}]
    held_out: [{call: Ada has on, responses: [" a red hat"]}]
  - name: Bo
    text: Bo keeps a shop.
    blocks: [{call: Bo keeps, responses: [" a shop"]}]
"""
METHODS = ["nothing", "text", "best template", "searched, 16", "control vector"]
METHODS += ["prefix, 4", "prefix, 16", "embedding, 16"]
SMALL = {"time_budget": 1.0, "distances": (0, 8), "stories": 2, "story_tokens": 6}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("lore") / "lore.yaml"
    path.write_text(LORE)
    return Lorebook.load(path)


class Clock:
    """In place of the module `time`: time stands still but for what a test lets pass."""

    def __init__(self):
        self.now = time.monotonic()

    def monotonic(self):
        return self.now


@pytest.fixture(scope="module", autouse=True)
def clock():
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softlore.compare.comparison.time", clock)
        patch.setattr("softlore.compare.methods.time", clock)
        yield clock


@pytest.fixture(scope="module")
def comparison(book):
    return run_comparison(tiny_model("llama"), book, seeds=(0, 1), **SMALL)


def test_every_method_is_measured_for_every_entry_and_seed(comparison):
    assert list(comparison.methods) == METHODS  # no control codes: this model has none
    assert len(comparison.rows) == len(METHODS) * 2 * 2
    for row in comparison.rows:
        figures = [row[column] for column in comparison.columns]
        assert all(value is None or math.isfinite(value) for value in figures)
        assert row["recall_0"] > 0
        assert (row["held_out"] is None) == (row["entry"] == "Bo")
        assert row["lore_words"] is not None


def test_totals_are_means_over_entries_with_intervals_over_seeds(comparison):
    total = comparison.total["text"]["drift"]
    by_seed = [
        sum(r["drift"] for r in comparison.rows if (r["method"], r["seed"]) == ("text", seed)) / 2
        for seed in (0, 1)
    ]
    assert total.mean == pytest.approx(sum(by_seed) / 2)
    assert total.half == pytest.approx(12.706 * abs(by_seed[0] - by_seed[1]) / 2, rel=1e-3)
    assert comparison.total["nothing"]["drift"].mean == 0
    assert comparison.total["nothing"]["tokens"].mean == 0
    assert comparison.total["prefix, 4"]["tokens"].mean == 4


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [([2.0], 2.0, None), ([1.0, 3.0], 2.0, 12.706), ([1.0, 2.0, 3.0], 2.0, 4.303 / math.sqrt(3))],
)
def test_intervals_are_students(values, mean, half):
    found = interval(values)
    assert found.mean == mean
    assert found.half == (None if half is None else pytest.approx(half))


def test_the_best_template_is_best(book):
    model, entry = tiny_model("llama"), book["Ada"]
    data = {"entry": entry.data() | {"name": entry.name, "text": entry.text}}
    texts = [Template(source).render(data) for source in TEMPLATES.values()]
    least = min(recall(model, text, entry.blocks) for text in texts)
    assert recall(model, best_template(model, entry), entry.blocks) == pytest.approx(least)


def test_the_page_shows_all_and_runs_nothing(comparison):
    html = render_comparison(comparison)
    assert "&lt;red&gt;" in html
    assert "<red>" not in html
    assert not re.search(r"<script|https?://|src=", html)
    for method in METHODS:
        assert method in html
    assert html.count("<svg") == 3
    assert html.count('class="sample"') == 2 * len(METHODS)


def test_a_comparison_without_stories_or_pairs(book):
    bare = book.model_copy(
        update={"entries": [e.model_copy(update={"blocks": [], "held_out": []}) for e in book]}
    )
    comparison = run_comparison(
        tiny_model("gpt2"), bare, seeds=[3], time_budget=1.0, distances=[0], stories=0
    )
    assert "text" in comparison.methods
    assert "searched, 16" not in comparison.methods  # there is nothing to search on
    assert comparison.total["text"]["recall_0"] is None
    page = render_comparison(comparison)
    assert "<svg" not in page  # there is no recall to plot
    assert NO_RECALL in html.unescape(page)
    assert json.dumps(comparison.to_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {"distances": [-1]},
        {"stories": -1},
        {"story_tokens": 0},
        {"distances": []},
        {"time_budget": math.nan},
        {"time_budget": math.inf},
        {"time_budget": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(book, settings):
    with pytest.raises(ConfigError):
        run_comparison(tiny_model("llama"), book, **settings)
    with pytest.raises(LoreError):
        run_comparison(tiny_model("llama"), book.model_copy(update={"entries": []}))


def test_compare_command(tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE)
    model = save_tiny_model(tmp_path / "model")
    ended = softlore(
        "compare", tmp_path / "lore.yaml", "--model", model, "--seeds", "1", "--time-budget", "1",
        "--distances", "0,8", "--stories", "1", "--story-tokens", "4",
        "--html", tmp_path / "page.html", "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["total"]) == METHODS
    assert report["total"]["text"]["recall_0"]["half"] is None
    assert "best template" in ended.out
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert len(report["results"]) == 2 * len(METHODS)
    assert {"method", "entry", "seed", "recall_0", "drift", "story"} <= set(report["results"][0])


def test_compare_says_that_calls_are_lacking(tmp_path):
    (tmp_path / "lore.yaml").write_text("entries: [{name: Bo, text: Bo keeps a shop.}]")
    model = save_tiny_model(tmp_path / "model")
    common = [
        "compare", tmp_path / "lore.yaml", "--model", model, "--seeds", "1", "--time-budget", "1",
        "--distances", "0", "--stories", "1", "--story-tokens", "4", "--html", tmp_path / "a.html",
    ]  # fmt: skip
    ended = softlore(*common)
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "No entry has calls with responses" in said
    assert "in a story of 4 tokens" in said
    assert "in a story of 4 tokens" in (tmp_path / "a.html").read_text()
    styled = softlore(*common, "--style", "sentences")
    assert styled.code == 0, styled.err
    assert "searched, 16" in styled.out
    assert "No entry has calls" not in styled.out
    refused = softlore(*common, "--style", "nuon")
    assert refused.code == 2
    assert "did you mean 'noun'" in refused.err


def test_an_empty_comparison_has_no_methods():
    assert Comparison("x", "y", [0], [0], [], 0.0).total == {}


# the harness -------------------------------------------------------------------------------------


def test_rows_are_saved_and_an_interrupted_run_resumes(tmp_path):
    path, measured = tmp_path / "rows.jsonl", []

    def measure(kind, seed):
        measured.append((kind, seed))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return [{"name": name, "loss": seed + 1.0} for name in "ab"]

    cases = grid(kind=["prefix", "embedding"], seed=[0, 1])
    assert [tuple(case.values()) for case in cases] == [
        ("prefix", 0), ("prefix", 1), ("embedding", 0), ("embedding", 1),
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run_cases(cases, measure, path)
    assert len(path.read_text().splitlines()) == 4
    seen, shown = [], []
    rows = run_cases(cases, measure, path, shown.append, lambda done, doing: seen.append(doing))
    assert measured == [(case["kind"], case["seed"]) for case in [*cases[:3], *cases[2:]]]
    assert seen == ["kind embedding, seed 0", "kind embedding, seed 1"]
    assert rows[4:] == shown
    assert rows[0] == {"kind": "prefix", "seed": 0, "name": "a", "loss": 1.0}
    assert run_cases(cases, None, path) == rows
    assert run_cases(cases[:1], None, path) == rows[:2]
    path.write_text("{broken")
    with pytest.raises(ConfigError, match="expected JSON lines"):
        run_cases(cases, measure, path)


def test_a_summary_leaves_out_what_was_not_measured():
    rows = [{"m": "a", "seed": 0, "x": 1.0, "y": None}, {"m": "a", "seed": 0, "x": 3.0, "y": None}]
    rows += [{"m": "a", "seed": 1, "x": None, "y": None}, {"m": "b", "seed": 0, "x": 5.0, "y": 1.0}]
    assert summarize(rows, "m", "seed", ["x", "y"]) == {
        "a": {"x": interval([2.0]), "y": None},
        "b": {"x": interval([5.0]), "y": interval([1.0])},
    }


def test_a_comparison_resumes_after_the_last_seed(book, tmp_path, comparison):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in comparison.rows))
    resumed = run_comparison(tiny_model("llama"), book, seeds=(0, 1), path=path, make=None, **SMALL)
    assert resumed.rows == comparison.rows


def test_a_comparison_keeps_to_its_time_and_says_what_it_leaves_out(book, clock):
    def make(model, book, seed, seconds, tell):
        assert seconds <= 60
        clock.now += seconds
        made = {entry.name: "" for entry in book}
        return [MethodResult(name, "none", made) for name in ("nothing", "nothing else")]

    began, shown = clock.now, []
    comparison = run_comparison(
        tiny_model("llama"), book, seeds=range(4), time_budget=120.0, started=began - 20,
        distances=[0], stories=0, make=make, on_progress=lambda share, doing: shown.append(share),
    )  # fmt: skip
    # 12.5 s of 100 for each seed's making, so that all four fit.
    assert comparison.seeds == [0, 1, 2, 3]
    assert not comparison.left_out
    assert shown == sorted(shown)
    began = clock.now
    comparison = run_comparison(
        tiny_model("llama"), book, seeds=range(4), time_budget=30.0, started=began - 25,
        distances=[0], stories=0, make=lambda *given: slowly(make, clock, 10.0, *given),
    )  # fmt: skip
    assert comparison.seeds == [0]
    assert {row["entry"] for row in comparison.rows} == {"Ada"}
    assert comparison.left_out.startswith("In 30 s 1 of 2 entries and 1 of 4 seeds")
    assert comparison.left_out in html.unescape(render_comparison(comparison))
    assert clock.now - began < 12


def slowly(make, clock, seconds, *given):
    clock.now += seconds
    return make(*given)


def test_the_summary_compares_methods_with_nothing(comparison):
    rows = [
        {**row, "lore_words": 9.0 if row["method"] == "nothing" else 1.0} for row in comparison.rows
    ]
    page = render_comparison(replace(comparison, rows=rows))
    assert "Best lore words:\nno method is better than nothing (1.00; with nothing: 9.00)" in page
    assert "<strong>nothing</strong>" not in page


def test_labels_of_points_do_not_overlap():
    names = ["nothing", "text", "best template", "searched, 16", "code", "prefix, 16", "other"]
    points = [(name, "hard", 0.3 + n % 3 / 100, 3.0 + n / 1000) for n, name in enumerate(names)]
    svg = scatter(points, "drift", "recall", "title")
    boxes = []
    for name in names:
        style, x, y = re.search(
            rf'<text style="([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>{name}<', svg
        ).groups()
        width = 5.0 * len(name)
        left = float(x) - {"middle": width / 2, "end": width}.get(
            (re.search(r"text-anchor: (\w+)", style) or [0, ""])[1], 0
        )
        boxes.append((left, left + width, float(y)))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[1] <= b[0] or b[1] <= a[0] or abs(a[2] - b[2]) >= 8, (a, b)
