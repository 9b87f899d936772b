"""Judges: a model answers a question with one of some choices, scored by likelihood."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from softlore.decode.asking import as_question
from softlore.decode.chat_server import ChatServer, answer_text, is_url
from softlore.errors import EngineError
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
        """See `Judge`. Raises EngineError where the answer is none of the choices."""
        return mean_chances(self._of_order(question, order) for order in orders(choices))

    def _of_order(self, question: str, choices: Sequence[str]) -> dict[str, float]:
        answer = self.server.ask(
            listed(question, choices),
            max_tokens=8, temperature=0, seed=0, logprobs=True, top_logprobs=ALTERNATIVES,
        )  # fmt: skip
        text = answer_text(answer)
        told = first_tokens(answer) or {text: 0.0}
        logs: dict[str, list[float]] = {}
        for token, log in told.items():
            if (choice := choice_of(token, choices)) is not None:
                logs.setdefault(choice, []).append(log)
        if not logs:
            raise EngineError(
                f"the judge {self.server.name!r} answered {text!r:.60}; expected one of "
                f"{', '.join(choices)}; ask otherwise, or choose another judge"
            )
        most = max(log for of_choice in logs.values() for log in of_choice)
        masses = {c: sum(math.exp(log - most) for log in logs.get(c, ())) for c in choices}
        return {c: mass / sum(masses.values()) for c, mass in masses.items()}


def find_judge(
    source: str,
    model: str = "",
    load: Callable[[str], FrozenModel] = FrozenModel.from_pretrained,
) -> Judge:
    """The judge of a URL, or of a model's short name, folder, hub id or GGUF file.

    Args:
        model: its name on the server.
        load: loads a model by name.
    """
    return ServerJudge(ChatServer(source, model)) if is_url(source) else ModelJudge(load(source))


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


def choice_of(text: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer, or its first token, says or begins; None for no single one."""
    text = text.strip().casefold()
    if not text:
        return None
    for choice in choices:
        if re.match(rf"{re.escape(choice.casefold())}(?!\w)", text):
            return choice
    begun = [choice for choice in choices if choice.casefold().startswith(text)]
    return begun[0] if len(begun) == 1 else None


def first_tokens(answer: Mapping[str, Any]) -> dict[str, float]:
    """The likely first tokens of a chat completion, with their log-probabilities; or none."""
    try:
        first = answer["logprobs"]["content"][0]
        told = {str(one["token"]): float(one["logprob"]) for one in first["top_logprobs"]}
        return {token: min(log, 0.0) for token, log in told.items() if math.isfinite(log)}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
