"""`softlore codes`: lists the control codes of a model, and how a text under each begins."""

from __future__ import annotations

import click

from softlore.cli import common, options


@click.command()
@options.with_model
@options.json_option
def command(source: common.ModelSource, json_path: str | None) -> None:
    """List the control codes that a model was trained with.

    A code stands first in a text, and names its genre or its kind. Any soft prompt can be used as
    one, too: give its name where a code is asked for.

    \b
    Example:
      softlore codes
      softlore write "The old house" --code Horror
    """
    model = source.load(brief=True)
    from softlore.control import codes_of

    codes = codes_of(model).values()
    rows = [
        {"code": c.name, "token": c.token, "conditioning": c.conditioning, "template": c.template}
        for c in codes
    ]
    common.write_json(rows, json_path)
    if json_path == "-":
        return
    if not rows:
        click.echo(
            f"{model.name!r} has no control codes of its own; a soft prompt trained on texts of a "
            "kind is one for any model"
        )
        return
    texts = [c.template.replace("{code}", str(c.conditioning)) for c in codes]
    shown = [(c.name, str(c.token), text) for c, text in zip(codes, texts, strict=True)]
    common.print_table(("code", "token", "a text under it"), shown)
