"""What `softlore train` does with --group-size or --ray: groups of entries, over workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.options import interactive, load_model, wanting
from softlore.cli.workers import set_threads
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.prompts import PromptLibrary
    from softlore.tune.worker_pool import WorkerPool

GROUP_SIZE = 8  # with --ray, where nothing is said

Where = tuple[str | None, str | None, str | None]  # model, dtype and device
Asked = tuple[str | None, int | None, int | None]  # address of Ray, workers and threads


def train_in_groups(
    lorebook: Path,
    prompts: PromptLibrary,
    only: tuple[str, ...],
    run: dict[str, Any],
    group_size: int | None,
    where: Where,
    asked: Asked,
) -> dict[str, Any]:
    """Trains a lorebook in groups, saves what comes of it, and returns the report.

    Raises:
        ConfigError: options that do not go together.
    """
    from softlore.cli.progress import watch_groups
    from softlore.lore import Lorebook
    from softlore.lore.corpora import holds_corpora
    from softlore.tune.group_run import GroupRun

    if lorebook.suffix == ".txt" or holds_corpora(lorebook):
        raise ConfigError(
            f"{str(lorebook)!r} is a corpus, or a set of them; expected a lorebook, whose entries "
            "fall into groups; leave --group-size and --ray out"
        )
    if run.pop("time_budget") is not None:
        raise ConfigError(
            "--time-budget says how many updates there are by how fast they are, which differs "
            "from worker to worker; expected a number for groups; give --max-steps in its place"
        )
    book = Lorebook.load(lorebook)
    size = group_size or GROUP_SIZE
    groups = -(-len(book) // size)
    name = where[0] if where[0] is not None else book.model
    with hired((name, *where[1:]), asked, most=groups) as crew, watch_groups(interactive()) as news:
        training = GroupRun(crew, book, prompts, group_size=size, only=only, on_news=news, **run)
        try:
            done = training.run()
        except KeyboardInterrupt:
            raise click.exceptions.Abort(
                "stopped; progress is kept: the same command goes on from here"
            ) from None
    if done.kept:
        say(f"already trained, and left as they are: {', '.join(done.kept)}")
    if not done.made:
        say("nothing new to train; --again trains what is there once more")
    for path in done.paths:
        say(f"wrote {path}")
    from softlore.cli.train import report

    return report(prompts, done.made, done.kept)


@contextmanager
def hired(where: Where, asked: Asked, most: int | None = None) -> Iterator[WorkerPool]:
    """The workers that the options of `ray_options` ask for; they are let go in the end.

    Args:
        most: more than these would have nothing to do.
    """
    from softlore.tune.worker_pool import LocalWorkerPool

    address, workers, threads = asked
    crew: WorkerPool
    if address is None:
        set_threads(workers, None)
        crew = LocalWorkerPool(load_model(*where), threads)
    else:
        from softlore.cli.progress import working
        from softlore.model import DEFAULT_MODEL
        from softlore.tune.worker import ModelSpec

        with wanting("ray"):
            from softlore.tune.worker_pool_ray import RayWorkerPool
        named = ModelSpec(where[0] or DEFAULT_MODEL, *where[1:])
        with working("starting workers", interactive()):
            crew = RayWorkerPool(named, address, workers, threads, most)
        say(f"{crew.size} {'worker' if crew.size == 1 else 'workers'} of {crew.threads} "
            f"{'thread' if crew.threads == 1 else 'threads'}")  # fmt: skip
    try:
        yield crew
    finally:
        crew.close()


def say(message: str) -> None:
    """A line on standard error."""
    click.echo(message, err=True)
