"""How large updates are in a time budget, and how its time is shared among them."""

import pytest

from softlore import WorldInfoTrainer
from softlore.lore import Entry
from softlore.model.tiny import tiny_model
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.execution import Execution, Pace
from softlore.tune.update_size import ENOUGH, SMALL, _tokens

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


def test_a_long_time_leaves_updates_as_they_are():
    for seconds in (None, 1e9):
        trainer = prepared(ADA, seconds=seconds)
        assert trainer.config == trainer.given
        assert drawn(trainer) == {"response": 12, "distil": 4}


def test_less_time_makes_updates_small_and_still_less_leaves_out_the_text():
    sizes = [drawn(prepared(ADA, seconds=seconds)) for seconds in (1e5, 200, 140, 100, 70, 50, 10)]
    assert sizes == sorted(sizes, key=lambda one: -one["response"] - one["distil"])
    assert sizes[0] == {"response": 12, "distil": 4}
    assert {"response": SMALL, "distil": 1} in sizes
    assert sizes[-1] == {"response": SMALL, "distil": 0}


def test_an_entry_without_calls_is_distilled_from_fewer_passages():
    trainer = prepared(ADA, BO, seconds=10)
    assert drawn(trainer) == {"response": SMALL, "distil": 1 + SMALL}
    assert trainer.config.pairs_per_step == SMALL


def test_settings_that_were_asked_for_stay():
    assert drawn(prepared(ADA, seconds=10, pairs_per_step=9)) == {"response": 9, "distil": 3}
    assert drawn(prepared(ADA, seconds=10, distil_weight=2.0)) == {"response": SMALL, "distil": 1}


def test_what_is_counted_is_what_is_drawn():
    for changes in {}, {"pairs_per_step": SMALL}, {"distil_weight": 0.0}, {"drift_guard": 0.0}:
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
    small = {"pairs_per_step": SMALL, "distil_weight": 0}
    settled = prepared(ADA, seconds=10, initial="text")
    free = prepared(ADA, initial="text", **small)
    assert settled.step == 0
    values = [trainer.trainables["Ada"].value() for trainer in (settled, free)]
    assert values[0].equal(values[1])


def test_a_resumed_run_keeps_its_size(tmp_path):
    saving = Checkpointing(tmp_path / "run")
    first = prepared(ADA, seconds=100, checkpointing=saving)
    first.save()
    again = prepared(ADA, seconds=1e9, checkpointing=saving)
    assert again.config.pairs_per_step == first.config.pairs_per_step == SMALL
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


def test_defaults_are_what_a_budget_may_change():
    usual = TrainingConfig()
    assert usual.pairs_per_step > SMALL
    assert usual.distil_weight > 0


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
