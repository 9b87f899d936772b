"""Options for training curves: `--log-dir` for TensorBoard, `--wandb` for Weights & Biases."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softlore.cli import options

if TYPE_CHECKING:
    from softlore.tune import TrainingProgress


class Curves(NamedTuple):
    """What the options of `curve_options` ask for."""

    log_dir: Path | None = None
    wandb: bool = False

    @property
    def wanted(self) -> bool:
        return self.log_dir is not None or self.wandb

    @contextmanager
    def beside(
        self, show: Callable[[TrainingProgress], None]
    ) -> Iterator[Callable[[TrainingProgress], None]]:
        """A function for the trainer's `on_step` that calls `show` and sends the curves.

        Raises:
            ConfigError: a package is not installed.
        """
        if not self.wanted:
            yield show
            return
        from softlore.tune.curves import TensorBoardCurves, WandbCurves

        with ExitStack() as stack:
            sinks: list[Callable[[TrainingProgress], None]] = [show]
            if self.log_dir is not None:
                sinks.append(stack.enter_context(TensorBoardCurves(self.log_dir)))
            if self.wandb:
                sinks.append(stack.enter_context(WandbCurves()))

            def send(progress: TrainingProgress) -> None:
                for sink in sinks:
                    sink(progress)

            yield send


def curve_options(function: options.Command) -> options.Command:
    """`--log-dir` and `--wandb`, given to the command as `curves`, a `Curves`."""

    @functools.wraps(function)
    def gathered(*args: Any, log_dir: Path | None, wandb: bool, **kwargs: Any) -> Any:
        return function(*args, curves=Curves(log_dir, wandb), **kwargs)

    command: Any = gathered
    for option in (
        click.option("--wandb", is_flag=True,
                     help="Send curves to Weights & Biases (needs softlore[curves])."),
        click.option("--log-dir", type=options.FOLDER, metavar="FOLDER",
                     help="Write curves for TensorBoard there, such as runs/harbour (needs "
                     "softlore[curves])."),
    ):  # fmt: skip
        command = option(command)
    return command
