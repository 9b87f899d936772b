"""Measures what changing lore costs, side by side in one run: late prefixes and classic ones.

`stories`: a turn of a story in which lore wakes, stays, is swapped or sleeps, beside one in which
there is none. Each turn follows one that was just written, from the cache that this has left. The
ratio is to the turn without lore; `read` is how many tokens of the context had to be run.

`streams`: many stories at once in one running batch, a turn each, several turns; each turn of each
story has another one of ten sets of lore. Beside them the same stories without lore. Megabytes are
those of keys and values: of the running texts at most, and cached in the end.

Nothing is asserted about speed.

    python tools/bench_lore.py                     # the storyteller
    python tools/bench_lore.py --quick             # a tiny model, to see that all of it runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softlore import FrozenModel, SoftPrompt, runner_for
from softlore.decode import GenerationRequest, ModelRunner, PrefixCache, RunningBatch
from softlore.decode.model_runner import TorchModelRunner
from softlore.decode.writing import write_request
from softlore.model.tiny import byte_tokenizer, tiny_hf
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer

SENTENCES = (
    "The old house stood by the sea, and the wind went round it all night long. ",
    "In the morning they walked down to the harbour to look at the boats. ",
    "Nobody had seen the red one since the storm, and nobody spoke of it. ",
)
LINE = "Then somebody knocked at the door, and all of them stopped talking and looked at him. "
LORE = "Marta wears a long red coat, carries a lantern, and never speaks of the sea. "
SETS = 10
LORE_TOKENS = 16
CASES = {  # the lore of the turn before, and of the turn that is measured
    "no lore": ((), ()),
    "wakes": ((), (0, 1)),
    "stays": ((0, 1), (0, 1)),
    "swapped": ((0, 1), (2, 3)),
    "sleeps": ((0, 1), ()),
}
KINDS = ("late", "classic")


@dataclass(frozen=True)
class Sizes:
    """How much is read and written."""

    story: int  # tokens of story before the turns of `stories`
    stream: int  # and of each of the `streams`
    turn: int  # tokens that are written
    streams: int
    turns: int
    repeats: int


def make_model(quick: bool) -> FrozenModel:
    if not quick:
        return FrozenModel.from_pretrained("storyteller")
    hf = tiny_hf("llama", max_position_embeddings=1024)
    return FrozenModel(hf, byte_tokenizer(), "tiny")


def make_prompts(model: FrozenModel, kind: str, count: int) -> list[SoftPrompt]:
    """Prefixes with the keys and values of a text: what they say has no effect on speed."""
    prompts = []
    for number in range(count):
        text = f"{number} {LORE}"
        prompt = SoftPrompt.from_text(text, model, f"p{number}", "prefix", LORE_TOKENS)
        prompts.append(prompt.replace(training={**prompt.training, "placement": kind}))
    return prompts


class Stories:
    """Composes turns of stories with given lore, as a story's session does.

    Args:
        prompts: those that may be active.
    """

    def __init__(self, model: FrozenModel, prompts: Sequence[SoftPrompt], tokens: int) -> None:
        self.model, self.prompts, self.tokens = model, prompts, tokens
        self._composer = ContextComposer(model, (), {prompt.name: prompt for prompt in prompts})

    def request(self, turns: Sequence[str], lore: Sequence[int], seed: int) -> GenerationRequest:
        """The request for a turn."""
        always = [self.prompts[i] for i in lore]
        plan = self._composer.plan(StorySettings(), turns, self.tokens, always=always)
        sampling = {"banned": [*self.model.eos_ids]}
        return GenerationRequest(
            plan.context, self.tokens, seed=seed, check=False, sampling=sampling, tree=plan.tree
        )


def opening(model: FrozenModel, tokens: int, number: int = 0) -> list[str]:
    """Turns of some hundred characters, of so many tokens together."""
    turns, count = [f"Story {number}. "], 0
    while count < tokens:
        turns.append(SENTENCES[len(turns) % 3] + SENTENCES[(len(turns) + 1) % 3])
        count += len(model.encode(turns[-1], inside=True))
    return turns[:-1]


def write_turn(stories: Stories, runner: ModelRunner, turns: list[str], lore: Sequence[int]) -> Any:
    """Writes a turn, adds it, and returns its stream and when its first token came."""
    start = time.perf_counter()
    stream = write_request(runner, stories.request(turns, lore, seed=len(turns)))
    first = 0.0
    for _ in stream:
        first = first or time.perf_counter() - start
    turns.append(stream.text)
    return stream, first, time.perf_counter() - start


def measure_stories(model: FrozenModel, sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds of a turn in each case, the cases by turns."""
    by_kind = {kind: Stories(model, make_prompts(model, kind, 4), sizes.turn) for kind in KINDS}
    cases = [(kind, case) for kind in KINDS for case in CASES]
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {one: [] for one in cases}
    read = {}
    for _ in range(sizes.repeats + 1):
        for kind, case in cases:
            before, lore = CASES[case]
            runner, turns = runner_for(model), opening(model, sizes.story)
            turns.append(LINE)
            write_turn(by_kind[kind], runner, turns, before)
            turns.append(LINE)
            stream, *times = write_turn(by_kind[kind], runner, turns, lore)
            seconds[kind, case].append((times[0], times[1]))
            read[kind, case] = stream.cache_usage.read
    rows = []
    for kind, case in cases:
        first, whole = (
            statistics.median(times) for times in zip(*seconds[kind, case][1:], strict=True)
        )
        rows.append(
            {
                "prefixes": kind,
                "lore": case,
                "read": read[kind, case],
                "first": first,
                "turn": whole,
            }
        )
    for row in rows:
        bare = next(r for r in rows if (r["prefixes"], r["lore"]) == (row["prefixes"], "no lore"))
        row["ratio"] = row["turn"] / bare["turn"]
    return rows


def run_streams(model: FrozenModel, sizes: Sizes, kind: str | None) -> dict[str, Any]:
    """Tokens a second of many stories in one batch, after the first turn, which reads all."""
    prompts = make_prompts(model, kind or "late", SETS + 2)
    stories = Stories(model, prompts, sizes.turn)
    runner = TorchModelRunner(model, PrefixCache())
    batch = RunningBatch(runner)
    texts = [opening(model, sizes.stream, number) for number in range(sizes.streams)]
    seconds, running, read = 0.0, 0, 0
    for turn in range(sizes.turns + 1):
        start = time.perf_counter()
        groups = []
        for number, turns in enumerate(texts):
            lore = (number + turn) % SETS
            turns.append(LINE)
            awake = range(lore, lore + 1 + lore % 3) if kind else ()
            groups.append(batch.add(stories.request(turns, awake, seed=number)))
        while len(batch):
            batch.step()
            running = max(running, batch.memory_usage().bytes)
        for turns, group in zip(texts, groups, strict=True):
            turns.append(group.output.text)
        if turn:
            seconds += time.perf_counter() - start
            read += sum(group.cache_usage.read for group in groups if group.cache_usage)
    written = sizes.streams * sizes.turn * sizes.turns
    return {
        "lore": kind or "none",
        "tokens/s": written / seconds,
        "read": read / (sizes.streams * sizes.turns),
        "running MB": running / 2**20,
        "cached MB": batch.memory_usage().cached_bytes / 2**20,
    }


def measure_streams(model: FrozenModel, sizes: Sizes) -> list[dict[str, Any]]:
    """Without lore, with late prefixes and with classic ones, by turns; medians."""
    kinds = (None, *KINDS)
    runs = [[run_streams(model, sizes, kind) for kind in kinds] for _ in range(sizes.repeats)]
    rows = []
    for same in zip(*runs, strict=True):
        speed = statistics.median(run["tokens/s"] for run in same)
        rows.append(same[-1] | {"tokens/s": speed})
    for row in rows:
        row["ratio"] = row["tokens/s"] / rows[0]["tokens/s"]
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    print("".join(f"{name:>12}" for name in rows[0]))
    for row in rows:
        print("".join(f"{cell(value):>12}" for value in row.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, few tokens")
    parser.add_argument("--only", choices=("stories", "streams"), help="one of the two parts")
    parser.add_argument("--streams", type=int, help="stories at once; 64, or 8 with --quick")
    parser.add_argument("--repeats", type=int, default=3, help="runs timed; medians are shown")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    sizes = Sizes(800, 300, 40, options.streams or 64, 3, options.repeats)
    if options.quick:
        sizes = Sizes(400, 200, 8, options.streams or 8, 2, 1)
    model = make_model(options.quick)
    rows: dict[str, Any] = {}
    if options.only != "streams":
        print(f"stories: a turn of {sizes.turn} tokens after {sizes.story}, seconds, {model.name}")
        rows["stories"] = measure_stories(model, sizes)
        show(rows["stories"])
    if options.only != "stories":
        print(f"streams: {sizes.streams} at once, {sizes.turns} turns of {sizes.turn} tokens")
        rows["streams"] = measure_streams(model, sizes)
        show(rows["streams"])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
