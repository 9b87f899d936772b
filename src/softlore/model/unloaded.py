"""UnloadedModel: a model's shapes without its weights, to plan with before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from softlore.model.finding import display_name, locate
from softlore.model.frozen import FrozenModel
from softlore.model.loading import load_tokenizer
from softlore.model.shapes import empty_model, read_config
from softlore.model.verify import rejecting_unsupported


class UnloadedModel(FrozenModel):
    """A model made of its config and tokenizer alone.

    It runs like any other within `with model.mode:`, on tensors that have a shape, a dtype and a
    device, and no data. So what a pass would save and compute can be counted, whatever its size.

    Attributes:
        mode: the mode of torch in which its tensors live.
    """

    def __init__(self, config: Any, tokenizer: Any, name: str, dtype: torch.dtype) -> None:
        self.mode = FakeTensorMode()
        with rejecting_unsupported(config.model_type), self.mode:
            hf = empty_model(config, dtype)
        super().__init__(hf, tokenizer, name)

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> UnloadedModel:
        """By hub id, folder, GGUF file or name.

        Raises:
            ModelError: there is no such model, or its config or tokenizer can't be read.
        """
        where = locate(name, weights=False)
        return cls(read_config(where), load_tokenizer(name), display_name(name), dtype)

    def _set_up(self, hf: Any) -> None:
        with self.mode:
            super()._set_up(hf)

    def _verify(self) -> None:
        """Does nothing: without weights there are no logits to compare."""
