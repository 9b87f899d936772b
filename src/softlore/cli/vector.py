"""`softlore vector`: trains, shows and converts control vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.progress import progress_bar
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.control.vectors import Contrast
    from softlore.model import FrozenModel
    from softlore.prompts import ControlVector


@click.group()
def command() -> None:
    """Control vectors: a tone as a direction in the model's layers, which takes no tokens.

    \b
    Example:
      softlore vector train dark --positive "A dark and cruel story." --negative "A merry story."
      softlore write "The old house" --vector dark=1.5
      softlore vector convert dark --to gguf --out dark.gguf
    """


@command.command()
@click.argument("name")
@click.option("--positive", multiple=True, metavar="TEXT",
              help="What a text with the tone would have before it; may be repeated.")  # fmt: skip
@click.option("--negative", multiple=True, metavar="TEXT",
              help="What one with the opposite would have; may be repeated.  [default: nothing]",
              )  # fmt: skip
@click.option("--positive-texts", type=options.PATH, metavar="FILE",
              help="Texts with the tone themselves, in place of --positive: paragraphs.",
              )  # fmt: skip
@click.option("--negative-texts", type=options.PATH, metavar="FILE",
              help="Texts without it: paragraphs.")  # fmt: skip
@options.with_model
@click.option("--method", type=click.Choice(["mean", "pca", "pca_diff", "distil"]), default="mean",
              show_default=True, help="The mean of the differences; their first principal "
              "component, about zero or about their mean, as repeng has it; or trained, by "
              "gradient, to have the effect of the positive texts.")  # fmt: skip
@click.option("--layers", metavar="FIRST-LAST",
              help="Layers that it changes, counted from 0.  [default: the middle half; of distil: "
              "all but the outermost]")  # fmt: skip
@click.option("--passages", type=click.IntRange(min=2),
              help="That the model writes, for --positive and --negative to be compared on.  "
              "[default: 48; of distil: 192]")  # fmt: skip
@click.option("--max-steps", type=click.IntRange(min=1), default=80, show_default=True,
              help="Updates of distil.")  # fmt: skip
@options.seed_option
@options.vectors_option
@options.json_option
def train(
    name: str,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    positive_texts: Path | None,
    negative_texts: Path | None,
    source: common.ModelSource,
    method: str,
    layers: str | None,
    passages: int | None,
    max_steps: int,
    seed: int,
    folder: Path | None,
    json_path: str | None,
) -> None:
    """Train the control vector NAME from two sets of texts.

    What --positive and --negative say is put before the same passages, and what that changes in
    the model's hidden states becomes the vector. With --positive-texts and --negative-texts, the
    texts themselves are compared, such as ghost stories and jokes. With strength 1 the vector
    changes the model's last layer about as much as the texts do. --method distil takes some
    minutes in place of seconds, and tells more of the tone at less harm to the prose.

    \b
    Example:
      softlore vector train dark --positive "A dark and cruel story." --negative "A merry story."
      softlore vector train dark --positive "A dark and cruel story." --method distil
      softlore vector train gothic --positive-texts ghosts.txt --negative-texts jokes.txt
    """
    by_texts = positive_texts is not None or negative_texts is not None
    if by_texts == bool(positive or negative):
        raise ConfigError(
            "expected --positive (and --negative), or --positive-texts and --negative-texts; give "
            "one pair of the two"
        )
    if (positive_texts is None) != (negative_texts is None) or (negative and not positive):
        raise ConfigError("one side of the contrast is missing; expected both; give the other")
    texts = [_paragraphs(path) for path in (positive_texts, negative_texts) if path is not None]
    chosen = None if layers is None else _layers(layers)
    name = common.check_utf8(name, "NAME")
    with source.loading(brief=json_path == "-") as shown:
        from softlore.control.vectors import contrast_of_texts, train_vector
        from softlore.prompts.vector_folder import save_vector

        model = shown.load()
    if by_texts:
        common.say(f"reading {len(texts[0])} and {len(texts[1])} texts")
        contrast = contrast_of_texts(model, *texts)
    else:
        contrast = _of_contexts(model, positive, negative, method == "distil", passages, seed)
    common.say("comparing what the layers put out")
    record = {
        "positive": [str(positive_texts)] if by_texts else list(positive),
        "negative": [str(negative_texts)] if by_texts else list(negative),
        "seed": seed,
    }
    with progress_bar("training") as bar:
        vector = train_vector(
            model,
            name,
            contrast,
            method=method,
            layers=chosen,
            max_steps=max_steps,
            seed=seed,
            on_progress=lambda share: bar(share, ""),
            training=record,
        )
    path = save_vector(vector, folder)
    common.write_json(_report(vector, path), json_path)
    if json_path != "-":
        named = str(path) if folder else vector.name  # which `write` finds in the default folder
        click.echo(f"control vector {vector.name!r}, layers {_ranges(vector.layers)}: {path}")
        if losses := vector.training.get("held_out_loss"):
            common.say(
                "on held-out texts: loss {bare:.2f} without it, {start:.2f} with the mean of the "
                "differences, {end:.2f} with it".format(**losses)
            )
        common.say(f'try it: softlore write "The old house" --vector "{named}=1.5"')


@command.command()
@click.argument("name", required=False)
@options.vectors_option
@options.json_option
def inspect(name: str | None, folder: Path | None, json_path: str | None) -> None:
    """Show the control vector NAME, which may be a file; without NAME, all in the folder.

    \b
    Example:
      softlore vector inspect
      softlore vector inspect dark.gguf
    """
    from softlore.prompts.vector_folder import default_vector_folder, find_vector, vectors_in

    if name is not None:
        vector = find_vector(name, folder)
        common.write_json(_report(vector), json_path)
        if json_path != "-":
            _show(vector)
        return
    vectors = list(vectors_in(folder).values())
    common.write_json([_report(vector) for vector in vectors], json_path)
    if json_path == "-":
        return
    if not vectors:
        where = folder or default_vector_folder()
        click.echo(f"no control vectors in {where}; train one: softlore vector train --help")
        return
    rows = [
        (
            vector.name,
            _ranges(vector.layers),
            str(vector.training.get("method", "")),
            vector.base_model,
        )
        for vector in vectors
    ]
    common.print_table(("name", "layers", "method", "model"), rows)


@command.command()
@click.argument("name")
@click.option("--to", type=click.Choice(["gguf", "safetensors"]), required=True,
              help="llama.cpp's and repeng's format, or softlore's own.")  # fmt: skip
@click.option("--out", type=options.PATH, help="File to write.  [default: NAME with its suffix]")
@options.vectors_option
@options.force_option
@options.with_model
def convert(
    name: str,
    to: str,
    out: Path | None,
    folder: Path | None,
    force: bool,
    source: common.ModelSource,
) -> None:
    """Write the control vector NAME, which may be a file, in another format.

    A GGUF file doesn't say which model it is for: with --model it is checked and recorded.

    \b
    Example:
      softlore vector convert dark --to gguf --out dark.gguf
      softlore vector convert dark.gguf --to safetensors --model smollm2
    """
    from dataclasses import replace

    from softlore.prompts.vector_folder import find_vector
    from softlore.prompts.vector_gguf import vector_to_gguf

    model = None if source.name is None else source.load()
    vector = find_vector(name, folder, None if model is None else model.layers)
    if model is not None:
        vector.check(model)
        vector = replace(vector, fingerprint=model.fingerprint("embedding"), base_model=model.name)
    path = out or Path(f"{Path(name).stem if Path(name).suffix else name}.{to}")
    common.check_free(path, force)
    if to == "gguf":
        vector_to_gguf(vector, path, "" if model is None else model.model_type)
    else:
        vector.save(path)
    click.echo(f"wrote {path} ({path.stat().st_size / 1024:.0f} KB)")


def _of_contexts(
    model: FrozenModel,
    positive: tuple[str, ...],
    negative: tuple[str, ...],
    distilled: bool,
    passages: int | None,
    seed: int,
) -> Contrast:
    from softlore.control.vectors import DISTILLED, PASSAGES, contrast_of_contexts

    passages = passages or (DISTILLED if distilled else PASSAGES)
    common.say(f"writing {passages} passages to compare the texts on")
    with progress_bar("writing") as bar:
        return contrast_of_contexts(
            model,
            positive,
            negative or ("",),
            passages=passages,
            after_positive=distilled,
            seed=seed,
            on_progress=lambda share: bar(share, ""),
        )


def _paragraphs(path: Path) -> list[str]:
    """The paragraphs of a file, which empty lines separate."""
    text = common.read_text(path, "texts")
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _layers(given: str) -> list[int]:
    """`8-22`, `8` or `8,10,12-14`."""
    from softlore.prompts.control_vector import MAX_LAYERS

    chosen: list[int] = []
    try:
        for part in given.split(","):
            first, _, last = part.partition("-")
            chosen += range(int(first), min(int(last or first), MAX_LAYERS) + 1)
    except ValueError:
        raise ConfigError(
            f"--layers is {given!r:.40}; expected numbers and ranges of them, such as 8-22; fix it"
        ) from None
    return chosen


def _ranges(layers: list[int]) -> str:
    """Numbers in order as ranges: `8-22`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _report(vector: ControlVector, path: Path | None = None) -> dict[str, Any]:
    layers, width = vector.directions.shape
    return {
        "name": vector.name,
        "layers": vector.layers,
        "shape": [layers, width],
        "base_model": vector.base_model,
        "created": vector.created,
        "training": vector.training,
        **({"file": str(path)} if path else {}),
    }


def _show(vector: ControlVector) -> None:
    layers, width = vector.directions.shape
    rows = [
        ("name", vector.name),
        ("layers", f"{_ranges(vector.layers)} of {layers}, width {width}"),
        ("model", vector.base_model or "not recorded"),
        ("created", vector.created or "not recorded"),
        *((key, _shown(value)) for key, value in vector.training.items() if key != "layers"),
    ]
    common.print_table(("", ""), rows)


def _shown(value: Any) -> str:
    """A recorded value: of a mapping, `bare 0.33, end 0.22`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)
