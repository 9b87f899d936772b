"""`softlore inspect`: the metadata of a prompt file, or of all prompts in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlore.cli import common, options


@click.command()
@click.argument("file", required=False, type=options.PATH)
@options.prompts_option
@options.json_option
def command(file: Path | None, folder: Path | None, json_path: str | None) -> None:
    """Show the prompt in FILE; without FILE, or with a folder, what the folder holds.

    Without arguments also the default model, and what has set it.

    \b
    Example:
      softlore inspect
      softlore inspect emma.safetensors
    """
    if file is None or (file.is_dir() and not _is_prompt(file)):
        _show_folder(file or folder, json_path, general=file is None and folder is None)
    else:
        _show_file(file, json_path)


def _is_prompt(folder: Path) -> bool:
    """Whether a folder is a prompt itself, such as a PEFT adapter."""
    from softlore.prompts.formats import peft

    return peft.is_adapter(folder)


def _show_folder(folder: Path | None, json_path: str | None, general: bool) -> None:
    from softlore.model.default import choose_model

    choice = choose_model()
    if general and json_path != "-":  # at once: what follows loads torch
        click.echo(f"default model: {choice.name} ({choice.set_by})")
    prompts = common.library(folder, new=True)  # where there is none, the text says how to fill it
    listing = prompts.listing()
    rows: list[dict[str, Any]] = [
        {
            "name": header.name,
            "kind": header.kind,
            "n_tokens": header.n_tokens,
            "base_model": header.metadata.get("base_model", ""),
            "file": str(header.path),
            "bytes": header.data_bytes,
        }
        for header in listing.headers
    ]
    bad = [{"file": str(file.path), "error": str(file.error)} for file in listing.bad]
    common.write_json(
        {
            "folder": str(prompts.folder),
            "prompts": rows,
            "unreadable": bad,
            "default_model": {"name": choice.name, "set_by": choice.source},
        },
        json_path,
    )
    if json_path == "-":
        return
    click.echo(f"prompts folder: {prompts.folder}")
    if rows:
        cells = [(r["name"], r["kind"], str(r["n_tokens"]), r["base_model"],
                  f"{r['bytes'] / 1024:.0f} KB") for r in rows]  # fmt: skip
        common.print_table(("name", "kind", "tokens", "model", "size"), cells)
    else:
        click.echo("no prompts yet: `softlore train LOREBOOK` puts them there")
    for file in bad:
        common.say(f"unreadable: {file['error']}")


def _show_file(file: Path, json_path: str | None) -> None:
    from softlore.prompts import load_prompt

    prompt = load_prompt(file)
    facts: dict[str, Any] = {
        "name": prompt.name,
        "kind": prompt.kind,
        "n_tokens": len(prompt),
        "shape": list(prompt.tensor.shape),
        "base_model": prompt.base_model,
        "created": prompt.created,
        "uuid": prompt.uuid,
        "description": prompt.description,
        "author": prompt.author,
        "licence": prompt.licence,
        "training": _readable(prompt.training),
        "metrics": prompt.metrics,
        "data_hash": prompt.data_hash,
        "tokenizer_fingerprint": prompt.tokenizer_fingerprint,
        "library_version": prompt.library_version,
    }
    common.write_json(facts, json_path)
    if json_path == "-":
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            for inner, deep in value.items():
                click.echo(f"  {inner}: {deep}")
        elif value not in ("", None):
            click.echo(f"{key}: {value}")


def _readable(training: dict[str, Any]) -> dict[str, Any]:
    """How a prompt was trained, with hashes counted, not shown."""
    from softlore.prompts.responses import KEY, HashedResponses

    if KEY not in training:
        return training
    count = sum(map(len, HashedResponses.from_text(training[KEY]).following.values()))
    return training | {KEY: f"{count} hashed runs (for no_copy)"}
