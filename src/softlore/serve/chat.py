"""Renders the messages of a chat as text: by the model's chat template, or as a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from softlore.errors import ConfigError, InputError
from softlore.model import LanguageModel
from softlore.serve.tools import ToolCalls

_SPLIT = 100  # newest messages that a template's text is split at; each takes a rendering
_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


class TextPart(BaseModel):
    """A part of a message; the model reads text only."""

    type: Literal["text"] = "text"
    text: str


class ChatMessage(BaseModel):
    """A message of a chat; its content is text, or a list of text parts.

    A message of the assistant's may have called tools; one of a tool's is the result of a call.
    """

    role: Annotated[str, Field(min_length=1)]
    content: str | list[str | TextPart] | None = None
    tool_calls: ToolCalls = []
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    @property
    def text_with_calls(self) -> str:
        return "\n".join(filter(None, [self.text, *(call.text for call in self.tool_calls)]))

    def for_template(self, template: str) -> dict[str, Any]:
        """The message as a template takes it; calls are text where it does not look for them."""
        if "tool_calls" in template and self.tool_calls:
            calls = [call.model_dump() for call in self.tool_calls]
            return {"role": self.role, "content": self.text, "tool_calls": calls}
        tool = {"tool_call_id": self.tool_call_id, "name": self.name} if self.role == "tool" else {}
        given = {name: value for name, value in tool.items() if value is not None}
        return {"role": self.role, "content": self.text_with_calls, **given}


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


def chat_template(model: LanguageModel, tools: bool = False) -> str:
    """The model's chat template, or the one for chats with tools; "" for none."""
    found = getattr(model.tokenizer, "chat_template", None)
    if isinstance(found, list):  # as files have several
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        found = (tools and found.get("tool_use")) or found.get("default")
    return found if isinstance(found, str) else ""


def render_chat(
    model: LanguageModel,
    messages: Sequence[ChatMessage],
    tools: Sequence[dict[str, Any]] = (),
) -> Chat:
    """A chat as a text.

    Args:
        tools: which the template shows to the model.

    Raises:
        InputError: the model's template refuses the messages.
        ConfigError: there are tools, and it shows none.
    """
    if template := chat_template(model, bool(tools)):
        return _templated(model, _Template(model, template, tools), messages)
    if tools:
        raise _no_tools(model)
    return _transcript(messages)


def _no_tools(model: LanguageModel) -> ConfigError:
    return ConfigError(
        f"tools are offered, and {model.name!r:.80} has no chat template that shows tools to the "
        "model; expected a model with one, such as Qwen2.5; leave them out, or serve another model"
    )


def _transcript(messages: Sequence[ChatMessage]) -> Chat:
    """`User: …` and `Assistant: …` in turn."""
    system = _count_system(messages)
    turns = [f"{_speaker(m.role)}: {m.text_with_calls.rstrip()}\n" for m in messages[system:]]
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


def _templated(model: LanguageModel, template: _Template, messages: Sequence[ChatMessage]) -> Chat:
    """Renders a chat by the model's template, split where messages begin, if that can be found."""
    continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
    bos = "" if model.bos_id is None else str(model.tokenizer.bos_token or "")
    text = template.render(messages, not continued, continued)
    if template.tools and text == template.without_tools(messages, not continued, continued):
        raise _no_tools(model)
    text = text.removeprefix(bos)

    def length_of(count: int) -> int | None:
        """Characters of the first `count` messages; None where it cannot be known."""
        if not count:
            return 0
        try:
            start = template.render(messages[:count]).removeprefix(bos)
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


@dataclass(frozen=True)
class _Template:
    """A chat template of a model's, with the tools that it shows."""

    model: LanguageModel
    text: str
    tools: Sequence[dict[str, Any]] = ()

    def render(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = False,
        continue_final: bool = False,
    ) -> str:
        """Messages as text. Raises InputError where the template refuses them."""
        options: dict[str, Any] = {"continue_final_message": True} if continue_final else {}
        if self.tools:
            options["tools"] = list(self.tools)
        try:
            text = self.model.tokenizer.apply_chat_template(
                [message.for_template(self.text) for message in messages],
                chat_template=self.text,
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

    def without_tools(self, *messages: Any) -> str | None:
        """As `render`, without the tools; None where the template needs tools."""
        try:
            return replace(self, tools=()).render(*messages)
        except InputError:
            return None
