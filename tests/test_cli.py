"""The commands train, write and inspect: what they do, what they say, and what they refuse."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from running import Running, save_tiny_model, softlore
from softlore import PromptLibrary, SoftPrompt, disk
from softlore.cli import COMMANDS, main
from softlore.model.tiny import tiny_model
from waiting import WAIT_SECONDS

PYTHON = [sys.executable, "-c", "from softlore.cli import main; main()"]
LORE = """
name: town
training: {n_tokens: 3, max_steps: 3, passage_tokens: 6, distil_passages: 4, max_spacing: 6}
entries:
  - {name: Ada, keys: [Ada], blocks: [{call: Ada wears, responses: [" a hat", " red boots"]}]}
  - {name: Bo, text: Bo keeps a shop.}
"""
NEW = '  - {name: Cid, blocks: [{call: Cid wears, responses: [" a mask"]}]}\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A folder with a lorebook and its prompts; copy it to change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "lore.yaml").write_text(LORE, encoding="utf-8")
    ended = softlore("train", folder / "lore.yaml", "--model", model, "--out", folder / "out")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def town(trained, tmp_path):
    """One's own copy of `trained`."""
    shutil.copytree(trained, tmp_path / "town")
    return tmp_path / "town"


def train(folder, model, *more):
    return softlore("train", folder / "lore.yaml", "--model", model, "--out", folder / "out", *more)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


PROGRESS = re.compile(r"loading |.*asking the hub|writing passages: |\d+ entr(y|ies), up to ")


def assert_refused(ended, *told, code=2):
    """One line on standard error, after those of progress; no traceback, no output."""
    assert ended.code == code
    assert ended.out == ""
    *progress, line = ended.lines
    assert all(PROGRESS.match(first) for first in progress)
    assert line.startswith("softlore: ")
    for part in told:
        assert part in line


# what they do ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_inspect_write_as_a_user_runs_them(model, tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE, encoding="utf-8")
    environment = os.environ | {"SOFTLORE_PROMPTS": str(tmp_path / "prompts")}

    def run(*arguments):
        done = subprocess.run(
            [*PYTHON, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    done = run("train", "lore.yaml", "--model", model)
    assert done.stdout == ""
    assert re.search(r"2 entries, up to 3 updates; prompts of 1 KB each", done.stderr)
    assert re.search(r"100%  update 3  loss: Ada \d\.\d\d  Bo \d\.\d\d", done.stderr)
    assert f"wrote {tmp_path / 'prompts' / 'ada.safetensors'}" in done.stderr
    shown = run("inspect").stdout.splitlines()
    assert shown[0].startswith("default model: ")
    assert shown[1] == f"prompts folder: {tmp_path / 'prompts'}"
    # Nobody reads on, as with `| head`: no traceback.
    script = '"$0" -c "from softlore.cli import main; main()" "$@" | head -c 6'
    told = ["write", "Then [[soft:Ada]]Ada", "--model", model, "--tokens", 200, "--seed", 1]
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, *map(str, told)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (done.stdout, done.stderr) == ("Then A", "")


def test_the_files_that_training_leaves(trained):
    assert sorted(p.name for p in (trained / "out").iterdir()) == [
        "ada.safetensors",
        "bo.safetensors",
    ]
    prompts = PromptLibrary(trained / "out")
    assert {len(prompt) for prompt in prompts.values()} == {3}
    assert prompts["Ada"].training["in_company"] == ["Bo"]
    assert prompts["Ada"].training["max_steps"] == 3


def test_a_second_run_trains_what_is_new(town, model):
    before = contents(town / "out")
    ended = train(town, model)
    assert ended.code == 0
    assert ended.lines[1:] == [
        "already trained, in company with the new ones: Ada, Bo",
        "nothing new to train; --overwrite trains existing prompts again",
    ]
    ended = train(town, model, "--n-tokens", 5)
    assert "'Bo' was trained with n-tokens 3, not 5, and is left as it is" in ended.err
    with open(town / "lore.yaml", "a", encoding="utf-8") as file:
        file.write(NEW.replace("blocks", "tekst: no, blocks"))
    ended = train(town, model, "--json", "-")
    assert "check: entry 'Cid': `tekst` is not a field" in ended.err
    assert "try this now: softlore write '[[soft:Cid]]Cid" in ended.err
    assert ended.code == 0, ended.err
    assert "already trained, in company with the new ones: Ada, Bo" in ended.lines
    assert "1 entry, up to 3 updates" in ended.err
    report = json.loads(ended.out)
    assert [one["name"] for one in report["trained"]] == ["Cid"]
    assert report["trained"][0]["in_company"] == ["Ada", "Bo"]
    assert report["kept"] == ["Ada", "Bo"]
    after = contents(town / "out")
    assert list(after) == ["ada.safetensors", "bo.safetensors", "cid.safetensors"]
    assert {name: after[name] for name in before} == before


def test_changed_lore_is_trained_anew(town, model):
    before = contents(town / "out")
    lore = (town / "lore.yaml").read_text(encoding="utf-8").replace("a hat", "a cap")
    (town / "lore.yaml").write_text(lore, encoding="utf-8")
    ended = train(town, model)
    assert "in company with the new ones: Bo" in ended.err
    after = contents(town / "out")
    assert after["bo.safetensors"] == before["bo.safetensors"]
    assert after["ada.safetensors"] != before["ada.safetensors"]


def test_one_entry_again(town, model):
    """It stands in company of the others, which stay as they are."""
    before = contents(town / "out")
    ended = train(town, model, "--entry", "Ada", "--overwrite", "--max-steps", 4)
    assert ended.code == 0, ended.err
    after = contents(town / "out")
    assert after["bo.safetensors"] == before["bo.safetensors"]
    ada = PromptLibrary(town / "out")["Ada"]
    assert ada.training["steps"] == 4
    assert ada.training["in_company"] == ["Bo"]


def test_all_again(town, model):
    ended = train(town, model, "--overwrite", "--max-steps", 2, "--kind", "embedding")
    assert ended.code == 0, ended.err
    for prompt in PromptLibrary(town / "out").values():
        assert prompt.kind == "embedding"
        assert prompt.training["steps"] == 2


def test_options_win_over_the_lorebook(town, model):
    options = ["--overwrite", "--n-tokens", 5, "--optimizer", "sgd", "--learning-rate", 0.01]
    options += ["--schedule", "linear", "--drift-guard", 0.5, "--seed", 7, "--filler", "random"]
    options += ["--initial", "witch", "--company-size", 1, "--min-loss", 0.01, "--patience", 9]
    ended = train(town, model, *options)
    assert ended.code == 0, ended.err
    told = PromptLibrary(town / "out")["Ada"].training
    assert {name: told[name] for name in ("n_tokens", "optimizer", "schedule", "seed")} == {
        "n_tokens": 5,
        "optimizer": "sgd",
        "schedule": "linear",
        "seed": 7,
    }
    assert (told["initial"], told["filler"], told["alone"]) == ("witch", "random", True)
    assert (told["drift_guard"], told["min_loss"], told["patience"]) == (0.5, 0.01, 9)


def test_from_a_prompt_and_a_story(town, model):
    (town / "story.txt").write_text("The rain fell on the harbour all night. " * 9)
    start = town / "out" / "ada.safetensors"
    shutil.copy(start, town / "start.safetensors")
    options = ["--initial-prompt", town / "start.safetensors", "--story", town / "story.txt"]
    ended = train(town, model, "--entry", "Ada", "--overwrite", *options)
    assert ended.code == 0, ended.err
    told = PromptLibrary(town / "out")["Ada"].training
    assert told["initial"].startswith("prompt ")
    assert told["story"] is True


def test_a_text_file_is_a_corpus(model, tmp_path):
    (tmp_path / "old sea [1].txt").write_text("The sea was dark and the ship was old. " * 9)
    command = ["train", tmp_path / "old sea [1].txt", "--model", model, "--out", tmp_path / "out"]
    ended = softlore(*command, "--n-tokens", 2, "--max-steps", 2, "--json", "-")
    assert ended.code == 0, ended.err
    (name,) = PromptLibrary(tmp_path / "out")
    assert [one["name"] for one in json.loads(ended.out)["trained"]] == [name]
    assert not (tmp_path / "out" / ".training").exists()


def test_json_to_a_file_and_to_standard_output(town, model):
    ended = softlore("inspect", "--prompts", town / "out", "--json", "-")
    listing = json.loads(ended.out)
    assert [one["name"] for one in listing["prompts"]] == ["Ada", "Bo"]
    assert listing["folder"] == str(town / "out")
    assert ended.err == ""

    ended = softlore("inspect", town / "out" / "ada.safetensors", "--json", town / "ada.json")
    told = json.loads((town / "ada.json").read_text(encoding="utf-8"))
    assert (told["name"], told["kind"], told["n_tokens"]) == ("Ada", "prefix", 3)
    assert told["training"]["stopped"] == "max_steps"
    assert "name: Ada" in ended.out

    ended = train(town, model, "--json", "-")
    assert json.loads(ended.out) == {
        "folder": str(town / "out"),
        "trained": [],
        "kept": ["Ada", "Bo"],
    }


def test_inspect_takes_a_file_or_a_folder(town, tmp_path):
    for arguments in ([town / "out"], ["--prompts", town / "out"]):
        ended = softlore("inspect", *arguments)
        assert ended.code == 0
        assert ended.out.startswith(f"prompts folder: {town / 'out'}")
        assert re.search(r"Ada +prefix +3 ", ended.out)
    ended = softlore("inspect", "--prompts", tmp_path / "nothing")
    assert ended.code == 0
    assert "no prompts yet: `softlore train LOREBOOK` puts them there" in ended.out


def test_write(town, model):
    command = ["write", "--model", model, "--prompts", town / "out", "--tokens", 12]
    first = softlore(*command, "Then [[soft:Ada]]Ada", "--seed", 3)
    assert first.code == 0, first.err
    assert first.err == ""
    assert first.out.startswith("Then Ada")
    assert first.out.endswith("\n")
    assert softlore(*command, "Then [[soft:Ada]]Ada", "--seed", 3) == first
    assert softlore(*command, "Then [[soft:Ada]]Ada", "--seed", 4) != first
    assert softlore(*command, "-", "--seed", 3, stdin="Then [[soft:Ada]]Ada") == first
    assert softlore(*command, "Then Ada", "--seed", 3) != first
    greedy = [softlore(*command, "Ada", "--temperature", 0) for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_an_empty_text(town, model, tmp_path):
    ended = softlore("write", "", "--model", model)
    assert_refused(ended, "the context holds no text", "no BOS", "write an opening")
    with_bos = save_tiny_model(tmp_path / "bos", bos=True)
    ended = softlore("write", "", "--model", with_bos, "--tokens", 3)
    assert ended.code == 0, ended.err


# help --------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_shows_an_example():
    """No command's help imports torch."""
    code = (
        "import sys\n"
        "from softlore.cli import COMMANDS, main\n"
        "for name in ['', *COMMANDS]:\n"
        "    try:\n"
        "        main([*name.split(), '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (name, end.code)\n"
        "    print('=====')\n"
        "    slow = {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "    slow |= {'pydantic'} & set(sys.modules) if not name else set()\n"
        "    assert not slow, (name, slow)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    pages = done.stdout.split("=====\n")[:-1]
    assert len(pages) == 1 + len(COMMANDS)
    for name, page in zip(["", *COMMANDS], pages, strict=True):
        assert page.startswith(f"Usage: softlore {name}".rstrip())
        assert f"Example:\n    softlore {name}" in page, name
        assert "--checkpoint-seconds" not in page
    for name, what in COMMANDS.items():
        assert f"{name} " in pages[0]
        assert what.split()[0] in pages[0]


def test_version_and_no_command():
    ended = softlore("--version")
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(r"softlore, version \d+\.\d+\.\d+\n", ended.out)
    ended = softlore()
    assert ended.code == 2
    assert "Usage: softlore" in ended.err + ended.out


def test_write_without_copying(town, model):
    def written(*more):
        context = "[[soft:Ada]]Ada wears"
        return softlore("write", context, "--model", model, "--prompts", town / "out", *more)

    ended = written("--no-copy", 8, "--tokens", 5, "--seed", 1)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Ada wears")
    for short in (-1, 2):
        said = f"no_copy is {short}; expected 0 for none, or 4 tokens"
        assert_refused(written("--no-copy", short), said)
    assert_refused(
        written("--no-copy", 8, "--sampler", "no_copy=8"), "no_copy is given twice", "--no-copy"
    )


def test_a_code_where_there_are_none(model, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = softlore("write", "x", "--model", model, "--prompts", tmp_path / "empty", "--code", "a")
    assert_refused(ended, "'a' is unknown", "has no control codes", "use a model with codes")


# what they refuse --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'LOREBOOK'"),
        (["write"], "Missing argument 'TEXT'"),
        (
            ["train", "x.yaml", "--kind", "lora"],
            "kind is 'lora'; expected one of prefix, embedding",
        ),
        (["train", "x.yaml", "--n-token", "3"], "No such option '--n-token'"),
        (["train", "x.yaml", "--n-tokens", "few"], "'few'; expected a whole number"),
        (["train", "x.yaml", "--checkpoint-seconds", "-1"], "-1.0 is not in the range x>=0"),
        (["train", "x.yaml", "--checkpoint-seconds", "nan"], "'nan' is not a finite number"),
        (["compare", "x.yaml", "--time-budget", "nan"], "'nan' is not a finite number"),
        (["compare", "x.yaml", "--time-budget", "inf"], "'inf' is not a finite number"),
        (["compare", "x.yaml", "--time-budget", "-5"], "-5.0 is not in the range x>=1"),
        (["demo", "--time-budget", "nan"], "'nan' is not a finite number"),
        (["hard", "search", "x.yaml", "--seconds", "nan"], "'nan' is not a finite number"),
        (["hard", "search", "x.yaml", "--seconds", "inf"], "'inf' is not a finite number"),
        (["hard", "search", "x.yaml", "--seconds", "-1"], "-1.0 is not in the range x>0"),
        (["hard", "search", "x.yaml", "--fluency", "nan"], "'nan' is not a finite number"),
        (["hard", "search", "x.yaml", "--fluency", "-1"], "-1.0 is not in the range x>=0"),
        (["hard", "distil", "x", "--name", "x", "--time-budget", "nan"], "'nan' is not a finite"),
        (["write", "x", "--no-copy", "few"], "no_copy is 'few'; expected 0 for none"),
        (["write", "x", "--tokens", "1.5"], "'1.5' is not a valid integer"),
        (["write", "x", "--seed", "-1"], "-1 is not in the range"),
        (["write", "x", "--seed", "9" * 30], "is not in the range"),
        (["inspect", "a", "b"], "unexpected extra argument (b)"),
        (["--loud"], "No such option '--loud'"),
    ],
    ids=str,
)
def test_bad_usage(arguments, told):
    assert_refused(softlore(*arguments), told, "--help)")


BAD_LORE = {
    "missing.yaml": (None, "does not exist"),
    "folder.yaml": ("folder", "folder"),
    "bad.yaml": ("entries: [{name: Ada", "bad.yaml"),
    "bad.json": ('{"entries": [}', "bad.json"),
    "number.json": ("3", "it holds neither fields nor a list"),
    "empty.yaml": ("", "empty.yaml"),
    "none.yaml": ("entries: []", "'none' has no entries; expected at least one"),
    "call.yaml": (
        'entries: [{name: Ada, blocks: [{call: "", responses: [a]}]}]',
        "entry 'Ada', block 1: `call` is empty; write something, or remove it",
    ),
    "long.yaml": (
        f'entries: [{{name: Ada, blocks: [{{call: Ada, responses: [" {"on " * 99}"]}}]}}]',
        "entry 'Ada' has a call and response of 301 tokens; expected at most 224",
    ),
    "setting.yaml": (
        "training: {n_token: 3}\nentries: [{name: Ada, text: Ada.}]",
        "there is no setting 'n_token'",
    ),
    "value.yaml": (
        "training: {n_tokens: three}\nentries: [{name: Ada, text: Ada.}]",
        "n_tokens is 'three'; expected a whole number from 1 to 2047",
    ),
    "missing.txt": (None, "corpus '"),
    "folder.txt": ("folder", "holds no texts"),
    "binary.txt": (b"\xff\xfe\x00", "expected a UTF-8 text file"),
    "empty.txt": ("", "so there is nothing to train on"),
}


@pytest.mark.parametrize("name", BAD_LORE)
def test_bad_lore(name, model, tmp_path):
    content, told = BAD_LORE[name]
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = softlore("train", path, "--model", model, "--out", tmp_path / "out")
    assert_refused(ended, told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--n-tokens", 0], "n_tokens is 0; expected a whole number from 1"),
        (["--n-tokens", -4], "n_tokens is -4; expected a whole number from 1"),
        (["--n-tokens", 256], "n_tokens is 256; expected fewer than the 256 tokens"),
        (["--n-tokens", 9999], "n_tokens is 9999; expected a whole number from 1 to 2047"),
        (["--max-spacing", -1], "max_spacing is -1"),
        (["--max-steps", -1], "max_steps is -1"),
        (["--min-loss", "nan"], "min_loss is nan; expected a number above 0"),
        (["--learning-rate", "inf"], "learning_rate is inf"),
        (["--drift-guard", -1], "drift_guard is -1.0"),
        (["--time-budget", "nan"], "time_budget is nan"),
        (["--time-budget", "inf"], "time_budget is inf"),
        (["--seed", -1], "seed is -1"),
        (["--company-size", 0], "company_size is 0"),
        (["--optimizer", "adamm"], "optimizer 'adamm' is not in torch.optim"),
        (["--initial", ""], "has no text to start from"),
        (["--style", "nuon"], "cloud, bracketed; did you mean 'noun' or 'none'?"),
        (["--chat"], "has no chat template"),
        (["--entry", "Eve"], "lorebook 'town' has no entry 'Eve'"),
        (["--story", "missing.txt"], "story 'missing.txt' can't be read (No such file"),
        (["--initial-prompt", "missing.safetensors"], "missing.safetensors"),
        (["--dtype", "float7"], "unknown dtype 'float7'"),
        (["--device", "moon"], "device 'moon' can't be used"),
        (["--device", "cuda:99"], "device 'cuda:99' can't be used"),
    ],
    ids=str,
)
def test_bad_settings(options, told, model, tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE, encoding="utf-8")
    assert_refused(train(tmp_path, model, *options), told)
    assert not contents(tmp_path / "out")


def test_unknown_models(town, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "no-such-type"}')
    for name in ("nobody/has-this", "./no/such/folder", tmp_path / "empty", tmp_path / "odd", ""):
        for command in (["write", "Once"], ["train", town / "lore.yaml", "--out", town / "out"]):
            ended = softlore(*command, "--model", name)
            assert_refused(ended, f"model {str(name)!r} could not be loaded", "check the name")


def test_what_write_refuses(town, model, tmp_path):
    out = town / "out"
    command = ["write", "--model", model, "--prompts", out]
    refused = [
        ([*command, "Then [[soft:Eda]]"], "[[soft:Eda]], which is not available; did you mean"),
        (
            [*command, "Then [[soft:Zoe]]"],
            "which is not available; known: 'Ada', 'Bo'",
        ),
        ([*command, "on " * 99], "297 tokens do not fit", "whose context is 256"),
        ([*command, "Ada", "--tokens", -3], "max_new_tokens is -3; expected at least 1"),
        ([*command, "Ada", "--tokens", 0], "max_new_tokens is 0; expected at least 1"),
        ([*command, "Ada", "--temperature", -1], "temperature is -1.0"),
        ([*command, "Ada", "--temperature", "nan"], "temperature is nan"),
        ([*command, "Ada", "--top-p", 2], "top_p is 2.0"),
        ([*command, "Ada", "--top-k", -1], "top_k is -1"),
        ([*command, "Ada \udcff"], "the text", "not UTF-8"),
        (
            ["write", "[[soft:Ada]]", "--prompts", tmp_path / "none"],
            "there is no folder",
            "--prompts",
        ),
    ]
    for arguments, *told in refused:
        assert_refused(softlore(*arguments), *told)
    assert_refused(softlore(*command, "-", stdin="Ada \udcff"), "standard input is not UTF-8")


def test_a_prompt_of_another_model(town, model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    wide = save_tiny_model(tmp_path / "wide", num_hidden_layers=2)
    command = ["write", "[[soft:Ada]]Ada", "--prompts", town / "out", "--tokens", 3]
    ended = softlore(*command, "--model", other)
    assert_refused(ended, "prompt 'Ada' was made for another model", "--any-model")
    assert softlore(*command, "--model", other, "--any-model").code == 0
    assert_refused(softlore(*command, "--model", wide), "prompt 'Ada' has shape (4, 2, 2, 3, 8)")
    before = contents(town / "out")
    ended = train(town, other)  # what is of another model is not kept, but trained for this one
    assert ended.code == 0, ended.err
    assert "already trained" not in ended.err
    assert contents(town / "out") != before


def test_damaged_prompt_files(town, model):
    ada = town / "out" / "ada.safetensors"
    content = ada.read_bytes()
    for damaged in (b"", content[:100], content[:-1], b"{}" + content, content[:8] + b"x" * 500):
        ada.write_bytes(damaged)
        assert_refused(softlore("inspect", ada), "ada.safetensors")
        ended = softlore("inspect", town / "out")
        assert ended.code == 0
        assert "Bo" in ended.out
        (line,) = ended.lines
        assert line.startswith("unreadable: ")
        ended = softlore("write", "[[soft:Ada]]", "--model", model, "--prompts", town / "out")
        assert_refused(ended, "[[soft:Ada]], which is not available")
    ended = train(town, model)
    assert ended.code == 0, ended.err
    assert "in company with the new ones: Bo" in ended.err
    assert set(PromptLibrary(town / "out")) == {"Ada", "Bo"}
    assert ada.read_bytes() == damaged  # what can't be read is left for its owner


def test_paths_of_the_wrong_kind(town, model, tmp_path):
    assert_refused(softlore("inspect", tmp_path / "missing.safetensors"), "missing.safetensors")
    ended = softlore("train", town / "lore.yaml", "--model", model, "--out", town / "lore.yaml")
    assert_refused(ended, "a file is in the place of a folder")
    ended = softlore("write", "[[soft:Ada]]", "--prompts", town / "lore.yaml")
    assert_refused(ended, "lore.yaml")
    ended = softlore("inspect", town / "out", "--json", tmp_path / "no" / "report.json")
    assert_refused(ended, "could not write", "make the folder first")


# disks -------------------------------------------------------------------------------------------


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


@pytest.mark.slow
def test_a_disk_that_takes_no_more(town, model, tmp_path):
    """It is found out before training begins, and what is there stays."""
    before = contents(town / "out")
    command = ["train", town / "lore.yaml", "--model", model, "--out", town / "out", "--overwrite"]
    ended = Running(tmp_path, *command, at_start=small_files_only).end()
    assert_refused(ended, "could not write", "File too large", "write to another disk")
    assert contents(town / "out") == before
    assert not list((town / "out").rglob("*.tmp"))


@pytest.mark.parametrize("call", [1, 3, 6, 7])
def test_a_disk_that_fills_up_on_the_way(call, town, model, monkeypatch):
    """At the first checkpoint, at a later one, at the first prompt, at the second."""
    before = {name: prompt.uuid for name, prompt in PromptLibrary(town / "out").items()}
    more = ["--overwrite", "--seed", 5, "--checkpoint-seconds", 0]
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2 * call - 1:  # the file; then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "fsync", full)
        ended = train(town, model, *more)
    assert ended.code == 2
    assert ended.lines[-1].startswith("softlore: could not write")
    assert "No space left on device; free some space" in ended.lines[-1]
    assert "Traceback" not in ended.err
    kept = {name: prompt.uuid for name, prompt in PromptLibrary(town / "out").items()}
    assert sum(kept[name] != uuid for name, uuid in before.items()) == max(0, call - 6)
    ended = train(town, model, *more)
    assert ended.code == 0, ended.err
    assert ("continuing from update" in ended.err) == (call > 2)
    for prompt in PromptLibrary(town / "out").values():
        assert prompt.training["seed"] == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(town, model):
    before = contents(town / "out")
    (town / "out").chmod(0o500)
    try:
        ended = train(town, model, "--overwrite")
    finally:
        (town / "out").chmod(0o700)
    assert_refused(ended, "choose a folder you may write to")
    assert contents(town / "out") == before


def test_a_report_that_cannot_be_written_loses_no_prompt(town, model, tmp_path):
    ended = train(
        town, model, "--overwrite", "--seed", 8, "--json", tmp_path / "no" / "report.json"
    )
    assert ended.code == 2
    assert "make the folder first" in ended.lines[-1]
    assert {p.training["seed"] for p in PromptLibrary(town / "out").values()} == {8}


# streams, and trouble on the way -----------------------------------------------------------------


def test_a_run_that_diverges(town, model, monkeypatch):
    """Exit 1; what was there stays; what was not is saved as far as it came, and trained anew."""
    (town / "out" / "bo.safetensors").unlink()
    ada = (town / "out" / "ada.safetensors").read_bytes()
    more = ["--overwrite", "--optimizer", "sgd", "--learning-rate", "1e38", "--max-steps", 20]
    more += ["--drift-guard", 10000]
    ended = train(town, model, *more)
    assert ended.code == 1
    assert ended.lines[-1].startswith("softlore: entry ")
    assert "lower learning_rate (--learning-rate)" in ended.lines[-1]
    assert "Traceback" not in ended.err
    assert (town / "out" / "ada.safetensors").read_bytes() == ada
    bo = PromptLibrary(town / "out")["Bo"]
    assert bo.training["stopped"] is None
    assert bool(torch.isfinite(bo.tensor).all())

    ended = train(town, model, "--learning-rate", "0.1")
    assert_refused(ended, "of another run", "learning_rate was 1e+38 and is 0.1", "--overwrite")
    ended = train(town, model, "--learning-rate", "0.1", "--overwrite")
    assert ended.code == 0, ended.err
    assert {p.training["stopped"] for p in PromptLibrary(town / "out").values()} == {"max_steps"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_no_memory_left(error, town, model, monkeypatch):
    from softlore.tune import distributed

    def fail(*_):
        raise error

    monkeypatch.setattr(distributed, "run_in_parts", fail)
    assert_refused(train(town, model, "--overwrite"), "there is not enough memory", code=1)
    monkeypatch.setattr(distributed, "run_in_parts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of ours is shown as it is
        train(town, model, "--overwrite")


def test_a_prefix_that_slides_out_of_sight(town, tmp_path):
    sliding = save_tiny_model(tmp_path / "mistral", "mistral")
    told = "every layer of this model attends to the last 8 tokens at most"
    assert told in train(town, sliding, "--out", tmp_path / "a").err
    ended = train(town, sliding, "--out", tmp_path / "b", "--kind", "embedding")
    assert (ended.code, told in ended.err) == (0, False)


def test_a_prompt_that_did_not_come_to_its_end_is_not_kept(town, model):
    library = PromptLibrary(town / "out")
    ada = library["Ada"]
    library.save(ada.replace(training=ada.training | {"stopped": None}))
    ended = train(town, model)
    assert "in company with the new ones: Bo" in ended.err
    assert PromptLibrary(town / "out")["Ada"].training["stopped"] == "max_steps"


def test_prompts_of_others_beside_ones_own(town, model):
    """A prompt from elsewhere in the folder is neither kept company with nor touched."""
    guest = SoftPrompt.from_text("a wolf", tiny_model("gpt2"), name="wolf")
    path = PromptLibrary(town / "out").save(guest)
    before = path.read_bytes()
    assert train(town, model, "--overwrite").code == 0
    assert path.read_bytes() == before


def test_the_default_model_comes_with_the_package():
    ended = softlore("write", "Once upon a time", "--tokens", 4, "--temperature", 0)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Once upon a time")
    assert ended.err == ""


@pytest.mark.parametrize("set_by", ["option", "variable"])
def test_the_threads_of_a_server(set_by, model, tmp_path, monkeypatch):
    from softlore.serve.server import Server

    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)

    def serve_on(self, listening):
        listening.close()
        seen.append(torch.get_num_threads())

    monkeypatch.setattr(Server, "serve_on", serve_on)
    monkeypatch.setattr("softlore.serve.logs.set_up", lambda level: None)  # of this process
    told = ["serve", "--model", model, "--port", 0, "--prompts", tmp_path]
    if set_by == "option":
        told += ["--threads", 1]
    else:
        monkeypatch.setenv("SOFTLORE_THREADS", "1")
    try:
        ended = softlore(*told)
    finally:
        torch.set_num_threads(before)
    assert (ended.code, seen) == (0, [1]), ended.err


def test_waiting_threads_do_not_spin(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.pop("GOMP_SPINCOUNT") == "1000"


def test_stopped_before_the_first_update_nothing_is_said_to_be_kept(town, model, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("softlore.tune.trainer.make_training_data", interrupted)
    ended = train(town, model, "--overwrite")
    assert ended.code == 130
    assert "stopped before the first update: nothing new is kept" in ended.lines[-1]


@pytest.mark.parametrize("option", ["--dtype=float32", "--device=cpu", "--quantize=nf4"])
@pytest.mark.parametrize("command", [["write", "a"], ["story", "long"]])
def test_options_without_effect_on_what_llama_cpp_runs(command, option, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    ended = softlore(*command, "--gguf", tmp_path / "a.gguf", option)
    name = option.partition("=")[0]
    assert_refused(ended, name, "--gguf", f"leave {name} out")


def test_a_large_book_is_trained_in_turns_and_told_in_short(tmp_path, model):
    entries = [
        f"  - name: E{i}\n    blocks:\n      - [E{i} is, [' tall']]\n      - [E{i} is, [' old']]\n"
        for i in range(20)
    ]
    (tmp_path / "lore.yaml").write_text("entries:\n" + "".join(entries), encoding="utf-8")
    ended = train(tmp_path, model, "--max-active", 4, "--max-steps", 2)
    assert ended.code == 0, ended.err
    assert ended.err.count("\ncheck: entry") + ended.err.startswith("check: entry") == 12
    assert "check: and 8 more; softlore lore show lists them all" in ended.err
    assert re.search(r"update 1  loss: [\d.]+ on average \(4 of 20 entries\), at most", ended.err)
    assert re.search(r"100%  update 10  loss: .* \(20 of 20 entries\)", ended.err)
    assert len(PromptLibrary(tmp_path / "out")) == 20
    shown = softlore("lore", "show", tmp_path / "lore.yaml")
    assert shown.err.count("check: entry") == 20
