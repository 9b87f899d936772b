"""Writes the table of model families in docs/models.md, from the tiny models of the tests.

python tools/models_table.py            # rewrites the table between its two markers
python tools/models_table.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

from blocks import ROOT, keep
from softlore import FrozenModel
from softlore.model import TESTED_FAMILIES
from softlore.model.tiny import tiny_hf, tiny_model

PAGE = ROOT / "docs" / "models.md"

# Well-known models of a family, and its kind of positions.
KNOWN = {
    "bloom": ("BLOOM, BLOOMZ", "ALiBi"),
    "cohere": ("Command R", "rotary"),
    "ctrl": ("CTRL", "sinusoids"),
    "falcon": ("Falcon (not falcon-rw)", "rotary"),
    "gemma": ("Gemma", "rotary"),
    "gemma2": ("Gemma 2", "rotary"),
    "gemma3_text": ("Gemma 3, text", "rotary"),
    "gpt2": ("GPT-2, DistilGPT-2", "learned"),
    "gpt_neo": ("GPT-Neo", "learned"),
    "gpt_neox": ("GPT-NeoX, Pythia", "rotary"),
    "gptj": ("GPT-J", "rotary"),
    "granite": ("Granite 3", "rotary"),
    "llama": ("Llama, TinyLlama, storyteller", "rotary"),
    "mistral": ("Mistral", "rotary"),
    "mpt": ("MPT", "ALiBi"),
    "olmo2": ("OLMo 2", "rotary"),
    "opt": ("OPT", "learned"),
    "phi": ("Phi 1 to 2", "rotary"),
    "phi3": ("Phi 3 to 4", "rotary"),
    "qwen2": ("Qwen 1.5 to 2.5", "rotary"),
    "qwen3": ("Qwen 3", "rotary"),
    "stablelm": ("StableLM", "rotary"),
    "starcoder2": ("StarCoder 2", "rotary"),
    "xglm": ("XGLM", "sinusoids"),
}


def table() -> str:
    """A row for each family: models, positions, window, scale, kinds of prompts."""
    lines = [
        "| family | such as | positions | sliding window | rows scaled | embedding | prefix |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in sorted(TESTED_FAMILIES):
        model = tiny_model(family)
        known, positions = KNOWN[family]
        prefix = "yes" if model.takes_prefix else "no"
        cells = [
            f"`{family}`",
            known,
            positions,
            _window(model),
            _scaled(model, family),
            "yes",
            prefix,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _window(model: FrozenModel) -> str:
    if model.family.sliding_window is None:
        return ""
    return "some layers" if model.family.sight is None else "all layers"


def _scaled(model: FrozenModel, family: str) -> str:
    table = tiny_hf(family).get_input_embeddings().weight
    scale = float((model.embed_ids([5]) / table[5]).mean().detach())
    return "" if abs(scale - 1) < 1e-3 else "× √width"


if __name__ == "__main__":
    keep(PAGE, "families", table, __doc__)
