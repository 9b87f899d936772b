"""The search loop: steps of a method within a budget, with checkpoints to resume from."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlore.control.search.methods import METHODS, nearest_ids, pez_optimizer, random_ids
from softlore.control.search.reflect import fitted, shorten
from softlore.control.search.scoring import Ids, Scorer
from softlore.control.search.state import SearchOptions, SearchState
from softlore.errors import ConfigError
from softlore.lore.sentences import sentences
from softlore.measure import recall
from softlore.prompts import SoftPrompt
from softlore.tune.checkpoint import load_checkpoint, nested, save_checkpoint, uninterrupted

SAVE_SECONDS = 10.0  # between checkpoints
DEFAULT_SECONDS = 120.0
DEFAULT_TOKENS = 16
FROM_SENTENCES = ("reflect",)  # methods that start from sentences, not from random tokens
FROM_NOTHING = ("beam",)


@dataclass(frozen=True)
class SearchResult:
    """The best hard prompt of a search.

    Attributes:
        text: the prompt; a line of its own before the call.
        loss: NLL of the responses after `text` as it is tokenized, nats a token.
        chosen_by: the loss that it was chosen by: of the held-out blocks, or the objective.
        own_loss: NLL of the text itself under the bare model, nats a token.
        passes: forward passes.
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
        scorer: computes the losses of candidates.
        method: one of `METHODS`.
        n_tokens: default: as many as `initial` has, or 16. `reflect` and `beam` may find shorter
            ones.
        initial: where to start: a text, the tokens nearest to a soft prompt of the embedding kind,
            or random tokens; `reflect` starts from the calls and responses themselves, `beam` from
            nothing.
        seconds, passes: the budget; the search ends when either is spent. Default: 120 seconds.
        options: `swaps`, `buffer`, `perplexity` and `writer` of `SearchOptions`.
        checkpoint: a file for progress; if it exists, the search resumes from it.
        on_step: called with the searcher after each step; True stops the search.

    Raises:
        ConfigError: a setting out of range, or a checkpoint of another search.
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
        **options: Any,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(
                f"there is no search method {method!r}; expected one of {', '.join(METHODS)}"
            )
        for name, value in (("n_tokens", n_tokens), ("seconds", seconds), ("passes", passes)):
            if value is not None and not 0 < value < math.inf:  # NaN would never be spent
                raise ConfigError(f"{name} is {value}; expected a number above 0; change it")
        self.scorer, self.method, self.seed = scorer, method, seed
        self.seconds = DEFAULT_SECONDS if seconds is None and passes is None else seconds
        self.passes = passes
        self.checkpoint, self.on_step = checkpoint, on_step
        if method in FROM_NOTHING and initial is not None:
            raise ConfigError(
                f"a start was given, and the method {method} begins with nothing; expected none; "
                "leave it out, or choose another method"
            )
        ids: list[int] = []
        if method not in FROM_NOTHING:
            ids = _initial(scorer, initial, n_tokens, seed, filled=method not in FROM_SENTENCES)
        self._start = list(ids)
        length = n_tokens or len(ids) or DEFAULT_TOKENS
        self.state = SearchState(ids, SearchOptions(length, **options))
        self.spent = 0.0
        self.best: tuple[list[int], float] | None = None
        self._objective = float("inf")  # the best objective so far, of any candidate
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        elif method not in FROM_NOTHING:
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
        """Searches until the budget is spent. Saves a checkpoint at the end, also on Ctrl-C."""
        saved = time.monotonic()
        try:
            while self.done < 1:
                with uninterrupted():  # Ctrl-C takes effect between steps
                    start = time.monotonic()
                    self.step()
                    self.spent += time.monotonic() - start
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if self.on_step and self.on_step(self):
                    break
        finally:
            self.save()
        return self.result()

    def step(self) -> None:
        """One step of the method."""
        draw = random.Random(f"{self.seed}/{self.method}/{self.state.step}")
        before = self.scorer.passes
        scored = METHODS[self.method](self.scorer, self.state, draw)
        # A step that finds nothing new counts, too, or a budget of passes might never be spent.
        self.scorer.passes = max(self.scorer.passes, before + 1)
        self.state.step += 1
        self._consider(scored)

    def shorten(self, loss: float) -> None:
        """Leaves out words of the best prompt while its loss rises by no more than `loss`."""
        start = time.monotonic()
        ids = shorten(self.scorer, self._found()[0], loss)
        self.best = ids, self.scorer.choosing_loss(ids)
        self.spent += time.monotonic() - start

    def result(self) -> SearchResult:
        """The best prompt so far, with the loss of its text, which may encode to other tokens.

        Raises:
            ConfigError: none was found.
        """
        ids, value = self._found()
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

    def _found(self) -> tuple[list[int], float]:
        if self.best is None:
            raise ConfigError(
                f"no text of a perplexity below {self.state.options.perplexity:g} was found; "
                "expected one; raise that (--perplexity), or the budget"
            )
        return self.best

    def _consider(self, scored: Sequence[tuple[list[int], float]]) -> None:
        """Updates the best prompt: best by the objective, then by the held-out blocks, if any."""
        if not scored:
            return
        ids, objective = min(scored, key=itemgetter(1))
        if objective >= self._objective or not self.scorer.legal(ids):
            return
        self._objective = objective
        value = self.scorer.choosing_loss(ids) if self.scorer.held_out else objective
        if self.best is None or value < self.best[1]:
            self.best = (list(ids), value)

    # checkpoints -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, if there is one."""
        if self.checkpoint is None:
            return
        tensors: dict[str, Tensor] = {}
        if self.state.rows is not None:
            tensors["rows"] = self.state.rows
            moments = self.state.optimizer.state_dict()["state"][0]
            tensors |= {f"optimizer/{key}": value for key, value in moments.items()}
        facts = {
            "signature": self._signature(),
            "ids": self.state.ids,
            "step": self.state.step,
            "pool": self.state.pool,
            "best": self.best,
            "objective": self._objective,
            "passes": [self.scorer.passes, self.scorer.part],
            "spent": self.spent,
        }
        save_checkpoint(self.checkpoint, tensors or {"none": torch.zeros(1)}, facts)

    def _resume(self, path: Path) -> None:
        tensors, facts = load_checkpoint(path, remedy="delete it")
        if facts.get("signature") != self._signature():
            raise ConfigError(
                f"the checkpoint {str(path)!r} is of another search; expected the same model, "
                "blocks, method and settings; delete it, or name another file"
            )
        pool = [(ids, losses) for ids, losses in facts["pool"]]
        self.state = SearchState(facts["ids"], self.state.options, facts["step"], pool)
        if "rows" in tensors:
            self.state.rows = tensors["rows"].to(self.scorer.model.device)
            optimizer = pez_optimizer(self.state.rows)
            moments = {0: nested(tensors, "optimizer")}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
            self.state.optimizer = optimizer
        self.best = facts["best"] and (facts["best"][0], facts["best"][1])
        self._objective, self.spent = facts["objective"], facts["spent"]
        self.scorer.passes, self.scorer.part = facts["passes"]

    def _signature(self) -> str:
        scorer, options = self.scorer, self.state.options
        settings = {
            "model": scorer.model.name,
            "vocabulary": scorer.model.tokenizer_fingerprint,
            "pairs": [
                [pair.ids, pair.response_start] for pair in [*scorer.pairs, *scorer.held_out]
            ],
            "fluency": scorer.fluency,
            "method": self.method,
            "options": asdict(replace(options, writer=None)),
            "writer": options.writer and options.writer.name,
            "start": self._start,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _initial(
    scorer: Scorer,
    source: str | SoftPrompt | None,
    n_tokens: int | None,
    seed: int,
    filled: bool,
) -> list[int]:
    """The ids to start from; see `Searcher`.

    Args:
        filled: up with random ones to `n_tokens`. Else as many sentences as fit.
    """
    ids: Ids = []
    draw = random.Random(f"{seed}/initial")
    if isinstance(source, SoftPrompt):
        if source.kind != "embedding":
            raise ConfigError(
                f"prompt {source.name!r} is of kind {source.kind!r}; expected 'embedding', whose "
                "rows have nearest tokens; train a prompt of that kind"
            )
        scorer.model.check_prompt(source)
        ids = nearest_ids(scorer, source.embeddings.to(scorer.model.device))[:n_tokens]
    elif filled:
        ids = scorer.model.encode(" ".join(source.split())) if source else []
    else:
        parts = sentences(source) if source else scorer.facts
        most = n_tokens or (len(scorer.model.encode(source)) if source else DEFAULT_TOKENS)
        ids = fitted(scorer, parts, most, draw)
    if n_tokens is None:
        n_tokens = len(ids) or DEFAULT_TOKENS
    return random_ids(scorer, n_tokens if filled or not ids else len(ids), draw, ids)
