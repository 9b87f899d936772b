"""Options of the commands that run a model in a GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.common import ModelSource, require_extra
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.decode import ModelRunner
    from softlore.decode.llamacpp import LlamaCppModelRunner
    from softlore.model.gguf import CacheTypes, GGUFModel

Command = Callable[..., Any]
LLAMACPP = "llamacpp"  # its name in options that choose an engine
TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
gguf_option = click.option(
    "--gguf",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A GGUF file that llama.cpp runs; --model may name the model it was made from.",
)
flash_option = click.option(
    "--flash-attn/--no-flash-attn",
    default=True,
    show_default=True,
    help="gguf: flash attention.",
)
cache_type_option = click.option(
    "--cache-type",
    default="f16",
    show_default=True,
    type=click.Choice(TYPES),
    help="gguf: the type of keys and values.",
)


def cache_options(function: Command) -> Command:
    """`--cache-type` and `--flash-attn`, passed on together as `cache`."""

    @functools.wraps(function)
    def with_cache(*args: Any, cache_type: str, flash_attn: bool, **kwargs: Any) -> Any:
        return function(*args, cache=(cache_type, flash_attn), **kwargs)

    return cache_type_option(flash_option(with_cache))


def check_gguf(option: str, value: str, gguf: Path | None) -> None:
    """Rejects a file without the engine llamacpp, and llamacpp without a file."""
    if value == LLAMACPP and gguf is None:
        raise ConfigError(
            f"{option} {LLAMACPP} has no --gguf; expected the model's GGUF file; give its path, "
            f"or another {option}"
        )
    if value != LLAMACPP and gguf is not None:
        raise ConfigError(
            f"{option} is {value} and --gguf {str(gguf)!r}; expected a file with {LLAMACPP} and "
            f"none with others; leave --gguf out, or choose {option} {LLAMACPP}"
        )


def runner_of(
    source: ModelSource, gguf: Path | None, cache: tuple[str, bool], n_sequences: int = 1
) -> ModelRunner:
    """The runner of the GGUF file, or of the model named if there is none.

    Raises:
        ModelError: it can't be loaded. ConfigError: the cache options do not fit each other.
    """
    if gguf is not None:
        return gguf_runner(gguf, source.name, None, cache, n_sequences)
    from softlore.decode import runner_for

    return runner_for(source.load())


def gguf_runner(
    path: Path,
    model_name: str | None,
    context: int | None,
    cache: tuple[str, bool],
    n_sequences: int = 1,
    max_mb: float = 2048,
) -> LlamaCppModelRunner:
    """The runner of the model in a file. Raises ModelError, ConfigError."""
    model = load_gguf(path, model_name, context)
    from softlore.decode.llamacpp import LlamaCppModelRunner

    return LlamaCppModelRunner(model, n_sequences, cache_types(cache), max_mb)


def cache_types(cache: tuple[str, bool]) -> CacheTypes:
    """The options that `cache_options` passed on.

    Raises:
        ConfigError: a type that needs flash attention without it.
    """
    with require_extra("llamacpp"):
        from softlore.model.gguf import CacheTypes

    kind, flash = cache
    return CacheTypes(kind, kind, flash)


def load_gguf(path: Path, model_name: str | None, context: int | None = None) -> GGUFModel:
    """The model in a file, with the tokenizer of the model named, or its own."""
    with require_extra("llamacpp"):
        import gguf as _gguf  # noqa: F401
        import llama_cpp as _llama  # noqa: F401

        from softlore.model.gguf import GGUFModel

    return GGUFModel(path, model_name, context)
