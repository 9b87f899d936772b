"""`softlore convert`: converts a soft prompt from any readable format to any writable one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.gguf import (
    LLAMACPP,
    cache_options,
    cache_types,
    check_gguf,
    gguf_option,
    load_gguf,
)
from softlore.cli.push import Push, PushSource, push_options, push_prompts
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.model.gguf import CacheTypes, GGUFModel
    from softlore.prompts import SoftPrompt

CONNECTOR_SUFFIX = ".vllm.safetensors"  # of files for vLLM's connector
# softlore.prompts.WRITABLE, which takes seconds to import.
FORMATS = ("safetensors", "kobold", "peft", "mkultra", "vllm")


@click.command()
@click.argument("file", type=options.PATH)
@click.option("--to", type=click.Choice([*FORMATS, LLAMACPP]), help="The format to write.")
@click.option("--out", help="File or folder to write.  [default: here, by the prompt's name]")
@click.option("--name", help="Give the prompt this name.")
@click.option("--task", type=click.IntRange(min=0), help="Which prompt of a multitask adapter.")
@options.with_model
@click.option("--text", help="vllm: a whole context, which names the prompt [[soft:NAME]].")
@gguf_option
@cache_options
@click.option("--streams", default=1, show_default=True, type=click.IntRange(1, 256),
              help="llamacpp: N where llama-server is started with --parallel N.")  # fmt: skip
@push_options
@options.force_option
@options.json_option
def command(
    file: Path,
    to: str | None,
    out: str | None,
    name: str | None,
    task: int | None,
    source: common.ModelSource,
    text: str | None,
    gguf: Path | None,
    cache: tuple[str, bool],
    streams: int,
    push: Push | None,
    force: bool,
    json_path: str | None,
) -> None:
    """Write the soft prompt in FILE, of any format that softlore reads, in another format.

    FILE is a softlore file, an mkultra JSON, a KoboldAI zip, an .mtjsp, a PEFT adapter folder or
    an .npy. Files of other programs don't say which model they are for: --model adds it.
    With --push, FILE or a folder of prompts is uploaded to the Hugging Face hub.

    \b
    Example:
      softlore convert emma.json --to safetensors --model gpt2
      softlore convert emma.safetensors --to peft --out emma-adapter
      softlore convert emma.safetensors --to vllm --text "At the gate stood [[soft:Emma]]Emma"
      softlore convert emma.safetensors --to vllm --out prompts-for-vllm/   (a prefix)
      softlore convert emma.safetensors --to llamacpp --gguf my-model-Q4_K.gguf
      softlore convert my-prompts/ --push ada/harbour-prompts --license CC-BY-4.0 --dry-run
    """
    if push is not None:
        _check_push(to, out, text, gguf)
        push_prompts(PushSource(file, name, task, source), push, force, json_path)
        return
    if to is None:
        raise click.UsageError(
            "Missing option '--to' (a format to write) or '--push' (OWNER/NAME on the hub)"
        )
    if text is not None and to != "vllm":
        raise ConfigError(f"--text goes with --to vllm, not --to {to}; leave it out")
    check_gguf("--to", to, gguf)
    from softlore.prompts import load_prompt

    prompt = load_prompt(file, task)
    if name is not None:
        prompt = prompt.replace(name=common.check_utf8(name, "--name"))
    if gguf is not None:
        source.refuse_options()
        model = load_gguf(gguf, source.name)
        _write_slot(prompt, model, out, cache_types(cache), streams, force, json_path)
        return
    prompt, path = _write(prompt, to, out, force, source, text)
    size = _size(path)
    report = {"read": str(file), "name": prompt.name, "kind": prompt.kind,
              "n_tokens": len(prompt), "to": to, "written": str(path), "bytes": size}  # fmt: skip
    common.write_json(report, json_path)
    if json_path == "-":
        return
    click.echo(
        f"read {prompt.kind} prompt {prompt.name!r} of {len(prompt)} tokens from {file}; "
        f"wrote {path} ({size / 1024:.0f} KB)"
    )
    if to == "safetensors" and out is None:
        from softlore.prompts import default_folder

        common.say(f"for texts to find it, put it among your prompts: --out {default_folder()}")


def _check_push(to: str | None, out: str | None, text: str | None, gguf: Path | None) -> None:
    """Raises ConfigError for options that are of no use with `--push`."""
    given = {"--to": to, "--out": out, "--text": text, "--gguf": gguf}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"{names[0]} is given with --push, which uploads softlore's own files; expected one "
            "of the two; convert first and push then, or leave it out"
        )


def _write(
    prompt: SoftPrompt,
    to: str,
    out: str | None,
    force: bool,
    source: common.ModelSource,
    text: str | None,
) -> tuple[SoftPrompt, Path]:
    """Writes the prompt, or the context that names it; returns the prompt with its model."""
    from softlore.prompts import FORMATS, write_prompt

    for_connector = to == "vllm" and prompt.kind == "prefix"
    if for_connector and text is not None:
        raise ConfigError(
            f"--text writes a context of embeddings, and {prompt.name!r} is a prefix and has none; "
            "expected an embedding prompt; leave --text out to write the file of vLLM's KV "
            "connector"
        )
    model = None
    if source.name is not None or text is not None or for_connector:
        model = source.load(brief=True)
        prompt = prompt if prompt.fingerprint else prompt.made_for(model)
        model.check_prompt(prompt)
    if to == "safetensors" and out is not None and _is_folder(out, to):
        return prompt, _save_to_library(prompt, Path(out), force)
    path = _target(prompt, to, out, CONNECTOR_SUFFIX if for_connector else FORMATS[to].suffix)
    if to != "peft" or not path.is_dir() or any(path.iterdir()):  # an empty folder may be filled
        common.check_free(path, force)
    if model is not None and text is not None:
        name = source.name or model.name  # as a vLLM server has it, a path included
        _write_context(model, common.check_utf8(text, "--text"), prompt, path, name)
    elif model is not None and for_connector:
        from softlore.prompts.formats import vllm

        vllm.write_prefix(prompt, model, path)
    else:
        write_prompt(prompt, to, path)
    return prompt, path


def _save_to_library(prompt: SoftPrompt, folder: Path, force: bool) -> Path:
    """Saves to a folder of prompts, which has one of each name."""
    from softlore.prompts import PromptLibrary

    library = PromptLibrary(folder)
    if prompt.name in library:
        common.check_free(library.header(prompt.name).path, force)
    return library.save(prompt)


def _target(prompt: SoftPrompt, to: str, out: str | None, suffix: str) -> Path:
    """The file or folder to write: `--out`, or in that folder by the prompt's name."""
    from softlore.prompts import slug_of

    path = Path(out or "")
    return path / (slug_of(prompt.name) + suffix) if _is_folder(out, to) else path


def _is_folder(out: str | None, to: str) -> bool:
    """Whether `--out` is a folder that the prompt is put into under its own name."""
    from softlore.prompts import default_folder
    from softlore.prompts.formats import peft

    path = Path(out or "")
    if out is None or out.endswith(("/", os.sep)) or path == default_folder():
        return True
    adapter = to == "peft" and path.is_dir() and (peft.is_adapter(path) or not any(path.iterdir()))
    return path.is_dir() and not adapter


def _write_slot(
    prompt: SoftPrompt,
    model: GGUFModel,
    out: str | None,
    cache: CacheTypes,
    streams: int,
    force: bool,
    json_path: str | None,
) -> None:
    """Writes a slot file for llama-server, and says how a text that uses it must begin."""
    from softlore.prompts.formats import llamacpp

    path = _target(prompt, LLAMACPP, out, llamacpp.SUFFIX)
    common.check_free(path, force)
    stands = llamacpp.write(prompt, model, path, cache, streams)
    size = path.stat().st_size
    report: dict[str, Any] = {"name": prompt.name, "to": LLAMACPP, "written": str(path),
                              "ids": stands.ids, "text": stands.text, "bytes": size}  # fmt: skip
    common.write_json(report, json_path)
    if json_path == "-":
        return
    click.echo(f"wrote {path} ({size / 1024:.0f} KB), for cache type {cache.keys}")
    click.echo("restore it:  POST /slots/0?action=restore  " + json.dumps({"filename": path.name}))
    ids = [*stands.ids, *model.bos]
    click.echo('then send    "prompt": ' + json.dumps([*ids, "your text"]) + ', "id_slot": 0')
    if stands.text is not None:
        click.echo("or begin the text with: " + stands.text)


def _write_context(
    model: FrozenModel, text: str, prompt: SoftPrompt, path: Path, name: str
) -> None:
    from softlore.context import embed
    from softlore.model.catalog import hub_name
    from softlore.prompts import Context
    from softlore.prompts.formats import vllm

    vllm.check_rows(prompt)
    context = Context.parse(text, [prompt])
    if prompt not in context.prompts:
        raise ConfigError(
            f"--text does not name the prompt; expected {prompt.tag} somewhere in it; put it "
            "where the prompt should be"
        )
    vllm.write_body(vllm.request_body(embed(model, context), hub_name(name)), path)


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
