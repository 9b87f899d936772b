"""Judges: a model answers a question with one of some choices, scored by likelihood."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Protocol

from softlore.context.chat import chat_template
from softlore.decode.asking import as_question, find_model
from softlore.decode.chat_server import ChatServer, answer_text
from softlore.errors import EngineError
from softlore.measure.score import token_losses, trunk
from softlore.model import FrozenModel

ALTERNATIVES = 20  # likely tokens that a server is asked for
Logs = dict[str, list[float]]  # log-probabilities by choice


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
        return in_every_order(partial(self._logs, question), choices)

    def _logs(self, question: str, choices: Sequence[str]) -> Logs:
        model = self.model
        before = model.encode(as_question(model, listed(question, choices)))
        space = "" if chat_template(model) else " "
        answers = [(before, model.encode(space + choice, inside=True)) for choice in choices]
        losses = token_losses(model, trunk(model, ""), answers)
        return {c: [-float(loss.sum())] for c, loss in zip(choices, losses, strict=True)}


class ServerJudge:
    """A model on a server: the likely first tokens of its answer; without these, its answer."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self.identity = f"{server.url} {server.name}"

    def chances(self, question: str, choices: Sequence[str]) -> list[float]:
        """See `Judge`. Raises EngineError where the answer is none of the choices."""
        return in_every_order(partial(self._logs, question), choices)

    def _logs(self, question: str, choices: Sequence[str]) -> Logs:
        answer = self.server.ask(
            listed(question, choices),
            max_tokens=8, temperature=0, seed=0, logprobs=True, top_logprobs=ALTERNATIVES,
        )  # fmt: skip
        text = answer_text(answer)
        told = first_tokens(answer) or {text: 0.0}
        logs: Logs = {}
        for token, log in told.items():
            if (choice := choice_of(token, choices)) is not None:
                logs.setdefault(choice, []).append(log)
        if not logs:
            raise EngineError(
                f"the judge {self.server.name!r} answered {text!r:.60}; expected one of "
                f"{', '.join(choices)}; ask otherwise, or choose another judge"
            )
        return logs


def find_judge(source: str, *more: Any) -> Judge:
    """The judge of a URL, or of a model here; see `decode.asking.find_model`."""
    found = find_model(source, *more)
    return ServerJudge(found) if isinstance(found, ChatServer) else ModelJudge(found)


def listed(question: str, choices: Sequence[str]) -> str:
    """A question with its choices."""
    return (
        f"{question.strip()}\n\nAnswer with one of these, and nothing else: {', '.join(choices)}."
    )


def in_every_order(logs: Callable[[Sequence[str]], Logs], choices: Sequence[str]) -> list[float]:
    """The mean probability of each choice, with each of the choices listed first once."""
    orders = [[*choices[i:], *choices[:i]] for i in range(len(choices))]
    found = [shares(logs(order), choices) for order in orders]
    return [fmean(of_choice) for of_choice in zip(*found, strict=True)]


def shares(logs: Logs, choices: Sequence[str]) -> list[float]:
    """The probability of each choice among them; several log-probabilities of one add up."""
    most = max(log for of_choice in logs.values() for log in of_choice)
    masses = [sum(math.exp(log - most) for log in logs.get(choice, ())) for choice in choices]
    return [mass / sum(masses) for mass in masses]


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
