"""The objective: response loss, drift guard and distillation on one tree batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from softlore.context import Branch, Tree, TreeBatch, TreeLayout, backward
from softlore.errors import ConfigError
from softlore.measure.score import LOGITS_AT_ONCE
from softlore.model import FrozenModel
from softlore.tune.teacher import Passage

TermKind = Literal["response", "guard", "distil"]


@dataclass(frozen=True)
class CallResponse:
    """A call and a response: `ids[:answer]` and `ids[answer:]`; the loss is on the response."""

    ids: list[int]
    answer: int


@dataclass(frozen=True)
class LossTerm:
    """One leaf's share of the loss: whose it is, and what each of its rows should say."""

    owner: str
    kind: TermKind
    weight: float  # of the leaf's mean loss a row
    target: list[int] | Tensor  # response ids, or the teacher's hidden states


@dataclass
class TrainingBatch:
    """Branchings, and a term for each of their leaves in order."""

    branchings: list[TreeBatch] = field(default_factory=list)
    terms: list[LossTerm] = field(default_factory=list)

    def add(self, trunk: Tree, grown: Sequence[tuple[Branch, LossTerm]]) -> None:
        self.branchings.append(TreeBatch(trunk, [leaf for leaf, _ in grown]))
        self.terms.extend(term for _, term in grown)

    @property
    def tokens(self) -> int:
        """Tokens to run, trunks counted once."""
        return sum(
            b.trunk.length + sum(len(leaf.ids) for leaf in b.leaves) for b in self.branchings
        )


def response_branch(
    pair: CallResponse, parent: int, owner: str, weight: float
) -> tuple[Branch, LossTerm]:
    """Row i predicts token i + 1: the response is predicted from the call's last token on."""
    leaf = Branch(pair.ids, parent, pair.answer - 1, len(pair.ids) - 1)
    return leaf, LossTerm(owner, "response", weight, pair.ids[pair.answer :])


def passage_branch(
    passage: Passage, parent: int, owner: str, kind: TermKind, weight: float
) -> tuple[Branch, LossTerm]:
    """Every row from `start` on is compared with the teacher's."""
    return Branch(passage.ids, parent, passage.start), LossTerm(owner, kind, weight, passage.hidden)


def row_losses(model: FrozenModel, hidden: Tensor, targets: Sequence[list[int] | Tensor]) -> Tensor:
    """Loss of each row `[R]`: NLL of a target id, or KL(teacher ‖ model), in nats.

    Logits are made `LOGITS_AT_ONCE` at a time and made again for the gradient where they would
    not fit at once.
    """
    ids, teachers, is_id = [], [], []
    for target in targets:
        if isinstance(target, Tensor):
            teachers.append(target)
            is_id += [False] * len(target)
        else:
            ids += target
            is_id += [True] * len(target)
    answered = torch.tensor(is_id, device=hidden.device)
    losses = hidden.new_zeros(len(is_id), dtype=torch.float32)
    wanted = torch.tensor(ids, device=hidden.device)
    if ids:
        rows = hidden[answered]
        losses = losses.masked_scatter(answered, _chunked(model, _nll, rows, wanted))
    if teachers:
        rows = hidden[~answered]
        losses = losses.masked_scatter(~answered, _chunked(model, _kl, rows, torch.cat(teachers)))
    return losses


def _chunked(model: FrozenModel, measure: object, rows: Tensor, wanted: Tensor) -> Tensor:
    size = max(1, LOGITS_AT_ONCE // model.vocab_size)
    if len(rows) <= size:
        return measure(model, rows, wanted)  # type: ignore[operator]
    parts = [
        checkpoint(measure, model, rows[i : i + size], wanted[i : i + size], use_reentrant=False)
        for i in range(0, len(rows), size)
    ]
    return torch.cat(parts)


def _nll(model: FrozenModel, rows: Tensor, ids: Tensor) -> Tensor:
    return -log_softmax(model.logits(rows), dim=-1).gather(1, ids[:, None])[:, 0]


def _kl(model: FrozenModel, rows: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        theirs = log_softmax(model.logits(teacher), dim=-1)
    ours = log_softmax(model.logits(rows), dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)


Losses = dict[tuple[str, TermKind], float]


def run(
    model: FrozenModel,
    batch: TrainingBatch,
    form: TreeLayout = "packed",
    micro_batch: int | None = None,
) -> Losses:
    """Adds a batch's gradient to its soft prompts; mean losses by owner and kind, nats a token."""
    kept: dict[int, Tensor] = {}
    sizes = [leaf.wanted for b in batch.branchings for leaf in b.leaves]

    def loss(hidden: Tensor, leaves: Sequence[int]) -> Tensor:
        terms = [batch.terms[i] for i in leaves]
        lengths = torch.tensor([sizes[i] for i in leaves], device=hidden.device)
        rows = row_losses(model, hidden, [term.target for term in terms])
        which = torch.repeat_interleave(torch.arange(len(terms), device=hidden.device), lengths)
        means = torch.zeros(len(terms), device=hidden.device).index_add(0, which, rows) / lengths
        kept.update(zip(leaves, means.detach(), strict=True))
        weights = torch.tensor([term.weight for term in terms], device=hidden.device)
        return (means * weights).sum()

    backward(model, batch.branchings, loss, form, micro_batch)
    grouped: dict[tuple[str, TermKind], list[float]] = defaultdict(list)
    values = torch.stack([kept[i] for i in range(len(kept))]).tolist()
    for term, value in zip(batch.terms, values, strict=True):
        grouped[term.owner, term.kind].append(value)
    return {key: sum(values) / len(values) for key, values in grouped.items()}


def pairs_of(
    model: FrozenModel, call: str, responses: Sequence[str], chat: bool = False
) -> list[CallResponse]:
    """Token ids of one block; with `chat`, as turns of the model's chat template.

    Raises:
        ConfigError: `chat`, and the model has no chat template.
    """
    pairs = []
    for response in responses:
        before, after = _turns(model, call, response) if chat else (call, response)
        head = model.encode(before)
        if chat and model.bos and head[:1] == model.bos:
            head = head[1:]  # the trunk has it already
        pairs.append(CallResponse(head + model.encode(after, inside=True), len(head)))
    return pairs


def _turns(model: FrozenModel, call: str, response: str) -> tuple[str, str]:
    """The user's turn up to where the answer begins; the answer, up to the end of its turn."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{model.name!r} has no chat template; expected one to put call and response into; "
            "leave chat (--chat) out, or use a model made for chat"
        )
    asked = [{"role": "user", "content": call}]
    answered = [*asked, {"role": "assistant", "content": response}]
    before = str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False)).rstrip()
    if whole.startswith(before) and response.strip() in whole[len(before) :]:
        return before, whole[len(before) :]
    # Some templates write an answer that was given otherwise than one that is asked for.
    return before, response + (tokenizer.eos_token or "")
