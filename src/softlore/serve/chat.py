"""From the messages of a chat to a text: the model's own template, or a plain transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softlore.errors import InputError
from softlore.model import LanguageModel
from softlore.serve.compose import lines

MOST_MESSAGES = 10_000
_SPLIT = 100  # messages of a template that are told apart; rendering takes time for each
_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Message:
    """Who says what."""

    role: str
    text: str


@dataclass(frozen=True)
class Chat:
    """A chat as the model is to read it.

    Attributes:
        memory: what the system says first; it does not give way.
        turns: the other messages; the last one leads over to the reply.
        stop: what ends the reply, besides the model's own end.
        bare: whether the reply begins with a space that is none of it.
    """

    memory: str
    turns: list[str]
    stop: tuple[str, ...] = ()
    bare: bool = False


def read_messages(sent: object) -> list[Message]:
    """The messages of a request; the content of each is text, or parts that are.

    Raises:
        InputError: there are none, or they hold what is no text.
    """
    if not isinstance(sent, list) or not sent or len(sent) > MOST_MESSAGES:
        raise InputError(
            "messages holds no message; expected a list such as "
            f'[{{"role": "user", "content": "Hello"}}], of at most {MOST_MESSAGES:,}; send one'
        )
    return [_read_message(number, one) for number, one in enumerate(sent)]


def chat_of(model: LanguageModel, messages: Sequence[Message]) -> Chat:
    """A chat rendered for a model. Raises InputError where its template refuses the messages."""
    if getattr(model.tokenizer, "chat_template", None):
        return _rendered(model, messages)
    return _transcript(messages)


def _read_message(number: int, sent: object) -> Message:
    if not isinstance(sent, dict) or not isinstance(sent.get("role"), str) or not sent["role"]:
        raise InputError(
            f"message {number} is {sent!r:.80}; expected a role and a content, such as "
            '{"role": "user", "content": "Hello"}; mend it'
        )
    content = sent.get("content")
    if content is None or isinstance(content, str):
        return Message(sent["role"], content or "")
    texts = [_part(number, one) for one in content] if isinstance(content, list) else None
    if texts is None:
        raise InputError(
            f"the content of message {number} is {type(content).__name__}; expected a string, or "
            'parts such as {"type": "text", "text": "Hello"}; mend it'
        )
    return Message(sent["role"], "".join(texts))


def _part(number: int, part: object) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise InputError(
            f"message {number} holds a part of type {kind!r:.40}; expected text only, since the "
            "model reads nothing else; leave it out"
        )
    return text


def _transcript(messages: Sequence[Message]) -> Chat:
    head = _leading(messages)
    turns = [f"{_named(one)}: {one.text.rstrip()}\n" for one in messages[head:]]
    stop = tuple(f"\n{name}:" for name in ("User", "System", "Assistant"))
    memory = "\n".join(one.text for one in messages[:head] if one.text)
    if messages[-1].role == "assistant":  # it has begun to speak
        return Chat(memory, [*turns[:-1], turns[-1][:-1]], stop)
    leading = [*turns[:-1], (turns[-1] if turns else "") + "Assistant:"]
    return Chat(memory, leading, stop, bare=True)


def _named(message: Message) -> str:
    return _NAMES.get(message.role) or message.role[:40].capitalize()


def _leading(messages: Sequence[Message]) -> int:
    """How many messages of the system stand before all others."""
    return next((i for i, one in enumerate(messages) if one.role not in _SYSTEM), len(messages))


def _rendered(model: LanguageModel, messages: Sequence[Message]) -> Chat:
    """By the template; what it makes of the messages is cut where one of them begins."""
    goes_on = messages[-1].role == "assistant"
    start = "" if model.bos_id is None else str(model.tokenizer.bos_token or "")
    whole = _render(model, messages, not goes_on, goes_on).removeprefix(start)

    def place(count: int) -> int | None:
        """Where the text of so many messages ends in the whole one."""
        if not count:
            return 0
        try:
            before = _render(model, messages[:count]).removeprefix(start)
        except InputError:  # it may refuse a chat that ends there
            return None
        return len(before) if whole.startswith(before) else None

    head = _leading(messages)
    memory = place(head)
    if memory is None:
        return Chat("", lines(whole))
    counts = range(max(head + 1, len(messages) - _SPLIT), len(messages))
    cuts = [memory, *(found for count in counts if (found := place(count)) is not None)]
    cuts = sorted(set(cuts))
    turns = [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)]
    return Chat(whole[:memory], turns)


def _render(
    model: LanguageModel,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    continue_final: bool = False,
) -> str:
    said = [{"role": one.role, "content": one.text} for one in messages]
    options: dict[str, Any] = {"tokenize": False}
    options["add_generation_prompt"] = add_generation_prompt
    if continue_final:
        options["continue_final_message"] = True
    try:
        return str(model.tokenizer.apply_chat_template(said, **options))
    except Exception as error:  # noqa: BLE001 - a template is a program of the model's makers
        raise InputError(
            f"the model's chat template refuses these messages ({error!s:.160}); expected the "
            "roles and the order that it knows; change them"
        ) from None
