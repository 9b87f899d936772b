"""Asking a model something in words: by its chat template, where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softlore.context.chat import chat_template, render_template
from softlore.decode.batch import RunningBatch
from softlore.decode.chat_server import ChatServer, is_url
from softlore.decode.model_runner import TorchModelRunner
from softlore.decode.prefix_cache import PrefixCache
from softlore.decode.request import GenerationRequest
from softlore.model import FrozenModel, LanguageModel


def find_model(
    source: str,
    model: str = "",
    load: Callable[[str], FrozenModel] = FrozenModel.from_pretrained,
) -> ChatServer | FrozenModel:
    """A model that answers: on a server, or here.

    Args:
        source: a server's URL; or a model's short name, folder, hub id or GGUF file.
        model: its name on the server.
        load: loads a model by name.
    """
    return ChatServer(source, model) if is_url(source) else load(source)


def as_question(model: LanguageModel, question: str) -> str:
    """A question as the model reads it, up to where its answer begins.

    Models without a chat template read it as a text with "Answer:" after it.
    """
    if not chat_template(model):
        return f"{question}\n\nAnswer:"
    turns = [{"role": "user", "content": question}]
    return render_template(model, turns, add_generation_prompt=True)


def ask(
    model: FrozenModel, question: str, count: int, max_tokens: int, seed: int, **sampling: Any
) -> tuple[list[str], int]:
    """Several answers, written side by side, and how many tokens were run for them.

    Raises:
        ContextOverflowError: the question does not fit the model's context.
    """
    asked = as_question(model, question)
    batch = RunningBatch(TorchModelRunner(model, PrefixCache()))
    groups = [
        batch.add(GenerationRequest(asked, max_tokens, seed=seed + i, sampling=sampling))
        for i in range(count)
    ]
    while len(batch):
        batch.step()
    for group in groups:
        if group.error is not None:
            raise group.error
    answers = [group.output for group in groups]
    tokens = sum(len(answer.ids) for answer in answers) + len(model.encode(asked))
    return [answer.text for answer in answers], tokens
