"""Chains: each datum's prompt holds the output before it, and a chain that was stopped goes on."""

import itertools
import json

import pytest

from running import save_tiny_model, softlore
from softlore import SoftPrompt, generate
from softlore.errors import ConfigError, ContextError
from softlore.model.tiny import tiny_model
from softlore.story.chain import Link, adding_links, chain, fill, line, read_links

MODEL = tiny_model("llama")
ITEMS = ["a storm", "a lighthouse", "a letter"]


def links(items=ITEMS, template="{previous} {item}", **settings):
    return list(chain(MODEL, items, template, **({"tokens": 8, "seed": 1} | settings)))


def test_each_prompt_holds_the_output_before():
    made = links()
    assert [link.item for link in made] == ITEMS
    assert made[0].prompt == "a storm"
    for before, link in itertools.pairwise(made):
        assert link.prompt == fill("{previous} {item}", before.output, link.item)
        assert before.output.lstrip(" ") in link.prompt
    for place, link in enumerate(made):
        assert link.output == generate(MODEL, link.prompt, 8, seed=1 + place)


def test_braces_that_are_no_field_stay():
    assert fill('{"a": {item}}', "x", "b{previous}") == '{"a": b{previous}}'


def test_soft_prompts_stand_in_a_template():
    dog = SoftPrompt.from_text("a dog", MODEL, name="dog", kind="prefix")
    plain, soft = links(), links(template="[[soft:dog]]{previous} {item}", prompts=[dog])
    assert soft[0].prompt.startswith("[[soft:dog]]")
    assert soft[0].output != plain[0].output


def test_what_was_written_is_not_written_again():
    whole = links()
    assert links(done=whole[:2]) == whole
    with pytest.raises(ConfigError, match="expected the same chain"):
        links(items=["another", *ITEMS[1:]], done=whole[:2])


def test_an_item_that_cannot_be_written_on_is_named():
    made = chain(MODEL, ["a storm", "x" * 5000], "{item}", tokens=4)
    next(made)
    with pytest.raises(ContextError, match="item 2, 'xxx"):
        next(made)
    with pytest.raises(ConfigError, match="names neither"):
        chain(MODEL, ITEMS, "nothing")


def test_a_file_that_was_cut_off_goes_on(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = links()
    path.write_text(line(whole[0]) + line(whole[1])[:20], encoding="utf-8")
    assert read_links(path) == whole[:1]
    with adding_links(path) as add:
        for link in whole[1:]:
            add(link)
    assert read_links(path) == whole


# the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def run(model, *arguments, **more):
    return softlore("chain", *arguments, "--model", model, "--tokens", 8, "--seed", 1, **more)


def told(text):
    return [json.loads(one) for one in text.splitlines()]


def test_lists_files_and_standard_input(model, tmp_path):
    plain, listed = tmp_path / "items.txt", tmp_path / "items.json"
    plain.write_text("\n".join(ITEMS) + "\n\n", encoding="utf-8")
    listed.write_text(json.dumps(ITEMS), encoding="utf-8")
    wanted = run(model, *ITEMS)
    assert wanted.code == 0
    assert [link["item"] for link in told(wanted.out)] == ITEMS
    assert [sorted(link) for link in told(wanted.out)] == [["item", "output", "prompt"]] * 3
    for given, stdin in ((plain, ""), (listed, ""), ("-", "\n".join(ITEMS))):
        assert run(model, given, stdin=stdin).out == wanted.out


def test_a_chain_goes_on_in_its_file(model, tmp_path):
    out = tmp_path / "out.jsonl"
    whole = told(run(model, *ITEMS).out)
    assert run(model, *ITEMS[:2], "--out", out).code == 0
    again = run(model, *ITEMS, "--out", out)
    assert "2 of them already there" in again.err
    assert told(out.read_text(encoding="utf-8")) == whole
    other = run(model, "another", *ITEMS, "--out", out)
    assert (other.code, len(other.lines)) == (2, 1)
    assert told(out.read_text(encoding="utf-8")) == whole  # nothing was lost
    anew = run(model, "another", "item", "--out", out, "--overwrite")
    assert anew.code == 0
    assert len(told(out.read_text(encoding="utf-8"))) == 2


def test_ctrl_c_says_what_is_kept(model, tmp_path, monkeypatch):
    def links(*_, **__):
        yield Link("a", "a", "b")
        raise KeyboardInterrupt

    monkeypatch.setattr("softlore.story.chain.chain", links)
    out = tmp_path / "out.jsonl"
    for more, said in (
        ((), "the same command continues"),
        (("--overwrite",), "without --overwrite continues"),
    ):
        stopped = run(model, *ITEMS, "--out", out, *more)
        assert (stopped.code, len(stopped.lines)) == (130, 1)
        assert said in stopped.err
        assert len(told(out.read_text(encoding="utf-8"))) == 1
        out.unlink()


@pytest.mark.parametrize("arguments", [("missing.txt",), ("-",), ("a b", "c", "--template", "x")])
def test_refusals_are_one_line(model, arguments):
    ended = run(model, *arguments)
    assert (ended.code, len(ended.lines)) == (2, 1)
