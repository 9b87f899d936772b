"""Hard prompts: plain text that does a soft prompt's job, as templates, tried and scored."""

from softlore.control.hard.experiment import Experiment
from softlore.control.hard.runner import Case, Outcome, run_experiment
from softlore.control.hard.templates import Template

__all__ = ["Case", "Experiment", "Outcome", "Template", "run_experiment"]
