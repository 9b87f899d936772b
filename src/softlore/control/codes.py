"""Control codes: which ones a model knows, and how a text under each begins.

A code is what stands first in every window. CTRL's codes (Keskar et al. 2019) are words of its
vocabulary; storyteller's are tokens of their own, named by `control_codes` in its config.json,
where any model may name its own; a learned code is a soft prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from softlore.context.compose import ContextLike
from softlore.errors import ConfigError, ModelError, UnknownPromptError
from softlore.model import LanguageModel
from softlore.prompts import SoftPrompt


@dataclass(frozen=True)
class Code:
    """A control code.

    Attributes:
        name: what users call it.
        head: what stands first: the code's own text, or a learned soft prompt.
        template: how a text under it looks; `{code}` is the head.
        token: its id, where it is one token of the model's vocabulary.
    """

    name: str
    conditioning: ContextLike
    template: str = "{code}{text}"
    token: int | None = None


def codes_of(model: LanguageModel) -> dict[str, Code]:
    """The codes that a model was trained with, by name; none for most models.

    Raises:
        ModelError: its config names codes that its tokenizer does not know as one token each.
    """
    family = model.family
    words = family.codes_in_tokenizer
    found = model.control_codes
    if not isinstance(found, Mapping):
        raise _wrong(model, found)
    codes = {}
    for name, token in sorted(found.items(), key=lambda item: str(item[0])):
        if words and model.tokenizer.convert_ids_to_tokens(token) != name:
            continue  # a small vocabulary, as of a test model, without this one
        conditioning = name if words else _text_of(model, name, token)
        codes[name] = Code(name, conditioning, family.code_template(name), token)
    return codes


def find_codes(
    model: LanguageModel, names: Iterable[str], prompts: Mapping[str, SoftPrompt]
) -> dict[str, Code]:
    """Codes by name: the model's own, and soft prompts that stand for one.

    Raises:
        UnknownPromptError: a name that is neither.
    """
    own = codes_of(model)
    codes = {}
    for name in names:
        if name in own:
            codes[name] = own[name]
        elif name in prompts:
            codes[name] = Code(name, prompts[name])
        else:
            known = [*own, *prompts]
            close = difflib.get_close_matches(name, known, n=1)
            if not known:
                raise UnknownPromptError(
                    f"{name!r} is neither a code of {model.name!r}, which has none, nor a soft "
                    "prompt at hand, and there are none; expected a model with codes, or a folder "
                    "of prompts that stand for some; name the one or the other"
                )
            hint = f"did you mean {close[0]!r}?" if close else "see `softlore codes`"
            raise UnknownPromptError(
                f"{name!r} is neither a code of {model.name!r} nor a soft prompt at hand; expected "
                f"one of {', '.join(map(repr, known[:9]))}; {hint}"
            )
    if not codes:
        raise ConfigError(
            f"{model.name!r} has no control codes of its own; expected names of soft prompts that "
            "stand for codes; train some, and name them with --codes"
        )
    return codes


def _text_of(model: LanguageModel, name: Any, token: Any) -> str:
    """The text that encodes to a code's token."""
    if not isinstance(name, str) or type(token) is not int or not 0 <= token < model.vocab_size:
        raise _wrong(model, {name: token})
    text = str(model.tokenizer.convert_ids_to_tokens(token))
    if model.encode(text) != [token]:
        raise _wrong(model, {name: token})
    return text


def _wrong(model: LanguageModel, found: Any) -> ModelError:
    return ModelError(
        f"control_codes in the config of {model.name!r} holds {found!r:.80}; expected names with "
        "the id of one token of its vocabulary each; mend config.json"
    )
