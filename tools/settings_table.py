"""Writes the tables of settings in docs/, from the settings' declarations.

python tools/settings_table.py            # rewrites the tables between their markers
python tools/settings_table.py --check    # exit code 1 when one is not current
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from blocks import ROOT, keep_block
from softlore.settings import SamplingParams, ServeSettings, Setting, TrainingConfig, table
from softlore.settings.training import LEARNING_RATES, MUON_RATE

DOCS = ROOT / "docs"


def training() -> str:
    """Every training setting, with its option."""
    rates = f"`{MUON_RATE}` / ⁴√layers (prefix), `{LEARNING_RATES['embedding']}` (embedding)"
    return _rows(
        ("setting", "option", "default", ""),
        (
            (f"`{one.name}`", _option(one), rates if one.name == "learning_rate" else _default(one))
            for one in table(TrainingConfig).values()
        ),
        TrainingConfig,
    )


def serving() -> str:
    """Every setting of the server, with its option."""
    rows = ((_option(one), _default(one)) for one in table(ServeSettings).values())
    return _rows(("option", "default", ""), rows, ServeSettings)


def sampling() -> str:
    """Every sampler, with its default, its bounds, and the other names that clients may send."""
    return _rows(
        ("setting", "default", "values", "clients' names", ""),
        (
            (f"`{one.name}`", _default(one), _values(one), " ".join(f"`{n}`" for n in one.aliases))
            for one in table(SamplingParams).values()
        ),
        SamplingParams,
    )


PAGES: dict[str, Callable[[], str]] = {
    "training.md": training,
    "serving.md": serving,
    "sampling.md": sampling,
}


def _rows(titles: Iterable[str], rows: Iterable[Iterable[str]], settings: type) -> str:
    titles = list(titles)
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row, one in zip(rows, table(settings).values(), strict=True):
        lines.append(f"| {' | '.join(row)} | {_help(one)} |")
    return "\n".join(lines)


def _help(one: Setting) -> str:
    unit = f" ({one.unit})" if one.unit else ""
    return (one.help.rstrip(".") + unit).replace("|", "\\|")


def _option(one: Setting) -> str:
    return f"`{one.flag}`"


def _default(one: Setting) -> str:
    if one.default in (None, (), ""):
        return "none"
    shown = one.default if isinstance(one.default, tuple) else (one.default,)
    return " ".join(f"`{item}`".replace("\n", "\\n") for item in shown)


def _values(one: Setting) -> str:
    if one.type is bool:
        return "`True` or `False`"
    if one.low is None or one.high is None:
        return "text" if one.type is str else "list"
    return " to ".join(
        f"{end:,.0f}" if end == int(end) else f"{end:g}" for end in (one.low, one.high)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether all are current")
    check = parser.parse_args().check
    current = [keep_block(DOCS / page, "settings", make(), check) for page, make in PAGES.items()]
    sys.exit(int(check and not all(current)))
