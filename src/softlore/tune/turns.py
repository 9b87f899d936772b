"""Turns of a large book: which entries an update trains, and how time is shared among all.

Of more entries than an update trains, each update trains those that have had the fewest so far, in
an order by chance that is another one in each round, so that any few meet in training:

    round 1   │ A F C │ B E D │      an update each
    round 2   │ D A B │ C F E │

So all entries are equally far, whenever training ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from softlore.settings import TrainingConfig
from softlore.tune.trainable_prompt import TrainablePrompt


class Turns:
    """Whose turn it is.

    Args:
        names: of all entries to train, in order.

    Attributes:
        current: names of the entries in the next update.
        share: of the planned updates that there is time for.
    """

    def __init__(self, names: Sequence[str], config: TrainingConfig) -> None:
        self._names, self._config = names, config
        self.current: set[str] = set()
        self.share = 1.0

    def choose(self, trainables: Mapping[str, TrainablePrompt], in_time: bool) -> list[str]:
        """Chooses the entries of the next update: all, where they are not more than it trains.

        Args:
            trainables: those that have started, by name.
            in_time: whether there is time for another update.

        Returns:
            Those that have to start now: all that have not where there is no other update.
        """
        waiting = [name for name in self._names if name not in trainables]
        updates = dict.fromkeys(waiting, 0)
        for name, trainable in trainables.items():
            if not trainable.stopped and trainable.steps < trainable.end:
                updates[name] = trainable.steps
        self.current = set()
        if in_time and self._config.max_steps:
            seed = self._config.seed
            order = sorted(updates, key=lambda n: (updates[n], _chance(f"{seed}/{updates[n]}/{n}")))
            self.current = set(order[: self._config.max_active])
        return [name for name in waiting if not self.current or name in self.current]

    def start(self, trainable: TrainablePrompt) -> None:
        """Shortens the training of a prompt that starts late by the share of others."""
        if self.share < 1:
            trainable.limit(max(1, int(self.share * trainable.planned)))

    def updates_left(self, trainables: Mapping[str, TrainablePrompt]) -> int:
        """Updates until all entries are trained, if none stops early."""
        later = max(1, int(self.share * self._config.max_steps))
        of_started = [one.end - one.steps for one in trainables.values() if not one.stopped]
        return self._at_least([*of_started, *[later] * (len(self._names) - len(trainables))])

    def share_time(self, trainables: Mapping[str, TrainablePrompt], affordable: int) -> None:
        """Moves the prompts' last updates so that all end in time.

        Args:
            affordable: for how many updates there is time after the one that is being made.
        """
        left = {
            name: one.planned - (name in self.current)
            for name, one in trainables.items()
            if not one.stopped
        }
        waiting = [self._config.max_steps] * (len(self._names) - len(trainables))
        total = self._at_least([*left.values(), *waiting])
        self.share = min(1.0, affordable / max(1, total))
        at_once = len(left) + len(waiting) <= self._config.max_active
        for name, planned in left.items():
            # Where there is time for 1.5 updates each, every second entry makes two.
            rounding = 0.0 if at_once else _chance(name)
            trainables[name].limit((name in self.current) + int(self.share * planned + rounding))

    def _at_least(self, of_each: Iterable[int]) -> int:
        """Updates until each entry has made as many as it is to make."""
        left = list(of_each)
        return max(max(left, default=0), -(-sum(left) // self._config.max_active))


class TensorsOnDemand(Mapping[str, Tensor]):
    """The tensors of prompts by name, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _chance(what: str) -> float:
    """A number from 0 to 1 that follows from a string alone."""
    return zlib.crc32(what.encode()) / 2**32
