"""GET /info and /models: the model, its control codes, samplers, file formats, and the load."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter

from softlore.context.chat import chat_template
from softlore.control import codes_of
from softlore.errors import ModelError, PromptMismatchError
from softlore.lore.formats.registry import EXPORTERS as BOOK_WRITERS
from softlore.model import LanguageModel
from softlore.model.finding import known_models, own_models
from softlore.prompts import WRITABLE, PromptLibrary
from softlore.prompts.vector_folder import vectors_in
from softlore.serve.compose import model_name
from softlore.serve.studio.book_folder import NATIVE_FORMATS
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import MAX_MINUTES, TRAINING, ModelChange, NewTraining
from softlore.serve.studio.prompts import header_fields
from softlore.serve.studio.stories import FORMATS as STORY_FORMATS
from softlore.settings import SamplingParams, TrainingConfig, table
from softlore.story.settings import STORY_SAMPLING

DEFAULT_TOKENS = 80
# Samplers that go together, by name, each with what it is for; the first has the defaults.
PRESETS: list[dict[str, Any]] = [
    {"name": "Story", "help": "A story's defaults: lively, without repeating itself.",
     "sampling": {}},
    {"name": "Careful", "help": "The likeliest words: for facts, and for small models.",
     "sampling": {"temperature": 0.6, "top_p": 0.9}},
    {"name": "Free", "help": "Rarer words, but none that make no sense.",
     "sampling": {"temperature": 1.2, "min_p": 0.08}},
    {"name": "Surprising", "help": "The most likely words are often left out.",
     "sampling": {"min_p": 0.05, "xtc_probability": 0.5, "xtc_threshold": 0.1}},
    {"name": "As trained", "help": "The model's own chances, nothing steered.",
     "sampling": {"temperature": 1.0, "top_k": 0, "dry_multiplier": 0.0}},
]  # fmt: skip


def make_router(context: StudioContext) -> APIRouter:
    """GET /info and /models, POST /model."""
    router = APIRouter()

    @router.get("/info")
    def info() -> dict[str, Any]:
        """The model, its control codes, and what else the page needs to render itself."""
        return {
            "model": model_name(context.model),
            "run": context.state.run,
            "notice": context.state.notice,
            "context_length": context.model.context_length,
            "takes_prefix": context.model.takes_prefix,
            "chat_template": bool(chat_template(context.model)),
            "default_tokens": DEFAULT_TOKENS,
            "book": context.books.opened,
            "codes": [*_model_codes(context.model), *_learned_codes(context.state.prompts)],
            "vectors": _vectors(context.model),
            "load": dataclasses.asdict(context.state.engine.load()),
            "formats": {
                "prompts": list(WRITABLE),
                "lorebooks": [*NATIVE_FORMATS, *BOOK_WRITERS],
                "stories": list(STORY_FORMATS),
            },
            "samplers": _samplers(),
            "presets": PRESETS,
            "training": _training(),
        }

    @router.get("/models")
    def models() -> list[dict[str, Any]]:
        """The models that `softlore serve --model` takes by name, with what each is for.

        Those that are `here` can be changed to without a download, where `changes` says so.
        """
        changes = context.state.change_model is not None
        return [
            {
                "name": found.name,
                "here": found.path is not None,
                "changes": changes and found.path is not None,
                "use": found.known.use if found.known else "your own",
            }
            for found in (*known_models(), *own_models())
        ]

    @router.post("/model", status_code=202)
    def change(body: ModelChange) -> dict[str, str]:
        """Starts the server anew with another model, for all clients.

        Texts that are being written get `close_seconds` to end; then requests wait until the
        model is loaded. /info has another `run` then, and a `notice` if it could not be loaded.

        Raises:
            ModelError: no model on this machine has that name, or the engine has one model only.
        """
        if context.state.change_model is None:
            raise ModelError(
                "this server's engine runs one model; expected the engine `local`; start the "
                "server with another one in a terminal"
            )
        at_hand = [m.name for m in (*known_models(), *own_models()) if m.path is not None]
        if body.name not in at_hand:
            raise ModelError(
                f"model {body.name!r} is not on this machine; expected one of "
                f"{', '.join(at_hand)}; get it in a terminal (`softlore models --help`)"
            )
        context.state.change_model(body.name)
        return {"name": body.name}

    return router


def _samplers() -> list[dict[str, Any]]:
    """The samplers that the page shows a slider for, with what stories have by default."""
    return [
        {
            "name": setting.name,
            "default": STORY_SAMPLING.get(setting.name, setting.default),
            "help": setting.help,
        }
        | dict(zip(("min", "max", "step"), setting.slider, strict=True))
        for setting in table(SamplingParams).values()
        if setting.slider is not None
    ]


def _training() -> dict[str, dict[str, Any]]:
    """The training settings of the API, by name."""
    settings = table(TrainingConfig)
    about = NewTraining.model_fields["minutes"].description
    limit = {"default": None, "help": about, "min": 1, "max": MAX_MINUTES, "choices": None}
    return {"minutes": limit} | {
        name: {
            "default": settings[name].default,
            "help": settings[name].help,
            "min": settings[name].low,
            "max": settings[name].high,
            "choices": settings[name].choices,
        }
        for name in TRAINING
    }


def _model_codes(model: LanguageModel) -> list[dict[str, Any]]:
    try:
        codes = codes_of(model)
    except ModelError:  # the model's config names codes that it does not have
        return []
    return [{"name": name, "description": "a code of the model"} for name in codes]


def _vectors(model: LanguageModel) -> list[dict[str, Any]]:
    """The control vectors that were made for this model, and that its engine can add."""
    fitting: list[dict[str, Any]] = []
    for vector in vectors_in().values():
        try:
            vector.check(model)
        except (PromptMismatchError, ModelError):
            continue
        positive = vector.training.get("positive")
        about = positive[0] if isinstance(positive, list) and positive else "a control vector"
        fitting.append({"name": vector.name, "description": str(about)[:200]})
    return fitting


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
