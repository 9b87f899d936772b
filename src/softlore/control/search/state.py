"""The state of a search, which its method changes step by step, and the options of methods."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from softlore.control.search.writers import Writer
from softlore.errors import ConfigError

Candidate = tuple[list[int], list[float]]  # ids, and losses: of each task, or the objective
Scored = list[tuple[list[int], float]]  # candidates, and the objective of each


@dataclass(frozen=True)
class SearchOptions:
    """What methods are told.

    Attributes:
        n_tokens: the length of a prompt; `reflect` and `beam` may write shorter ones.
        swaps: tokens that a candidate of GCG swaps at once (nanoGCG's `n_replace`).
        buffer: how many of GCG's best candidates are kept, from the best of which each step starts
            (nanoGCG's `buffer_size`); 0: it starts from the last one.
        perplexity: the most that a text of `beam` may have under the bare model.
        writer: rewrites texts for `reflect`; None: the model itself does.
    """

    n_tokens: int
    swaps: int = 1
    buffer: int = 0
    perplexity: float = 60.0
    writer: Writer | None = None

    def __post_init__(self) -> None:
        least = {"swaps": 1, "buffer": 0, "perplexity": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not bound <= value < math.inf:
                raise ConfigError(
                    f"{name} is {value}; expected a number of at least {bound}; change it"
                )


@dataclass
class SearchState:
    """The state of a search.

    Attributes:
        ids: the current candidate.
        options: of the method.
        step: number of steps done.
        pool: candidates that are kept: the front of `reflect`, with the loss of each task; the
            beams of `beam` and the buffer of GCG, with the objective.
        rows: PEZ's continuous prompt `[n, width]`, and its optimizer.
    """

    ids: list[int]
    options: SearchOptions
    step: int = 0
    pool: list[Candidate] = field(default_factory=list)
    rows: Tensor | None = None
    optimizer: Any = field(default=None, repr=False)
