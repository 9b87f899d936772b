"""Initial values of a soft prompt: from text, vocabulary tokens, or an existing prompt."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.errors import ConfigError
from softlore.lore import Entry
from softlore.lore.styles import blocks_of
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.compaction import can_compact, compact_texts
from softlore.tune.examples import CallResponse, EntryExamples
from softlore.tune.lengths import places_beside, spacing

PAIRS, PASSAGES = 36, 12  # that a start in closed form is fitted to, at most
MAX_READ = 1024  # tokens of a text that a prefix starts from; a corpus is longer


def initial_value(
    model: FrozenModel,
    entry: Entry,
    config: TrainingConfig,
    examples: EntryExamples | None = None,
) -> Tensor:
    """The tensor an entry's prompt starts from, float32.

    In closed form that is its text, compacted (see `_closed_form`). Else a text shorter
    than `n_tokens` is repeated. Of a longer one, a prefix gets the keys and values of `n_tokens`
    evenly spaced places after the model has read all of it. Embedding prompts, and prefixes that
    start from responses (many sentences, not one text), get `n_tokens` evenly spaced tokens
    instead.

    Args:
        examples: what the prompt is trained on, with its first passages written; None: it does not
            start in closed form.

    Raises:
        ConfigError: the source is empty, or is a prompt of another size or kind.
    """
    if isinstance(config.initial, SoftPrompt):
        return _given_prompt(model, config.initial, config).to(model.device)
    n = config.n_tokens
    if start := _closed_form(model, entry, config, examples):
        at, farthest = places_beside(model, config), spacing(config)
        return compact_texts(model, [(one.text, one.references) for one in start], n, at, farthest)
    choice = config.initial
    if choice == "auto":
        choice = "responses" if any(block.responses for block in entry.blocks) else "text"
    ids = _source_ids(model, entry, config, choice)
    if len(ids) < n:
        ids = (ids * (n // len(ids) + 1))[:n]
    if config.kind == "prefix" and choice != "responses":
        return model.keys_values(ids[: _most_read(model, n)], n)
    spaced = [ids[i * len(ids) // n] for i in range(n)]
    if config.kind == "prefix":
        return model.keys_values(spaced)
    with torch.no_grad():
        return model.embed_ids(spaced).float()


@dataclass(frozen=True)
class _ClosedForm:
    """What a prefix starts from in closed form: token ids of a text, and of texts behind it."""

    text: list[int]
    references: list[list[int]]


def _closed_form(
    model: FrozenModel, entry: Entry, config: TrainingConfig, examples: EntryExamples | None
) -> list[_ClosedForm]:
    """What an entry's prompt starts from in closed form: the default where that can be done.

    That is the entry's text, and its calls and responses a line each; or the chunks of a long text.
    """
    possible = config.kind == "prefix" and config.initial == "auto" and can_compact(model)
    if examples is None or not possible:
        return []
    source = examples.source
    if source is not None and len(source.topics) > 1:
        starts = [_ClosedForm(list(topic.lore), ids) for topic, ids in source.by_topic()]
        length = sum(len(start.text) - 1 for start in starts)
        return starts if length > config.n_tokens else []
    has_pairs = examples.pairs and blocks_of(entry, config.style)  # not those of a corpus
    # Calls that were made of the text say nothing that it does not say.
    text = _lines(model, examples.lore, examples.pairs if entry.blocks else [])
    if len(text) <= config.n_tokens or not (has_pairs or (examples.lore and source)):
        return []
    references = _references(model, examples, len(text))
    return [_ClosedForm(text, references)] if references else []


def _lines(model: FrozenModel, lore: Sequence[int], calls: Sequence[CallResponse]) -> list[int]:
    """Token ids of the entry's text, and of each call with its response: half a context at most."""
    ending = model.encode("\n")
    pairs = (token for pair in calls for token in (*pair.ids, *ending))
    half = MAX_READ if model.context_length is None else model.context_length // 2
    return [*lore, *pairs][: min(half, MAX_READ)]


def _references(model: FrozenModel, examples: EntryExamples, length: int) -> list[list[int]]:
    """Texts behind the prompt: some calls with their responses, and passages about the text.

    As many as fit the context together, beside a text of `length` tokens.
    """
    step = -(-len(examples.pairs) // PAIRS) or 1
    pairs = [pair.ids for pair in examples.pairs[::step]]
    source = examples.source
    passages = source.ids[source.n_held_out :][:PASSAGES] if source else []
    room = model.context_length or math.inf
    room -= len(model.bos) + length
    fitting: list[list[int]] = []
    for ids in (one for both in itertools.zip_longest(passages, pairs) for one in both if one):
        if len(ids) <= room:
            fitting.append(ids)
            room -= len(ids)
    return fitting


def _most_read(model: FrozenModel, n_tokens: int) -> int:
    """Tokens of a text that a prefix starts from, at most."""
    most = max(MAX_READ, n_tokens)
    return min(most, model.context_length or most)


def _given_prompt(model: FrozenModel, prompt: SoftPrompt, config: TrainingConfig) -> Tensor:
    model.check_prompt(prompt)
    if (prompt.kind, len(prompt)) != (config.kind, config.n_tokens):
        raise ConfigError(
            f"prompt {prompt.name!r}, to start from, is of kind {prompt.kind!r} with {len(prompt)} "
            f"tokens; expected {config.kind!r} with {config.n_tokens}; train that kind and length"
        )
    return prompt.tensor


def _source_ids(model: FrozenModel, entry: Entry, config: TrainingConfig, choice: str) -> list[int]:
    if choice == "vocabulary":
        draw = random.Random(f"vocabulary/{config.seed}/{entry.name}")
        usable = sorted(set(range(known_ids(model))) - model.special_ids)
        return [draw.choice(usable) for _ in range(config.n_tokens)]
    responses = "".join(r for block in entry.blocks for r in block.responses)
    text = {"responses": responses, "text": entry.text}.get(choice, choice)
    ids = model.encode(text) or model.bos
    if not ids:
        raise ConfigError(
            f"entry {entry.name!r} has no {choice or 'text'} to start from, and {model.name!r} has "
            "no BOS; expected some text; give initial='vocabulary' or a text of your own"
        )
    return ids


def kept_part(model: FrozenModel, config: TrainingConfig) -> Tensor | None:
    """Which numbers of a prompt are not trained: a mask `[layers, 2, 1, n_tokens, 1]`, or None.

    Without BOS a model makes an attention sink of what comes first, which it tells by the attention
    of its first layer. Two parts of a prefix decide where the sink is, and keep what they start
    from:

    - its first position, the sink of all that follows. Trained, it is bent, and losses jump.
      (Cartridges, arXiv 2506.06266, freezes it, too.)
    - the keys of its first layer. Trained, they lose the attention of the word right behind the
      prompt, which becomes a second sink; what that word says is lost, and the call with it.
    """
    if config.kind != "prefix" or model.bos or config.n_tokens <= 1:
        return None
    kept = torch.zeros(model.layers, 2, 1, config.n_tokens, 1, dtype=torch.bool)
    kept[:, :, :, 0] = True
    kept[0, 0] = True
    return kept.to(model.device)


def known_ids(model: FrozenModel) -> int:
    """How many ids the tokenizer has; embedding rows past them were never trained."""
    return min(model.vocab_size, len(model.tokenizer))


def scale_of(model: FrozenModel, value: Tensor, kind: str) -> Tensor:
    """The unit of a trainable prompt's parameter, so that one learning rate suits all models.

    Embedding kind: the root mean square of the model's embedding rows, one number. Prefix kind:
    the root mean square of each layer's keys and of its values, `[layers, 2, 1, 1, 1]`.
    """
    if kind == "prefix":
        scale = value.float().pow(2).mean(dim=(2, 3, 4), keepdim=True).sqrt()
    else:
        step = max(1, model.vocab_size // 4096)
        with torch.no_grad():
            rows = model.embed_ids(torch.arange(0, model.vocab_size, step))
        scale = rows.float().pow(2).mean().sqrt().reshape(1, 1)
    return scale.clamp_min(1e-6)
