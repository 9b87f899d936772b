"""No copying: what would repeat a training response word for word is steered off."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.decode.samplers.bans import SparingLogitsProcessor
from softlore.decode.samplers.steps import Step
from softlore.errors import ConfigError
from softlore.prompts import SoftPrompt
from softlore.prompts.responses import KEY, RUN, HashedResponses


def no_copy_step(prompts: Iterable[SoftPrompt], most: int) -> Step:
    """The step that steers off what would repeat `most` tokens of what prompts were taught.

    Raises:
        ConfigError: fewer tokens than the hashes tell apart.
    """
    check_no_copy(most, least=RUN)
    known = HashedResponses({})
    for prompt in prompts:
        known |= HashedResponses.from_text(prompt.training.get(KEY))
    return Step("no_copy", SparingLogitsProcessor(NoCopyLogitsProcessor(known, most)), "text")


def check_no_copy(most: object, least: int = 0) -> None:
    """Raises ConfigError unless it is 0, for none, or so many tokens as can be told apart."""
    whole = isinstance(most, int) and not isinstance(most, bool)
    if not whole or not (most == least == 0 or most >= RUN):  # type: ignore[operator]
        raise ConfigError(
            f"no_copy is {most!r:.60}; expected 0 for none, or {RUN} tokens or more; choose another"
        )


class NoCopyLogitsProcessor(LogitsProcessor):
    """Bans the token that would make a copied run of responses `most` tokens long.

    A run counts from the first of its tokens, which may have been the writer's; runs of fewer than
    `RUN` cannot be seen.
    """

    def __init__(self, responses: HashedResponses, most: int) -> None:
        self.responses = responses
        self.most = most

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` after `input_ids` `[B, T]`, with what would copy at −∞."""
        out = scores
        for row, ids in enumerate(input_ids.tolist()):
            # Only the end matters: a run of most - 1 tokens, and what its first is told by.
            if self._copied(ids[-(self.most + RUN) :]) < self.most - 1:
                continue
            banned = [i for i in self.responses.next(ids) if i < scores.shape[1]]
            if banned:
                out = out.clone() if out is scores else out
                out[row, banned] = -torch.inf
        return out

    def _copied(self, ids: list[int]) -> int:
        """Tokens at the end of `ids` that stand so in a response."""
        run = 0
        for place in range(RUN - 1, len(ids)):
            if ids[place] in self.responses.next(ids[:place]):
                run = max(run, RUN - 1) + 1
            else:
                run = 0
        return max(run, RUN - 1)  # of the last three nothing is known: they may begin one
