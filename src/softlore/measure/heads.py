"""What any head does for an entry: recall, drift and cost, whatever the head is made of."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.context.compose import Readable
from softlore.lore import Block, Entry
from softlore.measure import score
from softlore.measure.material import Material, passage_tokens
from softlore.measure.results import Measures
from softlore.model import FrozenModel
from softlore.prompts import Context


class HeadBench:
    """Measures heads; what the bare model thinks of unrelated text is kept."""

    def __init__(self, model: FrozenModel, material: Material, distances: Sequence[int]) -> None:
        self.model = model
        self.material = material
        self.distances = distances
        self._bare = score.thoughts(model, "", material.unrelated)
        self._drifts: dict[tuple[str, ...], float | None] = {(): 0.0}

    def measure(self, entry: Entry, head: Readable) -> Measures | None:
        """All but fidelity and stories; None where the head does not fit the context."""
        model = self.model
        if not score.fits_after(model, head, passage_tokens(model)):
            return None
        return Measures(
            tokens=Context(head).token_count(model).total,
            recall={d: self._recall(head, entry.blocks, d) for d in self.distances},
            held_out=self._recall(head, entry.held_out, 0),
            drift=self._drift(head),
        )

    def _recall(self, head: Readable, blocks: Sequence[Block], distance: int) -> float | None:
        if not blocks or not score.fits(self.model, head, blocks, distance):
            return None
        return score.recall(self.model, head, blocks, distance, self.material.fillers)

    def _drift(self, head: Readable) -> float | None:
        # A company is measured once for all that are in it. Prompts of one name may differ: those
        # of several ways, say.
        pieces = Context(head).pieces
        key = tuple(p if isinstance(p, str) else f"{p.uuid}/{p.kind}" for p in pieces)
        if key not in self._drifts:
            ours = score.thoughts(self.model, head, self.material.unrelated)
            self._drifts[key] = score.kl(self.model, self._bare, ours)
        return self._drifts[key]
