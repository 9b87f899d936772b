"""Plots as SVG that stands inside a page: its colours are the page's, light or dark.

Only matplotlib's object interface is used; no global state is kept.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

from softlore.compare.tables import HEAD_NAMES
from softlore.errors import ConfigError
from softlore.measure import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
# Stand-ins that matplotlib draws with, and what the page is to put there.
INK = "#010101"
COLOURS = {"none": "#020202", "text": "#030303", "soft": "#040404", "company": "#050505"}
# Ways by their kind: a colour and a marker each.
KINDS = {"none": ("none", "o"), "hard": ("text", "s"), "code": ("company", "^"),
         "embedding": ("soft", "v"), "prefix": ("soft", "D")}  # fmt: skip
_ON_THE_PAGE = {INK: "currentColor"} | {
    c: f"var(--{conditioning})" for conditioning, c in COLOURS.items()
}
MARKERS = {"none": "o", "text": "s", "soft": "D", "company": "^"}
SMOOTH = 0.7  # how much of each loss curve's last value is kept at the next
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "softlore",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def need_extra() -> None:
    """Raises ConfigError where what reports are made with is not installed."""
    import importlib.util

    absent = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if absent:
        raise ConfigError(
            f"a report is drawn with {' and '.join(absent)}, not installed here; expected the "
            "extra `report`; run: pip install 'softlore[report]'"
        )


def _in_style(plot: Callable[P, str]) -> Callable[P, str]:
    """Runs a plot under our style alone: matplotlib makes ticks and text late, by what is set."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return plot(*args, **kwargs)

    return styled


@_in_style
def recall_by_distance(evaluation: Evaluation, title: str) -> str:
    """Recall of all entries after none and more of the story, for each head."""
    figure, axes = _figure()
    distances = evaluation.distances
    for conditioning, one in evaluation.total().items():
        if one is None or all(one.recall[d] is None for d in distances):
            continue
        losses = [one.recall[d] for d in distances]
        axes.plot(
            range(len(distances)),
            [float("nan") if loss is None else loss for loss in losses],
            color=COLOURS[conditioning],
            marker=MARKERS[conditioning],
            label=HEAD_NAMES[conditioning],
        )
    axes.set_xticks(range(len(distances)), [str(d) for d in distances])
    axes.set_xlabel("tokens of story between prompt and call")
    axes.set_ylabel("nats a token of response")
    axes.set_ylim(bottom=0)
    _legend_above(figure, axes)
    return as_svg(figure, title)


@_in_style
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> str:
    """Response loss, distillation and drift over the updates, the mean of all entries."""
    figure, axes = _figure()
    shown = (
        ("response", "responses", "soft", "-"),
        ("distil", "text, distilled", "text", "--"),
        ("guard", "drift", "none", ":"),
    )
    for kind, label, colour, dashes in shown:
        runs = [losses[kind] for losses in curves.values() if losses.get(kind)]
        if runs:
            shortest = min(map(len, runs))
            means = [sum(run[i] for run in runs) / len(runs) for i in range(shortest)]
            axes.plot(
                range(1, shortest + 1),
                _smooth(means),
                color=COLOURS[colour],
                linestyle=dashes,
                label=label,
            )
    axes.set_xlabel("update")
    axes.set_ylabel("nats a token")
    axes.set_ylim(bottom=0)
    _legend_above(figure, axes)
    return as_svg(figure, title)


@_in_style
def drift_bars(evaluation: Evaluation, title: str) -> str:
    """How far each entry's text and soft prompt bend unrelated text."""
    names = [entry.name for entry in evaluation.entries]
    figure, axes = _figure(height=0.8 + 0.42 * len(names))
    for offset, conditioning in ((-0.2, "text"), (0.2, "soft")):
        found = [entry.conditionings.get(conditioning) for entry in evaluation.entries]
        drifts = [(one.drift if one else None) or 0.0 for one in found]
        axes.barh(
            [i + offset for i in range(len(names))],
            drifts,
            height=0.36,
            color=COLOURS[conditioning],
            label=HEAD_NAMES[conditioning],
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("nats a token")
    _legend_above(figure, axes)
    return as_svg(figure, title)


@_in_style
def scattered(
    points: Sequence[tuple[str, str, float, float]], x: str, y: str, title: str, log: bool = False
) -> str:
    """Ways as named points `(name, kind, x, y)`; down and to the left is better."""
    figure, axes = _figure(width=4.8, height=3.6)
    for place, (name, kind, at, value) in enumerate(points):
        colour, marker = KINDS[kind]
        axes.scatter(
            [at], [value], color=COLOURS[colour], marker=marker, s=42, zorder=3, clip_on=False
        )
        above = 5 if place % 2 else -12  # neighbours are often much alike
        axes.annotate(
            name, (at, value), xytext=(5, above), textcoords="offset points", fontsize=9, color=INK
        )
    if log:
        axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.18, y=0.12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return as_svg(figure, title)


def _figure(width: float = 4.6, height: float = 3.1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend_above(figure: Figure, axes: Any) -> None:
    columns = min(4, len(axes.get_legend_handles_labels()[1])) or 1
    figure.legend(
        loc="outside upper left",
        ncols=columns,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        fontsize=10,
    )


def _smooth(values: Sequence[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(SMOOTH * last + (1 - SMOOTH) * value)
    return smoothed


def as_svg(figure: Figure, title: str) -> str:
    """A figure as an `<svg>` element: named by its title, no outer reference, ids its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    own = re.sub(r"\W+", "-", title.lower()).strip("-")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{own}-", svg)
    for stand_in, colour in _ON_THE_PAGE.items():
        svg = svg.replace(stand_in, colour)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = f'<svg {size[0]} role="img" aria-label="{escape(title)}">'
    return re.sub(r"<svg[^>]*>", opening, svg, count=1)
