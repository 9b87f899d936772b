"""Losses of candidate prompts, many at once, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from softlore.context import Node, Tree, TreeBatch, backward, hidden_states
from softlore.errors import ConfigError, ContextOverflowError, LoreError
from softlore.lore import Block
from softlore.measure.losses import response_nll
from softlore.measure.score import mean, token_losses, trunk
from softlore.model import FrozenModel
from softlore.tune.examples import CallResponse, pairs_of
from softlore.tune.initial import known_ids

TOKENS_AT_ONCE = 8192  # of all branches in a batch
GRADIENT_PASSES = 3  # a gradient counts as a forward pass, and a backward pass at twice its cost
Ids = Sequence[int]


class Scorer:
    """Scores candidates on blocks: the mean NLL of the responses.

    A candidate is a sequence of token ids that is a line of its own before the call. A batch of
    candidates is a batch of trees; each has a candidate as its trunk and all pairs as branches:

        BOS · candidate · "\\n" ─┬─ call · response
                                 └─ call · response

    Args:
        blocks: the calls and responses that prompts are optimized for.
        held_out: blocks that choose the best candidate, and are not optimized for.
        fluency: weight of the candidate's own NLL under the bare model, nats a token.

    Attributes:
        passes: forward passes so far; one is a candidate with all pairs.
        part: of the next pass, that was run otherwise.
        facts: each call with a response, as text.

    Raises:
        LoreError: no blocks.
        ConfigError: `fluency` out of range.
    """

    def __init__(
        self,
        model: FrozenModel,
        blocks: Sequence[Block],
        held_out: Sequence[Block] = (),
        fluency: float = 0.0,
    ) -> None:
        if not 0 <= fluency < math.inf:
            raise ConfigError(f"fluency is {fluency}; expected a number of at least 0; change it")
        self.model, self.fluency, self.passes = model, fluency, 0
        self.blocks = list(blocks)
        self.pairs, self.held_out = _pairs(model, blocks), _pairs(model, held_out)
        if not self.pairs:
            raise LoreError("the search has no blocks; expected calls with responses; add some")
        self.line = model.encode("\n", inside=True)
        self.facts = [f"{b.call}{response}".strip() for b in blocks for response in b.responses]
        self.part = 0.0

    @cached_property
    def table(self) -> Tensor:
        """The embedding matrix `[vocab, width]`, float32, scaled as the model scales its inputs."""
        with torch.no_grad():
            return self.model.embed_ids(torch.arange(self.model.vocab_size)).float()

    @cached_property
    def allowed(self) -> Tensor:
        """`[vocab]` bool: ids in the tokenizer's vocabulary without special ones."""
        mask = torch.zeros(self.model.vocab_size, dtype=torch.bool, device=self.model.device)
        mask[: known_ids(self.model)] = True
        mask[sorted(i for i in self.model.special_ids if i < self.model.vocab_size)] = False
        return mask

    def text(self, ids: Ids) -> str:
        """A candidate as text, without the end of its line."""
        return self.model.decode(ids)

    def legal(self, ids: Ids) -> bool:
        """Whether a candidate is one line of text that encodes to the same ids."""
        text = self.text(ids)
        is_line = "\n" not in text and "\r" not in text and "\ufffd" not in text
        return is_line and self.model.encode(text + "\n") == [*ids, *self.line]

    def losses(self, candidates: Sequence[Ids]) -> list[float]:
        """The objective of each candidate: response loss + fluency · own loss."""
        all_losses = self.task_losses(candidates)
        return [self.objective(*one) for one in zip(candidates, all_losses, strict=True)]

    def objective(self, ids: Ids, task_losses: Sequence[float]) -> float:
        """The objective of a candidate, by the losses of its responses."""
        own_loss = self.fluency * self.own_loss(ids) if self.fluency else 0.0
        return mean(task_losses) + own_loss

    def task_losses(self, candidates: Sequence[Ids]) -> list[list[float]]:
        """The NLL of each candidate's responses, one by one, nats a token."""
        return self._response_losses(candidates, self.pairs)

    def count_tokens(self, tokens: int) -> None:
        """Counts tokens that were run otherwise, as parts of a pass."""
        pairs = sum(len(pair.ids) for pair in self.pairs)
        self.part += tokens / (len(self.model.bos) + len(self.line) + pairs)
        self.passes += int(self.part)
        self.part %= 1

    def choosing_loss(self, ids: Ids) -> float:
        """The loss for choosing the best candidate: of the held-out blocks, if any."""
        if not self.held_out:
            return self.losses([ids])[0]
        return mean(self._response_losses([ids], self.held_out)[0])

    def own_loss(self, ids: Ids) -> float:
        """NLL of a candidate's own tokens but the first under the bare model, nats a token."""
        return self.own_losses([ids])[0]

    def own_losses(self, candidates: Sequence[Ids]) -> list[float]:
        """`own_loss` of each candidate."""
        tree = trunk(self.model, "")
        long = [(ids[:1], ids[1:]) for ids in candidates if len(ids) > 1]
        losses = iter(token_losses(self.model, tree, long))
        return [float(next(losses).mean()) if len(ids) > 1 else 0.0 for ids in candidates]

    def gradient(self, ids: Ids) -> tuple[float, Tensor]:
        """Response loss of a candidate, and its gradient `[n, width]` at its embeddings."""
        rows = self.table[list(ids)].clone().requires_grad_(True)
        self.passes += GRADIENT_PASSES
        tree = self._tree(rows)
        branches = [pair.branch(tree.end) for pair in self.pairs]

        def loss(hidden: Tensor, indices: Sequence[int]) -> Tensor:
            responses = [self.pairs[i].target for i in indices]
            ids = torch.tensor([i for ids in responses for i in ids], device=hidden.device)
            losses = response_nll(self.model, hidden, ids).split(list(map(len, responses)))
            return torch.stack([of_pair.mean() for of_pair in losses]).sum() / len(branches)

        value = backward(self.model, [TreeBatch(tree, branches)], loss, "expanded")
        assert rows.grad is not None
        return value, rows.grad

    def one_hot_gradient(self, ids: Ids) -> Tensor:
        """Gradient `[n, vocab]` with respect to one-hot tokens; +∞ where an id is not allowed."""
        _, rows = self.gradient(ids)
        return (rows @ self.table.T).masked_fill(~self.allowed, torch.inf)

    def _tree(self, content: Ids | Tensor) -> Tree:
        nodes = [Node(self.model.bos)] if self.model.bos else []
        for part in (content, self.line):
            nodes.append(Node(part, len(nodes) - 1))
        return Tree(nodes)

    @torch.no_grad()
    def _response_losses(
        self, candidates: Sequence[Ids], pairs: Sequence[CallResponse]
    ) -> list[list[float]]:
        longest = max(len(pair.ids) for pair in pairs)
        self._check_length(max(map(len, candidates), default=0) + longest)
        most = max(1, TOKENS_AT_ONCE // (longest * len(pairs)))
        found: list[list[float]] = []
        targets = [token for pair in pairs for token in pair.target]
        sizes = [len(pair.target) for pair in pairs]
        for at in range(0, len(candidates), most):
            part = candidates[at : at + most]
            trees = [self._tree(list(ids)) for ids in part]
            batch = [TreeBatch(t, [pair.branch(t.end) for pair in pairs]) for t in trees]
            hidden = hidden_states(self.model, batch, "expanded")
            target = torch.tensor(targets * len(part), device=hidden.device)
            for losses in response_nll(self.model, hidden, target).split(len(targets)):
                found.append([float(of_pair.mean()) for of_pair in losses.split(sizes)])
        self.passes += len(candidates)
        return found

    def _check_length(self, length: int) -> None:
        limit, length = self.model.context_length, length + len(self.model.bos) + len(self.line)
        if limit is not None and length > limit:
            raise ContextOverflowError(
                f"a prompt, a call and a response have {length} tokens; expected at most "
                f"{limit}, the context of {self.model.name!r}; search a shorter prompt"
            )


def _pairs(model: FrozenModel, blocks: Sequence[Block]) -> list[CallResponse]:
    return [pair for block in blocks for pair in pairs_of(model, block.call, block.responses)]
