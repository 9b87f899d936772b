"""What a time budget has room for, and how its time is shared among updates."""

import pytest

from softlore import WorldInfoTrainer
from softlore.lore import Entry
from softlore.model.tiny import tiny_model
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.execution import Execution, Pace
from softlore.tune.time_budget import ENOUGH, _tokens

BLOCKS = [(f"Ada {n} says", [f" yes {n} and no."]) for n in range(12)]
ADA = Entry(name="Ada", text="Ada is tall. Ada wears red.", blocks=BLOCKS)
BO = Entry(name="Bo", text="Bo sleeps in the sun, all day long.")


class Clock:
    """Seconds that pass by reading the time, so that a trial takes as long as a test says."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def prepared(*entries, seconds=None, step=1.0, **settings):
    usual = {"n_tokens": 4, "max_spacing": 8, "passage_tokens": 8, "max_steps": 500}
    budget = None if seconds is None else Execution(seconds, clock=Clock(step), started=0.0)
    trainer = WorldInfoTrainer(
        tiny_model("llama"), entries=list(entries), execution=budget, **(usual | settings)
    )
    trainer.prepare()
    return trainer


def drawn(trainer):
    """How many branches of each loss the first update has."""
    losses = [term.loss for term in trainer.draw().terms]
    return {name: losses.count(name) for name in ("response", "distil")}


def test_a_long_time_leaves_all_as_it_is():
    for seconds in (None, 1e9):
        trainer = prepared(ADA, seconds=seconds)
        assert trainer.config == trainer.given
        assert drawn(trainer) == {"response": 12, "distil": 4}


def test_a_short_time_leaves_the_text_out():
    drawn_in = {seconds: drawn(prepared(ADA, seconds=seconds)) for seconds in (1e5, 1e3, 50, 10)}
    assert drawn_in[1e5] == drawn_in[1e3] == {"response": 12, "distil": 4}
    assert drawn_in[50] == drawn_in[10] == {"response": 12, "distil": 0}
    short = prepared(ADA, seconds=10)
    assert short.config.changed(distil_weight=1.0) == short.given
    assert short.prompts()["Ada"].training["distil_weight"] == 0


def test_an_entry_without_calls_is_distilled_in_any_case():
    trainer = prepared(ADA, BO, seconds=10, style="none")
    assert trainer.config == trainer.given
    assert drawn(trainer) == {"response": 12, "distil": 4 + 12}


def test_calls_that_are_made_of_a_text_are_trained_alone_in_a_short_time():
    assert drawn(prepared(BO, seconds=1e5))["distil"] == 4
    short = prepared(BO, seconds=10)
    assert drawn(short) == {"response": min(12, len(short.data.examples["Bo"].pairs)), "distil": 0}


def test_a_weight_that_was_asked_for_stays():
    trainer = prepared(ADA, seconds=10, distil_weight=2.0)
    assert trainer.config.distil_weight == 2.0
    assert drawn(trainer) == {"response": 12, "distil": 4}


def test_what_is_counted_is_what_is_drawn():
    for changes in {}, {"pairs_per_step": 4}, {"distil_weight": 0.0}, {"drift_guard": 0.0}:
        trainer = prepared(ADA, BO.model_copy(update={"blocks": ADA.blocks}), **changes)
        batches = [trainer.draw()]
        for trainer.step in range(1, 30):
            batches.append(trainer.draw())
        drawn = sum(
            len(branch.ids) for b in batches for tree in b.trees for branch in tree.branches
        )
        counted = _tokens(trainer.model, trainer.config, trainer.data.examples)
        assert drawn / len(batches) == pytest.approx(counted, rel=0.3)


def test_a_trial_is_no_update():
    settled = prepared(ADA, seconds=10, initial="text")
    free = prepared(ADA, initial="text", distil_weight=0)
    assert settled.step == 0
    values = [trainer.trainables["Ada"].value() for trainer in (settled, free)]
    assert values[0].equal(values[1])


def test_a_resumed_run_keeps_what_was_decided(tmp_path):
    saving = Checkpointing(tmp_path / "run")
    first = prepared(ADA, seconds=50, checkpointing=saving)
    first.save()
    again = prepared(ADA, seconds=1e9, checkpointing=saving)
    assert again.config.distil_weight == first.config.distil_weight == 0
    assert drawn(again) == drawn(first)


def test_the_pace_counts_what_is_done_between_updates():
    pace = Pace()
    assert pace.seconds is None
    for _ in range(100):
        pace.add(2.0, 0.0)
    pace.add(2.0, 101.0)  # passages were written
    assert pace.seconds == pytest.approx(3.0)


def test_time_that_was_expected_to_lack_is_used_after_all():
    """An update that took long, such as the first, shortens the training for a while only."""
    trainer = prepared(ADA, seconds=1e6, max_steps=200)
    trainer.update()
    (trainable,) = trainer.trainables.values()
    trainer._keep_to_budget(1e6 / 50)
    assert trainable.end < 60
    short = trainable.optimizer.param_groups[0]["lr"]
    trainer._keep_to_budget(1e-6)
    assert trainable.end == 200
    assert trainable.optimizer.param_groups[0]["lr"] > 0
    assert short > 0


def test_the_rate_is_full_from_the_first_update_on_where_there_are_few():
    trainer = prepared(ADA, seconds=1e6, max_steps=1000)
    (trainable,) = trainer.trainables.values()
    at_first = trainable.optimizer.param_groups[0]["lr"]
    trainer._keep_to_budget(1e6 / ENOUGH)
    rate = trainable.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(trainable.config.learning_rate, rel=0.01)
    assert at_first < 0.2 * rate


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("kind", ["prefix", "embedding"])
@pytest.mark.parametrize("source", ["pairs", "corpus", "conditionings"])
def test_whatever_is_trained_ends_in_a_short_time(family, kind, source):
    given = {
        "pairs": {"entries": [ADA, BO]},
        "corpus": {"corpus": {"Ada": " ".join(call for call, _ in BLOCKS)}},
        "conditionings": {"conditionings": {"Ada": "Ada is tall."}},
    }[source]
    trainer = WorldInfoTrainer(
        tiny_model(family),
        **given,
        kind=kind,
        n_tokens=4,
        max_spacing=8,
        passage_tokens=8,
        execution=Execution(60, clock=Clock(1.0), started=0.0),
    )
    prompts = trainer.train()
    for prompt in prompts.values():
        assert 1 <= prompt.training["steps"] < 60
        assert prompt.training["stopped"] == "time_budget"
        assert prompt.tensor.isfinite().all()
