"""Renders the messages of a chat as text: by the model's chat template, or as a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from softlore.errors import ConfigError, InputError
from softlore.model import LanguageModel

_SPLIT = 100  # newest messages that a template's text is split at; each takes a rendering
_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


class Message(Protocol):
    """A message of a chat."""

    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str:
        """Its text, with the tools that it calls as text, too."""

    @property
    def calls(self) -> Sequence[Any]:
        """The tools that it calls."""

    def for_template(self, template: str) -> dict[str, Any]:
        """The message as a template takes it."""


@dataclass(frozen=True)
class Chat:
    """A chat as a text for the model.

    Attributes:
        memory: the system's first messages, which are not cut.
        turns: the other messages, the last one with what introduces the reply; or all as one text.
        counts: messages in each of the turns.
        stop: what ends the reply, besides the model's own end.
        strip: whether the reply begins with a space that does not belong to it.
    """

    memory: str
    turns: str | list[str]
    counts: tuple[int, ...] = ()
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


def render_template(
    model: LanguageModel, messages: Sequence[dict[str, Any]], template: str = "", **options: Any
) -> str:
    """Messages as text by a chat template, without the BOS that stands before every text.

    Args:
        messages: as the template takes them, such as `{"role": "user", "content": "…"}`.
        template: in place of the model's own.
        options: of transformers' `apply_chat_template`, such as `add_generation_prompt`.

    Raises:
        InputError: the template refuses the messages.
    """
    try:
        text = model.tokenizer.apply_chat_template(
            messages, chat_template=template or None, tokenize=False, **options
        )
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's makers
        raise InputError(
            f"the model's chat template refuses these messages ({error!s:.160}); expected the "
            "roles and the order that it knows; change them"
        ) from None
    bos = "" if model.bos_id is None else str(model.tokenizer.bos_token or "")
    return str(text).removeprefix(bos)


def render_chat(
    model: LanguageModel,
    messages: Sequence[Message],
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


def _transcript(messages: Sequence[Message]) -> Chat:
    """`User: …` and `Assistant: …` in turn."""
    system = _count_system(messages)
    turns = [f"{_speaker(m.role)}: {m.text.rstrip()}\n" for m in messages[system:]]
    stop = tuple(f"\n{name}:" for name in ("User", "System", "Assistant"))
    memory = "\n".join(m.text for m in messages[:system] if m.text)
    counts = (1,) * len(turns) or (0,)
    if messages[-1].role == "assistant":  # whose message is to be continued
        return Chat(memory, [*turns[:-1], turns[-1].removesuffix("\n")], counts, stop)
    last = (turns[-1] if turns else "") + "Assistant:"
    return Chat(memory, [*turns[:-1], last], counts, stop, strip=True)


def _speaker(role: str) -> str:
    return _NAMES.get(role) or role[:40].capitalize()


def _count_system(messages: Sequence[Message]) -> int:
    """How many messages of the system come before all others."""
    return next((i for i, m in enumerate(messages) if m.role not in _SYSTEM), len(messages))


def _templated(model: LanguageModel, template: _Template, messages: Sequence[Message]) -> Chat:
    """Renders a chat by the model's template, split where messages begin, if that can be found."""
    continued = messages[-1].role == "assistant" and not messages[-1].calls
    text = template.render(messages, not continued, continued)
    if template.tools and text == template.without_tools(messages, not continued, continued):
        raise _no_tools(model)

    def length_of(count: int) -> int | None:
        """Characters of the first `count` messages; None where it cannot be known."""
        if not count:
            return 0
        try:
            start = template.render(messages[:count])
        except InputError:  # a template may refuse a chat that ends there
            return None
        return len(start) if text.startswith(start) else None

    system = _count_system(messages)
    memory = length_of(system)
    if memory is None:
        return Chat("", text)
    cuts = {memory: system}  # messages before a character
    for count in range(max(system + 1, len(messages) - _SPLIT), len(messages)):
        if (length := length_of(count)) is not None:
            cuts.setdefault(length, count)
    ends = [*sorted(cuts.items()), (len(text), len(messages))]
    turns = [text[a:b] for (a, _), (b, _) in pairwise(ends)]
    return Chat(text[:memory], turns, tuple(b - a for (_, a), (_, b) in pairwise(ends)))


@dataclass(frozen=True)
class _Template:
    """A chat template of a model's, with the tools that it shows."""

    model: LanguageModel
    text: str
    tools: Sequence[dict[str, Any]] = ()

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        continue_final: bool = False,
    ) -> str:
        """Messages as text. Raises InputError where the template refuses them."""
        options: dict[str, Any] = {"continue_final_message": True} if continue_final else {}
        if self.tools:
            options["tools"] = list(self.tools)
        return render_template(
            self.model,
            [message.for_template(self.text) for message in messages],
            self.text,
            add_generation_prompt=add_generation_prompt,
            **options,
        )

    def without_tools(self, *messages: Any) -> str | None:
        """As `render`, without the tools; None where the template needs tools."""
        try:
            return replace(self, tools=()).render(*messages)
        except InputError:
            return None
