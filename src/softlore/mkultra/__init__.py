"""mkultra's API on top of softlore: its notebooks run once their import lines are changed.

`from mkultra.tuning import …` becomes `from softlore.mkultra import …`; every name that mkultra's
notebooks import is here. Any causal language model can be loaded under any of the model and
tokenizer names. Differences from mkultra: docs/migrating.md.
"""

from softlore.mkultra.inference import (
    GPT2SoftPromptLM,
    GPTJSoftPromptLM,
    GPTNeoSoftPromptLM,
    GPTSoftPromptMixin,
)
from softlore.mkultra.models import GPT2SPTokenizer, GPT2SPTokenizerFast, GPT2TokenizerFast
from softlore.mkultra.soft_prompt import MkultraSoftPrompt as SoftPrompt
from softlore.mkultra.trainers import MkultraWorldInfoTrainer as WorldInfoTrainer
from softlore.mkultra.trainers import SoftPromptTrainer
from softlore.mkultra.tuning import (
    GPT2PromptTuningLM,
    GPTJPromptTuningLM,
    GPTNeoPromptTuningLM,
    GPTPromptTuningMixin,
)

__all__ = [
    "GPT2PromptTuningLM",
    "GPT2SPTokenizer",
    "GPT2SPTokenizerFast",
    "GPT2SoftPromptLM",
    "GPT2TokenizerFast",
    "GPTJPromptTuningLM",
    "GPTJSoftPromptLM",
    "GPTNeoPromptTuningLM",
    "GPTNeoSoftPromptLM",
    "GPTPromptTuningMixin",
    "GPTSoftPromptMixin",
    "SoftPrompt",
    "SoftPromptTrainer",
    "WorldInfoTrainer",
]
