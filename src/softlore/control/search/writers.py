"""Writers: what rewrites texts for a reflective search, a model here or a server's."""

from __future__ import annotations

from typing import Any, Protocol

from softlore.decode.asking import ask, find_model
from softlore.decode.chat_server import ChatServer, answer_text
from softlore.model import FrozenModel

TEMPERATURE = 0.9


class Writer(Protocol):
    """Answers an instruction, several times."""

    name: str

    def write(
        self, instruction: str, count: int, max_tokens: int, seed: int
    ) -> tuple[list[str], int]:
        """`count` answers of up to `max_tokens`, and the tokens that a model here ran for them."""
        ...


class ModelWriter:
    """A model here: by its chat template, or, without one, as a text that goes on."""

    def __init__(self, model: FrozenModel) -> None:
        self.model, self.name = model, model.name

    def write(
        self, instruction: str, count: int, max_tokens: int, seed: int
    ) -> tuple[list[str], int]:
        return ask(self.model, instruction, count, max_tokens, seed, temperature=TEMPERATURE)


class ServerWriter:
    """A model on a server."""

    def __init__(self, server: ChatServer) -> None:
        self.server, self.name = server, server.name

    def write(
        self, instruction: str, count: int, max_tokens: int, seed: int
    ) -> tuple[list[str], int]:
        settings = {"max_tokens": max_tokens, "temperature": TEMPERATURE}
        answers = [
            self.server.ask(instruction, seed=(seed + i) % 2**31, **settings) for i in range(count)
        ]
        return [answer_text(answer) for answer in answers], 0


def find_writer(source: str, *more: Any) -> Writer:
    """The writer of a URL, or of a model here; see `decode.asking.find_model`."""
    found = find_model(source, *more)
    return ServerWriter(found) if isinstance(found, ChatServer) else ModelWriter(found)
