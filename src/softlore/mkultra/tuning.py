"""mkultra's models for training: a learned embedding is put before every text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlore.context import ROOT, Node, Tree, splice
from softlore.errors import ContextError, PromptMismatchError
from softlore.mkultra.models import MkultraModel, by_name, without_ids


class SoftParams(dict[str, Any]):
    """The learned embedding as an argument of optimizers, by itself or in a list.

    torch rejects a bare tensor, which mkultra's notebooks pass. This is a parameter group;
    iterating over it gives the tensor, and otherwise it behaves as that tensor.
    """

    def __init__(self, learned: torch.nn.Parameter) -> None:
        super().__init__(params=[learned])

    def __iter__(self) -> Iterator[Any]:
        return iter(self["params"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self["params"][0], name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, SoftParams):
                return value["params"][0]
            return type(value)(map(plain, value)) if type(value) in (list, tuple) else value

        return function(*plain(tuple(args)), **{k: plain(v) for k, v in (kwargs or {}).items()})


class GPTPromptTuningMixin(MkultraModel):
    """A frozen language model with a learned embedding before every text.

    Attributes:
        learned_embedding: the only trainable parameter, `[n_tokens, width]`.
    """

    learned_embedding: torch.nn.Parameter

    def _on_load(self) -> None:
        self.initialize_soft_prompt()

    def initialize_soft_prompt(self, n_tokens: int = 20) -> None:
        """Starts from the first `n_tokens` rows of the vocabulary."""
        ids = torch.arange(n_tokens)
        self.set_soft_prompt_embeds(self.frozen.embed_ids(ids))

    def set_soft_prompt_embeds(self, soft_prompt_embeds: Tensor) -> None:
        """Starts from rows `[n_tokens, width]`; an axis of one before them is dropped.

        Raises:
            PromptMismatchError: rows of another width.
        """
        rows = soft_prompt_embeds.detach().float().clone()  # whatever the model's dtype
        if rows.dim() == 3 and len(rows) == 1:
            rows = rows[0]
        if rows.dim() != 2 or rows.shape[1] != self.frozen.width:
            raise PromptMismatchError(
                f"the soft prompt has shape {tuple(rows.shape)}; expected (n_tokens, "
                f"{self.frozen.width}) for {self.frozen.name!r}; load the model it was made for"
            )
        learned = getattr(self, "learned_embedding", None)
        if learned is not None and learned.shape == rows.shape:
            learned.data.copy_(rows)  # optimizers over it remain valid
        else:
            self.learned_embedding = torch.nn.Parameter(rows.to(self.frozen.device))

    def set_soft_prompt(self, sp: Any) -> None:
        """Starts from a soft prompt."""
        self.set_soft_prompt_embeds(sp.get_inputs_embeds())

    def get_soft_params(self) -> SoftParams:
        """The learned embedding, for an optimizer."""
        return SoftParams(self.learned_embedding)

    def forward(self, *args: Any, generating: bool = False, **options: Any) -> Any:
        """The model's own forward with the learned embedding before `input_ids`.

        Labels and attention mask are for the ids, and are extended; logits are for all rows.
        With `inputs_embeds`, or a cache that holds the learned embedding already, nothing is added.

        Args:
            generating: called by `generate`, which has put placeholders before the ids.
        """
        options = by_name(self, args, options)
        ids = options.get("input_ids")
        if ids is None:
            return super().forward(**options)  # type: ignore[misc]
        ids = options["input_ids"] = ids.to(self.frozen.device)
        if generating:
            return self._generation_step(ids, options)
        if not _is_filled(options.get("cache", options.get("past_key_values"))):
            self._check_ids(ids)
            embeds = self._cat_learned_embedding_to_input(ids)
            options |= {"input_ids": None, "inputs_embeds": embeds}
            options.pop("position_ids", None)  # they are for the ids alone
            for name, extend in (
                ("labels", self._extend_labels),
                ("attention_mask", self._extend_attention_mask),
            ):
                if options.get(name) is not None:
                    options[name] = extend(options[name])
        return super().forward(**options)  # type: ignore[misc]

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **options: Any) -> Any:
        """Continues ids by transformers' `generate`; lengths do not count the learned embedding."""
        options.pop("return_full_text", None)  # a pipeline's: mkultra's notebooks give it here too
        ids = input_ids.to(self.frozen.device)
        self._check_ids(ids)
        placeholders = torch.tensor(sorted(self._placeholders), device=ids.device)
        count = len(placeholders)
        options["input_ids"] = torch.cat([placeholders.repeat(len(ids), 1), ids], dim=1)
        if options.get("attention_mask") is not None:
            options["attention_mask"] = self._extend_attention_mask(options["attention_mask"])
        for length in ("max_length", "min_length"):
            if options.get(length) is not None:
                options[length] += count
        output = super().generate(**options)  # type: ignore[misc]
        if isinstance(output, Tensor):
            return output[:, count:]
        output.sequences = output.sequences[:, count:]
        return output

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The arguments that `generate` passes to `forward`, which has to handle placeholders."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        return dict(inputs) | {"generating": True}

    def _generation_step(self, ids: Tensor, options: dict[str, Any]) -> Any:
        """A step of `generate`: the first begins with placeholders; none may be generated."""
        count = len(self.learned_embedding)
        if ids.shape[1] > count and int(ids[0, 0]) in self._placeholders:
            embeds = self._cat_learned_embedding_to_input(ids[:, count:])
            options |= {"input_ids": None, "inputs_embeds": embeds}
        output = super().forward(**options)  # type: ignore[misc]
        output.logits = without_ids(output.logits, self._placeholders)
        return output

    @property
    def _placeholders(self) -> set[int]:
        """Ids beyond the vocabulary, one for each row of the learned embedding."""
        rows = self.frozen.vocab_size
        return set(range(rows, rows + len(self.learned_embedding)))

    def _check_ids(self, ids: Tensor) -> None:
        highest = int(ids.max()) if ids.numel() else 0
        if highest >= self.frozen.vocab_size:
            raise ContextError(
                f"id {highest} is not a token id of {self.frozen.name!r}, which has "
                f"{self.frozen.vocab_size}; expected text without soft prompts' tags; give them to "
                "one of the SoftPromptLM models, or to set_soft_prompt"
            )

    def _cat_learned_embedding_to_input(self, input_ids: Tensor) -> Tensor:
        """Rows `[B, n_tokens + T, width]` of ids `[B, T]` or `[T]`."""
        trees = [
            Tree([Node(self.learned_embedding, ROOT), Node(ids, 0)])
            for ids in torch.atleast_2d(input_ids).tolist()
        ]
        return splice(self.frozen, trees).embeds

    def _extend_labels(self, labels: Tensor) -> Tensor:
        """Labels with -100, which losses ignore, for the learned embedding."""
        return self._padded(labels, -100)

    def _extend_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """A mask that includes the learned embedding."""
        return self._padded(attention_mask, 1)

    def _padded(self, values: Tensor, value: int) -> Tensor:
        """`[B, n_tokens + T]` from `[B, T]` or `[T]`."""
        values = torch.atleast_2d(values).to(self.frozen.device)
        return torch.nn.functional.pad(values, (len(self.learned_embedding), 0), value=value)


def _is_filled(cache: Any) -> bool:
    return cache is not None and cache.get_seq_length() > 0


class GPT2PromptTuningLM(GPTPromptTuningMixin):
    """Any causal language model; mkultra has a name per family."""


GPTNeoPromptTuningLM = GPTJPromptTuningLM = GPT2PromptTuningLM
