"""storyteller: the small story model that comes with softlore, used when no model is named.

The folder holds what transformers reads (weights in bfloat16, tokenizer, configs), the model card
``CARD.md`` and the list of the books it was trained on, ``PROVENANCE.md``.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The folder of the weights, for ``AutoModelForCausalLM.from_pretrained(path())``."""
    return Path(__file__).resolve().parent
