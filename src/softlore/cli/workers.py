"""Options of the commands that can work on Ray, or with so many threads here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from softlore.errors import ConfigError

Command = Callable[..., Any]


def ray_options(function: Command) -> Command:
    """`--ray`, `--workers`, `--threads`."""
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="Processor threads that each model computes with; sums are rounded by how they "
            "are shared out.  [default: torch's choice here]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="How many models work at once on Ray.  [default: one a GPU, or by processors]",
        ),
        click.option(
            "--ray",
            is_flag=False,
            flag_value="local",
            metavar="[ADDRESS]",
            help="Work on Ray: on this machine, or on the cluster at ADDRESS.",
        ),
    ):
        function = option(function)
    return function


def set_threads(workers: int | None, threads: int | None) -> None:
    """What the options of `ray_options` come to where one model works, here.

    Raises:
        ConfigError: several workers, and no Ray to be on.
    """
    if workers is not None:
        raise ConfigError(
            "--workers are Ray's; expected --ray beside them; add it, or leave --workers out"
        )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
