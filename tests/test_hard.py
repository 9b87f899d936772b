"""Hard prompts: templates that can't hurt, and experiments that say what passed."""

import csv
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server import make_state, served
from running import save_tiny_model, softlore
from softlore.compare.hard import OutputCache, experiment_csv, run_experiment
from softlore.control.hard import (
    Assertion,
    AssertionInput,
    Experiment,
    Template,
    find_judge,
    templates,
)
from softlore.control.hard.assertions import KINDS
from softlore.control.hard.judges import ModelJudge, ServerJudge
from softlore.errors import ConfigError, EngineError
from softlore.lore import Block
from softlore.measure import recall
from softlore.model.tiny import tiny_model

LORE = """
name: town
entries:
  - name: Ada
    text: Ada wears a red hat. She sells clocks.
    blocks: [{call: Ada wears, responses: [" a red hat"]}]
  - {name: Bo, text: Bo keeps a shop.}
"""
EXPERIMENT = """
name: town
lorebook: lore.yaml
prompts:
  nothing: ""
  text: "{{ entry.text }}\\n"
  facts: |
    {% for fact in entry.text | sentences %}- {{ fact }}
    {% endfor %}
opening: "{{ entry.name }} {{ verb }}"
variables:
  verb: [wears, keeps]
tokens: 6
assert:
  - regex: "."
  - not-contains: "{{ entry.name }} is not a name {{ verb }}"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE)
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    save_tiny_model(tmp_path / "model")
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


def run(folder, *more):
    return softlore("hard", "run", folder / "experiment.yaml", "--model", folder / "model", *more)


# templates ---------------------------------------------------------------------------------------


def test_variables_loops_and_sentences():
    source = "{{ name }}: {% for s in text | sentences %}[{{ s }}]{% endfor %}"
    found = Template(source).render({"name": "Bo", "text": 'He ran. "Stop!" she said. Why?'})
    assert found == 'Bo: [He ran.]["Stop!"][she said.][Why?]'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ x.__init__.__globals__ }}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | attr('__class__') }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ range(1000000000) | list }}",
        "{{ lipsum() }}",
        "{{ cycler.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{% for a in text %}{% for b in text %}{{ text }}{% endfor %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ x.missing }}",
        "{{ missing }}",
        "{{ text | sum }}",
    ],
)
def test_a_template_of_a_stranger_reaches_nothing(source):
    with pytest.raises(ConfigError, match=r"can't be rendered|is not a valid template"):
        Template(source).render({"x": {"a": 1}, "text": "some words " * 200})


@pytest.mark.parametrize("source", ["{{", "{% for %}", "{{ a b }}", "{% if %}", "{{ x | nope }}"])
def test_what_is_no_template_is_refused(source):
    with pytest.raises(ConfigError, match="prompt is not a valid template"):
        Template(source, "prompt")


@given(st.text(max_size=60))
def test_any_text_is_rendered_or_refused(text):
    try:
        found = Template(text).render({"x": "1"})
    except ConfigError:
        return
    if "{" not in text:
        assert found == text.replace("\r\n", "\n").replace("\r", "\n")


def test_values_are_not_templates(folder):
    assert Template("{{ x }}").render({"x": "{{ y }}"}) == "{{ y }}"


# assertions --------------------------------------------------------------------------------------


def check(data, output="The old house", variables=None, **measures):
    case = AssertionInput(output, variables or {}, lambda name: measures.get(name))
    return Assertion.parse(data, 1).check(case)


@pytest.mark.parametrize(
    ("data", "held"),
    [
        ({"contains": "old"}, True),
        ({"contains": "Old"}, False),
        ({"icontains": "OLD"}, True),
        ({"not-icontains": "OLD"}, False),
        ({"regex": r"\bo\w+d\b"}, True),
        ({"regex": r"{{2}}"}, False),
        ({"equals": " The old house\n"}, True),
        ({"equals": "The old"}, False),
        ({"similarity": "The old mouse"}, True),
        ({"similarity": "The old mouse", "threshold": 0.7}, False),
        ({"not-similarity": "Nothing of the kind"}, True),
        ({"perplexity": 20}, True),
        ({"not-perplexity": 20}, False),
        ({"perplexity": 10}, False),
        ({"recall": 1.5}, True),
        ({"drift": 0.1}, False),  # not measured here
        ({"keywords": 2}, True),
        ({"keywords": 3}, False),
        ({"contains": "{{ word }}"}, True),
        ({"python": "len(output) == 13 and word == 'house'"}, True),
        ({"python": "1 / 0"}, False),
        ({"regex": r"(?P<a>o)ld\b(?i:  *H)"}, True),
        ({"regex": r"a{e<=9}"}, False),  # braces that `re` takes literally
    ],
)
def test_assertions(data, held):
    measures = {"perplexity": 12.0, "recall": 1.5, "keywords": 2}
    assert check(data, variables={"word": "house"}, **measures).passed is held


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("python", "'old' in outptu", "NameError"),
        ("python", "len(output", "SyntaxError"),
        ("python", "exit()", "SystemExit"),
        ("perplexity", 20, "perplexity can't be measured"),
        ("recall", 1, "recall can't be measured"),
        ("drift", 1, "drift can't be measured"),
        ("keywords", 1, "keywords can't be measured"),
        ("regex", r"(a+)+$", "given up"),
        ("contains", "{{ nothing }}", "empty"),
        ("icontains", "{{ nothing }}", "empty"),
    ],
)
def test_what_cannot_be_checked_holds_neither_way(kind, value, said):
    output = "The captain said " + "a" * 20_000 + "!"
    for name in (kind, f"not-{kind}"):
        verdict = check({name: value}, output, {"nothing": ""}, drift=float("nan"))
        assert not verdict.passed
        assert verdict.reason.startswith("not checked: ")
        assert said in verdict.reason


@given(st.text("ab({[*+?|.\\d^$]})1,", max_size=12))
def test_a_pattern_that_python_takes_has_pythons_meaning(pattern):
    try:
        expected = re.search(pattern, "ab {1,} b[a] 1\n") is not None
    except re.error:
        with pytest.raises(ConfigError):
            Assertion.parse({"regex": pattern}, 1)
        return
    assert check({"regex": pattern}, "ab {1,} b[a] 1\n").passed is expected


def test_keywords_of_an_entry_without_any_are_not_checked(folder):
    (folder / "lore.yaml").write_text("entries: [{name: Ada, text: Ada is so.}]")
    (folder / "experiment.yaml").write_text(
        "lorebook: lore.yaml\nprompts: {nothing: ''}\nopening: Ada\ntokens: 4\n"
        "assert: [not-keywords: 1]\n"
    )
    ended = run(folder)
    assert ended.code == 1
    assert "keywords can't be measured" in ended.err + ended.out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("contains: x", "assertion 1 is the text"),
        ({}, "has no kind"),
        ({"contians": "x"}, "did you mean 'contains'"),
        ({"contains": "x", "equals": "y"}, "'contains', 'equals'; expected one of"),
        ({"contains": ["x"]}, "expected text"),
        ({"regex": "("}, "which is invalid"),
        ({"regex": "((a{100}){100}){100}"}, "expand to more than"),
        ({"regex": "(?:" * 390 + "a" + ")" * 390}, "deep"),
        ({"regex": "a" * 2001}, "longer than 2000"),
        ({"regex": "(?R)"}, "which is invalid"),
        ({"recall": "low"}, "expected a number"),
        ({"recall": float("nan")}, "expected a number"),
        ({"contains": "x", "threshold": 0.5}, "has the threshold 0.5"),
        ({"similarity": "x", "threshold": 2}, "has the threshold 2"),
        ({"recall": True}, "expected a number"),
        ({"contains": "x", "weight": -1}, "has the weight -1"),
        ({"contains": "{{"}, "is not a valid template"),
    ],
)
def test_assertions_that_are_none(data, said):
    with pytest.raises(ConfigError, match="assertion 1") as error:
        Assertion.parse(data, 1)
    assert said in str(error.value)


def test_every_kind_can_be_negated():
    for kind, (_, number) in KINDS.items():
        assert Assertion.parse({f"not-{kind}": 1 if number else "x"}, 1).label == f"not-{kind}"


# experiments -------------------------------------------------------------------------------------


def test_a_run_tries_every_combination(folder):
    ended = run(folder, "--json", folder / "out.json", "--csv", folder / "out.csv")
    assert ended.code == 0, ended.err
    report = json.loads((folder / "out.json").read_text())
    assert len(report["cases"]) == 3 * 2 * 2  # prompts, entries, verbs
    first = report["cases"][1]
    assert first["text"] == "Ada wears a red hat. She sells clocks.\n"
    assert first["opening"] == "Ada wears"
    facts = report["cases"][2]
    assert facts["text"] == "- Ada wears a red hat.\n- She sells clocks.\n\n"
    assert first["variables"] == {"verb": "wears", "entry": "Ada"}
    rows = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    assert [row["prompt"] for row in rows[:3]] == ["nothing", "text", "facts"]
    assert {row["passed"] for row in rows} == {"1"}
    assert "12 of" not in ended.out
    assert ended.out.count("4 of 4") == 3


def test_a_failed_case_ends_with_1_and_says_which(folder):
    with (folder / "experiment.yaml").open("a") as file:
        file.write("  - contains: no such words\n")
    ended = run(folder)
    assert ended.code == 1
    assert "12 of 12 cases failed; the first is prompt 'nothing'" in ended.err
    assert "contains: not found" in ended.err
    with (folder / "experiment.yaml").open("a") as file:
        file.write("threshold: 0.6\n")
    assert run(folder).code == 0  # two of three assertions hold


def test_weights_count(folder):
    with (folder / "experiment.yaml").open("a") as file:
        file.write("  - {contains: no such words, weight: 8}\n")
    ended = run(folder, "--json", "-")
    assert {case["score"] for case in json.loads(ended.out)["cases"]} == {0.2}


def test_the_second_run_asks_the_model_nothing(folder, monkeypatch):
    with (folder / "experiment.yaml").open("a") as file:
        file.write("  - drift: 100\n  - perplexity: 1e9\n  - not-recall: -1\n")
    first = run(folder, "--json", "-")
    monkeypatch.setattr("softlore.compare.hard.generate", None)
    monkeypatch.setattr("softlore.compare.hard.drift", None)
    second = run(folder, "--json", "-")
    assert second.out == first.out != ""
    with pytest.raises(TypeError):
        run(folder, "--no-cache")


def test_a_broken_cache_is_made_anew(folder):
    first = run(folder, "--json", "-")
    for file in (folder / "cache").rglob("*.json"):
        file.write_text("{broken")
    assert run(folder, "--json", "-").out == first.out


def test_measures_are_those_of_evaluation(folder):
    (folder / "experiment.yaml").write_text(EXPERIMENT + "  - recall: 1000\n")
    experiment = Experiment.load(folder / "experiment.yaml")
    model = tiny_model("llama")
    rows = run_experiment(experiment, lambda name: model)
    ada = next(r for r in rows if r["variables"]["entry"] == "Ada" and r["prompt"] == "text")
    expected = recall(model, ada["text"], [Block(call="Ada wears", responses=[" a red hat"])])
    assert ada["assertions"][-1]["reason"].startswith(f"recall {expected:.3g},")
    bo = next(row for row in rows if row["variables"]["entry"] == "Bo")
    assert not bo["assertions"][-1]["passed"]  # it has no blocks to measure it on


def test_samples_differ_and_are_drawn_again_alike(folder):
    (folder / "experiment.yaml").write_text(EXPERIMENT + "samples: 3\nsampling: {top_k: 0}\n")
    first = json.loads(run(folder, "--json", "-", "--no-cache").out)["cases"]
    second = json.loads(run(folder, "--json", "-", "--no-cache").out)["cases"]
    assert first == second
    assert len({case["output"] for case in first[:3]}) > 1


def test_python_needs_leave(folder):
    with (folder / "experiment.yaml").open("a") as file:
        file.write("  - python: len(output) < 100\n")
    ended = run(folder)
    assert ended.code == 2
    assert "--allow-python" in ended.err
    assert run(folder, "--allow-python").code == 0


def test_the_page_escapes_what_it_shows(folder):
    lore = LORE.replace("Bo keeps a shop.", "<script>alert(1)</script>")
    (folder / "lore.yaml").write_text(lore)
    assert run(folder, "--html", folder / "page.html").code == 0
    page = (folder / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page


def test_csv_to_standard_output(folder):
    ended = run(folder, "--csv", "-")
    assert ended.code == 0, ended.err
    assert len(list(csv.DictReader(io.StringIO(ended.out)))) == 12
    both = run(folder, "--csv", "-", "--json", "-")
    assert (both.code, len(both.lines)) == (2, 1)
    assert "both go to standard output" in both.err


def test_nothing_to_distil_is_named(folder):
    (folder / "empty.txt").write_text("\n")
    ended = softlore("hard", "distil", folder / "empty.txt", "--name", "x")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "empty.txt' is empty; expected a text" in ended.err


def test_csv_cells_are_no_formulas(folder):
    model = tiny_model("llama")
    (folder / "experiment.yaml").write_text('prompts: {"=1+1": "@x"}\nopening: a\ntokens: 1\n')
    rows = run_experiment(Experiment.load(folder / "experiment.yaml"), lambda _: model)
    assert experiment_csv(rows).splitlines()[1].startswith("'=1+1,")


def test_files_are_read_from_the_experiments_folder_only(folder):
    (folder / "verbs.txt").write_text("runs\n\nsits\n")
    (folder / "plain.j2").write_text("{{ entry.text }}")
    own = "prompts: {a: {file: plain.j2}}\nlorebook: lore.yaml\nopening: '{{ verb }}'\ntokens: 2\n"
    (folder / "experiment.yaml").write_text(own + "variables: {verb: {file: verbs.txt}}\n")
    ended = run(folder, "--json", "-")
    assert ended.code == 0, ended.err
    assert [case["opening"] for case in json.loads(ended.out)["cases"]] == ["runs"] * 2 + [
        "sits"
    ] * 2
    for path in ("../x", "/etc/passwd", "a/../../x"):
        (folder / "experiment.yaml").write_text(f"prompts: {{a: {{file: {path}}}}}\nopening: x\n")
        ended = run(folder)
        assert ended.code == 2
        assert "outside the experiment's own folder" in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is a list"),
        ("{}", "`prompts` is missing"),
        ("prompts: {}", "prompts"),
        ("prompts: {a: 5}\nopening: x", "expected text or {file: PATH}"),
        ("prompts: {a: x}\nsampling: {temprature: 1}", "can't be used"),
        ("prompts: {a: x}\nsampling: {temperature: hot}", "temperature is 'hot'"),
        ("prompts: {a: x}\nsampling: {head: x}", "can't be used"),
        ("prompts: {a: x}\ntokens: 0", "`tokens` must be at least 1"),
        ("prompts: {a: x}\nsampling: {temprature: 1}", "did you mean 'temperature'"),
        ("prompts: {a: x}\nmodel: gpt2", "`model` is not a field of an experiment; it has `name`"),
        ("promts: {a: x}", "and `threshold`; did you mean 'prompts'"),
        ("prompts: {a: x}\nvariables: {entry: [1]}", "names a variable 'entry'"),
        ("prompts: {a: x}\nvariables: {b: []}", "has no values"),
        ("prompts: {a: '{{ b }}'}", "'b' is undefined"),
        ("prompts: {a: ''}", "holds no text"),
        ("prompts: {a: x}\nlorebook: none.yaml", "does not exist"),
        ("prompts: {a: x}\nassert: [x]", "assertion 1"),
        ("prompts: {a: x}\nsamples: 1000\nvariables: {b: {file: many}}", "1,000,000 cases"),
        ("prompts: {a: x", "experiment.yaml"),
    ],
)
def test_what_is_no_experiment_is_refused(folder, text, said):
    (folder / "many").write_text("x\n" * 1000)
    (folder / "experiment.yaml").write_text(text)
    ended = run(folder)
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert len(ended.lines_after_loading) == 1


def test_a_template_without_an_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(templates, "MAX_CHARACTERS", 100)
    with pytest.raises(ConfigError, match="more than 100 characters"):
        Template("{% for i in x %}{{ i }}{% endfor %}").render({"x": ["word"] * 99})


def test_cache_without_a_folder_always_asks():
    asked = []
    cache = OutputCache(None)
    for _ in range(2):
        cache.get({"a": 1}, lambda: asked.append(1))
    assert len(asked) == 2


# judges ------------------------------------------------------------------------------------------


def judged(chances, **assertion):
    asked = []

    def judge(question, choices):
        asked.append((question, tuple(choices)))
        return chances

    found = Assertion.parse({"judge": "Is it {{ what }}?\n{{ output }}", **assertion}, 1)
    case = AssertionInput("It rained.", {"what": "wet"}, lambda name: None, judge)
    return found.check(case), asked


def test_a_judge_is_asked_about_the_output():
    verdict, asked = judged([0.7, 0.3])
    assert verdict.passed
    assert verdict.value == 0.7
    assert verdict.reason == "'Is it wet? It rained.': yes 0.70, no 0.30; expected yes at least 0.5"
    assert asked == [("Is it wet?\nIt rained.", ("yes", "no"))]
    assert not judged([0.7, 0.3], threshold=0.8)[0].passed
    assert judged([0.2, 0.5, 0.3], choices=[True, "perhaps", False])[1][0][1] == (
        "yes", "perhaps", "no",
    )  # fmt: skip
    without = Assertion.parse({"not-judge": "?"}, 1).check(
        AssertionInput("", {}, lambda name: None)
    )
    assert not without.passed
    assert without.reason.startswith("not checked: there is no judge")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"judge": "?", "choices": ["one"]}, "expected a list of 2 to 9 answers"),
        ({"judge": "?", "choices": "yes"}, "expected a list of 2 to 9 answers"),
        ({"judge": "?", "choices": ["a", " "]}, "expected a list of 2 to 9 answers"),
        ({"judge": "?", "choices": ["yes", "Yes"]}, "none that begins another"),
        ({"judge": "?", "choices": ["Ada", "Ada Lovelace"]}, "none that begins another"),
        ({"judge": "?", "choices": [None, "a"]}, "expected a list of 2 to 9 answers"),
        ({"judge": "?", "choices": ["{{ output }}", "a"]}, "expected plain words"),
        ({"judge": "?", "choices": ["a\nb", "c"]}, "expected plain words"),
        ({"contains": "?", "choices": ["a", "b"]}, "answers to a `judge`'s question"),
        ({"judge": "?", "threshold": 2}, "expected one from 0 to 1"),
    ],
)
def test_odd_judges_are_refused(data, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Assertion.parse(data, 1)


def test_a_models_chances_are_those_of_its_answers_in_every_order():
    model = tiny_model("llama")
    choices = ["red", "blue", "a cat"]
    found = ModelJudge(model).chances("What is it?", choices)
    assert sum(found) == pytest.approx(1)
    expected = dict.fromkeys(choices, 0.0)
    for at in range(3):
        order = [*choices[at:], *choices[:at]]
        asked = (
            "What is it?\n\nAnswer with one of these, and nothing else: "
            f"{', '.join(order)}.\n\nAnswer:"
        )
        likely = {
            one: math.exp(-len(model.encode(f" {one}", inside=True))
                          * recall(model, "", [Block(call=asked, responses=[f" {one}"])]))
            for one in order
        }  # fmt: skip
        for one in order:
            expected[one] += likely[one] / sum(likely.values()) / 3
    assert found == pytest.approx([expected[one] for one in choices], rel=1e-3)


def test_a_server_judges_by_its_likely_tokens_or_by_its_answer(tmp_path):
    """Of our own server, which has logprobs; and of one that only answers."""
    with served(make_state(tmp_path)) as url:
        chances = find_judge(f"{url}/v1").chances("Who ran?", ["a dog", "The cat", "a horse"])
    assert sum(chances) == pytest.approx(1)

    class Plain:
        url = name = "plain"

        def __init__(self, answer, tokens=None):
            top = [{"token": token, "logprob": log} for token, log in (tokens or {}).items()]
            self.answer = {"message": {"content": answer}}
            self.answer |= {"logprobs": {"content": [{"top_logprobs": top}]}} if tokens else {}

        def ask(self, question, **body):
            return self.answer

    judge = ServerJudge(Plain(" Bo."))
    assert judge.chances("Who?", ["Ada", "Bo"]) == [0, 1]
    likely = {"yes": 0.0, "no": -9999.0, "Yes": -1.0, "!": 5.0, "nothing": math.nan}
    chances = ServerJudge(Plain("yes", likely)).chances("Is it?", ["yes", "no"])
    assert chances == pytest.approx([1, 0])
    low = {"yes": -9998.0, "no": -9999.0}
    chances = ServerJudge(Plain("", low)).chances("Is it?", ["yes", "no"])
    assert chances == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    for answer in ("I can't say", "", None, "Not sure.", "Nobody knows"):
        with pytest.raises(EngineError, match="expected one of yes, no"):
            ServerJudge(Plain(answer)).chances("Is it?", ["yes", "no"])
    silent = Assertion.parse({"judge": "Is it?"}, 1)
    case = AssertionInput("", {}, lambda name: None, ServerJudge(Plain("I can't say")).chances)
    assert not silent.check(case).passed
    assert silent.check(case).reason.startswith("not checked: the judge 'plain' answered")


def test_run_takes_a_judge_and_caches_what_it_says(folder):
    text = EXPERIMENT + '  - judge: "Is it good?\\n{{ output }}"\n    threshold: 0\n'
    (folder / "experiment.yaml").write_text(text)
    save_tiny_model(folder / "judge", seed=5)
    command = [
        "hard",
        "run",
        folder / "experiment.yaml",
        "--model",
        folder / "model",
        "--json",
        "-",
    ]
    own, other = softlore(*command), softlore(*command, "--judge", folder / "judge")
    assert own.code == other.code == 0, own.err + other.err
    values = [
        [v["value"] for case in json.loads(done.out)["cases"] for v in case["assertions"]
         if v["assertion"] == "judge"]
        for done in (own, other)
    ]  # fmt: skip
    assert len(values[0]) == 12
    assert values[0] != values[1]
    assert json.loads(softlore(*command).out) == json.loads(own.out)
    refused = softlore(*command, "--judge", "http://127.0.0.1:9/v1")
    assert refused.code == 1
    assert "did not answer /models" in refused.err
    refused = softlore(*command, "--judge-model", "a")
    assert refused.code == 2
    assert "--judge-model 'a' is a name on a server" in refused.err
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    refused = softlore(*command, "--judge", folder / "judge")
    assert refused.code == 2
    assert "the experiment has no `judge` assertion" in refused.err
