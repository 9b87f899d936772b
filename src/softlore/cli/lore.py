"""`softlore lore`: imports, shows and exports lorebooks of other programs; suggests entries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.suggest import suggest

if TYPE_CHECKING:
    from softlore.lore import Entry, Lorebook

# The names in softlore.lore.formats.registry.
FORMATS = (
    "sillytavern", "card-v2", "card-v3", "lorebook-v3", "character-book", "novelai", "koboldai",
    "aidungeon", "agnai", "janitorai", "risuai", "mkultra",
)  # fmt: skip


@click.group()
def command() -> None:
    """Lorebooks of SillyTavern, character cards, NovelAI, KoboldAI, AI Dungeon and Agnai.

    Every command that takes a lorebook reads their files directly. These commands convert them to
    softlore's own format, which can be edited, and back without loss.

    \b
    Example:
      softlore lore import emma.png --out emma.yaml
      softlore lore show emma.yaml
      softlore lore export emma.yaml --to sillytavern --out world.json
      softlore lore suggest harbour
    """


command.add_command(suggest)


@command.command("import")
@click.argument("file", type=options.PATH)
@click.option(
    "--out",
    type=options.PATH,
    help="The .yaml or .json file to write.  [default: here, by FILE's name, .yaml]",
)
@options.force_option
def import_(file: Path, out: Path | None, force: bool) -> None:
    """Make a softlore lorebook of FILE, whichever program it is from.

    What softlore has no field for is saved under `origin`, for the way back.

    \b
    Example:
      softlore lore import world.json --out lore.yaml
      softlore lore import emma.png
    """
    from softlore.lore import Lorebook

    book = Lorebook.load(file)
    path = out or Path(f"{file.stem}.yaml")
    common.check_free(path, force)
    book.save(path)
    click.echo(f"read {_entries(len(book))} from {file} ({_format(book)}); wrote {path}")
    if number := _without_lore(book):
        common.say(f"{_entries(number)} without text saved for the way back")


@command.command()
@click.argument("lorebook", type=options.PATH)
@click.option("--to", "to", required=True, type=click.Choice(FORMATS), help="The format to write.")
@click.option(
    "--out",
    type=options.PATH,
    help="File to write; for a card also .png or .charx.  [default: here, by the lorebook's name]",
)
@click.option(
    "--into",
    type=options.PATH,
    help="Picture (.png) or archive (.charx) that a card is put into.  [default: a plain one]",
)
@options.force_option
def export(lorebook: Path, to: str, out: Path | None, into: Path | None, force: bool) -> None:
    """Write LOREBOOK in another program's format.

    LOREBOOK may be in any format that is read. What came from that program
    goes back as it was, but for what was changed since.

    \b
    Example:
      softlore lore export lore.yaml --to novelai
      softlore lore export emma.yaml --to card-v3 --out emma.png --into portrait.png
    """
    from softlore.lore import Lorebook
    from softlore.lore.formats.registry import EXPORTERS

    book = Lorebook.load(lorebook)
    path = out or Path(book.name + EXPORTERS[to].suffix)
    common.check_free(path, force)
    book.save(path, to, into)
    click.echo(
        f"read {_entries(len(book))} from {lorebook}; wrote {path} ({EXPORTERS[to].description})"
    )
    if to == "mkultra":
        for entry in book:
            if not entry.blocks:
                common.say(f"left out: {entry.name!r} has no blocks")


@command.command()
@click.argument("file", type=options.PATH)
@click.option(
    "--characters",
    type=click.IntRange(min=100),
    default=1500,
    show_default=True,
    help="Maximum characters of an entry's text; a token is about four.",
)
@click.option(
    "--out",
    type=options.PATH,
    help="The .yaml or .json file to write.  [default: here, by FILE's name, .yaml]",
)
@options.force_option
def split(file: Path, characters: int, out: Path | None, force: bool) -> None:
    """Make several entries of each long one in FILE, a lorebook or a plain text.

    A chapter or a rulebook (.txt, .md) becomes entries that stories activate one by one: each has
    keys of its own, the words that tell it from the others. Look through these before training.
    To train one prompt of the whole text instead, leave it a single entry.

    \b
    Example:
      softlore lore split rulebook.txt --out rules.yaml
      softlore lore split world.json --characters 800
    """
    from softlore.lore.chunks import load_texts, split_entries

    book = load_texts(file)
    parts = split_entries(book, characters)
    path = out or Path(f"{file.stem}.yaml")
    common.check_free(path, force)
    parts.save(path)
    click.echo(f"read {_entries(len(book))} from {file}; wrote {_entries(len(parts))} to {path}")


@command.command()
@click.argument("file", type=options.PATH)
@options.json_option
def show(file: Path, json_path: str | None) -> None:
    """Show the entries of FILE, a lorebook in any format that is read.

    Of each: what activates it, how many characters its text has, how many pairs of call and
    response it has, and in which form it may enter a story.

    \b
    Example:
      softlore lore show world.json
      softlore lore show emma.png --json -
    """
    from softlore.lore import Lorebook, check

    book = Lorebook.load(file)
    rows = [_row(entry) for entry in book]
    report = {
        "file": str(file),
        "format": _format(book),
        "name": book.name,
        "entries": rows,
        "without_lore": _without_lore(book),
        "warnings": check(book),
    }
    common.write_json(report, json_path)
    if json_path == "-":
        return
    click.echo(f"{book.name}: {_entries(len(book))} ({_format(book)})")
    if rows:
        _print_entries(rows)
    if number := _without_lore(book):
        click.echo(f"and {_entries(number)} without text")
    common.say_warnings(book, at_most=sys.maxsize)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "keys": entry.keys,
        "characters": len(entry.text),
        "pairs": sum(len(block.responses) for block in entry.blocks),
        "use": entry.use,
        "enabled": entry.enabled,
        "constant": entry.constant,
    }


def _print_entries(rows: list[dict[str, Any]]) -> None:
    from softlore.lore.validation import one_line, shorten

    cells = []
    for row in rows:
        keys = one_line(shorten(", ".join(row["keys"]), 48))
        if row["constant"]:
            keys = f"always ({keys})" if keys else "always"
        use = row["use"] if row["enabled"] else "not enabled"
        cells.append((row["name"], keys, str(row["characters"]), str(row["pairs"]), use))
    common.print_table(("entry", "keys", "characters", "pairs", "use"), cells)


def _format(book: Lorebook) -> str:
    return str(book.origin["format"]) if book.origin else "softlore"


def _entries(number: int) -> str:
    return common.counted(number, "entry", "entries")


def _without_lore(book: Lorebook) -> int:
    """Entries of another program's file that have no text."""
    entries = (book.origin or {}).get("without_lore")
    return len(entries) if isinstance(entries, list) else 0
