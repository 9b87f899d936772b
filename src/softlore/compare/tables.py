"""Evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from softlore.measure import EntryResult, Evaluation, Measures

HEAD_NAMES = {"none": "nothing", "text": "text", "soft": "soft", "company": "in company"}
ABSENT = "–"
LEGEND = (
    "at 0, …: recall, the nats a token that responses cost after so many tokens of story; less is "
    "better · "
    "held: the same of held-out calls · drift: nats a token that unrelated text is bent; "
    "less is better · fidelity: share of what the text does · words: lore keywords in a sampled "
    "story · copy: tokens of the longest run it has in common with the responses · "
    "in company: with the prompts of other entries beside it"
)


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row for each entry and head, and the means of all."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # 80 columns are enough
    table.add_column("entry", no_wrap=True, overflow="ellipsis", min_width=8, max_width=14)
    table.add_column("given", no_wrap=True)
    distances = evaluation.distances
    columns = [
        "tok",
        *(f"at {distance}" for distance in distances),
        "held",
        "drift",
        "fidelity",
        "words",
        "copy",
    ]
    for column in columns:
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
    for conditioning, name in HEAD_NAMES.items():
        if conditioning not in conditionings or (
            conditioning == "company" and conditionings[conditioning] is None
        ):
            continue
        cells = _cells(conditionings[conditioning], distances)
        table.add_row(label, name, *cells, style=style or ("dim" if conditioning == "none" else ""))
        label = ""


def _cells(one: Measures | None, distances: list[int]) -> list[str]:
    if one is None:
        return [ABSENT] * (len(distances) + 6)
    told = one.stories
    return [
        str(one.tokens),
        *(number(one.recall.get(distance)) for distance in distances),
        number(one.held_out),
        number(one.drift),
        number(one.fidelity),
        number(told.lore_words.a_story if told else None, 1),
        str(told.copy.run) if told else ABSENT,
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A figure as a table shows it; a dash where there is none."""
    return ABSENT if value is None else f"{value:.{digits}f}"
