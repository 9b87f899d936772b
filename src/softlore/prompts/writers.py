"""Writing a prompt in any format that can be written: the twin of readers.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from softlore.prompts import native
from softlore.prompts.formats import kobold, mkultra, peft, vllm
from softlore.prompts.shapes import Kind
from softlore.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class PromptExporter:
    """One format that prompts are written in.

    Attributes:
        makes: what a program finds there.
        suffix: what file names of the format end in.
        kinds: those it has a place for; `write` refuses the other.
        write: writes it to a path, whole or not at all; raises PromptError or StorageError.
    """

    makes: str
    suffix: str
    kinds: tuple[Kind, ...]
    write: Callable[[SoftPrompt, str | os.PathLike[str]], None]


# By the name that `softlore convert --to` takes. An exporter adds itself here.
WRITERS: dict[str, PromptExporter] = {
    "safetensors": PromptExporter(
        "softlore's own file", native.SUFFIX, ("embedding", "prefix"), native.write_prompt
    ),
    "kobold": PromptExporter("KoboldAI's zip", ".zip", ("embedding",), kobold.write),
    "peft": PromptExporter("PEFT's adapter folder", "-peft", ("embedding", "prefix"), peft.write),
    "mkultra": PromptExporter("mkultra's JSON", ".json", ("embedding",), mkultra.write),
    "vllm": PromptExporter("vLLM's request body", ".vllm.json", ("embedding",), vllm.write),
}
