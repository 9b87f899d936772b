"""Prefixes for llama-server: a slot file, and the ids that stand for the prefix.

An unmodified llama-server that was started with `--slot-save-path` restores the file
(`POST /slots/0?action=restore`). A request that begins with the ids then finds the prefix's keys
and values in its cache, and reads on from there.
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
from softlore.vllm_connector.placeholders import placeholder

SUFFIX = ".slot.bin"
MOST_FILE = 2**31
TRIES = 64


@dataclass(frozen=True)
class Placeholder:
    """What stands for a prefix at the beginning of a text.

    Attributes:
        ids: a token id a token of the prefix.
        text: what encodes to them; None where the model puts a BOS before every text, so that
            they must be sent as ids.
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
        cache: what the server holds keys and values as.
        streams: of the server: 1, as its cache is one for all slots unless
            `--parallel N` gives each its own; then N.

    Raises:
        PromptError: the embedding kind, or the prompt of another model. StorageError.
    """
    if prompt.kind != "prefix":
        raise PromptError(
            f"prompt {prompt.name!r} is of the {prompt.kind} kind, which no slot file can hold; "
            "expected the prefix kind; train it with kind='prefix', or write with `softlore serve "
            "--engine llamacpp`, which takes both"
        )
    model.check_prompt(prompt)
    stands = placeholder_of(prompt, model)
    runner = LlamaCppContext(model, streams, len(prompt), cache)
    try:
        runner.put(0, [prompt.key_values])
        with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
            file = Path(folder) / "slot"
            runner.save(0, stands.ids, str(file))
            if not file.is_file() or file.stat().st_size > MOST_FILE:
                raise EngineError(
                    "llama.cpp wrote no slot file; expected one; see that there is room in the "
                    "folder for temporary files"
                )
            write_atomically(path, file.read_bytes())
    finally:
        runner.close()
    return stands


def placeholder_of(prompt: SoftPrompt, model: GGUFModel) -> Placeholder:
    """The ids that stand for a prefix: words, so that a text can hold them."""
    words = [i for i in model.ordinary_ids if _is_word(model.decode([i], inside=True))]
    drawn = words or model.ordinary_ids
    ids = placeholder(prompt.digest, len(prompt), drawn)
    for salt in range(TRIES):
        text = model.decode(ids)
        if model.encode(text) == ids:
            return Placeholder(ids, None if model.bos else text)
        ids = placeholder(f"{prompt.digest}:{salt}", len(prompt), drawn)
    return Placeholder(ids, None)


def _is_word(text: str) -> bool:
    return len(text) > 3 and text[0] == " " and text[1:].isalpha()
