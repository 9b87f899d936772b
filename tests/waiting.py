"""Waits for events, and costs that do not depend on how fast or busy the machine is.

No test waits for the clock. WAIT_SECONDS is for what hangs: nothing that works comes near it,
however busy the machine. What must be fast is measured by `cost`, in units of a loop of Python
that is run beside it, by processor time.
"""

import asyncio
import time

WAIT_SECONDS = 600.0  # seconds
LOOP = 200_000  # additions, about 10 ms


def wait_until(true, why="it did not come to be", alive=lambda: True):
    """Until something is so, which is returned; at once an AssertionError if `alive` is not."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := true()):
        assert alive() or true(), _told(why)
        assert time.monotonic() < end, _told(why)
        time.sleep(0.01)
    return found


async def wait_until_async(true, why="it did not come to be"):
    """The same, in an event loop."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := true()):
        assert time.monotonic() < end, _told(why)
        await asyncio.sleep(0.005)
    return found


def cost(run, times=3):
    """Processor time of `run`, the least of some times, as a multiple of a loop of additions."""
    return min(_seconds(run) / _seconds(_loop) for _ in range(times))


def _seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def _loop():
    total = 0
    for number in range(LOOP):
        total += number


def _told(why):
    return why() if callable(why) else why
