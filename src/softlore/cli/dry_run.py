"""`softlore train --dry-run`: what a training will take, before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.cli import common

if TYPE_CHECKING:
    import torch

    from softlore.lore import Lorebook
    from softlore.tune.forecast import TrainingForecast

FITS = {
    "whole": "suffices",
    "parts": "suffices, each update in parts",
    "checkpointing": "suffices, with gradient checkpointing",
    "no": "does not suffice",
}


def dry_run_report(
    path: Path, include: Sequence[str], settings: dict[str, Any], source: common.ModelSource
) -> dict[str, Any]:
    """Prints what training a lorebook will take; returns the same as JSON.

    Of the model only the config and the tokenizer are read. What its prompts folder holds already
    is not looked at: all entries count, or those of `include`.

    Raises:
        SoftloreError: lore, settings or a model that can't be trained.
    """
    book = _read_book(path)
    common.say(f"{book.name}: {common.counted(len(book), 'entry', 'entries')}; nothing is loaded")
    from softlore.model.finding import locate
    from softlore.model.placement import default_dtype, parse_dtype
    from softlore.model.unloaded import UnloadedModel
    from softlore.settings import TrainingConfig, table
    from softlore.tune.forecast import forecast
    from softlore.tune.lorebook_training import check_names

    check_names(book, include)
    entries = [entry for entry in book if not include or entry.name in include]
    given = {key: value for key, value in settings.items() if key in table(TrainingConfig)}
    config = TrainingConfig.of({**book.training, **given})
    name = source.choose(book.model).name or ""
    device = _device(source)
    where = locate(name, weights=False)
    dtype = parse_dtype(source.dtype) if source.dtype else default_dtype(where, device)
    found = forecast(UnloadedModel.of(name, dtype), entries, config, source.quantize)
    speed = _speed(where, dtype, device)
    seconds = None if speed is None else round(found.seconds(speed))
    for line in report_lines(found, device.type, speed):
        common.say(line)
    return found.to_dict() | {"device": device.type, "flops_a_second": speed, "seconds": seconds}


def report_lines(found: TrainingForecast, device: str, speed: float | None) -> list[str]:
    """The forecast as text."""
    in_type = f"{found.quantize}, the rest in {found.dtype}" if found.quantize else found.dtype
    fewer = found.smallest_tokens * found.per_token_checkpointed
    lines = [
        f"model     {found.model} ({found.family}): {found.parameters:,} parameters, "
        f"{_size(found.weights)} in {in_type}, on {device}",
        f"prompts   {found.entries} of kind {found.kind}, {_size(found.prompt)} each",
        f"updates   {found.updates:,} at most, of {found.update_tokens:,} tokens; "
        f"{found.passages:,} passages at most",
        f"memory    {_size(found.weights)} of weights, and {_size(found.update_bytes)} for an "
        f"update at once ({_size(found.per_token)} a token)",
        f"          at least {_size(found.least_bytes)}: {_size(fewer)} for the smallest part of "
        f"an update with gradient checkpointing, {_size(found.workspace)} for logits and optimizer",
    ]
    for size, fit in found.cards().items():
        lines.append(f"          a card of {size} GB {FITS[fit]}")
        if fit == "whole":
            break
    if speed is None:
        lines.append(f"time      unknown: there is no {device} here to measure")
    else:
        lines.append(
            f"time      {_duration(found.seconds(speed))} for all updates: an estimate, from "
            f"{speed / 1e9:,.0f} billion operations a second, measured on products of matrices"
        )
    return lines


def _device(source: common.ModelSource) -> torch.device:
    """The device to plan for, which need not be here; quantized models are planned for CUDA."""
    import torch

    from softlore.model.placement import choose_device

    if source.device == "auto" or (source.device is None and source.quantize is not None):
        return torch.device("cuda")
    return choose_device(None) if source.device is None else torch.device(source.device)


def _speed(where: str, dtype: torch.dtype, device: torch.device) -> float | None:
    """Operations a second, of this machine's processor or GPU; None for a device it has not."""
    import torch

    from softlore.model.placement import speed_for
    from softlore.model.processor import gpu_speed

    if device.type == "cpu":
        return speed_for(where).of(dtype) * torch.get_num_threads()
    if device.type == "cuda" and torch.cuda.is_available():
        return gpu_speed(device, dtype)
    return None


def _size(number: float) -> str:
    """Bytes in a readable unit, of 1,000 each."""
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _read_book(path: Path) -> Lorebook:
    """A lorebook; a corpus can't be planned. Raises ConfigError, LoreError."""
    from softlore.errors import ConfigError
    from softlore.lore import Lorebook
    from softlore.lore.corpora import holds_corpora

    if path.suffix == ".txt" or holds_corpora(path):
        raise ConfigError(
            f"{str(path)!r} is a corpus; expected a lorebook, with --dry-run; leave --dry-run out"
        )
    return Lorebook.load(path)
