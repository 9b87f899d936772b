"""A worker pool on Ray: every worker an actor with its own model, on one machine or many."""

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
from softlore.tune.worker_pool import ModelSpec, Worker, WorkerLost, WorkerReply

LOCAL = "local"  # the address for a Ray that is started on this machine
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2  # ray.wait does not return on Ctrl-C


class RayWorkerPool:
    """Actors, each with one resident model.

    Ray's transport unpickles Python objects: join only clusters of machines that you trust.

    Args:
        model: loaded by every worker; if it is a folder, it must exist on all machines.
        address: of a cluster, as `ray.init` takes it; `local` starts one on this machine.
        workers: how many; None: one for each GPU, or as many as fit the processors.
        threads: of each worker; None: torch's number on this machine.
        max_workers: upper limit of workers, such as the number of tasks.

    Raises:
        ConfigError: there is no cluster at the address.
    """

    def __init__(
        self,
        model: ModelSpec,
        address: str = LOCAL,
        workers: int | None = None,
        threads: int | None = None,
        max_workers: int | None = None,
    ) -> None:
        self.threads = threads or torch.get_num_threads()
        self._model = model
        self._join(address)
        try:
            self.size, self._options = _worker_options(model, workers, self.threads, max_workers)
            self._actors = [self._start() for _ in range(self.size)]
        except BaseException:
            self.close()
            raise
        self._calls: dict[Any, tuple[int, str]] = {}

    def _join(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._started_ray = not ray.is_initialized()
        if not self._started_ray:
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            options["include_dashboard"] = False
        try:
            _check_reachable(address)
            ray.init(address=address, **options)
        except (OSError, RayError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"there is no Ray at {address!r} ({_first_line(error)}); expected the address of "
                "a cluster that this machine is part of, such as 10.0.0.1:6379, or none for a Ray "
                "of this machine alone; start one by `ray start --head`, and check --ray"
            ) from error

    def _start(self) -> Any:
        return ray.remote(Worker).options(**self._options).remote(self._model, self.threads)

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        reference = getattr(self._actors[worker], method).remote(*arguments)
        self._calls[reference] = worker, method

    def wait(self, seconds: float | None = None) -> WorkerReply | None:
        end = None if seconds is None else time.monotonic() + seconds
        while self._calls:
            timeout = POLL_SECONDS if end is None else min(POLL_SECONDS, end - time.monotonic())
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=max(0.0, timeout))
            if ready:
                return self._reply(ready[0])
            if end is not None and time.monotonic() >= end:
                break
        return None

    def _reply(self, reference: Any) -> WorkerReply:
        worker, method = self._calls.pop(reference)
        value: Any
        try:
            value = ray.get(reference)
        except RayTaskError as error:
            value = error.cause if isinstance(error.cause, Exception) else error
        except RayError as error:
            value = WorkerLost(_first_line(error))
        if method == "load" and not isinstance(value, Exception | WorkerLost):
            value = _check_version(value)
        return WorkerReply(worker, method, value)

    def replace(self, worker: int) -> None:
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] != worker}
        ray.kill(self._actors[worker])
        self._actors[worker] = self._start()

    def close(self) -> None:
        """Stops the actors, and Ray if it was started here."""
        for actor in getattr(self, "_actors", []):
            try:
                ray.kill(actor)
            except (RayError, RuntimeError):
                continue  # it has died already
        if self._started_ray:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises OSError or ValueError if `host:port` does not answer; Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _worker_options(
    model: ModelSpec, workers: int | None, threads: int, max_workers: int | None
) -> tuple[int, dict[str, Any]]:
    """The number of workers, and the resources that each asks of Ray."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0) if (model.device or "cuda").startswith("cuda") else 0.0
    processors = resources.get("CPU", 0.0)
    size = workers or int(gpus) or max(1, int(processors) // threads)
    if max_workers is not None:
        size = max(1, min(size, max_workers))
    # Workers that ask for more than there is would wait for ever, so they share processors.
    share = min(float(threads), processors / size)
    options: dict[str, Any] = {
        "num_cpus": int(share) if share >= 1 else share,
        "scheduling_strategy": "SPREAD",
    }
    if gpus:
        options["num_gpus"] = 1 if size <= gpus else gpus / size
    return size, options


def _check_version(info: Any) -> Any:
    """The worker's info, or an error if its machine has another softlore."""
    if info.softlore == __version__:
        return info
    return TrainingError(
        f"a worker has softlore {info.softlore}; expected {__version__}, as here; install the "
        "same on every machine"
    )


def _first_line(error: Exception) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no reason given"
    )
