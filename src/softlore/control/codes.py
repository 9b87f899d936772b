"""Control codes: those that a model was trained with, and soft prompts that serve as codes.

A code is the first thing in every window of text. CTRL's codes (Keskar et al. 2019) are words of
its vocabulary; storyteller's are special tokens, listed under `control_codes` in its config.json,
as any model's may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from softlore.context.compose import ContextLike
from softlore.errors import ConfigError, ModelError, UnknownPromptError
from softlore.model import LanguageModel
from softlore.prompts import SoftPrompt
from softlore.settings import closest
from softlore.settings.arguments import MODEL, NAMED, Kind, expecting


@dataclass(frozen=True)
class Code:
    """A control code.

    Attributes:
        conditioning: what is put before the text: the code's own text, or a soft prompt.
        template: the form of a text under the code; `{code}` is the conditioning.
        token: its id, where it is one token of the model's vocabulary.
    """

    name: str
    conditioning: ContextLike
    template: str = "{code}{text}"
    token: int | None = None


CODES = Kind(
    "codes by name, at least one",
    lambda value: (
        NAMED.fits(value)
        and len(value) > 0
        and all(isinstance(code, Code) for code in value.values())
    ),
)


@expecting(model=MODEL)
def codes_of(model: LanguageModel) -> dict[str, Code]:
    """The codes that a model was trained with, by name; none for most models.

    Raises:
        ModelError: its config lists codes that are not one token each for its tokenizer.
    """
    family = model.family
    words = family.codes_in_tokenizer
    listed = model.control_codes
    if not isinstance(listed, Mapping):
        raise _invalid(model, listed)
    codes = {}
    for name, token in sorted(listed.items(), key=lambda item: str(item[0])):
        if words and model.tokenizer.convert_ids_to_tokens(token) != name:
            continue  # a model with a smaller vocabulary
        conditioning = name if words else _text_of(model, name, token)
        codes[name] = Code(name, conditioning, family.code_template(name), token)
    return codes


def find_codes(
    model: LanguageModel, names: Iterable[str], prompts: Mapping[str, SoftPrompt]
) -> dict[str, Code]:
    """Codes by name: the model's, and soft prompts that serve as codes.

    Raises:
        UnknownPromptError: a name that is neither.
        ConfigError: no names.
    """
    of_model = codes_of(model)
    codes = {}
    for name in names:
        if name in of_model:
            codes[name] = of_model[name]
        elif name in prompts:
            codes[name] = Code(name, prompts[name])
        else:
            raise _unknown(model, name, [*of_model, *prompts])
    if not codes:
        raise ConfigError(
            f"{model.name!r} has no control codes; expected names of soft prompts that serve as "
            "codes; train some, and name them with --codes"
        )
    return codes


def _unknown(model: LanguageModel, name: str, known: list[str]) -> UnknownPromptError:
    if not known:
        return UnknownPromptError(
            f"{name!r} is unknown: {model.name!r} has no control codes, and there are no soft "
            "prompts; expected the name of a code or of a soft prompt; use a model with codes, or "
            "another prompts folder"
        )
    hint = closest(name, known) or "see `softlore codes`"
    return UnknownPromptError(
        f"{name!r} is neither a code of {model.name!r} nor a soft prompt; expected one of "
        f"{', '.join(map(repr, known[:9]))}; {hint}"
    )


def _text_of(model: LanguageModel, name: Any, token: Any) -> str:
    """The text that encodes to a code's token."""
    if not isinstance(name, str) or type(token) is not int or not 0 <= token < model.vocab_size:
        raise _invalid(model, {name: token})
    text = str(model.tokenizer.convert_ids_to_tokens(token))
    if model.encode(text) != [token]:
        raise _invalid(model, {name: token})
    return text


def _invalid(model: LanguageModel, value: Any) -> ModelError:
    return ModelError(
        f"control_codes in the config of {model.name!r} holds {value!r:.80}; expected names with "
        "the id of one token of its vocabulary each; fix config.json"
    )
