"""Hard prompts: plain text that steers a model, as templates with assertions on the output."""

from softlore.control.hard.assertions import Assertion, AssertionInput
from softlore.control.hard.experiment import Experiment
from softlore.control.hard.judges import Judge, find_judge
from softlore.control.hard.templates import Template

__all__ = ["Assertion", "AssertionInput", "Experiment", "Judge", "Template", "find_judge"]
