"""Data parallel training on one machine's cores: copies of this process share each update.

The operations of a small model are too short for threads, which wait for each other after every
one. A copy is made (`fork`) once all is prepared: it has the model and the examples without loading
or making anything, shares their memory, and makes the same updates. Two cores, seconds an update:

    model                              two threads    two processes
    storyteller (hidden size 256)         3.9              2.4
    SmolLM2-135M (hidden size 576)        2.6              3.0
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import Pipe as make_pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor

from softlore.errors import TrainingError
from softlore.model import FrozenModel
from softlore.model.processor import one_thread
from softlore.tune.distributed import Ranks, SingleProcess

ENDING = (signal.SIGINT, signal.SIGTERM)
SMALL = 512  # hidden size up to which processes are faster than threads

Pipe: TypeAlias = "Connection[Any, Any]"  # an end of it


class SupportsClose(Protocol):
    """A pipe, a socket or a file."""

    def close(self) -> None: ...


class ForkedRanks(Ranks):
    """This process and its copies, on the processor. The first one alone decides when to stop.

    Args:
        connections: of the first process one to each copy, in the order of ranks; of a copy the
            one to the first.
    """

    def __init__(self, rank: int, size: int, connections: list[Pipe]) -> None:
        super().__init__(rank, size, "cpu")
        self.connections = connections

    def close(self) -> None:
        """Leaves the copies; this process goes on alone."""
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self.size = 1

    def request_stop(self) -> bool:
        return True  # copies are ended, wherever they are

    def sum(self, tensor: Tensor) -> Tensor:
        if not self.first:
            self._send(tensor)
            return self._receive(tensor)
        total = tensor
        for connection in self.connections:
            total = total + self._receive(tensor, connection)
        self._send(total)
        return total

    def _send(self, tensor: Tensor) -> None:
        content = _bytes_of(tensor.detach().contiguous())
        with _ended_processes():
            for connection in self.connections:
                connection.send_bytes(content)

    def _receive(self, like: Tensor, connection: Pipe | None = None) -> Tensor:
        received = torch.empty_like(like, memory_format=torch.contiguous_format)
        with _ended_processes():
            (connection or self.connections[0]).recv_bytes_into(_bytes_of(received))
        return received


@contextlib.contextmanager
def _ended_processes() -> Iterator[None]:
    """Translates errors of pipes: a copy was ended, mostly for want of memory."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise TrainingError(
            "a process that shared this training has ended; expected all to go on to the end; the "
            "same command continues from the last checkpoint; with --threads 1 one process trains, "
            "in less memory"
        ) from error


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def pays(model: FrozenModel) -> bool:
    """Whether copies of this process train a model faster than threads do, and can be made.

    Models on a GPU can't be copied; nor can processes elsewhere than on Linux, or with threads
    that do more than show progress, such as a server's: libraries and locks do not outlive it.
    """
    main = threading.current_thread() is threading.main_thread()
    small = model.width <= SMALL and model.device.type == "cpu"
    return small and main and sys.platform == "linux"


@contextlib.contextmanager
def forked(
    processes: int, alone: SingleProcess, run: Callable[[Ranks], None]
) -> Iterator[SingleProcess]:
    """This process and `processes - 1` copies of it, of a thread each, to the end of the block.

    Args:
        alone: what is given where `processes` is 1.
        run: what a copy runs, with its own ranks, before it ends; its result and its errors are
            lost.
    """
    if processes == 1:
        yield alone
        return
    ranks, copies = ForkedRanks(0, processes, []), []
    with one_thread():  # the pools of several threads do not outlive a fork
        try:
            for rank in range(1, processes):
                train = partial(_train_as, run, rank, processes)
                copy, connection = start_copy(train, ranks.connections)
                copies.append(copy)
                ranks.connections.append(connection)
            yield ranks
        finally:
            ranks.close()
            for copy in copies:
                os.kill(copy, signal.SIGKILL)
                os.waitpid(copy, 0)


def _train_as(run: Callable[[Ranks], None], rank: int, size: int, first: Pipe) -> None:
    run(ForkedRanks(rank, size, [first]))


def start_copy(run: Callable[[Pipe], None], inherited: Sequence[SupportsClose]) -> tuple[int, Pipe]:
    """Makes a copy of this process that runs something in silence, and ends.

    Args:
        run: called with the copy's end of a pipe; its result and its errors are lost.
        inherited: what the copy closes first, such as pipes to other copies: nobody would see that
            this process has ended while a copy has them open.

    Returns:
        The id of the copy, and this process's end of the pipe.
    """
    here, there = make_pipe()
    with _signals_held():  # by whoever gets them, once it is ready for them
        copy = _fork()
        if copy == 0:
            _run_copy(partial(run, there), [*inherited, here])
    there.close()
    return copy, here


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM waiting to the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork() -> int:
    with warnings.catch_warnings():
        # Other threads only show progress (`pays`), and are no danger.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run_copy(run: Callable[[], None], inherited: Sequence[SupportsClose]) -> NoReturn:
    """Runs a copy, and ends it without what a program does at its end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        for one in inherited:
            one.close()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        run()
    finally:
        os._exit(0)
