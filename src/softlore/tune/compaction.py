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

import itertools
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
from softlore.tune.lengths import log_uniform
from softlore.vllm_connector.files import rotated

FAR_SHARE = 0.5  # of queries that are rotated on
KEY_RIDGE, VALUE_RIDGE = 1e-2, 1e-3  # relative to the mean of the diagonal
OTHERS = 16  # passages about other texts, for the keys of each of several
LEAST_WEIGHT = 1e-4  # of a query in the fit of a key, beside its share of the probability
ROWS = 64  # queries of each head that are computed together
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
    """Numbers of up to `OTHERS` other texts: the next ones, in a circle."""
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


@dataclass(frozen=True)
class _Attended:
    """What queries of passages find in a layer, each a row of `[kv_heads, R, ...]`.

    Attributes:
        moved_on: the queries at their distances.
        logits: for the text's keys.
        total: log of the probability mass of all keys.
        attention: squared shares of the text's keys, summed over the queries, `[kv_heads, T]`.
        target: the attention's output.
        others: log of the mass of all keys but the text's.
        mean_of_others: of their values.
    """

    moved_on: Tensor
    logits: Tensor
    total: Tensor
    attention: Tensor
    target: Tensor
    others: Tensor
    mean_of_others: Tensor


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
        queries = query[0].float().unflatten(0, (key.shape[1], -1)) * scale
        moved_on = self._rotated_on(queries.flatten(1, 2)).view_as(queries)
        keys, values, seen = key[0].float(), value[0].float(), visible(mask[0, 0])
        attended = [
            self._attended(queries[:, :, part], moved_on[:, :, part], keys, values, seen[part])
            for part in self._parts(query.shape[2])
        ]
        n_bos, own = len(self.model.bos), -(-self.own // ROWS)
        keys, values = keys[:, n_bos : self.length], values[:, n_bos : self.length]
        chosen = self._choose(torch.stack([part.attention for part in attended[:own]]).sum(0))
        k = self._match_keys(keys, chosen, attended, own)
        squares = right = keys.new_zeros(())
        v = _gathered(values, chosen)
        for part in attended[:own]:
            logits = part.moved_on @ k.mT
            now = torch.logaddexp(logits.logsumexp(-1, keepdim=True), part.others)
            rest = part.target - (part.others - now).exp() * part.mean_of_others
            w = (logits - now).exp()
            squares, right = squares + w.mT @ w, right + w.mT @ (rest - w @ v)
        v = v + _ridge(squares, right, VALUE_RIDGE)
        layer = torch.stack([self._moved(k), v])
        self.layers.append(layer.to(self.model.device))  # of a model on several devices

    def _parts(self, n_queries: int) -> list[slice]:
        """Queries that are computed together: of passages about the text, then of others."""
        ends = [*range(0, self.own, ROWS), *range(self.own, n_queries, ROWS), n_queries]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _attended(
        self, queries: Tensor, moved_on: Tensor, keys: Tensor, values: Tensor, seen: Tensor
    ) -> _Attended:
        """What some queries `[kv_heads, groups, R, head_dim]` find; `seen`: `[R, keys]`."""
        queries, groups = queries.flatten(1, 2), queries.shape[1]
        used = seen.any(0)
        used[: self.length] = True  # also where a sliding window has left it behind
        columns = used.nonzero()[:, 0]  # BOS, the text, and the passages that these are of
        keys, values, hidden = keys[:, columns], values[:, columns], ~seen[:, columns]
        logits = (queries @ keys.mT).masked_fill(hidden.repeat(groups, 1), -torch.inf)
        total = logits.logsumexp(-1, keepdim=True)
        weights = (logits - total).exp()
        n_bos = len(self.model.bos)
        text = slice(n_bos, self.length)
        beside = torch.cat([weights[..., :n_bos], weights[..., self.length :]], -1)
        values_beside = torch.cat([values[:, :n_bos], values[:, self.length :]], 1)
        share = beside.sum(-1, keepdim=True).clamp_min(1e-30)
        of_others = beside @ values_beside
        return _Attended(
            moved_on=moved_on.flatten(1, 2),
            logits=logits[..., text],
            total=total,
            attention=weights[..., text].pow(2).sum(1),
            target=weights[..., text] @ values[:, text] + of_others,
            others=share.log() + total,
            mean_of_others=of_others / share,
        )

    def _choose(self, attention: Tensor) -> Tensor:
        """Indices `[kv_heads, n]` of the keys with the most attention, in the text's order."""
        if not self.model.bos:
            attention[:, 0] = SINK_WEIGHT
        return attention.topk(self.n_tokens, dim=-1).indices.sort(-1).values

    def _match_keys(
        self, keys: Tensor, chosen: Tensor, attended: Sequence[_Attended], own: int
    ) -> Tensor:
        """Keys `[kv_heads, n, head_dim]`, each for the probability mass of its group of keys.

        Queries of other texts' passages, which follow the `own` first parts, are to find less of
        it, except in the attention sink.
        """
        k = _gathered(keys, chosen)
        distances = torch.cdist(keys, k)
        if not self.model.bos:
            distances[:, 1:, 0] = torch.inf  # the sink stands for itself alone
        groups = torch.zeros_like(distances).scatter_(-1, distances.argmin(-1, keepdim=True), 1.0)
        squares = right = keys.new_zeros(())
        for number, part in enumerate(attended):
            most = part.logits.amax(-1, keepdim=True).clamp_min(-1e4)
            mass = ((part.logits - most).exp() @ groups).clamp_min(1e-12).log() + most
            weight = (mass - part.total).exp() + LEAST_WEIGHT
            if number >= own:
                mass[:, :, int(not self.model.bos) :] += self.less
            queries = part.moved_on
            # The normal equations of all n keys by one product: [kv_heads, head_dim, n · head_dim].
            weighted = (queries[:, :, None] * weight[..., None]).flatten(2)
            squares = squares + queries.mT @ weighted
            right = right + (weight * (mass - queries @ k.mT)).mT @ queries
        squares = squares.unflatten(2, k.shape[1:]).transpose(1, 2)
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
