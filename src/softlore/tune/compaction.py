"""Compacts the keys and values of a text to a prefix, in closed form, by attention matching.

A prefix of n positions takes the place of a text of T tokens (n < T) where, for the queries q of
text behind it, both give each layer the same attention: the same share of the probability, and the
same mean of the values. With passages that the model wrote after the text as reference, a prefix is
computed layer by layer and head by head, without a gradient:

    choose    n of the text's keys: those that the queries attend to most; every other key
              belongs to the nearest of these
    keys      by least squares: exp(q·k′) is to be what the text's keys of this group have
              together, Σ exp(q·k)
    values    by least squares: the attention's output is to be what it is after the text

(Attention matching: arXiv 2602.16284. There the groups' probability is matched by a bias for each
key; here by the key itself, since a prefix has no bias.) A prefix is seen from near and far, so
each query is rotated on by a distance of its own, and the keys that result hold at all of these.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.context import Branch, Node, Tree, TreeBatch, hidden_states, read_trunks
from softlore.model import FrozenModel
from softlore.model.attention import can_record, recorded_by, visible
from softlore.model.rotary import Rotary
from softlore.tune.passages import log_uniform
from softlore.vllm_connector.files import rotated

FAR_SHARE = 0.5  # of queries that are rotated on
KEY_RIDGE, VALUE_RIDGE = 1e-2, 1e-3  # relative to the mean of the diagonal
OTHERS = 16  # passages about other texts, for the keys of each of several
LEAST_WEIGHT = 1e-4  # of a query in the fit of a key, beside its share of the probability
SINK_WEIGHT = 1e9  # in the choice of keys: the attention sink is always chosen


def can_compact(model: FrozenModel) -> bool:
    """Whether the attention of a model can be matched."""
    no_bias = model.family.alibi_slopes is None
    return model.takes_prefix and no_bias and can_record(model.hf)


def compact_texts(
    model: FrozenModel,
    texts: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    n_tokens: int,
    at: int,
    farthest: int,
) -> Tensor:
    """The prefix of several texts: each compacted to its share of the tokens, all side by side.

    Passages about the others tell the keys of each where they are not to be attended to: all keys
    together are to have the probability there that those of one text have. The first text's
    attention sink stands for those of the others.

    Args:
        texts: the token ids of each, and passages about it. For the rest see `compact`.
    """
    shares = _shares([len(ids) for ids, _ in texts], n_tokens)
    prefixes: list[Tensor] = []
    for number, ((ids, passages), share) in enumerate(zip(texts, shares, strict=True)):
        if not share:
            continue
        sink = int(bool(prefixes) and not model.bos)
        others = [other for i in _others(number, len(texts)) for other in texts[i][1][:1]]
        prefix = compact(
            model, ids, passages, share + sink, at, farthest, number,
            others=others, weight=1 / len(texts),
        )  # fmt: skip
        prefixes.append(prefix[:, :, :, sink:])
    return torch.cat(prefixes, dim=3)


def _shares(lengths: Sequence[int], total: int) -> list[int]:
    """Whole numbers of that total, in proportion to lengths."""
    ends = [round(total * sum(lengths[: i + 1]) / sum(lengths)) for i in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _others(number: int, count: int) -> list[int]:
    """Some other texts, those that follow."""
    return [(number + 1 + i) % count for i in range(min(OTHERS, count - 1))]


@torch.no_grad()
def compact(
    model: FrozenModel,
    ids: Sequence[int],
    passages: Sequence[Sequence[int]],
    n_tokens: int,
    at: int,
    farthest: int,
    seed: int = 0,
    others: Sequence[Sequence[int]] = (),
    weight: float = 1.0,
) -> Tensor:
    """The prefix `[layers, 2, kv_heads, n_tokens, head_dim]` of a text, float32.

    Args:
        ids: of the text, without BOS; more than `n_tokens`.
        passages: token ids of texts behind it, such as the model writes.
        at: the first position behind the prefix.
        farthest: the longest distance from which the prefix is seen, in tokens.
        seed: of the distances of the queries.
        others: token ids of passages in which the prefix is to have less of the probability.
        weight: how much of what the text has there.
    """
    (trunk,) = read_trunks(model, [Tree([Node([*model.bos, *ids])])])
    branches = [Branch(list(passage), trunk.end) for passage in (*passages, *others)]
    own = sum(map(len, passages))
    draw, rotary = random.Random(seed), model.rotary
    matching = _Matching(
        model, rotary, trunk.length, n_tokens, at, farthest, draw, [], own, math.log(weight)
    )
    with recorded_by(model.hf, matching.match):
        hidden_states(model, [TreeBatch(trunk, branches)], "packed")
    return torch.stack(matching.layers)


@dataclass
class _Matching:
    """What the layers are matched by, and the layers matched so far, `[2, kv_heads, n, head_dim]`.

    Attributes:
        length: tokens of BOS and text.
        own: queries of passages about the text; those that follow are of others.
        less: added to the logarithm of the probability that these give the text.
    """

    model: FrozenModel
    rotary: Rotary | None
    length: int
    n_tokens: int
    at: int
    farthest: int
    draw: random.Random
    layers: list[Tensor]
    own: int
    less: float

    def match(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> None:
        """Matches the next layer; see `recorded_by`."""
        n_bos, kv_heads = len(self.model.bos), key.shape[1]
        groups = query.shape[1] // kv_heads
        queries = query[0].float().unflatten(0, (kv_heads, groups)).flatten(1, 2) * scale
        keys, values = key[0].float(), value[0].float()
        hidden = ~visible(mask[0, :1]).repeat(1, groups, 1)
        logits = (queries @ keys.mT).masked_fill(hidden, -torch.inf)
        weights = logits.softmax(-1)
        total = logits.logsumexp(-1, keepdim=True)
        text = slice(n_bos, self.length)
        mine = (torch.arange(query.shape[2], device=query.device) < self.own).repeat(groups)
        target = weights @ values
        beside = weights.clone()
        beside[..., text] = 0
        share = beside.sum(-1, keepdim=True).clamp_min(1e-30)
        others = share.log() + total  # log of the probability mass of all keys but the text's
        mean_of_others = beside @ values / share
        keys, values = keys[:, text], values[:, text]
        chosen = self._choose(weights[:, mine, text])
        at_distance = self._rotated_on(queries)
        k = self._match_keys(keys, chosen, at_distance, logits[..., text], total, ~mine)
        own = at_distance @ k.mT
        now = torch.logaddexp(own.logsumexp(-1, keepdim=True), others)
        rest = target - (others - now).exp() * mean_of_others
        v = _gathered(values, chosen)
        w = (own - now).exp() * mine[:, None]
        v = v + _ridge(w.mT @ w, w.mT @ (rest - w @ v), VALUE_RIDGE)
        layer = torch.stack([self._moved(k), v])
        self.layers.append(layer.to(self.model.device))  # of a model on several devices

    def _choose(self, weights: Tensor) -> Tensor:
        """Indices `[kv_heads, n]` of the keys with the most attention, in the text's order."""
        attention = weights.pow(2).mean(1)
        if not self.model.bos:
            attention[:, 0] = SINK_WEIGHT
        return attention.topk(self.n_tokens, dim=-1).indices.sort(-1).values

    def _match_keys(
        self,
        keys: Tensor,
        chosen: Tensor,
        queries: Tensor,
        logits: Tensor,
        total: Tensor,
        of_others: Tensor,
    ) -> Tensor:
        """Keys `[kv_heads, n, head_dim]`, each for the probability mass of its group of keys.

        Queries of other texts' passages (`of_others`, `[queries]`) are to find less of it, except
        in the attention sink.
        """
        k = _gathered(keys, chosen)
        distances = torch.cdist(keys, k)
        if not self.model.bos:
            distances[:, 1:, 0] = torch.inf  # the sink stands for itself alone
        groups = torch.zeros_like(distances).scatter_(-1, distances.argmin(-1, keepdim=True), 1.0)
        most = logits.amax(-1, keepdim=True).clamp_min(-1e4)
        mass = ((logits - most).exp() @ groups).clamp_min(1e-12).log() + most
        weight = (mass - total).exp() + LEAST_WEIGHT
        mass[:, of_others, int(not self.model.bos) :] += self.less
        # The normal equations of all n keys by one product: [kv_heads, head_dim, n · head_dim].
        weighted = (queries[:, :, None] * weight[..., None]).flatten(2)
        squares = (queries.mT @ weighted).unflatten(2, k.shape[1:]).transpose(1, 2)
        right = (weight * (mass - queries @ k.mT)).mT @ queries
        change = _ridge(squares, right[..., None], KEY_RIDGE)[..., 0]
        if not self.model.bos:
            change[:, 0] = 0
        return k + change

    def _rotated_on(self, queries: Tensor) -> Tensor:
        """Queries `[kv_heads, R, head_dim]` at their distances: as their position has moved on."""
        rotary = self.rotary
        if rotary is None or not self.farthest:
            return queries
        far = [
            log_uniform(self.draw, self.farthest) if self.draw.random() < FAR_SHARE else 0
            for _ in range(queries.shape[1])
        ]
        angles = rotary.inv_freq[len(self.layers)] * torch.tensor(far)[:, None]
        rows = queries.transpose(0, 1)[:, :, None]
        turned = rotated(rows, angles.to(queries.device), rotary.layout)
        return turned[:, :, 0].transpose(0, 1)

    def _moved(self, keys: Tensor) -> Tensor:
        """Keys as far before the first position behind the prefix as they were before a passage."""
        rotary = self.rotary
        if rotary is None:
            return keys
        by = self.at + len(self.model.bos) - self.length
        angles = (rotary.inv_freq[len(self.layers)] * by).to(keys.device)
        return rotated(keys[None], angles[None], rotary.layout)[0]


def _gathered(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows `[kv_heads, n, head_dim]` of `[kv_heads, T, head_dim]`."""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def _ridge(squares: Tensor, right: Tensor, strength: float) -> Tensor:
    """The solution of (squares + λ·1) x = right; λ relative to the mean of the diagonal."""
    size = squares.shape[-1]
    least = strength * squares.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    return torch.linalg.solve(squares + least[..., None, None] * torch.eye(size).to(squares), right)
