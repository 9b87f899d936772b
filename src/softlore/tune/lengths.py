"""Lengths of passages and filler, and the room for them beside a prompt."""

from __future__ import annotations

import math
import random

from softlore.context import free_places
from softlore.errors import ConfigError
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig

SPACING = {"late": 2000, "classic": 64}  # default of `max_spacing`, in tokens


def places_beside(model: FrozenModel, config: TrainingConfig) -> int:
    """Positions before a text that are a prompt's."""
    if not config.late:
        return config.n_tokens
    return free_places(config.n_tokens, model.context_length)


def room_beside(model: FrozenModel, config: TrainingConfig) -> int | None:
    """Tokens of text that fit the context beside a prompt; None: unlimited."""
    if model.context_length is None:
        return None
    return model.context_length - places_beside(model, config) - len(model.bos)


def check_room(model: FrozenModel, config: TrainingConfig) -> None:
    """Raises ConfigError if a prompt leaves no room for a call and a response."""
    room = room_beside(model, config)
    if room is not None and room < 2:
        raise ConfigError(
            f"n_tokens is {config.n_tokens}; expected fewer than the {model.context_length} tokens "
            f"that {model.name!r} reads, with room for a call and a response; ask for fewer"
        )


def passage_length(model: FrozenModel, config: TrainingConfig) -> int:
    """Tokens of a passage: `passage_tokens`, or as many as fit beside a prompt."""
    room = room_beside(model, config)
    return config.passage_tokens if room is None else min(config.passage_tokens, room)


def spacing(config: TrainingConfig) -> int:
    """Most tokens of filler: `max_spacing`, or its default."""
    if config.max_spacing is not None:
        return config.max_spacing
    return SPACING["late" if config.late else "classic"]


def log_uniform(draw: random.Random, most: int) -> int:
    """A number from 0 to `most`, log-uniform: 1 to 9 is drawn as often as 10 to 99."""
    return min(most, int(math.exp(draw.uniform(0, math.log(most + 2)))) - 1)
