"""Settings of the samplers as a page or a story's file gives them, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlore.decode.samplers import SamplingParams
from softlore.errors import ConfigError


def checked_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Sampling`, and `no_copy`. Raises ConfigError for a name or value that is none."""
    found = dict(given)
    no_copy = found.pop("no_copy", 0)
    if type(no_copy) is not int or not 0 <= no_copy <= 10**6:
        raise ConfigError(f"no_copy is {no_copy!r:.60}; expected a whole number; mend it")
    try:
        SamplingParams.of(found)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"the samplers' settings cannot be used ({error!s:.200}); expected values such as "
            "temperature 0.8; mend them"
        ) from None
    return dict(given)
