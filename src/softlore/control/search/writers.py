"""Writers: what rewrites texts for a reflective search, a model here or a server's."""

from __future__ import annotations

import os
from typing import Any, Protocol

from softlore.decode.asking import ask
from softlore.errors import ConfigError, EngineError
from softlore.model import FrozenModel

KEY_VARIABLE = "SOFTLORE_API_KEY"
TEMPERATURE = 0.9
SECONDS = 120.0  # that a server may take for an answer


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


class UrlWriter:
    """An OpenAI-compatible server: `llama-server`, vLLM, Ollama, a provider's.

    Args:
        url: up to and with `/v1`.
        model: its name there; by default the first that the server lists.
        key: sent as a bearer token; default: `$SOFTLORE_API_KEY`.

    Raises:
        ConfigError: httpx is not installed. EngineError: the server does not answer.
    """

    def __init__(self, url: str, model: str = "", key: str | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError(
                "a server as writer needs the package httpx; expected it to be installed; "
                "install it with: pip install 'softlore[serve]'"
            ) from None
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http, self._url = httpx, url.rstrip("/")
        self.name = model or self._first_model()

    def _first_model(self) -> str:
        models = self._json("GET", "models").get("data")
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            raise EngineError(
                f"the server {self._url} lists no model; expected one in /models; "
                "name it with --writer-model"
            )
        return str(models[0].get("id", ""))

    def write(
        self, instruction: str, count: int, max_tokens: int, seed: int
    ) -> tuple[list[str], int]:
        return [self._answer(instruction, max_tokens, seed + i) for i in range(count)], 0

    def _answer(self, instruction: str, max_tokens: int, seed: int) -> str:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": instruction}],
            "max_tokens": max_tokens,
            "temperature": TEMPERATURE,
            "seed": seed % 2**31,
        }
        answer = self._json("POST", "chat/completions", body)
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise EngineError(
                f"the server {self._url} answered without choices; expected a chat "
                "completion; check the URL"
            ) from None

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            response = self._http.request(
                method, f"{self._url}/{path}", json=body, headers=self._headers, timeout=SECONDS
            )
            response.raise_for_status()
            found = response.json()
        except (self._http.HTTPError, self._http.InvalidURL, ValueError) as error:
            raise EngineError(
                f"the server {self._url} did not answer /{path}: {error!s:.200}; "
                "expected an OpenAI-compatible API; check the URL and the key"
            ) from None
        return found if isinstance(found, dict) else {}


def find_writer(source: str, model: str = "", here: FrozenModel | None = None) -> Writer:
    """The writer of a URL, or of a model's short name, folder, hub id or GGUF file.

    Args:
        model: its name on the server.
        here: a model that is loaded already, which may be the one.
    """
    if source.startswith(("http://", "https://")):
        return UrlWriter(source, model)
    if here is not None and here.name == source:
        return ModelWriter(here)
    return ModelWriter(FrozenModel.from_pretrained(source))
