"""`softlore codes`: the control codes of a model, and how a text under each begins."""

from __future__ import annotations

import click

from softlore.cli.options import json_option, load_model, model_options, write_json


@click.command()
@model_options
@json_option
def command(
    model_name: str | None, dtype: str | None, device: str | None, json_path: str | None
) -> None:
    """List the control codes that a model was trained with.

    A code stands first in a text, and names its genre or its kind. Any soft prompt can be used as
    one, too: give its name where a code is asked for.

    \b
    Example:
      softlore codes
      softlore write "The old house" --code Horror
    """
    from softlore.control import codes_of

    model = load_model(model_name, dtype, device)
    codes = codes_of(model)
    rows = [
        {"code": c.name, "token": c.token, "head": c.conditioning, "template": c.template}
        for c in codes.values()
    ]
    write_json(rows, json_path)
    if json_path == "-":
        return
    if not rows:
        click.echo(
            f"{model.name!r} has no control codes of its own; a soft prompt trained on texts of a "
            "kind is one for any model"
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("code", "token", "a text under it", box=None)
    for code in codes.values():
        shown = code.template.replace("{code}", str(code.conditioning))
        table.add_row(code.name, str(code.token), shown.replace("[", r"\["))
    Console().print(table)
