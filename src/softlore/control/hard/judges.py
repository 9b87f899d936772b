"""Judges: a model answers a question with one of some choices, scored by likelihood."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from softlore.decode.asking import as_question
from softlore.decode.chat_server import URLS, ChatServer
from softlore.measure.score import token_losses, trunk
from softlore.model import FrozenModel

ALTERNATIVES = 20  # likely tokens that a server is asked for


class Judge(Protocol):
    """Answers questions that have choices.

    Attributes:
        identity: of the model, for a cache.
    """

    identity: str

    def chances(self, question: str, choices: Sequence[str]) -> list[float]:
        """The probability of each choice among them; they sum to 1.

        A model favours the first choice, or the last. So the question is asked in every order in
        which each of the choices comes first once, and the mean is taken.
        """
        ...


class ModelJudge:
    """A model here: the likelihood of each choice as its whole answer."""

    def __init__(self, model: FrozenModel) -> None:
        self.model = model
        sketch = json.dumps(model.fingerprint("embedding"), sort_keys=True, default=str)
        identity = f"{sketch}/{model.tokenizer_fingerprint}/{model.dtype}"
        self.identity = hashlib.sha256(identity.encode()).hexdigest()

    def chances(self, question: str, choices: Sequence[str]) -> list[float]:
        return mean_chances(self._of_order(question, order) for order in orders(choices))

    def _of_order(self, question: str, choices: Sequence[str]) -> dict[str, float]:
        model, asked = self.model, as_question(self.model, listed(question, choices))
        templated = not asked.endswith("Answer:")
        before = model.encode(asked)
        answers = [
            (before, model.encode(choice if templated else f" {choice}", inside=True))
            for choice in choices
        ]
        losses = token_losses(model, trunk(model, ""), answers)
        logs = [-float(of_choice.sum()) for of_choice in losses]
        return normalized(dict(zip(choices, logs, strict=True)))


class ServerJudge:
    """A model on a server: the likely first tokens of its answer; without these, its answer."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self.identity = f"{server.url} {server.name}"

    def chances(self, question: str, choices: Sequence[str]) -> list[float]:
        return mean_chances(self._of_order(question, order) for order in orders(choices))

    def _of_order(self, question: str, choices: Sequence[str]) -> dict[str, float]:
        answer = self.server.ask(
            listed(question, choices),
            max_tokens=8, temperature=0, seed=0, logprobs=True, top_logprobs=ALTERNATIVES,
        )  # fmt: skip
        told = first_tokens(answer)
        if not told:
            message = answer.get("message")
            text = str(message.get("content") or "") if isinstance(message, dict) else ""
            told = {text: 0.0}
        masses = {choice: [log for text, log in told.items() if begins(text, choice)]
                  for choice in choices}  # fmt: skip
        if not any(masses.values()):
            return dict.fromkeys(choices, 1 / len(choices))
        return normalized(
            {c: math.log(sum(map(math.exp, logs))) if logs else -math.inf
             for c, logs in masses.items()}
        )  # fmt: skip


def find_judge(source: str, model: str = "") -> Judge:
    """The judge of a URL, or of a model's short name, folder, hub id or GGUF file.

    Args:
        model: its name on the server.
    """
    if source.startswith(URLS):
        return ServerJudge(ChatServer(source, model))
    return ModelJudge(FrozenModel.from_pretrained(source))


def listed(question: str, choices: Sequence[str]) -> str:
    """A question with its choices."""
    return (
        f"{question.strip()}\n\nAnswer with one of these, and nothing else: {', '.join(choices)}."
    )


def orders(choices: Sequence[str]) -> list[list[str]]:
    """The orders in which each of the choices comes first once."""
    return [[*choices[i:], *choices[:i]] for i in range(len(choices))]


def normalized(logs: Mapping[str, float]) -> dict[str, float]:
    """Probabilities of log-probabilities."""
    most = max(logs.values())
    masses = {choice: math.exp(log - most) for choice, log in logs.items()}
    return {choice: mass / sum(masses.values()) for choice, mass in masses.items()}


def mean_chances(found: Any) -> list[float]:
    """The mean of probabilities by choice, in the order of the first."""
    all_found: list[dict[str, float]] = list(found)
    return [fmean(one[choice] for one in all_found) for choice in all_found[0]]


def begins(text: str, choice: str) -> bool:
    """Whether an answer, or its first token, begins a choice, or the choice begins it."""
    text, choice = text.strip().casefold(), choice.casefold()
    return bool(text) and (choice.startswith(text) or text.startswith(choice))


def first_tokens(answer: Mapping[str, Any]) -> dict[str, float]:
    """The likely first tokens of a chat completion, with their log-probabilities; or none."""
    try:
        first = answer["logprobs"]["content"][0]
        return {str(one["token"]): float(one["logprob"]) for one in first["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
