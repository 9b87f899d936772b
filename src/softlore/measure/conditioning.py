"""What any head does for an entry: recall, drift and cost, whatever the head is made of."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.context.compose import ContextLike
from softlore.lore import Block, Entry
from softlore.measure import score
from softlore.measure.material import Material, passage_tokens
from softlore.measure.results import Measures
from softlore.model import FrozenModel
from softlore.prompts import Context


class ConditioningEvaluator:
    """Measures heads; what the bare model thinks of unrelated text is kept."""

    def __init__(self, model: FrozenModel, material: Material, distances: Sequence[int]) -> None:
        self.model = model
        self.material = material
        self.distances = distances
        self._bare = score.passage_hidden_states(model, "", material.unrelated)
        self._drifts: dict[tuple[str, ...], float | None] = {(): 0.0}

    def measure(self, entry: Entry, conditioning: ContextLike) -> Measures | None:
        """All but fidelity and stories; None where the head does not fit the context."""
        model = self.model
        if not score.fits_after(model, conditioning, passage_tokens(model)):
            return None
        return Measures(
            tokens=Context(conditioning).token_count(model).total,
            recall={d: self._recall(conditioning, entry.blocks, d) for d in self.distances},
            held_out=self._recall(conditioning, entry.held_out, 0),
            drift=self._drift(conditioning),
        )

    def _recall(
        self, conditioning: ContextLike, blocks: Sequence[Block], distance: int
    ) -> float | None:
        if not blocks or not score.fits(self.model, conditioning, blocks, distance):
            return None
        return score.recall(self.model, conditioning, blocks, distance, self.material.fillers)

    def _drift(self, conditioning: ContextLike) -> float | None:
        # A company is measured once for all that are in it. Prompts of one name may differ: those
        # of several ways, say.
        pieces = Context(conditioning).pieces
        key = tuple(p if isinstance(p, str) else f"{p.uuid}/{p.kind}" for p in pieces)
        if key not in self._drifts:
            ours = score.passage_hidden_states(self.model, conditioning, self.material.unrelated)
            self._drifts[key] = score.kl(self.model, self._bare, ours)
        return self._drifts[key]
