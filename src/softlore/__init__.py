"""softlore steers a language model whose weights never change, by soft prompts.

Importing this package is cheap: each name below imports its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_WHERE = {
    "FrozenModel": "softlore.model",
    "ControlVector": "softlore.prompts",
    "SoftPrompt": "softlore.prompts",
    "Context": "softlore.prompts",
    "PromptLibrary": "softlore.prompts",
    "load_prompt": "softlore.prompts",
    "Entry": "softlore.lore",
    "Lorebook": "softlore.lore",
    "WorldInfoTrainer": "softlore.tune",
    "embed": "softlore.context",
    "logits": "softlore.context",
    "generate": "softlore.decode",
    "write": "softlore.decode",
    "runner_for": "softlore.decode",
    "SoftloreError": "softlore.errors",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'softlore' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
