"""Settings of the samplers as a page or a story's file gives them, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlore.errors import ConfigError
from softlore.settings import SamplingParams


def checked_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the samplers, and `no_copy`. Raises ConfigError for a wrong name or value."""
    samplers = dict(given)
    no_copy = samplers.pop("no_copy", 0)
    if type(no_copy) is not int or not 0 <= no_copy <= 10**6:
        raise ConfigError(
            f"no_copy is {no_copy!r:.60}; expected a whole number from 0 to 1000000; change it"
        )
    SamplingParams.of(samplers)
    return dict(given)
