"""What the page asks first: the model, its codes, samplers, formats, and how busy it is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from softlore.control import codes_of
from softlore.decode.samplers import SamplingParams
from softlore.errors import ModelError
from softlore.lore.formats.writers import WRITERS as BOOK_WRITERS
from softlore.model import LanguageModel
from softlore.prompts import PromptLibrary
from softlore.prompts.writers import WRITERS as PROMPT_WRITERS
from softlore.serve.compose import model_name
from softlore.serve.studio.book_folder import OWN_FORMATS
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.headers import fields_of
from softlore.serve.studio.stories import FORMATS as STORY_FORMATS

USUAL_TOKENS = 80
# Common samplers: field of `Sampling`, least and most of a slider, and what it does.
SAMPLERS: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0.0, 2.0, "0 is greedy; higher is bolder."),
    ("top_k", 0, 200, "Keep so many of the likeliest tokens; 0: all."),
    ("top_p", 0.05, 1.0, "Keep the likeliest, to this sum; 1: all."),
    ("min_p", 0.0, 0.5, "Drop what is below this share of the best; 0: none."),
    ("typical", 0.05, 1.0, "Keep the most expected, to this sum; 1: all."),
    ("repetition_penalty", 1.0, 2.0, "Above 1: repeat less."),
    ("dry_multiplier", 0.0, 2.0, "Against going on with a repetition; 0 is off."),
    ("xtc_probability", 0.0, 1.0, "How often the top choices are left out; 0 is off."),
    ("penalized", 1.0, 2.0, "CTRL's penalty: 1.2, with a low temperature."),
)


def make_router(bench: StudioContext) -> APIRouter:
    """GET /info."""
    router = APIRouter()

    @router.get("/info")
    def info() -> dict[str, Any]:
        """The model, its control codes, and what else the page needs to draw itself."""
        load = bench.state.engine.load()
        return {
            "model": model_name(bench.model),
            "context_length": bench.model.context_length,
            "takes_prefix": bench.model.takes_prefix,
            "default_tokens": USUAL_TOKENS,
            "codes": [*_codes(bench.model), *_learned_codes(bench.state.prompts)],
            "load": {
                "running": load.running,
                "waiting": load.waiting,
                "slots": load.slots,
                "queue": load.queue,
            },
            "formats": {
                "prompts": list(PROMPT_WRITERS),
                "lorebooks": [*OWN_FORMATS, *BOOK_WRITERS],
                "stories": list(STORY_FORMATS),
            },
            "samplers": _samplers(),
        }

    return router


def _samplers() -> list[dict[str, Any]]:
    usual = SamplingParams()
    return [
        {"name": name, "default": getattr(usual, name), "min": least, "max": most, "help": told}
        for name, least, most, told in SAMPLERS
    ]


def _codes(model: LanguageModel) -> list[dict[str, Any]]:
    try:
        found = codes_of(model)
    except ModelError:  # its config names codes that it does not have
        return []
    return [{"name": name, "description": "a code of the model's"} for name in found]


def _learned_codes(library: PromptLibrary) -> list[dict[str, Any]]:
    """Soft prompts that were trained as codes are: alone, and with nothing to hold them back."""
    found = []
    for header in library.listing().headers:
        trained = fields_of(header).get("training")
        if not isinstance(trained, dict):
            continue
        if trained.get("drift_guard") == 0 and trained.get("company_size") == 1:
            found.append({"name": header.name, "description": "a learned code"})
    return found
