"""What `softlore train` says around a training: settings without effect, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.cli import common
from softlore.cli.options import names_arguments

if TYPE_CHECKING:
    from softlore.lore import Lorebook
    from softlore.prompts import SoftPrompt
    from softlore.settings import Names, TrainingConfig

# Settings of finished prompts that are compared with those asked for.
SETTINGS = (
    "n_tokens", "placement", "style", "chat", "min_loss", "optimizer", "learning_rate",
    "max_spacing", "drift_guard", "distil_weight", "max_steps", "seed",
)  # fmt: skip

SMALL_UPDATES = {"distil_weight": 0, "pairs_per_step": 4}  # for calls and their responses alone


def tell_settings(retained: Mapping[str, SoftPrompt], asked: Mapping[str, Any]) -> None:
    """Says where finished prompts have other settings than those asked for."""
    for name, prompt in retained.items():
        used = {key: prompt.training[key] for key in SETTINGS if key in prompt.training}
        other = [
            f"{key.replace('_', '-')} {used[key]}, not {asked[key]}"
            for key in used
            if key in asked and asked[key] != used[key]
        ]
        if other:
            common.say(
                f"{name!r} was trained with {'; '.join(other)}, and is left as it is; "
                "--overwrite trains it again"
            )


def tell_what_is_left_out(asked: TrainingConfig, used: TrainingConfig) -> None:
    """Says where texts are not distilled for want of time."""
    if used.distil_weight < asked.distil_weight:
        common.say(
            "the time is too short for the passages that a text is distilled from: calls alone are "
            "trained; give more time for both"
        )


def tell_few_updates(prompts: Sequence[SoftPrompt], book: Lorebook | None) -> None:
    """Says what helps where a time budget ended before the prompts knew their lore."""
    from softlore.tune.lorebook_training import FEW_UPDATES, ended_by_time, too_few_updates

    if (steps := too_few_updates(prompts)) is None:
        return
    hurried = ended_by_time(prompts)
    smaller = "".join(
        f" --{name.replace('_', '-')} {value}"
        for name, value in SMALL_UPDATES.items()
        if all(p.training.get(name, 0) > value for p in hurried)
    )
    with_calls = book is not None and all(book[p.name].blocks for p in hurried)
    or_smaller = f", or calls alone in small updates:{smaller}" if smaller and with_calls else ""
    common.say(
        f"the time was enough for {common.counted(steps, 'update')} of an entry, too few for most "
        f"lore; expected {FEW_UPDATES} or more; give more time, train fewer entries at once "
        f"(--entry NAME){or_smaller}"
    )


def _appended(arguments: Sequence[str]) -> str:
    """Arguments as they stand at the end of a command to copy."""
    return "".join(f" {shlex.quote(one)}" for one in arguments)


def suggest(
    lorebook: Path,
    book: Lorebook | None,
    prompt: SoftPrompt,
    folder: Path | None,
    model: str | None,
    names: Names,
) -> None:
    """Says what to do with new prompts, as lines to copy."""
    given = [
        *(["--model", model] if model else []),
        *(["--prompts", str(folder)] if folder else []),
    ]
    options = _appended(given)
    text = f"{prompt.tag}{prompt.name}" if book is not None else prompt.tag
    if book is not None and (blocks := book[prompt.name].blocks):
        call = blocks[0].call
        text = f"{prompt.tag}{call}" if prompt.name in call else f"{text}. {call}"
    common.say(f"try this now: softlore write {shlex.quote(text)}{options}")
    if book is not None:
        known = _appended(names_arguments(names))
        book_file = shlex.quote(str(lorebook))
        common.say(f"or write a story: softlore story NAME --lorebook {book_file}{options}{known}")
