"""What `softlore train` does under torchrun: several processes, of which the first one speaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from softlore.errors import ConfigError, InputError

if TYPE_CHECKING:
    from softlore.tune.ranks import Ranks


@contextlib.contextmanager
def among_ranks(device: str | None, grouped: bool) -> Iterator[Ranks | None]:
    """The processes that torchrun began, to the end of the block; None where it was not torchrun.

    Args:
        grouped: groups are asked for, which are shared out in another way.

    Raises:
        ConfigError: groups, or fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:  # before torch is imported
        yield None
        return
    from softlore.tune.ranks import device_of_rank, joined, of_torchrun

    if not of_torchrun():
        yield None
        return
    if grouped:
        raise ConfigError(
            "torchrun shares out every update, --group-size and --ray whole groups; expected one "
            "of them; leave torchrun out, or the options"
        )
    with joined(device_of_rank(device)) as ranks, _speaking(ranks):
        yield ranks


@contextlib.contextmanager
def _speaking(ranks: Ranks) -> Iterator[None]:
    """Keeps all but the first process quiet, also of mistakes that all of them meet."""
    if ranks.first:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except InputError:
        raise click.exceptions.Exit(InputError.exit_code) from None
    except click.exceptions.Abort:
        raise click.exceptions.Exit(130) from None
