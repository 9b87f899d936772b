"""mkultra's models for generation: ids of tags are replaced by the rows of soft prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softlore.context import ROOT, Node, Tree, splice
from softlore.errors import ContextError, PromptMismatchError
from softlore.mkultra.models import MkultraModel, by_name, without_ids
from softlore.mkultra.registry import PromptVocabulary, vocabulary_of


class GPTSoftPromptMixin(MkultraModel):
    """A language model that reads tags as soft prompts, and never generates them."""

    vocabulary: PromptVocabulary

    def _on_load(self) -> None:
        self.vocabulary = vocabulary_of(self.frozen.tokenizer)

    def replace_special_tokens(self, input_ids: Tensor) -> Tensor:
        """Rows `[B, T, width]` of ids `[B, T]`: for the ids of a tag the rows of its soft prompt.

        Raises:
            ContextError: an incomplete tag, or an unknown id.
            PromptMismatchError: a soft prompt of another width.
        """
        trees = [self._tree(ids) for ids in input_ids.tolist()]
        return splice(self.frozen, trees).embeds

    def forward(self, *args: Any, **options: Any) -> Any:
        """The model's own forward, with tags in `input_ids`; logits of placeholders are -inf."""
        options = by_name(self, args, options)
        ids = options.get("input_ids")
        if ids is not None:
            ids = ids.to(self.frozen.device)
            options |= {"input_ids": None, "inputs_embeds": self.replace_special_tokens(ids)}
            if options.get("labels") is not None:
                labels = options["labels"].to(ids.device)
                options["labels"] = labels.masked_fill(self._placeholders(labels), -100)
        output = super().forward(**options)  # type: ignore[misc]
        output.logits = without_ids(output.logits, self.vocabulary.ids)
        return output

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Continues ids with tags in them, by transformers' `generate`."""
        options.pop("return_full_text", None)  # a pipeline's: mkultra's notebooks give it here too
        if input_ids is not None:
            options["input_ids"] = input_ids.to(self.frozen.device)
        return super().generate(**options)  # type: ignore[misc]

    def _placeholders(self, ids: Tensor) -> Tensor:
        """A mask of the ids that are placeholders."""
        known = torch.tensor(sorted(self.vocabulary.ids), device=ids.device, dtype=ids.dtype)
        return torch.isin(ids, known)

    def _tree(self, ids: list[int]) -> Tree:
        """One row of ids as nodes: runs of text, and the rows of soft prompts."""
        nodes: list[Node] = []
        text: list[int] = []
        at = 0
        while at < len(ids):
            prompt = self.vocabulary.prompts.get(ids[at])
            if prompt is None:
                text.append(self._check_id(ids[at]))
                at += 1
                continue
            rest = ids[at + 1 : at + len(prompt)]
            if rest != [self.vocabulary.soft] * (len(prompt) - 1):
                raise _incomplete(f"{len(prompt)} tokens long, but only part of it is present")
            rows = prompt.get_inputs_embeds().detach().reshape(len(prompt), -1)
            if rows.shape[1] != self.frozen.width:
                raise PromptMismatchError(
                    f"the soft prompt {prompt.get_tag_str()!r:.60} is {rows.shape[1]} wide; "
                    f"expected {self.frozen.width}, as {self.frozen.name!r} is; load the model it "
                    "was made for"
                )
            if text:
                nodes.append(Node(text, len(nodes) - 1 if nodes else ROOT))
            nodes.append(Node(rows, len(nodes) - 1 if nodes else ROOT))
            text = []
            at += len(prompt)
        if text:
            nodes.append(Node(text, len(nodes) - 1 if nodes else ROOT))
        return Tree(nodes)

    def _check_id(self, i: int) -> int:
        """The id of a token of text."""
        if i == self.vocabulary.soft:
            raise _incomplete("missing its first token")
        if not 0 <= i < self.frozen.vocab_size:
            raise ContextError(
                f"id {i} is neither a token of {self.frozen.name!r}, which has "
                f"{self.frozen.vocab_size}, nor a soft prompt's; expected ids of a tokenizer with "
                "the same vocabulary; load it with GPT2SPTokenizerFast.from_pretrained, by the "
                "model's name"
            )
        return i


def _incomplete(how: str) -> ContextError:
    return ContextError(
        f"a soft prompt's tag is {how}; expected all of it, as get_tag_str() gives it; shorten the "
        "text elsewhere"
    )


class GPT2SoftPromptLM(GPTSoftPromptMixin):
    """Any causal language model; mkultra has a name per family."""


GPTNeoSoftPromptLM = GPTJSoftPromptLM = GPT2SoftPromptLM
