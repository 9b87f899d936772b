"""Measures how long a scan of a lorebook takes, beside the plain implementation, in one run.

`book`: a large book of which a hundred entries are active, by the messages or by the text of other
entries. `chain`: each entry calls up the next, so that every entry takes a round. `first` is the
first scan of a book, which prepares its keys, `again` the median of later ones; the plain
implementation is that of the tests, which looks at every entry in every round. Milliseconds are of
processor time, so that other programs count little; the interpreter's collector does not look at
the libraries' objects, as in `softlore serve`. Nothing is asserted.

    python tools/bench_activation.py            # 5,000 entries; chains of 1,000 to 4,000
    python tools/bench_activation.py --quick    # small books, to see that all of it runs
"""

from __future__ import annotations

import argparse
import gc
import random
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from softlore.context import ScanSettings, Timers, activate
from softlore.lore import Entry

PLAIN = Path(__file__).parents[1] / "tests" / "plain_scan.py"
SYLLABLES = ("ka", "ro", "min", "tel", "sha", "vor", "ling", "est", "bo", "dun", "fay", "ish")
KEYS = 3  # of an entry
WORDS = 80  # of an entry's text
ACTIVE = 100
MESSAGES = 5


def make_book(entries: int, seed: int = 0) -> tuple[list[Entry], list[str]]:
    """A book and the messages of a story that activate `ACTIVE` of its entries, half of them.

    Each of that half has the name of one of the others in its text.
    """
    rng = random.Random(seed)
    names = [f"{''.join(rng.choices(SYLLABLES, k=4))}{i}" for i in range(entries)]
    active = rng.sample(range(entries), min(ACTIVE, entries) // 2 * 2)
    half = len(active) // 2
    others = dict(zip(active[:half], active[half:], strict=True))

    def words() -> str:
        return " ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(WORDS))

    book = [
        Entry(
            name=f"entry {i}",
            keys=[name, *(f"{name} {word}" for word in ("the old", "of the hill"))][:KEYS],
            text=f"{words()} {names[others[i]] if i in others else ''}",
        )
        for i, name in enumerate(names)
    ]
    named = [names[i] for i in active[:half]]
    step = -(-half // MESSAGES)
    return book, [f"{words()} {' '.join(named[i : i + step])}." for i in range(0, half, step)]


def make_chain(entries: int) -> tuple[list[Entry], list[str]]:
    book = [
        Entry(name=f"entry {i}", keys=[f"key{i:05d}"], text=f"This leads on to key{i + 1:05d}.")
        for i in range(entries)
    ]
    return book, ["key00000"]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measure(name: str, book: Sequence[Entry], messages: Sequence[str], repeats: int) -> None:
    """Prints the milliseconds of processor time of a scan in each way, and the ratio."""
    settings = ScanSettings(scan_depth=len(messages))
    gc.freeze()  # the libraries' objects, as `softlore serve` does
    first, found = timed(lambda: activate(book, messages, settings))
    again = statistics.median(
        timed(lambda: activate(book, messages, settings))[0] for _ in range(repeats)
    )
    plain_activate = runpy.run_path(str(PLAIN))["plain_activate"]
    plain, expected = timed(lambda: plain_activate(book, messages, settings, Timers()))
    if expected != found:
        raise SystemExit(f"{name}: the plain implementation gives another result")
    cells = (
        name,
        len(book),
        len(found.active),
        *(f"{1000 * s:.1f}" for s in (first, again, plain)),
    )
    print("".join(f"{cell:>10}" for cell in (*cells, f"{plain / again:.0f}x")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small books")
    parser.add_argument("--repeats", type=int, default=9, help="scans timed after the first")
    parser.add_argument("--entries", type=int, default=5000, help="of the book")
    parser.add_argument("--chains", type=int, nargs="*", default=[250, 500, 1000])
    options = parser.parse_args()
    names = ("case", "entries", "active", "first ms", "again ms", "plain ms", "ratio")
    print("".join(f"{name:>10}" for name in names))
    measure("book", *make_book(200 if options.quick else options.entries), options.repeats)
    for entries in [20, 40] if options.quick else options.chains:
        measure("chain", *make_chain(entries), options.repeats)


if __name__ == "__main__":
    main()
