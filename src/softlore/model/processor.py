"""Whether this processor is better at bfloat16 than at float32, by its features and a measurement.

A processor without instructions for products in bfloat16 emulates them, many times slower than
float32; one with tiles for them (AMX) is several times faster. So bfloat16 is chosen where the
processor has such instructions, and where a quick measurement then finds it faster by `MARGIN`.
The first result is stored in the user's cache folder: a measurement near the margin would otherwise
choose now one, now the other, and the same command would train other prompts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from softlore.disk import write_atomically
from softlore.errors import StorageError

# What torch.cpu.get_capabilities() calls instructions that multiply and add bfloat16.
FEATURES = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
MARGIN = 2.0  # times faster that products in bfloat16 have to be, as not all work is products
SECONDS = 0.2  # of the measurement
ROWS, LARGEST = 256, 1024  # rows of the products; their other sizes are a model's, up to this


@dataclass(frozen=True)
class ProcessorSpeed:
    """Measured speed of products of matrices on one core, in floating-point operations a second.

    `bfloat16` is 0 where the processor has no instructions for it.
    """

    float32: float
    bfloat16: float

    @property
    def ratio(self) -> float:
        """How many times faster than float32 bfloat16 is."""
        return self.bfloat16 / self.float32

    @property
    def prefers_bfloat16(self) -> bool:
        return self.ratio >= MARGIN

    def of(self, dtype: torch.dtype) -> float:
        """The speed in `dtype`."""
        return self.bfloat16 if dtype == torch.bfloat16 and self.bfloat16 else self.float32


def features() -> list[str]:
    """The processor's instructions for bfloat16, by torch's names for them."""
    capabilities = _capabilities()
    return [name for name in FEATURES if capabilities.get(name) is True]


def _capabilities() -> Mapping[str, Any]:
    """What torch knows of the processor; nothing before torch 2.13."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def processor_speed(width: int, inner: int) -> ProcessorSpeed:
    """The stored speed for products `[256, width] · [width, inner]`, measured if there is none.

    Args:
        width, inner: of a model's layers; sizes above 1,024 count as 1,024.
    """
    return stored_speed(min(width, LARGEST), min(inner, LARGEST))


@functools.cache
def stored_speed(width: int, inner: int) -> ProcessorSpeed:
    """`processor_speed` of sizes up to 1,024, read from the file once in a process."""
    capabilities = _capabilities()
    name = capabilities.get("cpu_name") or capabilities.get("architecture") or "processor"
    key = f"{name}, {'+'.join(features())}, torch {torch.__version__}, {width}x{inner}"
    path = platformdirs.user_cache_path("softlore", appauthor=False) / "processor.json"
    stored = _read(path)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        speed = ProcessorSpeed(**stored[key])
        if speed.float32 > 0:
            return speed
    speed = measure_speed(width, inner)
    _write(path, stored | {key: asdict(speed)})
    return speed


def measure_speed(width: int, inner: int, seconds: float = SECONDS) -> ProcessorSpeed:
    """Times products in both types by turns, on one core; the fastest of each counts.

    So other programs that keep some of the cores busy do not change the ratio.
    """
    dtypes = [torch.float32, *([torch.bfloat16] if features() else [])]
    runs = {dtype: _product(width, inner, dtype) for dtype in dtypes}
    best = dict.fromkeys(dtypes, float("inf"))
    with one_thread():
        for run in runs.values():
            run()  # the first one also plans the product
        end = time.perf_counter() + seconds
        while min(best.values()) == float("inf") or time.perf_counter() < end:
            for dtype, run in runs.items():
                start = time.perf_counter()
                run()
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    work = 2 * ROWS * width * inner
    found = {dtype: work / max(taken, 1e-9) for dtype, taken in best.items()}
    return ProcessorSpeed(found[torch.float32], found.get(torch.bfloat16, 0.0))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread to the end of the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gpu_speed(device: torch.device, dtype: torch.dtype, size: int = 4096) -> float:
    """Operations a second of a GPU, on products of square matrices."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        matrix @ matrix
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)


def _product(width: int, inner: int, dtype: torch.dtype) -> Callable[[], object]:
    rows = torch.ones(ROWS, width, dtype=dtype)
    weight = torch.ones(inner, width, dtype=dtype)
    return lambda: torch.nn.functional.linear(rows, weight)


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(path: Path, stored: dict[str, dict[str, float]]) -> None:
    """Stores the results; where that can't be done they hold for this process."""
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(stored, indent=1).encode())
