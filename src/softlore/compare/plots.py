"""Plots: SVG in the colors of the page, light or dark, and the demo's samples as a PNG.

Only matplotlib's object interface is used, so no global state changes.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

from softlore.compare.samples import Sample
from softlore.compare.tables import CONDITIONING_NAMES, mark_lore_words
from softlore.errors import ConfigError
from softlore.measure import Evaluation
from softlore.tune.losses import LOSSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
# Placeholder colors that matplotlib draws with; `as_svg` replaces them by the page's CSS variables.
INK = "#010101"
COLORS = {
    "none": "#020202",
    "text": "#030303",
    "soft": "#040404",
    "texts": "#050505",
    "company": "#060606",
}
_PAGE_COLORS = {INK: "currentColor"} | {c: f"var(--{name})" for name, c in COLORS.items()}
MARKERS = {"none": "o", "text": "s", "soft": "D", "texts": "v", "company": "^"}
# Kinds of methods: a color and a marker each.
KINDS = {"none": ("none", "o"), "hard": ("text", "s"), "code": ("company", "^"),
         "vector": ("texts", "P"), "embedding": ("soft", "v"), "prefix": ("soft", "D")}  # fmt: skip
SMOOTHING = 0.7  # weight of a loss curve's last value in the exponential moving average
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
    """Raises ConfigError where the packages that reports are made with are not installed."""
    absent = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if absent:
        raise ConfigError(
            f"reports need {' and '.join(absent)}, not installed here; expected the extra "
            "`report`; run: pip install 'softlore[report]'"
        )


def _in_style(plot: Callable[P, str]) -> Callable[P, str]:
    """Runs a plot in `_STYLE`: matplotlib reads the style of ticks and text when it draws them."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return plot(*args, **kwargs)

    return styled


@_in_style
def recall_by_distance(evaluation: Evaluation, title: str) -> str:
    """Recall of all entries by tokens of story before the call, a line for each conditioning."""
    figure, axes = _figure("tokens of story between prompt and call", "nats a token of response")
    distances = evaluation.distances
    for name, measures in evaluation.total().items():
        if measures is None or all(measures.recall[d] is None for d in distances):
            continue
        losses = [measures.recall[d] for d in distances]
        axes.plot(
            range(len(distances)),
            [float("nan") if loss is None else loss for loss in losses],
            color=COLORS[name],
            marker=MARKERS[name],
            label=CONDITIONING_NAMES[name],
        )
    axes.set_xticks(range(len(distances)), [str(d) for d in distances])
    axes.set_ylim(bottom=0)
    return _finish(figure, title)


@_in_style
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> str:
    """The training losses by update, each the mean of all entries."""
    figure, axes = _figure("update", "nats a token")
    styles = itertools.cycle((("soft", "-"), ("none", ":"), ("text", "--")))
    for loss, (color, dashes) in zip(LOSSES.values(), styles, strict=False):
        runs = [losses[loss.name] for losses in curves.values() if losses.get(loss.name)]
        if runs:
            shortest = min(map(len, runs))
            means = [sum(run[i] for run in runs) / len(runs) for i in range(shortest)]
            axes.plot(
                range(1, shortest + 1),
                _smooth(means),
                color=COLORS[color],
                linestyle=dashes,
                label=loss.legend,
            )
    axes.set_ylim(bottom=0)
    return _finish(figure, title)


@_in_style
def drift_bars(evaluation: Evaluation, title: str) -> str:
    """Drift of each entry's text and soft prompt."""
    names = [entry.name for entry in evaluation.entries]
    figure, axes = _figure("nats a token", height=0.8 + 0.42 * len(names))
    for offset, name in ((-0.2, "text"), (0.2, "soft")):
        measured = [entry.conditionings.get(name) for entry in evaluation.entries]
        axes.barh(
            [i + offset for i in range(len(names))],
            [(measures.drift if measures else None) or 0.0 for measures in measured],
            height=0.36,
            color=COLORS[name],
            label=CONDITIONING_NAMES[name],
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return _finish(figure, title)


@_in_style
def scatter(
    points: Sequence[tuple[str, str, float, float]], x: str, y: str, title: str, log: bool = False
) -> str:
    """Methods as named points `(name, kind, x, y)`; down and to the left is better."""
    figure, axes = _figure(x, y, width=4.8, height=3.6)
    for _, kind, at, value in points:
        color, marker = KINDS[kind]
        axes.scatter(
            [at], [value], color=COLORS[color], marker=marker, s=42, zorder=3, clip_on=False
        )
    if log:
        axes.set_xscale("symlog", linthresh=1)
    axes.margins(x=0.12, y=0.15)
    if not log:
        axes.set_xlim(left=0)
    _label(figure, axes, [(name, at, value) for name, _, at, value in points])
    return as_svg(figure, title)


def _label(figure: Figure, axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names points, each as near as there is room; a line leads to those that are farther off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    dots = axes.transData.transform([(at, value) for _, at, value in points])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    distances = itertools.product((8, 18, 30, 44, 60, 80), range(0, 360, 30))
    offsets = [(d * math.cos(math.radians(a)), d * math.sin(math.radians(a))) for d, a in distances]
    for name, at, value in points:
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.7}
        label = axes.annotate(name, (at, value), (0, 0), textcoords="offset points", fontsize=9,
                              color=INK, va="center", arrowprops=line)  # fmt: skip
        label.set_in_layout(False)
        best, least = offsets[0], math.inf
        for offset in offsets:
            _place(label, offset)
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer).padded(1)
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)
            outside |= not (axes.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)
            covered = sum(box.overlaps(other) for other in taken) + 10 * outside
            if covered < least:
                best, least = offset, covered
        _place(label, best)
        label.update_positions(renderer)
        taken.append(Text.get_window_extent(label, renderer).padded(1))


def _place(label: Any, offset: tuple[float, float]) -> None:
    """Moves an annotation; its text stands beside its point, on the side that it is moved to."""
    label.set_position(offset)
    label.set_ha("left" if offset[0] > 1 else "right" if offset[0] < -1 else "center")
    label.arrow_patch.set_visible(math.hypot(*offset) > 10)


def _figure(x: str, y: str = "", width: float = 4.6, height: float = 3.1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(xlabel=x, ylabel=y)


def _finish(figure: Figure, title: str) -> str:
    """A figure with a legend above it, as SVG."""
    columns = min(4, len(figure.axes[0].get_legend_handles_labels()[1])) or 1
    figure.legend(
        loc="outside upper left",
        ncols=columns,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        fontsize=10,
    )
    return as_svg(figure, title)


def _smooth(values: Sequence[float]) -> list[float]:
    smoothed: list[float] = []
    for value in values:
        last = smoothed[-1] if smoothed else value
        smoothed.append(SMOOTHING * last + (1 - SMOOTHING) * value)
    return smoothed


def as_svg(figure: Figure, title: str) -> str:
    """A figure as an `<svg>` element without external references; ids are prefixed by the title."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    for placeholder, color in _PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = f'<svg {size[0]} role="img" aria-label="{escape(title)}">'
    return re.sub(r"<svg[^>]*>", opening, svg, count=1)


# samples as a picture --------------------------------------------------------------------------

WIDTH, DPI = 11.0, 160  # inches, dots an inch
SIZE = 10.5  # points
LINE, SPACE = 0.215, 0.045  # inches from a line to the next, and between words
MARGIN, GAP = 0.3, 0.3
COLUMN = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
TEXT, FAINT, MARK, RULE, TAG = "#1f1f24", "#6b6b76", "#ffd966", "#d9d9e0", "#7a3fb0"
MAX_LINES = 7


def samples_png(samples: Sequence[Sample]) -> bytes:
    """A PNG with three columns: nothing, the plain text, the soft prompt; lore words are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    height = LINE * (MAX_LINES + 4) * (len(samples) + 1)  # more than needed; cropped when saved
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))  # in inches
    axes.axis("off")
    lefts = [MARGIN + i * (COLUMN + GAP) for i in range(3)]
    headings = ("without a prompt", "with the plain text", "with a soft prompt")
    for left, heading in zip(lefts, headings, strict=True):
        axes.text(left, LINE, heading, size=SIZE, color=FAINT, va="center")
    y = 2 * LINE
    with warnings.catch_warnings():  # letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        for sample in samples:
            axes.plot([MARGIN, WIDTH - MARGIN], [y, y], color=RULE, linewidth=1)
            text_tokens, soft_tokens = sample.tokens
            tag = f"[[soft:{sample.prompt}]]  {soft_tokens} tokens"
            small: dict[str, Any] = {"size": SIZE - 1.5, "va": "center"}
            axes.text(lefts[1], y + LINE, f"{text_tokens} tokens", color=FAINT, **small)
            axes.text(lefts[2], y + LINE, tag, color=TAG, **small)
            sides = zip(lefts, (sample.without, sample.text, sample.soft), strict=True)
            ends = [_draw_story(axes, x, y + 2.2 * LINE, sample, written) for x, written in sides]
            y = max(ends) + LINE
        buffer = io.BytesIO()
        used = Bbox([[0, height - y], [WIDTH, height]])
        figure.savefig(buffer, dpi=DPI, bbox_inches=used, metadata={"Software": None})
    return buffer.getvalue()


def _draw_story(axes: Any, left: float, y: float, sample: Sample, written: str) -> float:
    """Draws an opening and its continuation as lines of a column; returns the last line's `y`."""
    x, bottom = left, y + (MAX_LINES - 1.5) * LINE
    joined = False  # to the word before, as a comma is to a lore word
    pieces = [(sample.opening, "italic", False)]
    pieces += [(text, "normal", lore) for text, lore in mark_lore_words(written, sample.lore_words)]
    for piece, style, is_lore in pieces:
        for space, word in re.findall(r"(\s*)(\S*)", piece):
            joined = joined and not space
            if space and x > left:
                x += SPACE
            text = axes.text(x, y, word, size=SIZE, family="DejaVu Serif", style=style,
                             color=FAINT if style == "italic" else TEXT, va="baseline")  # fmt: skip
            width = text.get_window_extent().width / DPI if word else 0.0
            if not joined and x + width > left + COLUMN and x > left:
                if y > bottom:
                    text.set_text("…")
                    return y
                x, y = left, y + LINE
                text.set_position((x, y))
            if is_lore:
                text.set_bbox({"facecolor": MARK, "linewidth": 0, "pad": 1})
            x += width
            joined = joined or bool(word)
    return y
