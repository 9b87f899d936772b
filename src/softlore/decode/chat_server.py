"""A client of OpenAI-compatible servers: llama-server, vLLM, Ollama, softlore's, a provider's."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from softlore.errors import ConfigError, EngineError

KEY_VARIABLE = "SOFTLORE_API_KEY"
SECONDS = 120.0  # that a server may be silent
MAX_ANSWER = 2**22  # bytes
_USER = re.compile(r"//[^/@\s]*@")  # a user and password in an address


class ChatServer:
    """A chat model that a server has.

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
                "a model on a server needs the package httpx; expected it to be installed; "
                "install it with: pip install 'softlore[serve]'"
            ) from None
        key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"the key in ${KEY_VARIABLE} holds characters that no header can; expected plain "
                "ones; set it again"
            )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http, self._address = httpx, url.rstrip("/")
        self.url = _USER.sub("//", self._address)  # without a password, for messages
        self.name = model or self._first_model()

    def ask(self, question: str, **body: Any) -> dict[str, Any]:
        """Its answer to a question: the first of the API's `choices`.

        Args:
            body: of the request, such as `max_tokens`, `seed` and `logprobs`.

        Raises:
            EngineError: the server does not answer.
        """
        messages = [{"role": "user", "content": question}]
        told = {"model": self.name, "messages": messages, **body}
        choices = self._json("POST", "chat/completions", told).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EngineError(
                f"the server {self.url} answered without choices; expected a chat completion; "
                "check the URL"
            )
        return dict(choices[0])

    def _first_model(self) -> str:
        models = self._json("GET", "models").get("data")
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            raise EngineError(
                f"the server {self.url} lists no model; expected one in /models; name the model"
            )
        return str(models[0].get("id", ""))

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            with self._http.stream(
                method, f"{self._address}/{path}", json=body, headers=self._headers,
                timeout=SECONDS,
            ) as response:  # fmt: skip
                response.raise_for_status()
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_ANSWER:
                        raise ValueError(f"more than {MAX_ANSWER:,} bytes")
            found = json.loads(content)
        except (self._http.HTTPError, self._http.InvalidURL, ValueError, RecursionError) as error:
            why = _USER.sub("//", str(error))
            raise EngineError(
                f"the server {self.url} did not answer /{path}: {why:.200}; expected an "
                "OpenAI-compatible API; check the URL and the key"
            ) from None
        return found if isinstance(found, dict) else {}


def is_url(source: str) -> bool:
    """Whether a name is a server's address."""
    return source.casefold().startswith(("http://", "https://"))


def answer_text(choice: dict[str, Any]) -> str:
    """The text of an answer."""
    message = choice.get("message")
    return str(message.get("content") or "") if isinstance(message, dict) else ""
