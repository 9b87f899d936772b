"""GET /info: the model, its control codes, samplers, file formats, and the load."""

from __future__ import annotations

import dataclasses
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
from softlore.serve.studio.book_folder import NATIVE_FORMATS
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.prompts import header_fields
from softlore.serve.studio.stories import FORMATS as STORY_FORMATS

DEFAULT_TOKENS = 80
# Sliders of the page: field of `SamplingParams`, its bounds there, and a help text.
SAMPLERS: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0.0, 2.0, "0 is greedy; higher is more random."),
    ("top_k", 0, 200, "Keeps so many of the likeliest tokens; 0: all."),
    ("top_p", 0.05, 1.0, "Keeps the likeliest tokens up to this sum; 1: all."),
    ("min_p", 0.0, 0.5, "Drops tokens below this share of the likeliest; 0: none."),
    ("typical", 0.05, 1.0, "Keeps the most typical tokens up to this sum; 1: all."),
    ("repetition_penalty", 1.0, 2.0, "Above 1: repeats less."),
    ("dry_multiplier", 0.0, 2.0, "Penalizes repeated sequences; 0 is off."),
    ("xtc_probability", 0.0, 1.0, "How often the top choices are excluded; 0 is off."),
    ("penalized", 1.0, 2.0, "CTRL's penalty: 1.2, with a low temperature."),
)


def make_router(context: StudioContext) -> APIRouter:
    """GET /info."""
    router = APIRouter()

    @router.get("/info")
    def info() -> dict[str, Any]:
        """The model, its control codes, and what else the page needs to render itself."""
        return {
            "model": model_name(context.model),
            "context_length": context.model.context_length,
            "takes_prefix": context.model.takes_prefix,
            "default_tokens": DEFAULT_TOKENS,
            "codes": [*_model_codes(context.model), *_learned_codes(context.state.prompts)],
            "load": dataclasses.asdict(context.state.engine.load()),
            "formats": {
                "prompts": list(PROMPT_WRITERS),
                "lorebooks": [*NATIVE_FORMATS, *BOOK_WRITERS],
                "stories": list(STORY_FORMATS),
            },
            "samplers": _samplers(),
        }

    return router


def _samplers() -> list[dict[str, Any]]:
    defaults = SamplingParams()
    return [
        {"name": name, "default": getattr(defaults, name), "min": low, "max": high, "help": help}
        for name, low, high, help in SAMPLERS
    ]


def _model_codes(model: LanguageModel) -> list[dict[str, Any]]:
    try:
        codes = codes_of(model)
    except ModelError:  # the model's config names codes that it does not have
        return []
    return [{"name": name, "description": "a code of the model"} for name in codes]


def _learned_codes(library: PromptLibrary) -> list[dict[str, Any]]:
    """Soft prompts trained as control codes are: alone, and without a drift guard."""
    codes = []
    for header in library.listing().headers:
        training = header_fields(header).get("training")
        if not isinstance(training, dict):
            continue
        if training.get("drift_guard") == 0 and training.get("company_size") == 1:
            codes.append({"name": header.name, "description": "a learned code"})
    return codes
