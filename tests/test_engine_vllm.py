"""The vLLM engine, against a server that reads and streams as vLLM does.

The real one is checked by tools/check_vllm.py; it needs an environment of its own.
"""

import asyncio
import base64
import io
import json
import threading
from dataclasses import replace

import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from softlore import Context, ControlVector, SoftPrompt
from softlore.context import Node, Tree, compose
from softlore.decode import (
    GenerationRequest,
    RunningBatch,
    Sampler,
    SamplingParams,
    SequenceGroup,
    TorchModelRunner,
    write,
)
from softlore.errors import (
    BusyError,
    ConfigError,
    ContextOverflowError,
    EngineError,
    PromptError,
)
from softlore.model.tiny import tiny_model
from softlore.prompts.formats import vllm
from softlore.serve.engines.vllm import VLLMEngine
from softlore.story.settings import STORY_SAMPLING
from softlore.vllm_connector.files import read_folder, side_by_side
from softlore.vllm_connector.placeholders import of_set

MODEL = tiny_model("llama")
ROW = SoftPrompt.from_text("a red coat", MODEL, name="coat", kind="embedding")
CAT = SoftPrompt.from_text("Cat is not", MODEL, name="cat", kind="prefix")
PREFIX = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
VECTOR = ControlVector("dark", torch.ones(MODEL.layers, MODEL.width))
WISH = GenerationRequest("Down the " + ROW + " lane", 12, sampling={"temperature": 0})


def tree_of(body, folder):
    """What vLLM reads: ids or rows, keys and values in place of the first of them."""
    names = body.get("kv_transfer_params", {}).get("softlore", [])
    files = [file for file in read_folder(folder) if file.name in names] if names else []
    placeholder = of_set({file.digest: file.ids for file in files}) if files else []
    if "prompt" in body:
        assert body["prompt"][: len(placeholder)] == placeholder
        content = body["prompt"][len(placeholder) :]
    else:
        content = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])))
        content = content[len(placeholder) :]
    return Tree([Node(content)], [side_by_side(files)] if files else [])


def serving():
    """A server that takes rows and streams token ids, in the form of vLLM's."""
    app, seen = FastAPI(), {"bodies": [], "gone": 0}

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request):
        body = json.loads(await request.body())
        seen["bodies"].append(body)
        if seen.get("refuses"):
            return JSONResponse({"message": "no such thing"}, 400)
        sampling = SamplingParams(
            temperature=body["temperature"], logit_bias=body.get("logit_bias", {})
        )
        batch = RunningBatch(TorchModelRunner(MODEL))
        sampler = Sampler(sampling, body.get("seed"), MODEL)
        trees = [(tree_of(body, seen.get("folder")), 1.0)]
        batch.add(SequenceGroup.from_trees(batch.runner, trees, sampler, body["max_tokens"]))

        async def stream():
            try:
                while len(batch):
                    ids = [token.id for _, token in batch.step()]
                    choice = {"text": "", "token_ids": ids, "finish_reason": None}
                    if seen.get("breaks"):
                        yield 'data: {"error": {"message": "out of memory"}}\n\n'
                        return
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                    await asyncio.sleep(seen.get("pause", 0))
                yield 'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n'
                yield "data: [DONE]\n\n"
            finally:
                seen["gone"] += 1

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app, seen


@pytest.fixture
def server():
    app, seen = serving()
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        pass
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", seen
    running.should_exit = True
    thread.join(10)


def run(url, work, **settings):
    async def main():
        engine = VLLMEngine(MODEL, url, **settings)
        try:
            return await asyncio.wait_for(work(engine), 30)
        finally:
            await engine.close(0)

    return asyncio.run(main())


async def drained(engine, request):
    """A text, after its end."""
    return await (await engine.start(request)).drained()


def test_what_is_written_there_equals_what_is_written_here(server):
    url, seen = server

    async def work(engine):
        first = await drained(engine, WISH)
        ended = await drained(
            engine,
            GenerationRequest(
                WISH.context, 12, stop=(first.text[3:5],), sampling={"temperature": 0}
            ),
        )
        return first, ended, engine.load().running

    first, ended, left = run(url, work)
    single = write(MODEL, WISH.context, 12, temperature=0).drained()
    assert (first.ids, first.text, first.finish) == (single.ids, single.text, single.finish)
    assert (ended.text, ended.finish) == (first.text[:3], "stop")
    assert left == 0
    assert seen["bodies"][0]["max_tokens"] == 12
    assert "seed" not in seen["bodies"][0]


def test_samplers_go_under_its_names(server):
    url, seen = server
    sampling = {"top_k": 0, "temperature": 0.5, "banned": (3,), "logit_bias": {7: 2.0}}

    async def work(engine):
        await drained(engine, GenerationRequest("The dog", 3, seed=5, sampling=sampling))

    run(url, work, name="served")
    body = seen["bodies"][0]
    assert (body["top_k"], body["temperature"], body["seed"], body["model"]) == (
        -1,
        0.5,
        5,
        "served",
    )
    assert body["logit_bias"] == {"7": 2.0, "3": -100.0}


def test_samplers_that_it_lacks_are_named(server):
    url, _ = server
    lacking = {"dry_multiplier": 0.8, "heal": True, "xtc_probability": 0.5, "typical": 0.9,
               "banned_strings": ("x",), "repetition_penalty": 1.1,
               "repetition_range": 9}  # fmt: skip

    async def work(engine):
        return [
            [line.split()[0] for line in engine.without_effect(sampling)]
            for sampling in ({"top_k": 3, "logit_bias": {7: 2.0}}, lacking, STORY_SAMPLING)
        ]

    assert run(url, work) == [
        [],
        ["dry", "typical", "xtc", "repetition_range", "banned_strings", "heal"],
        ["dry", "heal"],
    ]


def test_a_text_that_is_cancelled_is_dropped_there(server):
    url, seen = server
    seen["pause"] = 0.01

    async def work(engine):
        text = await engine.start(GenerationRequest("The dog", 500, seed=1))
        await anext(text)
        text.cancel()
        await text.drained()
        for _ in range(200):
            if seen["gone"]:
                break
            await asyncio.sleep(0.02)
        return text.finish, engine.load().running

    assert run(url, work) == ("cancelled", 0)
    assert seen["gone"] == 1


@pytest.mark.parametrize(
    "context",
    [PREFIX + "The dog", CAT + PREFIX + "The dog ran", PREFIX + CAT + "The " + ROW + " and"],
    ids=["alone", "in company", "beside rows"],
)
def test_prefixes_are_named_by_placeholders(server, tmp_path, context):
    url, seen = server
    seen["folder"] = tmp_path
    for prompt in (PREFIX, CAT):
        vllm.write_prefix(prompt, MODEL, tmp_path / f"{prompt.name}.safetensors")

    async def work(engine):
        return await drained(engine, GenerationRequest(context, 12, sampling={"temperature": 0}))

    assert run(url, work).ids == write(MODEL, context, 12, temperature=0).drained().ids


def test_late_prefixes_are_seen_from_the_start_and_the_log_says_so_once(server, tmp_path, caplog):
    url, seen = server
    seen["folder"] = tmp_path
    for prompt in (PREFIX, CAT):
        vllm.write_prefix(prompt, MODEL, tmp_path / f"{prompt.name}.safetensors")
    text = "Down the lane came the dog"
    late = [text[:9] + PREFIX + text[9:], text[:9] + PREFIX + text[9:18] + CAT + text[18:]]
    classic = [PREFIX + text, PREFIX + CAT + text]
    requests = [GenerationRequest(c, 12, sampling={"temperature": 0}) for c in (*classic, *late)]
    places = compose(MODEL, late[0], reserved=32)  # which vLLM does not keep free
    requests.append(replace(requests[2], tree=places))

    async def work(engine):
        found = [(await drained(engine, request)).ids for request in requests[:2]]
        assert not caplog.records
        return found + [(await drained(engine, request)).ids for request in requests[2:]]

    one, two, *woken = run(url, work)
    assert woken == [one, two, one]
    assert one == write(MODEL, classic[0], 12, temperature=0).drained().ids
    assert two == write(MODEL, classic[1], 12, temperature=0).drained().ids
    told = [record.message for record in caplog.records if "vLLM" in record.message]
    assert len(told) == 1
    assert "all of the text sees it" in told[0]


def test_prefixes_that_cannot_stand_side_by_side_are_refused():
    for family in ("gpt2", "mistral"):  # no rotary positions; layers that slide
        model = tiny_model(family)
        two = [SoftPrompt.from_text(t, model, name=t, kind="prefix") for t in ("one", "two")]
        assert len(vllm.prefix_set_ids(two[:1], model)) == 3
        with pytest.raises(PromptError, match="'one', 'two' cannot stand side by side"):
            vllm.prefix_set_ids(two, model)


def test_it_says_what_it_cannot_do(server):
    url, _ = server
    length = MODEL.context_length

    async def work(engine):
        with pytest.raises(ContextOverflowError, match="positions of its own"):
            await engine.start(
                GenerationRequest(PREFIX + CAT + ("The dog" + "x" * (length - len(PREFIX) - 7)), 1)
            )
        with pytest.raises(ConfigError, match="one code of strength 1"):
            await engine.start(GenerationRequest("The dog", conditioning=[("Horror ", 2.0)]))
        with pytest.raises(ConfigError, match="control vectors"):
            await engine.start(GenerationRequest("The dog", vectors=[(VECTOR, 1.0)]))
        with pytest.raises(ConfigError, match="control vectors"):
            await engine.start(GenerationRequest(Context("The dog", [(VECTOR, 1.0)])))
        with pytest.raises(ConfigError, match="no_copy"):
            await engine.start(GenerationRequest("The dog", sampling={"no_copy": 8}))
        conditioning = await drained(
            engine, GenerationRequest("The dog", 5, conditioning="A ", sampling={"temperature": 0})
        )
        return conditioning.ids

    single = write(MODEL, "The dog", 5, conditioning="A ", temperature=0).drained()
    assert run(url, work) == single.ids


def test_what_goes_wrong_there_is_told(server):
    url, seen = server

    async def refused(engine):
        seen["refuses"] = True
        with pytest.raises(EngineError, match=r"answered 400.*no such thing"):
            await drained(engine, WISH)
        seen.update(refuses=False, breaks=True)
        with pytest.raises(EngineError, match="out of memory"):
            await drained(engine, WISH)
        seen["breaks"] = False
        return (await drained(engine, WISH)).finish

    assert run(url, refused) == "length"

    async def nobody(engine):
        with pytest.raises(EngineError, match=r"cannot be reached.*--engine-url"):
            await drained(engine, WISH)

    run("http://127.0.0.1:9", nobody)


def test_only_so_many_at_once(server):
    url, seen = server
    seen["pause"] = 0.01

    async def work(engine):
        texts = [await engine.start(GenerationRequest("The dog", 20, seed=1)) for _ in range(3)]
        with pytest.raises(BusyError):
            await engine.start(GenerationRequest("The dog", 20))
        assert (engine.load().running, engine.load().waiting) == (2, 1)
        return [(await text.drained()).finish for text in texts]

    assert run(url, work, slots=2, queue=1) == ["length"] * 3


def test_a_text_that_takes_too_long_keeps_what_there_is(server):
    url, seen = server
    seen["pause"] = 0.02

    async def work(engine):
        return await drained(
            engine, GenerationRequest("The dog", 500, sampling={"banned": MODEL.eos_ids})
        )

    text = run(url, work, text_seconds=0.5)
    assert text.finish == "timeout"
    assert text.ids
