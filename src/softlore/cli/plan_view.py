"""What a story's next turn reads, as the terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from softlore.story.composing import ContextPlan


def show_parts(plan: ContextPlan) -> None:
    """Prints the parts of the context, with a bar for the tokens of each."""
    for part in plan.parts:
        bar = "█" * max(1, round(40 * part.tokens / plan.limit))
        late = " (only the newest text sees it)" if part.late else ""
        click.echo(f"{part.kind:7} {part.name[:24]:24} {part.tokens:6} {bar}{late}")
    click.echo(f"{'write':7} {'':24} {plan.reserved:6}")
    free = plan.limit - plan.reserved - plan.positions
    omitted = f"; {plan.omitted:,} characters of the beginning are left out"
    click.echo(f"{free} of {plan.limit} tokens are free{omitted if plan.omitted else ''}")


def lore_table(plan: ContextPlan) -> Table:
    """The entries that are active, and how each is used."""
    from rich import box
    from rich.table import Table

    table = Table("entry", "as", "tokens", "active by", "in this form as", box=box.SIMPLE_HEAD)
    reasons = {active.entry.name: active.reason for active in plan.activation.active}
    for offer in plan.choice.chosen:
        table.add_row(offer.entry, offer.form, str(offer.tokens), reasons[offer.entry],
                      plan.why[offer.entry])  # fmt: skip
    for name, why in plan.not_used.items():
        table.add_row(name, "–", "", "", f"not used: {why}", style="dim")
    for bad in plan.activation.bad_keys:
        table.add_row(bad.entry.name, "–", "", "", f"key {bad.key!r}: {bad.why}", style="dim")
    spent, budget = sum(o.tokens for o in plan.choice.chosen), plan.choice.budget
    steered = ", ".join(f"{vector.name} {strength:g}" for vector, strength in plan.vectors)
    table.caption = f"{spent} of {budget} tokens for lore"
    table.caption += f"; steered by {steered}" if steered else ""
    return table
