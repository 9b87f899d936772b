"""A crew on Ray: every worker an actor with its own model, on this machine or on many."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from softlore import __version__
from softlore.errors import ConfigError, TrainingError
from softlore.tune.worker import ModelSpec, Worker
from softlore.tune.worker_pool import WorkerLost, WorkerReply

LOCAL = "local"  # the address that stands for a Ray of one's own
KNOCK_SECONDS = 10.0
POLL_SECONDS = 0.2  # so that Ctrl-C is heard


class RayWorkerPool:
    """Actors, each with one resident model.

    Ray's own transport carries Python objects: join only clusters of machines that are yours.

    Args:
        model: by name, since every worker loads it for itself; a folder must be there on all.
        address: of a cluster, as `ray.init` takes it; `local` starts one on this machine.
        workers: how many; None: as many as there are GPUs, or as fit the processors.
        threads: that each computes with; None: as many as torch would take here.
        most: more workers than these would have nothing to do.

    Raises:
        ConfigError: there is no cluster at the address, or it has another softlore.
    """

    def __init__(
        self,
        model: ModelSpec,
        address: str = LOCAL,
        workers: int | None = None,
        threads: int | None = None,
        most: int | None = None,
    ) -> None:
        self.threads = threads or torch.get_num_threads()
        self._model = model
        self._join(address)
        try:
            self.size, self._options = _shares(model, workers, self.threads, most)
            self._actors = [self._hire() for _ in range(self.size)]
        except BaseException:
            self.close()
            raise
        self._calls: dict[Any, tuple[int, str]] = {}

    def _join(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._own = not ray.is_initialized()
        if not self._own:
            return
        told: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            told["include_dashboard"] = False
        try:
            _knock(address)
            ray.init(address=address, **told)
        except (OSError, RayError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"there is no Ray at {address!r} ({_first_line(error)}); expected the address of "
                "a cluster that this machine is part of, such as 10.0.0.1:6379, or none for a Ray "
                "of this machine alone; start one by `ray start --head`, and check --ray"
            ) from error

    def _hire(self) -> Any:
        return ray.remote(Worker).options(**self._options).remote(self._model, self.threads)

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        called = getattr(self._actors[worker], method).remote(*arguments)
        self._calls[called] = worker, method

    def wait(self, seconds: float | None = None) -> WorkerReply | None:
        end = None if seconds is None else time.monotonic() + seconds
        while self._calls:
            left = POLL_SECONDS if end is None else min(POLL_SECONDS, end - time.monotonic())
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=max(0.0, left))
            if ready:
                return self._answer(ready[0])
            if end is not None and time.monotonic() >= end:
                break
        return None

    def _answer(self, call: Any) -> WorkerReply:
        worker, method = self._calls.pop(call)
        value: Any
        try:
            value = ray.get(call)
        except RayTaskError as error:
            value = error.cause if isinstance(error.cause, Exception) else error
        except RayError as error:
            value = WorkerLost(_first_line(error))
        if method == "load" and not isinstance(value, Exception | WorkerLost):
            value = _same_version(value)
        return WorkerReply(worker, method, value)

    def replace(self, worker: int) -> None:
        self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
        ray.kill(self._actors[worker])
        self._actors[worker] = self._hire()

    def close(self) -> None:
        """Ends the actors, and the Ray that was begun here."""
        for actor in getattr(self, "_actors", []):
            try:
                ray.kill(actor)
            except (RayError, RuntimeError):
                continue  # it is gone already
        if self._own:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError or ValueError where nobody is at `host:port`; Ray would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _shares(
    model: ModelSpec, workers: int | None, threads: int, most: int | None
) -> tuple[int, dict[str, Any]]:
    """How many workers there are to be, and what each asks of Ray."""
    has = ray.cluster_resources()
    gpus = has.get("GPU", 0.0) if (model.device or "cuda").startswith("cuda") else 0.0
    processors = has.get("CPU", 0.0)
    size = workers or int(gpus) or max(1, int(processors) // threads)
    if most is not None:
        size = max(1, min(size, most))
    # A worker that asked for more than there is would wait for ever; so they share.
    share = min(float(threads), processors / size)
    options: dict[str, Any] = {
        "num_cpus": int(share) if share >= 1 else share,
        "scheduling_strategy": "SPREAD",
    }
    if gpus:
        options["num_gpus"] = 1 if size <= gpus else gpus / size
    return size, options


def _same_version(facts: Any) -> Any:
    """The facts, or an error where a machine has another softlore."""
    if facts.softlore == __version__:
        return facts
    return TrainingError(
        f"a worker has softlore {facts.softlore}; expected {__version__}, as here; install the "
        "same on every machine"
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no word why")
