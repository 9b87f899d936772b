"""The folder of the storyteller, a small story model, the default where no model is named.

It holds what transformers reads (weights in bfloat16, tokenizer, configs), the model card `CARD.md`
and the list of the books the model was trained on, `PROVENANCE.md`.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """Returns the folder, for `AutoModelForCausalLM.from_pretrained(path())`."""
    return Path(__file__).resolve().parent
