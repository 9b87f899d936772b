"""A search: steps of a method under a budget, the best so far kept, and resumed after a stop."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlore.control.search.methods import (
    METHODS,
    SearchState,
    nearest_ids,
    pez_optimizer,
    random_ids,
)
from softlore.control.search.scoring import Ids, Scorer
from softlore.errors import ConfigError
from softlore.measure import recall
from softlore.prompts import SoftPrompt
from softlore.tune.checkpoint import load_checkpoint, nested, save_checkpoint, uninterrupted

KEEP_SECONDS = 10.0
DEFAULT_SECONDS = 120.0
DEFAULT_TOKENS = 16


@dataclass(frozen=True)
class SearchResult:
    """The best hard prompt of a search.

    Attributes:
        text: the prompt; it stands before the call as a line of its own.
        loss: response loss after `text` tokenized anew, nats a token.
        chosen_by: what it was chosen by: the loss of the held-out blocks, or the objective.
        own_loss: NLL of the text itself under the bare model, nats a token.
    """

    method: str
    text: str
    ids: list[int]
    loss: float
    chosen_by: float
    own_loss: float
    steps: int
    passes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Searcher:
    """Searches a hard prompt of `n_tokens` tokens.

    Args:
        scorer: what prompts are scored on.
        method: one of `METHODS`.
        n_tokens: by default as many as `initial` has, and 16 where it is left out.
        initial: a text, or a soft prompt of the embedding kind to start from its nearest tokens;
            random tokens where it is left out.
        seconds, passes: the budget; the search ends when either is spent.
        checkpoint: a file to keep progress in, and to resume from.
        on_step: called with the searcher after each step; True stops there.
    """

    def __init__(
        self,
        scorer: Scorer,
        method: str = "gcg",
        n_tokens: int | None = None,
        *,
        initial: str | SoftPrompt | None = None,
        seconds: float | None = None,
        passes: int | None = None,
        seed: int = 0,
        checkpoint: Path | None = None,
        on_step: Callable[[Searcher], bool | None] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(
                f"there is no search method {method!r}; expected one of {', '.join(METHODS)}"
            )
        for name, value in (("n_tokens", n_tokens), ("seconds", seconds), ("passes", passes)):
            if value is not None and not 0 < value < math.inf:  # nan would never be spent
                raise ConfigError(f"{name} is {value}; expected a number more than 0; give it some")
        self.scorer, self.method, self.seed = scorer, method, seed
        self.seconds = DEFAULT_SECONDS if seconds is None and passes is None else seconds
        self.passes = passes
        self.checkpoint, self.on_step = checkpoint, on_step
        self.state = SearchState(_initial(scorer, initial, n_tokens, seed))
        self.spent = 0.0
        self.best: tuple[list[int], float] | None = None
        self._objective = float("inf")  # the best objective so far, of any candidate
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        else:
            self._consider([(self.state.ids, scorer.losses([self.state.ids])[0])])

    @property
    def done(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        shares = [0.0]
        if self.seconds is not None:
            shares.append(self.spent / self.seconds)
        if self.passes is not None:
            shares.append(self.scorer.passes / self.passes)
        return min(1.0, max(shares))

    def search(self) -> SearchResult:
        """Searches until the budget is spent, and keeps the best on the way, also on Ctrl-C."""
        try:
            self._steps()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()
        return self.found()

    def _steps(self) -> None:
        kept = time.monotonic()
        while self.done < 1:
            with uninterrupted():  # so that what is kept is the end of a step
                start = time.monotonic()
                self.step()
                self.spent += time.monotonic() - start
            if self.checkpoint is not None and time.monotonic() - kept >= KEEP_SECONDS:
                self.save()
                kept = time.monotonic()
            if self.on_step and self.on_step(self):
                break

    def step(self) -> None:
        """One step of the method."""
        draw = random.Random(f"{self.seed}/{self.method}/{self.state.step}")
        scored = METHODS[self.method](self.scorer, self.state, draw)
        self.state.step += 1
        self._consider(scored)

    def found(self) -> SearchResult:
        """The best so far, measured on its text as any text is."""
        assert self.best is not None
        ids, value = self.best
        text = self.scorer.text(ids)
        loss = recall(self.scorer.model, text + "\n", self.scorer.blocks)
        return SearchResult(
            self.method,
            text,
            ids,
            loss,
            value,
            self.scorer.own_loss(ids),
            self.state.step,
            self.scorer.passes,
            self.spent,
        )

    def _consider(self, scored: Sequence[tuple[list[int], float]]) -> None:
        """Keeps the best: a new best by the objective is asked what the held-out blocks say."""
        if not scored:
            return
        ids, objective = min(scored, key=lambda one: one[1])
        if objective >= self._objective or not self.scorer.legal(ids):
            return
        self._objective = objective
        value = self.scorer.choosing_loss(ids) if self.scorer.held_out else objective
        if self.best is None or value < self.best[1]:
            self.best = (list(ids), value)

    # checkpoints -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, if one was asked for."""
        if self.checkpoint is None:
            return
        tensors: dict[str, Tensor] = {}
        if self.state.rows is not None:
            tensors["rows"] = self.state.rows
            own = self.state.optimizer.state_dict()["state"][0]
            tensors |= {f"optimizer/{key}": value for key, value in own.items()}
        facts = {
            "signature": self._signature(),
            "ids": self.state.ids,
            "step": self.state.step,
            "best": self.best,
            "objective": self._objective,
            "passes": self.scorer.passes,
            "spent": self.spent,
        }
        save_checkpoint(self.checkpoint, tensors or {"none": torch.zeros(1)}, facts)

    def _resume(self, path: Path) -> None:
        tensors, facts = load_checkpoint(path, anew="delete it")
        if facts.get("signature") != self._signature():
            raise ConfigError(
                f"the checkpoint {str(path)!r} is of another search; expected the same model, "
                "blocks, method and settings; delete it, or name another file"
            )
        self.state = SearchState(facts["ids"], facts["step"])
        if "rows" in tensors:
            self.state.rows = tensors["rows"].to(self.scorer.model.device)
            optimizer = pez_optimizer(self.state.rows)
            whole = optimizer.state_dict()
            whole["state"] = {0: nested(tensors, "optimizer")}
            self.state.optimizer = optimizer
            optimizer.load_state_dict(whole)
        self.best = (facts["best"][0], facts["best"][1])
        self._objective, self.spent = facts["objective"], facts["spent"]
        self.scorer.passes = facts["passes"]

    def _signature(self) -> str:
        scorer = self.scorer
        whole = {
            "model": scorer.model.name,
            "vocabulary": scorer.model.tokenizer_fingerprint,
            "pairs": [[pair.ids, pair.answer] for pair in [*scorer.pairs, *scorer.held_out]],
            "fluency": scorer.fluency,
            "method": self.method,
            "length": len(self.state.ids),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def best_of_random(scorer: Scorer, n_tokens: int, count: int, seed: int = 0) -> SearchResult:
    """The best of `count` random prompts: what a search has to beat."""
    searcher = Searcher(scorer, "random", n_tokens, passes=scorer.passes + count, seed=seed)
    return searcher.search()


def _initial(
    scorer: Scorer, source: str | SoftPrompt | None, n_tokens: int | None, seed: int
) -> list[int]:
    """Legal ids to start from: a text's, a soft prompt's nearest tokens, or random ones."""
    ids: Ids = []
    if isinstance(source, SoftPrompt):
        if source.kind != "embedding":
            raise ConfigError(
                f"prompt {source.name!r} is of kind {source.kind!r}; expected 'embedding', whose "
                "rows have nearest tokens; train that kind"
            )
        scorer.model.check_prompt(source)
        ids = nearest_ids(scorer, source.embeddings.to(scorer.model.device))
    elif source:
        ids = scorer.model.encode(" ".join(source.split()))
    if n_tokens is None:
        n_tokens = len(ids) or DEFAULT_TOKENS
    return random_ids(scorer, n_tokens, random.Random(f"{seed}/initial"), ids)
