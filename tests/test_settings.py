"""Settings are declared once: every place that shows or reads one is made from its declaration."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from pydantic import ValidationError

import settings_table
from softlore.cli.options import sampler_settings, setting_options
from softlore.errors import ConfigError
from softlore.lore.styles import STYLES
from softlore.model.tiny import tiny_model
from softlore.prompts.responses import RUN
from softlore.serve.lenient import body_of, sampling_of
from softlore.settings import (
    SamplingParams,
    ServeSettings,
    Settings,
    TrainingConfig,
    setting,
    table,
)
from softlore.settings.sampling import MIN_COPY
from softlore.settings.table import from_client

TABLES = (SamplingParams, TrainingConfig, ServeSettings)


class Toy(Settings):
    """Settings of each type."""

    noun = "toy"

    count: int = setting(3, "How many.", ge=1, le=9, aliases=("number",), unit="pieces")
    rate: float = setting(0.5, "How fast.", gt=0)
    share: float | None = setting(None, "Of all.", ge=0, le=1)
    loud: bool = setting(False, "Whether it is heard.")
    name: str = setting("ann", "Whose it is.")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count is 0; expected a whole number from 1 to 9; choose another"),
        ({"count": 2.0}, "count is 2.0; expected a whole number"),
        ({"count": True}, "count is True"),
        ({"rate": 0}, "rate is 0; expected a number above 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"share": "x"}, "share is 'x'; expected a number from 0 to 1, or none at all"),
        ({"loud": 1}, "loud is 1; expected one of False, True"),
        ({"name": None}, "name is None; expected text"),
        ({"cuont": 1}, "there is no toy 'cuont'; expected one of count, rate, .* mean 'count'?"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(wrong, message):
    for make in (lambda: Toy(**wrong), lambda: Toy.of(wrong), lambda: Toy().changed(**wrong)):
        with pytest.raises(ConfigError, match=message):
            make()


def test_settings_are_frozen_and_changed_by_copy():
    toy = Toy(count=4)
    with pytest.raises(ValidationError):
        toy.count = 5
    assert toy.changed(rate=2) == Toy(count=4, rate=2.0)
    assert toy.to_dict() == {"count": 4, "rate": 0.5, "share": None, "loud": False, "name": "ann"}
    assert len({toy, Toy(count=4), Toy()}) == 2


def test_what_a_client_sends_is_brought_within_bounds():
    assert from_client(Toy, {"number": "12", "rate": None, "share": 7, "loud": "yes"}) == {
        "count": 9, "share": 1.0, "loud": True,
    }  # fmt: skip
    assert from_client(Toy, {"count": 2, "number": 5, "rate": "fast", "name": "ann"}) == {
        "count": 2
    }


@pytest.mark.parametrize("settings", TABLES, ids=lambda one: one.__name__)
def test_every_setting_has_help_an_option_and_a_row_in_the_docs(settings):
    def command():
        pass

    setting_options(settings)(command)
    options = {option.name: option for option in command.__click_params__}
    names = {
        SamplingParams: "sampling.md", TrainingConfig: "training.md", ServeSettings: "serving.md"
    }  # fmt: skip
    page = (settings_table.DOCS / names[settings]).read_text(encoding="utf-8")
    for name, one in table(settings).items():
        assert one.help.endswith(".")
        assert len(one.help) > 10
        assert options[name].opts == [one.flag]
        assert f"| `{name}` |" in page or f"| `{one.flag}` |" in page


def test_the_tables_in_the_docs_are_current():
    for page, make in settings_table.PAGES.items():
        text = (settings_table.DOCS / page).read_text(encoding="utf-8")
        assert make() in text, "run tools/settings_table.py"


# A value of each sampler that is not its default, as API clients send it.
SENT = {
    "dry_breakers": ["x"], "banned": [5], "banned_strings": ["x"], "logit_bias": {"5": 1},
    "order": [0, 5], "no_copy": 8, "grammar": 'root ::= "a"', "json_schema": {"type": "object"},
    "regex": "a|b", "choice": ["a", "b"], "smoothing_curve": 2,
}  # fmt: skip
CLIENT_NAMES = {"order": "sampler_order"}


@pytest.mark.parametrize("name", table(SamplingParams))
def test_every_sampler_is_read_from_clients_and_the_command_line(name):
    model, one = tiny_model("llama"), table(SamplingParams)[name]
    value = SENT.get(name, 1 if one.default != 1 else 0.5)
    for alias in (CLIENT_NAMES.get(name, name), *one.aliases):
        read = SamplingParams(**sampling_of({alias: value}, model))
        assert getattr(read, name) != one.default, alias
    text = one.textual.example if one.textual else str(value)
    written = SamplingParams(**sampler_settings([f"{name}={text}"]))
    assert getattr(written, name) != one.default or text == "\\n"
    if one.type in (int, float):
        schema = json.dumps(body_of(Empty, samplers=True))
        assert all(f'"{alias}": {{' in schema for alias in (name, *one.aliases))


class Empty(Settings):
    """No settings."""

    none: str = setting("", "Nothing at all.")


def test_runs_of_responses_are_as_long_as_prompts_have_them():
    assert MIN_COPY == RUN


def test_styles_are_those_of_the_lore():
    assert table(TrainingConfig)["style"].choices == ("auto", "none", *STYLES)


USE_OF_EPSILON = """
import torch
from click.testing import CliRunner
from softlore.cli.write import command
from softlore.decode.samplers import build_steps
from softlore.model.tiny import tiny_model
from softlore.serve.lenient import sampling_of
from softlore.serve.studio import info
from softlore.settings import SamplingParams

assert "--epsilon" in CliRunner().invoke(command, ["--help"]).output
params = SamplingParams(**sampling_of({"epsilon_cutoff": "0.2"}, tiny_model("llama")))
steps = build_steps(params.changed(top_k=0, temperature=1, xtc_probability=0.1))
assert [step.name for step in steps] == ["epsilon", "xtc"]
logits = torch.tensor([[3.0, 2.0, -3.0]])
assert steps[0].processor(torch.zeros(1, 0), logits).isinf().tolist() == [[False, False, True]]
assert "epsilon" in [slider["name"] for slider in info._samplers()]
"""


def test_a_sampler_is_added_in_three_files(tmp_path):
    """The worked example of docs/sampling.md, step by step, in a copy of the package."""
    page = (settings_table.DOCS / "sampling.md").read_text(encoding="utf-8")
    source = settings_table.ROOT / "src" / "softlore"
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "static")
    shutil.copytree(source, tmp_path / "src" / "softlore", ignore=ignored)
    steps = re.findall(r"In `([^`]+)`, before `([^`]+)`:\n\n```text\n(.*?)```", page, re.S)
    for name, anchor, code in steps:
        file = tmp_path / name
        text = file.read_text(encoding="utf-8")
        assert anchor in text, f"docs/sampling.md: {name} has no {anchor!r}"
        at = text.index(anchor)
        file.write_text(text[:at] + code + text[at:], encoding="utf-8")
    assert len({name for name, _, _ in steps}) == 3
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", USE_OF_EPSILON], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
