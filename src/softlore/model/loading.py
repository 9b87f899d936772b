"""Loads a model and its tokenizer by short name, folder, GGUF file or hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from softlore.errors import ModelError
from softlore.model.catalog import DEFAULT_MODEL, KNOWN_MODELS
from softlore.model.finding import display_name, locate
from softlore.model.gguf.header import is_gguf, read_header
from softlore.model.gguf.weights import load_gguf_tokenizer, load_weights
from softlore.model.placement import Placement
from softlore.model.verify import first_line


def load(
    name: str,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    tokenizer: Any = None,
    quantize: str | None = None,
) -> tuple[Any, Any, str]:
    """Loads a transformers causal LM, by short name, folder, GGUF file or hub id.

    Args:
        tokenizer: used in place of a GGUF file's own.

    Returns:
        The model, its tokenizer, and its name.

    Raises:
        ModelError: when there is no such model, device or dtype, or it can't be read.

    See `Placement` for the other arguments.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = locate(name)
    placement = Placement.choose(where, dtype, device, quantize)
    if is_gguf(where):
        placement.refuse_options("a GGUF file")
        with _quiet():
            hf, tokenizer, own_name = load_weights(Path(where), placement.dtype, tokenizer)
        return placement.move(hf), tokenizer, name if name in KNOWN_MODELS else own_name
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(where)
            hf = AutoModelForCausalLM.from_pretrained(where, **placement.options())
    except Exception as error:
        raise ModelError(
            f"model {name!r} could not be loaded ({first_line(error)}); expected a "
            "folder with config.json, weights and tokenizer, a GGUF file, a hub id that can be "
            f"reached, or {DEFAULT_MODEL!r}; check the name, or download the model first"
        ) from error
    return placement.move(hf), tokenizer, display_name(name)


def load_tokenizer(name: str) -> Any:
    """Loads the tokenizer of a model, without its weights.

    Raises:
        ModelError: when there is no such model.
    """
    from transformers import AutoTokenizer

    where = locate(name, weights=False)
    if is_gguf(where):
        return load_gguf_tokenizer(Path(where))
    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as error:
        raise ModelError(
            f"the tokenizer of {name!r} could not be loaded ({first_line(error)}); expected a "
            "folder or a hub id that can be reached; check the name, or download the model first"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def name_of(name: str) -> str:
    """The name that a model has which is loaded by this name or path."""
    if name not in KNOWN_MODELS and is_gguf(name):
        return read_header(name).name
    return display_name(name)


def leading_id(tokenizer: Any) -> int | None:
    """The BOS id where the tokenizer itself puts one before a text, else None."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if ids and bos is not None and ids[0] == bos else None
