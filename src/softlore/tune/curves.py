"""Training curves for TensorBoard and Weights & Biases, as callbacks for the trainer's `on_step`.

    with TensorBoardCurves("runs/harbour") as curves:
        WorldInfoTrainer(model, entries=book.entries, on_step=curves).train()

Each entry has a curve for each of its losses, `recall/Ada`, in nats a token, by its own updates.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from softlore.errors import ConfigError
from softlore.tune.losses import LOSSES
from softlore.tune.trainable_prompt import TrainingProgress


class TrainingCurves(ABC):
    """Sends the losses of each update to a program that draws them; never stops a training."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}

    def __call__(self, progress: TrainingProgress) -> None:
        """Sends what is new; `on_step` of `WorldInfoTrainer`."""
        values: dict[str, tuple[float, int]] = {}
        for name, trainable in progress.trainables.items():
            if trainable.steps > self._sent.get(name, 0):
                self._sent[name] = trainable.steps
                for key, loss in LOSSES.items():
                    if trainable.history[key]:
                        tag = f"{loss.label or loss.name}/{name}"
                        values[tag] = (trainable.history[key][-1], trainable.steps)
        if values:
            self._send(values, progress.step)

    @abstractmethod
    def _send(self, values: dict[str, tuple[float, int]], step: int) -> None:
        """Sends values and the entry's update of each, by the names of their curves."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class TensorBoardCurves(TrainingCurves):
    """Writes event files of TensorBoard into a folder; see `tensorboard --logdir`.

    Raises:
        ConfigError: tensorboard is not installed, or the folder can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        try:
            self._writer: Any = SummaryWriter(os.fspath(folder))
        except OSError as error:
            raise ConfigError(
                f"the folder {str(folder)!r} for curves can't be written ({error.strerror}); "
                "expected a folder of your own; name another (--log-dir)"
            ) from error

    def _send(self, values: dict[str, tuple[float, int]], step: int) -> None:
        for tag, (value, update) in values.items():
            self._writer.add_scalar(tag, value, update)

    def close(self) -> None:
        self._writer.close()


class WandbCurves(TrainingCurves):
    """Sends curves to Weights & Biases, as a run of the project `softlore` or another.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, project: str = "softlore", **options: Any) -> None:
        super().__init__()
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run: Any = wandb.init(project=project, **options)

    def _send(self, values: dict[str, tuple[float, int]], step: int) -> None:
        self._run.log({tag: value for tag, (value, _) in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"{package} is not installed; expected the packages of softlore's extra `curves`; "
        "run: pip install 'softlore[curves]'"
    )
