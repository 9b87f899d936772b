"""`softlore demo --quick`, end to end on a tiny model, and the report it leaves."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from softlore import PromptLibrary
from softlore.cli.demo import command
from softlore.compare import demo as running
from softlore.compare import plots
from softlore.compare.demo import run_demo
from softlore.compare.report import render_demo
from softlore.compare.samples import Sample, first_of_each
from softlore.compare.tables import mark_lore_words
from softlore.demo import lorebook_path, openings
from softlore.errors import ConfigError, StorageError
from softlore.lore import Lorebook
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model

VOID = {"meta", "br", "link", "img", "hr", "input"}
NAMES = {"Marta", "Captain Rook", "Captain Rook from text", "Marta as rows"}


class Page(HTMLParser):
    """Sees that tags are closed in order, ids are used once, and nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.seen, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that the demo leaves, and what the command said."""
    place = tmp_path_factory.mktemp("demo")
    tiny_hf("llama", max_position_embeddings=1024, num_hidden_layers=2).save_pretrained(
        place / "model"
    )
    byte_tokenizer().save_pretrained(place / "model")
    out = place / "out"
    arguments = ["--quick", "--model", str(place / "model"), "--out", str(out), "--no-open"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            running, "run_demo", lambda *a, **k: found.append(run_demo(*a, **k)) or found[0]
        )
        done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return out, done, found[0]


def test_it_shows_samples_and_says_where_the_report_is(demo):
    out, done, _ = demo
    assert "all entries" in done.stdout
    for name in NAMES:
        assert f"[[soft:{name}]]" in done.stdout
    assert str(out / "report.html") in done.stderr


def test_it_leaves_prompts_of_all_three_ways(demo):
    prompts = PromptLibrary(demo[0] / "prompts")
    assert set(prompts) == NAMES
    assert prompts["Marta"].kind == prompts["Captain Rook from text"].kind == "prefix"
    assert prompts["Marta as rows"].kind == "embedding"


def test_its_json_has_the_curves_the_measures_and_the_samples(demo):
    report = json.loads((demo[0] / "demo.json").read_text(encoding="utf-8"))
    company, distilled, rows = report["trained"]
    assert len(company["curves"]["Marta"]["response"]) == company["updates"] == 2
    for loss in ("response", "distil"):  # of calls made of its text, and of the text
        assert len(distilled["curves"]["Captain Rook"][loss]) == 2
    assert rows["prompts"]["Marta"]["kind"] == "embedding"
    assert company["evaluation"]["total"]["soft"]["recall"]["0"] > 0
    asked = [(sample["prompt"], sample["opening"]) for sample in report["samples"]]
    wanted = [one for one in openings() if one[0] in NAMES]
    assert asked[: len(wanted)] == wanted
    assert len(asked) == len(wanted) + 4


def test_its_report_is_one_whole_page(demo):
    html = (demo[0] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for reference in re.findall(r"url\(([^)]*)\)", html):
        assert reference[1:] in page.ids
    assert "http" not in html
    assert "<script" not in html
    assert "@import" not in html
    assert ("html", {"lang": "en"}) in page.seen
    figures = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert len(figures) == 5
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
    assert not re.search("#0[1-5]0[1-5]0[1-5]", html)  # colours are the page's own
    for sample in json.loads((demo[0] / "demo.json").read_text())["samples"]:
        assert sample["opening"] in page.text


def test_the_command_in_its_report_names_the_folder_of_prompts(demo):
    html = (demo[0] / "report.html").read_text(encoding="utf-8")
    (folder,) = re.findall(r"--prompts (\S+) --model", html)
    assert set(PromptLibrary(folder)) == NAMES


def test_it_says_when_the_time_was_too_short_to_learn_anything(demo):
    _, done, made = demo
    assert made.note == ""  # all updates that were asked for
    first = made.results[0]
    hurried = {
        name: prompt.replace(training=prompt.training | {"stopped": "time_budget", "steps": 1})
        for name, prompt in first.prompts.items()
    }
    short = replace(made, results=[replace(first, prompts=hurried), *made.results[1:]])
    assert re.search("enough for 1 update, too few .* give more", short.note)
    assert short.note in unescape(render_demo(short))
    assert "too few" not in done.stderr


def test_its_picture_is_a_png(demo):
    assert (demo[0] / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_json_on_standard_output_stands_alone(demo, tmp_path, monkeypatch):
    place, _, found = demo
    monkeypatch.setattr(running, "run_demo", lambda *_, **__: found)
    arguments = ["--model", str(place.parent / "model"), "--out", str(tmp_path), "--json", "-"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["lorebook"] == Lorebook.load(lorebook_path()).name
    assert (tmp_path / "report.html").read_bytes() == (place / "report.html").read_bytes()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'softlore[report]'")):
        plots.need_extra()


def test_a_folder_that_cannot_be_made_is_met_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        run_demo(tiny_model("llama"), tmp_path / "file" / "out")


def test_lore_words_are_marked_as_whole_words():
    pieces = mark_lore_words("The red hat, redder than RED.", ["red"])
    assert [piece for piece, is_lore in pieces if is_lore] == ["red", "RED"]
    assert "".join(piece for piece, _ in pieces) == "The red hat, redder than RED."
    assert mark_lore_words("plain", []) == [("plain", False)]
    assert mark_lore_words("", ["red"]) == []


def test_the_first_sample_of_each_prompt():
    samples = [Sample(name, opening, "", "", "", []) for name, opening in ("ax", "ay", "bz")]
    assert [sample.opening for sample in first_of_each(samples)] == ["x", "z"]
