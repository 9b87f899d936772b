"""The control vectors of a story's next turn: its own, and those of the entries that are active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from softlore.errors import ConfigError, ModelError, PromptMismatchError, UnknownPromptError
from softlore.lore import Entry
from softlore.model import LanguageModel
from softlore.prompts import ControlVector
from softlore.prompts.control_vector import MAX_VECTORS
from softlore.prompts.vector_folder import vector_named, vectors_in

MOST = MAX_VECTORS - 4  # of a story and its lore; the rest is for those that a turn is given


def active_vectors(
    model: LanguageModel, own: Mapping[str, float], entries: Iterable[Entry] = ()
) -> tuple[list[tuple[ControlVector, float]], dict[str, str]]:
    """Control vectors with a strength each, and why others are left out, by vector.

    Stories and lorebooks may come from somebody whose vectors are not here, so one that is missing
    or another model's does not stop the story.

    Args:
        own: the story's, by name.
        entries: those that are active.
    """
    wanted = [(name, strength, name) for name, strength in own.items()]
    for entry in entries:
        wanted += [(name, s, f"{name}, of {entry.name}") for name, s in entry.vectors.items()]
    wanted = [one for one in wanted if one[1]]
    known = vectors_in() if wanted else {}
    pairs, left_out = list[tuple[ControlVector, float]](), dict[str, str]()
    for name, strength, told in wanted:
        try:
            vector = vector_named(name, known)
            vector.check(model)
            if len(pairs) == MOST:
                raise ConfigError(f"{MOST} vectors are active; expected no more")
            pairs.append((vector, strength))
        except (ConfigError, UnknownPromptError, ModelError, PromptMismatchError) as error:
            left_out[f"vector {told}"] = str(error)
    return pairs, left_out
