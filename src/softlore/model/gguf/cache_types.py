"""The types of llama.cpp's keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from softlore.errors import ConfigError

# ggml's number of a type, and the bytes a number takes.
CACHE_TYPES = {"f16": (1, 2.0), "f32": (0, 4.0), "bf16": (30, 2.0), "q8_0": (8, 34 / 32),
               "q5_1": (7, 24 / 32), "q5_0": (6, 22 / 32), "q4_1": (3, 20 / 32),
               "q4_0": (2, 18 / 32)}  # fmt: skip


@dataclass(frozen=True)
class CacheTypes:
    """The types of keys and values.

    Attributes:
        keys, values: of `CACHE_TYPES`.
        flash: whether to use flash attention, which quantized values need.
    """

    keys: str = "f16"
    values: str = "f16"
    flash: bool = True

    def __post_init__(self) -> None:
        for name in (self.keys, self.values):
            if name not in CACHE_TYPES:
                raise ConfigError(
                    f"the cache type is {name!r}; expected one of {', '.join(CACHE_TYPES)}; choose "
                    "one"
                )
        if quantized(self.values) and not self.flash:
            raise ConfigError(
                f"values of type {self.values} need flash attention, which is off; expected f16, "
                "f32 or bf16; choose one, or turn it on"
            )

    @property
    def bytes(self) -> float:
        """Bytes of one element of a key and one of a value together."""
        return CACHE_TYPES[self.keys][1] + CACHE_TYPES[self.values][1]


def quantized(kind: str) -> bool:
    """Whether a cache type is quantized in blocks that share a scale."""
    return kind.startswith("q")
