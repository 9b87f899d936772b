"""Options of the commands that run a model in a GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.common import require_extra
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.decode.llamacpp import LlamaCppModelRunner
    from softlore.model.gguf import CacheTypes, GGUFModel

Command = Callable[..., Any]
LLAMACPP = "llamacpp"  # what options call it that choose between it and others
TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
gguf_option = click.option(
    "--gguf",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A model that llama.cpp runs; --model may name what it was made from.",
)


def cache_options(function: Command) -> Command:
    """`--cache-type` and `--flash-attn`, handed on as `cache`."""

    @functools.wraps(function)
    def gathered(*args: Any, cache_type: str, flash_attn: bool, **kwargs: Any) -> Any:
        return function(*args, cache=(cache_type, flash_attn), **kwargs)

    command: Any = gathered
    for one in (
        click.option(
            "--flash-attn/--no-flash-attn",
            default=True,
            show_default=True,
            help="gguf: flash attention.",
        ),
        click.option(
            "--cache-type",
            default="f16",
            show_default=True,
            type=click.Choice(TYPES),
            help="gguf: what keys and values are held as.",
        ),
    ):
        command = one(command)
    return command


def check_gguf(option: str, value: str, gguf: Path | None) -> None:
    """Refuses a file where the option does not say llamacpp, and llamacpp without one."""
    if (value == LLAMACPP) != (gguf is not None):
        raise ConfigError(
            f"{option} is {value} and --gguf {str(gguf) if gguf else None!r}; expected a file with "
            f"{LLAMACPP} and none with others; mend one of them"
        )


def gguf_runner(
    path: Path,
    model_name: str | None,
    context: int | None,
    cache: tuple[str, bool],
    lanes: int = 1,
    most_mb: float = 2048,
) -> LlamaCppModelRunner:
    """What runs the model in a file. Raises ModelError, ConfigError."""
    model = load_gguf(path, model_name, context)
    from softlore.decode.llamacpp import LlamaCppModelRunner

    return LlamaCppModelRunner(model, lanes, cache_of(cache), most_mb)


def cache_of(given: tuple[str, bool]) -> CacheTypes:
    """What `cache_options` gathered.

    Raises:
        ConfigError: a type that needs flash attention without it.
    """
    with require_extra("llamacpp"):
        from softlore.model.gguf import CacheTypes

    kind, flash = given
    return CacheTypes(kind, kind, flash)


def load_gguf(path: Path, model_name: str | None, context: int | None = None) -> GGUFModel:
    """The model in a file, with the tokenizer of the model named, or its own."""
    with require_extra("llamacpp"):
        import gguf as _gguf  # noqa: F401
        import llama_cpp as _llama  # noqa: F401

        from softlore.model.gguf import GGUFModel

    return GGUFModel(path, model_name, context)
