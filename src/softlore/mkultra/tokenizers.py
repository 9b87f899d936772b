"""mkultra's tokenizers: transformers' own, which know the tags of soft prompts."""

from __future__ import annotations

import os
from typing import Any

from softlore.mkultra.registry import vocabulary_of
from softlore.model.loading import locate


class GPT2TokenizerFast:
    """A tokenizer without tags, as mkultra's notebooks take for tuning."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads the tokenizer of any model, by hub id, folder or `"storyteller"`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(locate(str(name)), **options)


class GPT2SPTokenizerFast(GPT2TokenizerFast):
    """A tokenizer in which every soft prompt's tag has as many tokens as the prompt."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads the tokenizer of any model; it knows all soft prompts, those to come too."""
        tokenizer = super().from_pretrained(name, **options)
        vocabulary_of(tokenizer).join(tokenizer)
        return tokenizer


GPT2SPTokenizer = GPT2SPTokenizerFast
