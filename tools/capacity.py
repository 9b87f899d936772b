"""Works out what a service of many prompts and stories takes: bytes, seconds, and what runs short.

    python tools/capacity.py                                  # docs/scale.md
    python tools/capacity.py --cards 100 --shape 70B --stories 2000

Arithmetic alone; nothing is measured. What a card, a network and a processor do is given by
options, whose defaults are an H100 of 80 GB and the figures of docs/results.md. Stories are of
`--tokens` tokens; each has a turn every `--pause` seconds, which writes `--written` tokens, names
`--active` entries, of which `--woken` are other ones than at the turn before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from measuring import main
from softlore.compare.harness import Row

BYTES = 2  # of a number: bfloat16
BACKWARD = 2  # an update's backward pass computes no gradients of weights
USABLE = 0.9  # of a card's memory, for weights, keys and values
MOST_WEIGHTS = 0.5  # of a card's memory; larger models are split over several cards


@dataclass(frozen=True)
class Shape:
    """A model's size."""

    parameters: float
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES

    @property
    def weights(self) -> float:
        return self.parameters * BYTES


SHAPES = {  # SmolLM2-135M; Llama 3's 8B and 70B
    "135M": Shape(135e6, 30, 3, 64),
    "8B": Shape(8e9, 32, 8, 128),
    "70B": Shape(70e9, 80, 8, 128),
}


def capacity(
    *,
    shape: Annotated[Literal["135M", "8B", "70B"], "of the model"] = "8B",
    cards: int = 8,
    prompts: Annotated[float, "in the library"] = 1e6,
    n_tokens: Annotated[int, "places of a prompt"] = 16,
    text_tokens: Annotated[int, "of an entry's text"] = 53,
    stories: Annotated[float, "at once"] = 1e4,
    tokens: Annotated[int, "of a story"] = 4000,
    active: Annotated[int, "entries in a turn"] = 10,
    woken: Annotated[float, "of them new in a turn"] = 2.0,
    pause: Annotated[float, "seconds from turn to turn of a story"] = 60.0,
    written: Annotated[int, "tokens of a turn"] = 60,
    memory: Annotated[float, "GB of a card"] = 80.0,
    bandwidth: Annotated[float, "GB/s of a card's memory"] = 3350.0,
    flops: Annotated[float, "TFLOP/s that a card reaches in long products"] = 400.0,
    link: Annotated[float, "GB/s from a machine's memory to one of its cards"] = 50.0,
    host: Annotated[float, "GB of a machine's memory for each card"] = 250.0,
    plan_ms: Annotated[float, "of a processor, to choose a turn's lore"] = 24.0,
    header_ms: Annotated[float, "of a processor, to read a prompt file's header"] = 0.58,
    updates: Annotated[int, "to train a prompt"] = 40,
    update_tokens: Annotated[int, "of a prompt's share of an update"] = 110,
    share: Annotated[float, "of `flops` that training reaches"] = 0.05,
) -> Row:
    """A row of figures, and the parts in the order in which they run short."""
    one = SHAPES[shape]
    prompt = n_tokens * one.bytes_per_token
    story = tokens * one.bytes_per_token
    split = math.ceil(one.weights / (MOST_WEIGHTS * memory * 1e9))  # cards that hold the weights
    room = USABLE * memory * 1e9 * cards - one.weights * cards / split
    lore = min(prompts, stories * active) * prompt
    turns = stories / pause
    # A step of a card reads its weights, and the keys and values of all texts that it runs.
    read = (tokens + active * n_tokens) * one.bytes_per_token
    decoding = turns * written * read / (bandwidth * 1e9 * cards)
    steps = (1 - decoding) * bandwidth * 1e9 * split / one.weights
    reading = 2 * one.parameters * tokens / (flops * 1e12)
    training = updates * update_tokens * 2 * BACKWARD * one.parameters / (share * flops * 1e12)
    needs = {
        "memory of the cards, all stories in it": (stories * story + lore) / room,
        "memory of the machines, all stories in it": stories * story / (host * 1e9 * cards),
        "links, each turn's story fetched": turns * story / (link * 1e9 * cards),
        "links, each turn's new prompts fetched": turns * woken * prompt / (link * 1e9 * cards),
        "operations, each turn's story read anew": turns * reading / cards,
        "bandwidth of the cards, keys and values of texts being written": decoding,
        "four processors of each card, choosing lore": turns * plan_ms / 1e3 / (4 * cards),
    }
    return {
        "a prompt, MB": round(prompt / 1e6, 3),
        "all prompts, GB": round(prompts * prompt / 1e9),
        "their headers read once, minutes of a processor": round(prompts * header_ms / 6e4, 1),
        "a story's keys and values, MB": round(story / 1e6),
        "all stories, GB": round(stories * story / 1e9),
        "active prompts, GB at most": round(lore / 1e9),
        "room on the cards beside the weights, GB": round(room / 1e9),
        "turns a second": round(turns),
        "new prompts, MB a second": round(turns * woken * prompt / 1e6),
        "a turn's new prompts fetched, ms": round(1e3 * woken * prompt / (link * 1e9), 2),
        "a story read anew, ms of a card": round(1e3 * reading),
        "prompts' share of what a step reads, %": round(
            100 * active * n_tokens / (tokens + active * n_tokens), 1
        ),
        "texts' share, had they been text, %": round(
            100 * active * text_tokens / (tokens + active * text_tokens), 1
        ),
        "tokens a second of each text, at most": round(max(0.0, steps)),
        "training all prompts, hours": round(prompts * training / cards / 3600, 1),
        "used, of what there is": {
            name: float(f"{need:.2g}")
            for name, need in sorted(needs.items(), key=lambda item: -item[1])
        },
    }


if __name__ == "__main__":
    main(__doc__, capacity)
