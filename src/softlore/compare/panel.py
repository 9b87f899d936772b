"""A picture of samples side by side, for a page that cannot hold HTML."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from softlore.compare.samples import Sample, marked

WIDTH, DPI = 10.0, 160  # inches, dots an inch
SIZE = 11.5  # points
LINE = 0.235  # inches from a line to the next
MARGIN, GAP = 0.3, 0.4
INK, FAINT, MARK, RULE = "#1f1f24", "#6b6b76", "#ffd966", "#d9d9e0"
MOST_LINES = 5

Word = tuple[str, str, bool]  # text, style ("normal" or "italic"), lore word


def panel_png(samples: Sequence[Sample]) -> bytes:
    """A PNG with two columns, without and with the soft prompt; lore words are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pen = _Pen()
    column = (WIDTH - 2 * MARGIN - GAP) / 2
    rows = []
    for sample in samples:
        sides = [
            pen.lines(_words(sample.opening, written, sample.lore_words), column)
            for written in (sample.without, sample.soft)
        ]
        rows.append((sample, sides))
    heights = [max(map(len, sides)) * LINE + 2.1 * LINE for _, sides in rows]
    height = sum(heights) + 2 * MARGIN + 1.2 * LINE
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    lefts = (MARGIN, MARGIN + column + GAP)
    y = MARGIN + 0.5 * LINE
    for left, heading in zip(lefts, ("without a prompt", "with a soft prompt"), strict=True):
        axes.text(left, y, heading, size=SIZE, color=FAINT, va="center")
    y += 0.9 * LINE
    for (sample, sides), tall in zip(rows, heights, strict=True):
        axes.plot([MARGIN, WIDTH - MARGIN], [y, y], color=RULE, linewidth=1)
        tag = f"[[soft:{sample.prompt}]]"
        axes.text(lefts[1], y + LINE, tag, size=SIZE - 1.5, color="#7a3fb0", va="center")
        for left, lines in zip(lefts, sides, strict=True):
            for number, line in enumerate(lines):
                pen.draw(axes, left, y + (number + 2) * LINE, line)
        y += tall
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _words(opening: str, written: str, lore_words: Sequence[str]) -> list[Word]:
    """Opening and continuation in words that may be wrapped after, each with its style."""
    words: list[Word] = [(word, "italic", False) for word in opening.split()]
    glued = not written[:1].isspace()
    for piece, is_lore in marked(written, lore_words):
        for part in piece.replace("\n", " ").split(" "):
            if part and glued and words:
                words[-1] = (words[-1][0] + "\u2060", words[-1][1], words[-1][2])
            if part:
                words.append((part, "normal", is_lore))
            glued = False
        glued = not piece[-1:].isspace()
    return words


class _Pen:
    """Measures and draws words; widths in inches."""

    def __init__(self) -> None:
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextPath

        self._path = TextPath
        self._fonts = {
            style: FontProperties(family="DejaVu Serif", style=style, size=SIZE)
            for style in ("normal", "italic")
        }

    def width(self, text: str, style: str) -> float:
        path = self._path((0, 0), f"|{text}|", prop=self._fonts[style], size=SIZE)
        bars = self._path((0, 0), "||", prop=self._fonts[style], size=SIZE)
        return float(path.get_extents().width - bars.get_extents().width) / 72

    def lines(self, words: Sequence[Word], column: float) -> list[list[tuple[float, Word]]]:
        """Words with their places, wrapped to a column; at most `MOST_LINES` lines."""
        space = self.width(" ", "normal")
        lines: list[list[tuple[float, Word]]] = [[]]
        x = 0.0
        for text, style, is_lore in words:
            glued = text.endswith("\u2060")
            text = text.rstrip("\u2060")
            wide = self.width(text, style)
            if x + wide > column and lines[-1]:
                if len(lines) == MOST_LINES:
                    at, (last, last_style, last_lore) = lines[-1][-1]
                    lines[-1][-1] = at, (last + " …", last_style, last_lore)
                    return lines
                lines.append([])
                x = 0.0
            lines[-1].append((x, (text, style, is_lore)))
            x += wide + (0.0 if glued else space)
        return lines

    def draw(self, axes: Any, left: float, y: float, line: Sequence[tuple[float, Word]]) -> None:
        """Draws a line whose middle is at `y`."""
        from matplotlib.patches import Rectangle

        for x, (text, style, is_lore) in line:
            if is_lore:
                box = (left + x - 0.02, y - 0.42 * LINE)
                wide = self.width(text, style) + 0.04
                axes.add_patch(Rectangle(box, wide, 0.84 * LINE, color=MARK, linewidth=0))
            colour = FAINT if style == "italic" else INK
            axes.text(
                left + x, y, text, fontproperties=self._fonts[style], color=colour,
                va="center_baseline",
            )  # fmt: skip
