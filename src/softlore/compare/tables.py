"""Results as tables for the terminal: evaluations, comparisons, experiments and samples."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from softlore.compare.comparison import Comparison
from softlore.compare.hard import summarize_prompts
from softlore.compare.harness import Interval, Row
from softlore.compare.samples import Sample
from softlore.measure import EntryResult, Evaluation, Measures

CONDITIONING_NAMES = {
    "none": "nothing",
    "text": "text",
    "soft": "soft",
    "texts": "all texts",
    "company": "in company",
}
IN_COMPANY = ("texts", "company")
ABSENT = "–"
LORE_WORD_STYLE = "bold reverse"


def number(value: float | None, digits: int = 2) -> str:
    """A figure as tables show it; a dash for None."""
    return ABSENT if value is None else f"{value:.{digits}f}"


# evaluations -----------------------------------------------------------------------------------

LEGEND = (
    "at 0, …: recall, NLL of the responses after that many tokens of story, nats a token; lower is "
    "better · held: the same for held-out calls · drift: KL to the bare model on unrelated text, "
    "nats a token; lower is better · fidelity: share of the text's effect · words: lore keywords "
    "in a sampled story · copy: tokens of the longest run that it has in common with the "
    "responses · in company: together with the prompts of other entries"
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row for each entry and conditioning, and the means of all."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # fits 80 columns
    table.add_column("entry", no_wrap=True, overflow="ellipsis", min_width=8, max_width=14)
    table.add_column("given", no_wrap=True)
    distances = evaluation.distances
    recalls = [f"at {distance}" for distance in distances]
    for column in ["tok", *recalls, "held", "drift", "fidelity", "words", "copy"]:
        table.add_column(column, justify="right", no_wrap=True)
    for entry in evaluation.entries:
        _add_rows(table, _label(entry), entry.conditionings, distances)
        table.add_section()
    _add_rows(table, "all entries", evaluation.total(), distances, style="bold")
    return table


def _label(entry: EntryResult) -> str:
    return entry.name if entry.kind == "prefix" else f"{entry.name} ({entry.kind})"


def _add_rows(
    table: Table,
    label: str,
    conditionings: Mapping[str, Measures | None],
    distances: list[int],
    style: str = "",
) -> None:
    for name, title in CONDITIONING_NAMES.items():
        measures = conditionings.get(name)
        if measures is None and name in IN_COMPANY:
            continue
        cells = _cells(measures, distances)
        table.add_row(label, title, *cells, style=style or ("dim" if name == "none" else ""))
        label = ""


def _cells(measures: Measures | None, distances: list[int]) -> list[str]:
    if measures is None:
        return [ABSENT] * (len(distances) + 6)
    stories = measures.stories
    return [
        str(measures.tokens),
        *(number(measures.recall.get(distance)) for distance in distances),
        number(measures.held_out),
        number(measures.drift),
        number(measures.fidelity),
        number(stories.lore_words.a_story if stories else None, 1),
        str(stories.copy.run) if stories else ABSENT,
    ]


# comparisons -----------------------------------------------------------------------------------

TITLES = {"held_out": "held-out", "lore_words": "lore words"}
NO_RECALL = (
    "No entry has calls with responses, so recall and held-out calls are not measured, and nothing "
    "is searched. Add some (`blocks` of an entry: a call, and what should follow it), or have "
    "them made from the texts: softlore compare LOREBOOK --style sentences."
)


def comparison_note(comparison: Comparison) -> str:
    """What the columns of a comparison mean."""
    count = comparison.story_tokens
    return (
        "recall (at 0, …: after that many tokens of story) and held-out calls: NLL of the right "
        "responses, nats a token; lower is better. drift: KL to the bare model on unrelated text, "
        "nats a token; lower is better. lore words: keywords of the lore in a story of "
        f"{count} {'token' if count == 1 else 'tokens'}. copy: the longest run of tokens in common "
        "with the responses. perplexity: of the stories, under the bare model. tokens: of the "
        "context. seconds: to make one."
    )


def column_title(column: str) -> str:
    """The heading of a column of a comparison."""
    return TITLES.get(column, column.replace("recall_", "at "))


def shown(mean: Interval | None, column: str = "") -> str:
    """A figure with its interval; a dash for None."""
    if mean is None:
        return ABSENT
    rounded = column in ("tokens", "seconds", "copy", "perplexity")
    return f"{mean.mean:.0f}" if rounded else str(mean)


def comparison_table(comparison: Comparison) -> Table:
    """The means of all entries. Intervals, which are wide, are on the page only."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for column in comparison.columns:
        table.add_column(column_title(column), justify="right")
    for method, means in comparison.total.items():
        bare = {column: mean and Interval(mean.mean, None) for column, mean in means.items()}
        table.add_row(method, *(shown(bare[column], column) for column in comparison.columns))
    return table


# experiments with hard prompts -----------------------------------------------------------------


def experiment_table(rows: Sequence[Row]) -> Table:
    """`summarize_prompts` of an experiment's rows; a column for each assertion."""
    summary = summarize_prompts(rows)
    several = len({row["model"] for row in summary}) > 1
    kinds = list(dict.fromkeys(kind for row in summary for kind in row["assertions"]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("prompt")
    if several:
        table.add_column("model")
    for column in ("tokens", "passed", "score", *kinds):
        table.add_column(column, justify="right")
    for row in summary:
        cells = [row["prompt"], *([row["model"]] if several else []), f"{row['tokens']:.0f}"]
        cells += [f"{row['passed']} of {row['cases']}", f"{row['score']:.2f}"]
        cells += [
            _assertion_cell(row["assertions"].get(kind, 0.0), row["values"].get(kind))
            for kind in kinds
        ]
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    return table


def _assertion_cell(share: float, value: float | None) -> str:
    """The mean value, and the share of cases that pass unless all do."""
    if value is None:
        return f"{share:.0%}"
    return f"{value:.3g}" if share == 1 else f"{value:.3g} ({share:.0%})"


# samples ---------------------------------------------------------------------------------------


def mark_lore_words(text: str, lore_words: Collection[str]) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a lore word."""
    if not lore_words:
        return [(text, False)] if text else []
    longest_first = sorted(lore_words, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    pieces = [(piece, i % 2 == 1) for i, piece in enumerate(pattern.split(text))]
    return [(piece, is_lore) for piece, is_lore in pieces if piece]


def samples_table(samples: Sequence[Sample]) -> Group:
    """A table for each sample: its three continuations side by side."""
    return Group(*map(_sample_table, samples))


def _sample_table(sample: Sample) -> Table:
    title = Text(f"[[soft:{sample.prompt}]]", style="bold magenta")
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, expand=True, title=title, title_justify="left"
    )
    text_tokens, soft_tokens = sample.tokens
    table.add_column("without", ratio=1, style="dim")
    table.add_column(f"plain text, {text_tokens} tokens", ratio=1)
    table.add_column(f"soft prompt, {soft_tokens} tokens", ratio=1)
    opening = Text(sample.opening, style="italic")
    written = (sample.without, sample.text, sample.soft)
    table.add_row(*(opening + _styled(text, sample.lore_words) for text in written))
    return table


def _styled(text: str, lore_words: Collection[str]) -> Text:
    styled = Text()
    for piece, is_lore in mark_lore_words(" ".join(text.split("\n")), lore_words):
        styled.append(piece, style=f"not dim {LORE_WORD_STYLE}" if is_lore else "not italic")
    return styled
