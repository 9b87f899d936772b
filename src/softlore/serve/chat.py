"""Renders the messages of a chat as text: by the model's chat template, or as a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from softlore.errors import InputError
from softlore.model import LanguageModel

_SPLIT = 100  # newest messages that a template's text is split at; each takes a rendering
_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


class TextPart(BaseModel):
    """A part of a message; the model reads text only."""

    type: Literal["text"] = "text"
    text: str


class ChatMessage(BaseModel):
    """A message of a chat; its content is text, or a list of text parts."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[str | TextPart] | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)


@dataclass(frozen=True)
class Chat:
    """A chat as a text for the model.

    Attributes:
        memory: the system's first messages, which are not cut.
        turns: the other messages, the last one with what introduces the reply; or all as one text.
        stop: what ends the reply, besides the model's own end.
        strip: whether the reply begins with a space that does not belong to it.
    """

    memory: str
    turns: str | list[str]
    stop: tuple[str, ...] = ()
    strip: bool = False


def render_chat(model: LanguageModel, messages: Sequence[ChatMessage]) -> Chat:
    """A chat as a text. Raises InputError where the model's template refuses the messages."""
    if getattr(model.tokenizer, "chat_template", None):
        return _templated(model, messages)
    return _transcript(messages)


def _transcript(messages: Sequence[ChatMessage]) -> Chat:
    """`User: …` and `Assistant: …` in turn."""
    system = _count_system(messages)
    turns = [f"{_speaker(m.role)}: {m.text.rstrip()}\n" for m in messages[system:]]
    stop = tuple(f"\n{name}:" for name in ("User", "System", "Assistant"))
    memory = "\n".join(m.text for m in messages[:system] if m.text)
    if messages[-1].role == "assistant":  # whose message is to be continued
        return Chat(memory, [*turns[:-1], turns[-1].removesuffix("\n")], stop)
    last = (turns[-1] if turns else "") + "Assistant:"
    return Chat(memory, [*turns[:-1], last], stop, strip=True)


def _speaker(role: str) -> str:
    return _NAMES.get(role) or role[:40].capitalize()


def _count_system(messages: Sequence[ChatMessage]) -> int:
    """How many messages of the system come before all others."""
    return next((i for i, m in enumerate(messages) if m.role not in _SYSTEM), len(messages))


def _templated(model: LanguageModel, messages: Sequence[ChatMessage]) -> Chat:
    """By the model's template; its text is split where messages begin, as far as that shows."""
    continued = messages[-1].role == "assistant"
    bos = "" if model.bos_id is None else str(model.tokenizer.bos_token or "")
    text = _render(model, messages, not continued, continued).removeprefix(bos)

    def length_of(count: int) -> int | None:
        """Characters of the first `count` messages; None where it cannot be known."""
        if not count:
            return 0
        try:
            start = _render(model, messages[:count]).removeprefix(bos)
        except InputError:  # a template may refuse a chat that ends there
            return None
        return len(start) if text.startswith(start) else None

    system = _count_system(messages)
    memory = length_of(system)
    if memory is None:
        return Chat("", text)
    lengths = map(length_of, range(max(system + 1, len(messages) - _SPLIT), len(messages)))
    cuts = sorted({memory, *(length for length in lengths if length is not None)})
    turns = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return Chat(text[:memory], turns)


def _render(
    model: LanguageModel,
    messages: Sequence[ChatMessage],
    add_generation_prompt: bool = False,
    continue_final: bool = False,
) -> str:
    options: dict[str, Any] = {"continue_final_message": True} if continue_final else {}
    try:
        text = model.tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.text} for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's makers
        raise InputError(
            f"the model's chat template refuses these messages ({error!s:.160}); expected the "
            "roles and the order that it knows; change them"
        ) from None
    return str(text)
