"""no_copy: suppresses tokens that would repeat a training response word for word."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.decode.samplers.bans import SparingLogitsProcessor
from softlore.decode.samplers.steps import Step
from softlore.prompts import SoftPrompt
from softlore.prompts.responses import KEY, RUN, HashedResponses


def no_copy_step(prompts: Iterable[SoftPrompt], length: int) -> Step:
    """The step that suppresses what would repeat `length` tokens of training responses."""
    responses = HashedResponses({})
    for prompt in prompts:
        responses |= HashedResponses.from_text(prompt.training.get(KEY))
    return Step("no_copy", SparingLogitsProcessor(NoCopyLogitsProcessor(responses, length)), "text")


class NoCopyLogitsProcessor(LogitsProcessor):
    """Bans tokens that would complete a run of `length` tokens copied from a response.

    Tokens that the writer wrote count as part of a run. Runs of fewer than `RUN` tokens cannot be
    detected.
    """

    def __init__(self, responses: HashedResponses, length: int) -> None:
        self.responses = responses
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` after `input_ids` `[B, T]`, with copied tokens at −∞."""
        out = scores
        for row, ids in enumerate(input_ids.tolist()):
            # Only the end matters: a run of length - 1 tokens, and the RUN that find its first.
            if self._count_copied(ids[-(self.length + RUN) :]) < self.length - 1:
                continue
            banned = [i for i in self.responses.next(ids) if i < scores.shape[1]]
            if banned:
                out = out.clone() if out is scores else out
                out[row, banned] = -torch.inf
        return out

    def _count_copied(self, ids: list[int]) -> int:
        """How many tokens at the end of `ids` are a run of a response."""
        run = 0
        for i in range(RUN - 1, len(ids)):
            if ids[i] in self.responses.next(ids[:i]):
                run = max(run, RUN - 1) + 1
            else:
                run = 0
        return max(run, RUN - 1)  # hashes say nothing of the last ones, which may begin a run
