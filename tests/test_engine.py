"""The local engine: a queue with an end, texts that can be cancelled at any time, and none lost."""

import asyncio
import random

import pytest

from softlore.decode import GenerationRequest, PrefixCache, TorchModelRunner, write
from softlore.errors import BusyError, ConfigError, EngineError
from softlore.model.tiny import tiny_model
from softlore.serve.engines.local import LocalEngine
from waiting import wait_until_async

MODEL = tiny_model("llama")
LONG = 300  # tokens, of a model that reads 1024 at least


def request(number, tokens=12, **rest):
    return GenerationRequest(f"The dog {number} ran", tokens, seed=number, **rest)


def running(work, **settings):
    """What a coroutine gives that is handed an engine, which is closed after it."""

    async def main():
        engine = LocalEngine(TorchModelRunner(MODEL, PrefixCache(2**24)), **settings)
        try:
            return await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.close(0)

    return asyncio.run(main())


async def drained(engine, request):
    """A text, after its end."""
    return await (await engine.start(request)).drained()


def test_texts_are_what_they_would_be_alone():
    async def work(engine):
        return await asyncio.gather(*(drained(engine, request(i)) for i in range(20)))

    for number, text in enumerate(running(work, slots=4, queue=20)):
        single = write(MODEL, f"The dog {number} ran", 12, seed=number).drained()
        assert (text.text, text.ids, text.finish) == (single.text, single.ids, single.finish)


def test_tokens_come_one_after_the_other():
    async def work(engine):
        text, told = await engine.start(request(0, stop=("e",))), []
        async for token in text:
            told.append(token)
        return text, told

    text, told = running(work)
    assert "".join(token.text for token in told) == text.text
    assert [token.id for token in told if token.id is not None] == text.ids
    assert text.finish in ("stop", "length")


def test_a_full_queue_refuses_and_takes_again():
    async def work(engine):
        texts = [await engine.start(request(i, LONG)) for i in range(2)]
        await wait_until_async(lambda: engine.load().running == 1)
        texts.append(await engine.start(request(2, LONG)))
        with pytest.raises(BusyError, match="ask again later"):
            await engine.start(request(3))
        for text in texts:
            text.cancel()
        await asyncio.gather(*(text.drained() for text in texts))
        return (await drained(engine, request(4))).finish

    assert running(work, slots=1, queue=2) == "length"


def test_a_burst_finds_as_much_room_as_there_is():
    async def work(engine):
        texts, refused = [], 0
        for number in range(50):
            try:
                texts.append(await engine.start(request(number)))
            except BusyError:
                refused += 1
        await asyncio.gather(*(text.drained() for text in texts))
        return len(texts), refused

    assert running(work, slots=4, queue=6) == (10, 40)


def test_a_text_that_waits_too_long_is_told_so():
    async def work(engine):
        first = await engine.start(request(0, LONG))
        await wait_until_async(lambda: engine.load().running == 1)
        with pytest.raises(BusyError, match="waited"):
            await drained(engine, request(1))
        first.cancel()
        await first.drained()

    running(work, slots=1, queue=2, queue_seconds=0.05)


def test_a_text_that_takes_too_long_ends_with_what_is_there():
    async def work(engine):
        return await drained(engine, request(0, 1000, sampling={"top_k": 0}))

    text = running(work, text_seconds=0.2)
    assert text.finish == "timeout"
    assert 0 < len(text.ids) < 1000


def test_cancelling_frees_what_was_taken():
    async def work(engine):
        draws = random.Random(0)
        for _ in range(40):
            texts = [await engine.start(request(i, LONG)) for i in range(draws.randint(1, 6))]
            for text in texts:
                for _ in range(draws.randint(0, 3)):
                    await anext(text)
                text.cancel()
            for text in texts:
                await text.drained()
                assert text.finish == "cancelled"
                text.cancel()
        await wait_until_async(lambda: engine.load().running == 0)
        return engine.load()

    load = running(work, slots=4, queue=8)
    assert (load.running, load.waiting, load.tokens, load.bytes) == (0, 0, 0, 0)


def test_what_cannot_be_written_is_refused_at_once():
    async def work(engine):
        with pytest.raises(ConfigError, match="temperature"):
            await engine.start(request(0, sampling={"temperature": "warm"}))
        return await drained(engine, request(0))

    assert running(work).finish == "length"


def test_a_failure_ends_what_runs_and_nothing_else(monkeypatch):
    async def work(engine):
        text = await engine.start(request(0, LONG))
        await anext(text)

        def broken(*_):
            raise RuntimeError("a forward that fails")

        with monkeypatch.context() as patched:
            patched.setattr(engine._batch, "step", broken)
            with pytest.raises(EngineError, match="could not write on"):
                await text.drained()
        return await drained(engine, request(1))

    text = running(work)
    assert text.text == write(MODEL, "The dog 1 ran", 12, seed=1).drained().text


def test_closing_lets_texts_end():
    async def work(engine):
        texts = [await engine.start(request(i, 40)) for i in range(3)]
        await engine.close(30)
        with pytest.raises(BusyError, match="shutting down"):
            await engine.start(request(4))
        return [(await text.drained()).finish for text in texts]

    assert running(work, slots=2) == ["length"] * 3


def test_a_story_goes_on_from_what_was_read():
    async def work(engine):
        first = await drained(engine, request(0))
        await wait_until_async(lambda: engine.load().running == 0)
        story = "The dog 0 ran" + first.text + " on"
        return (await drained(engine, GenerationRequest(story, 5, seed=1))).cache_usage

    assert running(work).reused > 12
