"""Where training runs: here, on Ray's workers, or among torchrun's processes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softlore.cli import common, options
from softlore.errors import ConfigError, InputError

if TYPE_CHECKING:
    from softlore.tune.distributed import Ranks
    from softlore.tune.worker_pool import WorkerPool


class Workers(NamedTuple):
    """What the options of `worker_options` ask for: Ray's address, workers, threads of each."""

    ray: str | None
    workers: int | None
    threads: int | None

    def use_threads(self) -> None:
        """Sets the threads of this process. Raises ConfigError for workers without Ray."""
        self._check_alone()
        common.use_threads(self.threads)

    @contextlib.contextmanager
    def pool(
        self, source: common.ModelSource, max_workers: int | None = None
    ) -> Iterator[WorkerPool]:
        """A pool of workers with the model, closed at the end of the block.

        Args:
            max_workers: upper limit, such as the number of tasks.
        """
        pool = (
            self._local(source) if self.ray is None else self._on_ray(self.ray, source, max_workers)
        )
        try:
            yield pool
        finally:
            pool.close()

    def _check_alone(self) -> None:
        if self.workers is not None:
            raise ConfigError(
                "--workers needs Ray; expected --ray with it; add --ray, or leave --workers out"
            )

    def _local(self, source: common.ModelSource) -> WorkerPool:
        from softlore.tune.worker_pool import LocalWorkerPool

        self._check_alone()
        return LocalWorkerPool(source.load(), self.threads)

    def _on_ray(
        self, address: str, source: common.ModelSource, max_workers: int | None
    ) -> WorkerPool:
        from softlore.tune.worker_pool import ModelSpec

        with common.require_extra("ray"):
            from softlore.tune.worker_pool_ray import RayWorkerPool
        with source.loading() as shown:
            name = shown.name or ""
            spec = ModelSpec(name, source.dtype, source.device, source.quantize)
            pool = RayWorkerPool(spec, address, self.workers, self.threads, max_workers)
        common.say(
            f"{common.counted(pool.size, 'worker')} of {common.counted(pool.threads, 'thread')}"
        )
        return pool


def worker_options(function: options.Command) -> options.Command:
    """`--ray`, `--workers`, `--threads`, given to the command as `workers`, a `Workers`."""

    @functools.wraps(function)
    def gathered(
        *args: Any, ray: str | None, workers: int | None, threads: int | None, **kwargs: Any
    ) -> Any:
        return function(*args, workers=Workers(ray, workers, threads), **kwargs)

    command: Any = gathered
    for option in (
        options.threads_option,
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help="How many models work at once on Ray.  [default: one a GPU, or by "
                     "processors]"),
        click.option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]",
                     help="Work on Ray: on this machine, or on the cluster at ADDRESS."),
    ):  # fmt: skip
        command = option(command)
    return command


@contextlib.contextmanager
def torchrun_ranks(device: str | None, grouped: bool) -> Iterator[Ranks | None]:
    """The processes that torchrun started, to the end of the block; None without torchrun.

    Args:
        grouped: whether to train in groups, which are distributed in another way.

    Raises:
        ConfigError: groups, or fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:  # before torch is imported
        yield None
        return
    from softlore.tune.distributed import device_of_rank, process_group, under_torchrun

    if not under_torchrun():
        yield None
        return
    if grouped:
        raise ConfigError(
            "torchrun splits every update, --group-size and --ray whole groups; expected one of "
            "them; leave torchrun out, or the options"
        )
    with process_group(device_of_rank(device)) as ranks, _first_speaks(ranks):
        yield ranks


@contextlib.contextmanager
def _first_speaks(ranks: Ranks) -> Iterator[None]:
    """Silences all but the first process, also about errors that all of them meet."""
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
