"""Conditionings are told apart by uuid, and a company's drift is measured once."""

import pytest

from softlore import Entry, SoftPrompt
from softlore.measure import score
from softlore.measure.conditioning import ConditioningEvaluator
from softlore.measure.material import gather
from softlore.model.tiny import tiny_model

MODEL = tiny_model("llama")
ENTRY = Entry(name="Emma", blocks=[("Emma wore", [" black."])])


def test_two_prompts_of_one_name_have_a_drift_each():
    material = gather(MODEL, 0, 0)
    bench = ConditioningEvaluator(MODEL, material, [0])
    prompts = [
        SoftPrompt.from_text(text, MODEL, name="Emma", kind=kind)
        for text, kind in (
            ("a coat", "prefix"),
            ("quite another thing", "prefix"),
            ("a", "embedding"),
        )
    ]
    found = [bench.measure([ENTRY], prompt)[0].drift for prompt in prompts]
    alone = [score.drift(MODEL, prompt, material.unrelated) for prompt in prompts]
    assert found == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 6) for value in found}) == 3
    assert bench.measure([ENTRY], "")[0].drift == 0
