"""Passages written as training goes on, the held-out loss, and how entries stop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlore import Entry, WorldInfoTrainer
from softlore.measure.score import SINK_TOKENS, drift
from softlore.model.tiny import tiny_model
from softlore.tune import Checkpointing, Execution
from softlore.tune.held_out import INTERVAL, held_out_losses
from softlore.tune.objective import measure, run_in_parts
from softlore.tune.optimizer import SHAPES, Schedule
from softlore.tune.passage_sources import HELD_OUT
from softlore.tune.passages import FIRST, FIRST_INTERVAL, is_writing_due, rows_at_once

DOG = Entry(
    name="Dog",
    text="Dog is a good boy. Dog loves pets.",
    blocks=[("Dog is", [" a good boy"])],
    held_out=[("What is Dog?", [" a good boy"])],
)
CAT = Entry(name="Cat", text="Cat sleeps in the sun, all day long.")


def trainer(*entries, model=None, **settings):
    usual = {"n_tokens": 4, "max_steps": 30, "max_spacing": 8, "passage_tokens": 8, "style": "none"}
    return WorldInfoTrainer(
        model or tiny_model("llama"), entries=list(entries), **(usual | settings)
    )


# passages ----------------------------------------------------------------------------------------


def test_passages_are_written_as_they_are_needed():
    training = trainer(DOG, CAT, max_steps=2 * FIRST_INTERVAL + 1, distil_passages=60)
    training.prepare()
    at_first = {source.name: len(source.ids) for source in training.data.sources}
    assert at_first["Dog"] == HELD_OUT + FIRST * 4  # four in an update, beside pairs
    assert at_first["Cat"] == HELD_OUT + FIRST * 12
    training.train()
    at_last = {source.name: len(source.ids) for source in training.data.sources}
    assert at_first["Dog"] < at_last["Dog"] <= HELD_OUT + 60
    assert at_last["Cat"] == HELD_OUT + 60  # the limit
    for source in training.data.sources:
        assert sum(source.batches) == len(source.ids)
        assert len(source.passages) == len(source.ids) - HELD_OUT


def test_passages_are_written_less_and_less_often():
    due = [updates for updates in range(300) if is_writing_due(updates, 1000)]
    assert due == [16, 32, 64, 128, 192, 256]
    assert [n for n in range(100) if is_writing_due(n, 40)] == [16]  # the rest is hardly used


def test_fewer_updates_than_passages_write_no_more_than_they_use():
    training = trainer(CAT, max_steps=2)
    training.prepare()
    assert len(training.data.examples["Cat"].passages) == 2 * 12


def test_held_out_passages_are_never_trained_on():
    training = trainer(DOG, CAT, max_steps=12)
    training.prepare()
    kept_back = {id(passage) for source in training.data.sources for passage in source.held_out}
    assert len(kept_back) == 3 * HELD_OUT
    for step in range(12):
        training.step = step
        targets = {id(term.target) for term in training.draw().terms}
        for source in training.data.sources:
            assert targets.isdisjoint({id(passage.target) for passage in source.held_out})


def test_a_resumed_run_writes_the_passages_of_the_first_not_anew(tmp_path):
    whole = trainer(DOG, CAT, max_steps=20)
    expected = whole.train()
    saving = Checkpointing(tmp_path / "run")
    trainer(
        DOG, CAT, max_steps=20, checkpointing=saving, on_step=lambda p: p.step == FIRST_INTERVAL + 3
    ).train()
    written = []
    resumed = trainer(
        DOG, CAT, max_steps=20, checkpointing=saving, on_phase=lambda *phase: written.append(phase)
    )
    resumed.prepare()
    assert written == []
    found = resumed.train()
    assert [s.ids for s in resumed.data.sources] == [s.ids for s in whole.data.sources]
    for name, prompt in expected.items():
        assert torch.equal(found[name].tensor, prompt.tensor)


def test_progress_is_shown_in_every_phase_before_the_first_update():
    phases = []
    trainer(CAT, on_phase=lambda name, done: phases.append((name, done))).prepare()
    assert list(dict.fromkeys(name for name, _ in phases)) == [
        "writing passages", "reading passages", "reading story text", "computing starts",
        "timing an update",
    ]  # fmt: skip
    shares = [done for name, done in phases if name == "writing passages"]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_measuring_between_updates_is_a_phase_too():
    phases = []
    training = trainer(DOG, max_steps=INTERVAL)
    training.prepare()
    training.on_phase = lambda name, done: phases.append(name)
    training.train()
    assert "measuring" in phases


@pytest.mark.parametrize("bos", [False, True])
def test_the_first_tokens_of_a_bare_text_are_compared_only_after_a_bos(bos):
    model = tiny_model("llama", bos=bos)
    training = trainer(DOG, model=model)
    training.prepare()
    skipped = 0 if bos else SINK_TOKENS
    for passage in training.data.guard:
        assert passage.start == min(skipped, len(passage.ids) - 1)
        assert len(passage.target) == len(passage.ids) - passage.start > 0
    assert all(p.start == 0 for p in training.data.examples["Dog"].passages)  # behind the text
    assert drift(model, "", [[1, 2, 3, 4, 5]]) == pytest.approx(0, abs=1e-6)


def test_rows_fit_the_memory(monkeypatch):
    training = trainer(CAT)
    training.prepare()
    sources = training.data.sources
    model, config = training.model, training.config
    assert rows_at_once(model, config, sources) == 256
    monkeypatch.setattr("softlore.model.memory.psutil.virtual_memory", lambda: Memory(1 << 20))
    few = rows_at_once(model, config, sources)
    assert 1 <= few < 256
    assert few & (few - 1) == 0  # memory that varies a little does not change it
    monkeypatch.setattr("softlore.model.memory.psutil.virtual_memory", lambda: Memory(1))
    assert rows_at_once(model, config, sources) == 1


class Memory:
    def __init__(self, available):
        self.available = available


@pytest.mark.parametrize("optimizer", ["muon", "adam", "adamw"])
@pytest.mark.parametrize("bos", [False, True])
def test_what_decides_where_the_sink_is_is_trained_only_after_a_bos(bos, optimizer):
    training = trainer(DOG, model=tiny_model("llama", bos=bos), optimizer=optimizer, max_steps=5)
    training.prepare()
    at_first = training.prompts()["Dog"].tensor.clone()
    prompt = training.train()["Dog"]
    changed = (prompt.tensor != at_first).any(dim=-1)  # [layers, 2, kv_heads, n_tokens]
    assert changed[1:, :, :, 1:].all()
    assert changed[0, 1, :, 1:].all()
    first_position, first_keys = changed[..., 0], changed[0, 0]
    assert bool(first_position.any()) is bos
    assert bool(first_keys.any()) is bos


# the held-out loss -------------------------------------------------------------------------------


def test_measuring_gives_the_losses_of_an_update():
    training = trainer(DOG, CAT)
    training.prepare()
    batch = training.draw()
    assert measure(training.model, batch, training.plan) == pytest.approx(
        run_in_parts(training.model, training.draw(), training.plan), abs=1e-5
    )


def test_held_out_calls_take_the_place_of_the_pairs():
    training = trainer(DOG, CAT)
    training.prepare()
    data = training.data.to_measure()
    model = training.model
    assert [model.decode(pair.ids) for pair in data.examples["Dog"].pairs] == [
        "What is Dog? a good boy"
    ]
    trained_only = trainer(DOG.model_copy(update={"held_out": []}))
    trained_only.prepare()
    (pair,) = trained_only.data.to_measure().examples["Dog"].pairs
    assert model.decode(pair.ids) == "Dog is a good boy"


def test_an_entry_stops_when_it_gains_nothing_and_keeps_its_best_state():
    training = trainer(DOG, max_steps=400, patience=16, learning_rate=3.0)  # far too high
    prompt = training.train()["Dog"]
    trainable = training.trainables["Dog"]
    assert prompt.training["stopped"] == "patience"
    assert prompt.training["steps"] < 400
    assert prompt.training["best_step"] == trainable.best_step
    again = held_out_losses(
        training.model,
        training.config,
        training.data.to_measure(),
        {"Dog": prompt.tensor},
        ["Dog"],
        training.plan,
    )
    assert again["Dog"] == pytest.approx(trainable.best, abs=1e-5)
    assert prompt.metrics["held_out"] == pytest.approx(trainable.best, abs=1e-5)


def test_without_patience_nothing_is_held_out():
    training = trainer(DOG, max_steps=20, patience=None)
    prompt = training.train()["Dog"]
    assert prompt.training["stopped"] == "max_steps"
    assert "held_out" not in prompt.metrics
    assert all(source.held_out == [] for source in training.data.sources)


# schedules ---------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(10, 1000),
    st.floats(0.1, 1),
    st.floats(0.01, 1),
)
def test_a_shortened_schedule_falls_from_where_it_is(shape, max_steps, at, share):
    schedule = Schedule(shape, max_steps)
    step = round(at * max_steps)
    before = [schedule(i) for i in range(step + 1)]
    end = step + max(1, round(share * (max_steps - step)))
    schedule.end_at(step, end)
    after = [schedule(i) for i in range(step, end + 1)]
    assert after[0] == pytest.approx(before[-1])
    assert after == sorted(after, reverse=True) or step < 0.02 * max_steps
    assert shape == "constant" or after[-1] == pytest.approx(0, abs=1e-9)
    assert all(0 <= factor <= 1 for factor in (*before, *after))


def test_a_budget_that_is_spent_ends_training_with_usable_prompts():
    execution = Execution(time_budget=5.0)
    execution = Execution(time_budget=5.0, started=execution.started - 60)
    training = trainer(DOG, CAT, execution=execution)
    prompts = training.train()
    assert {prompt.training["stopped"] for prompt in prompts.values()} == {"time_budget"}
    assert {prompt.training["steps"] for prompt in prompts.values()} == {1}


def test_a_budget_shares_its_updates_among_all_entries():
    entries = [Entry(name=f"E{i}", blocks=[(f"E{i} is", [" it"])]) for i in range(6)]
    training = trainer(*entries, max_active=2, max_steps=1000, execution=Execution(1e6))
    training.prepare()
    training._keep_to_budget(1e6 / 300)  # 300 updates of two entries
    assert 290 <= training.estimate().updates <= 300
    ends = [trainable.end for trainable in training.trainables.values()]
    assert ends == pytest.approx([100, 100], abs=3)


def test_a_budget_for_a_part_of_the_entries_leaves_a_prompt_of_each():
    """After two of the five updates that one round takes, the rest start and make none."""
    entries = [Entry(name=f"E{i}", blocks=[(f"E{i} is", [" it"])]) for i in range(10)]
    spent = 0.0
    hours = iter(range(10_000))  # each look at the clock
    budget = Execution(1e6, clock=lambda: next(hours) + spent)
    training = trainer(*entries, max_active=2, max_steps=9, execution=budget)
    training.prepare()
    training.update()
    assert training.unfinished()
    spent = 1e6
    training.update()
    assert not training.unfinished()
    prompts = training.prompts()
    assert sorted(prompts) == sorted(entry.name for entry in entries)
    made = [prompt.training["steps"] for prompt in prompts.values()]
    assert sorted(made) == [0] * 6 + [1] * 4
    assert {prompt.training["stopped"] for prompt in prompts.values()} == {"time_budget"}
