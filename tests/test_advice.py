"""What `softlore train` says at the end of a time budget that was too short."""

import pytest

from softlore import SoftPrompt
from softlore.cli.advice import tell_few_updates, tell_what_is_left_out
from softlore.lore import Lorebook
from softlore.model.tiny import tiny_model
from softlore.settings import TrainingConfig

ADA = {"name": "Ada", "text": "Ada wears red.", "blocks": [("Ada wore", [" red."])]}
BOOK = Lorebook.from_data([ADA], "town")


@pytest.fixture
def prompt():
    made = SoftPrompt.from_text("Ada wears red.", tiny_model("llama"), name="Ada", kind="prefix")

    def trained(**facts):
        usual = {"stopped": "time_budget", "steps": 2, "distil_weight": 1.0, "pairs_per_step": 12}
        return made.replace(training=usual | facts)

    return trained


def test_it_says_what_helps(prompt, capsys):
    tell_few_updates([prompt(), prompt(steps=9)], BOOK)
    said = capsys.readouterr().err
    assert "enough for 2 updates of an entry" in said
    assert "small updates: --distil-weight 0 --pairs-per-step 4" in said


def test_it_suggests_nothing_that_was_asked_for(prompt, capsys):
    tell_few_updates([prompt(distil_weight=0.0)], BOOK)
    said = capsys.readouterr().err
    assert "--pairs-per-step 4" in said
    assert "--distil-weight" not in said


@pytest.mark.parametrize(
    "facts", [{"steps": 12}, {"stopped": "held-out"}, {"stopped": "max_steps"}]
)
def test_nothing_is_said_where_there_was_time(prompt, capsys, facts):
    tell_few_updates([prompt(**facts)], BOOK)
    assert capsys.readouterr().err == ""


def test_it_says_where_texts_are_left_out(capsys):
    asked = TrainingConfig()
    tell_what_is_left_out(asked, asked)
    assert capsys.readouterr().err == ""
    tell_what_is_left_out(asked, asked.changed(distil_weight=0))
    assert "calls alone are trained; give more time for both" in capsys.readouterr().err
