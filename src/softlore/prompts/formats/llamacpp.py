"""Prefixes for llama-server: a slot file, and the placeholder ids of the prefix.

An unmodified llama-server that was started with `--slot-save-path` restores the file
(`POST /slots/0?action=restore`). For a request that begins with the ids it then finds the prefix's
keys and values in its cache, and continues from there.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from softlore.disk import write_atomically
from softlore.errors import EngineError, PromptError
from softlore.model.gguf import CacheTypes, GGUFModel, LlamaCppContext
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.vllm_connector.placeholders import placeholder as draw_ids

SUFFIX = ".slot.bin"
MAX_FILE_BYTES = 2**31
TRIES = 64  # draws of ids until their text encodes to the same ids


@dataclass(frozen=True)
class Placeholder:
    """The beginning of a request that uses a prefix.

    Attributes:
        ids: one per token of the prefix.
        text: text that encodes to them; None if the model puts a BOS before every text: then
            ids must be sent.
    """

    ids: list[int]
    text: str | None


def write(
    prompt: SoftPrompt,
    model: GGUFModel,
    path: str | os.PathLike[str],
    cache: CacheTypes | None = None,
    streams: int = 1,
) -> Placeholder:
    """Writes a slot file of a prefix.

    Args:
        cache: the types of keys and values in the server's cache.
        streams: of the server: 1, as all slots share one cache, unless `--parallel N` gives each a
            separate one; then N.

    Raises PromptError for the embedding kind and for a prompt of another model, StorageError.
    """
    if prompt.kind != "prefix":
        raise PromptError(
            f"prompt {prompt.name!r} is of the {prompt.kind} kind, which a slot file cannot hold; "
            "expected the prefix kind; train it with kind='prefix', or use `softlore serve "
            "--engine llamacpp`, which takes both kinds"
        )
    model.check_prompt(prompt)
    placeholder = prefix_placeholder(prompt, model)
    runner = LlamaCppContext(model, streams, len(prompt), cache)
    try:
        runner.put(0, [prompt.key_values], len(prompt))
        with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
            file = Path(folder) / "slot"
            runner.save(0, placeholder.ids, str(file))
            if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
                raise EngineError(
                    "llama.cpp wrote no slot file; expected one; check that there is room in the "
                    "folder for temporary files"
                )
            write_atomically(path, file.read_bytes())
    finally:
        runner.close()
    return placeholder


def prefix_placeholder(prompt: SoftPrompt, model: GGUFModel) -> Placeholder:
    """The ids for a prefix: words, so that they can be sent as text."""
    words = [i for i in model.ordinary_ids if _is_word(model.decode([i], inside=True))]
    vocabulary = words or model.ordinary_ids
    ids = draw_ids(prompt.digest, len(prompt), vocabulary)
    for salt in range(TRIES):
        text = model.decode(ids)
        if model.encode(text) == ids:
            return Placeholder(ids, None if model.bos else text)
        ids = draw_ids(f"{prompt.digest}:{salt}", len(prompt), vocabulary)
    return Placeholder(ids, None)


def _is_word(text: str) -> bool:
    return len(text) > 3 and text[0] == " " and text[1:].isalpha()
