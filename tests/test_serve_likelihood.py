"""Log-probabilities of prompts in /v1/completions, as likelihood harnesses ask for them."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_server import storyteller
from softlore.context import splice
from softlore.context.compose import compose
from softlore.prompts import PromptLibrary

TEXT = "At the door stood Emma."
NAMES = ("tokens", "token_logprobs", "top_logprobs")


def choices(web, **fields):
    body = {"prompt": TEXT, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    reply = web.post("/v1/completions", json=body | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"]


def forward(ids, before=""):
    """The log-probability of each id after the first, by one forward."""
    model = storyteller()
    tree = compose(model, before, ids=ids)
    hidden = logits_of(model, tree).log_softmax(-1)[-len(ids) :]
    return [float(row[i]) for row, i in zip(hidden[:-1], ids[1:], strict=True)]


def logits_of(model, tree):
    spliced = splice(model, [tree])
    hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
    return model.logits(hidden[0])


def test_an_echoed_prompt_has_its_tokens_with_theirs_the_first_null(web):
    ids = storyteller().encode(TEXT)
    [choice] = choices(web)
    told = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert len(told["tokens"]) == len(ids) + 1
    assert "".join(told["tokens"]) == choice["text"]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:-1] == pytest.approx(forward(ids), abs=1e-4)
    starts = [sum(map(len, told["tokens"][:number])) for number in range(len(ids) + 1)]
    assert told["text_offset"] == starts
    for token, logprob, top in zip(*[told[name][1:] for name in NAMES], strict=True):
        assert top[token] == logprob <= max(top.values())


def test_nothing_follows_where_no_token_is_asked_for(web):
    [choice] = choices(web, max_tokens=0)
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert choice["logprobs"]["tokens"] == choices(web)[0]["logprobs"]["tokens"][:-1]
    body = {"prompt": TEXT, "max_tokens": 0, "echo": True}
    reply = web.post("/v1/completions", json=body).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["logprobs"]) == (TEXT, None)
    assert reply["usage"]["completion_tokens"] == 0
    assert reply["usage"]["prompt_tokens"] == len(storyteller().encode(TEXT))


def test_logprobs_0_reports_each_token_alone(web):
    told = choices(web, logprobs=0)[0]["logprobs"]
    expected = choices(web, logprobs=3)[0]["logprobs"]["token_logprobs"]
    assert told["token_logprobs"] == pytest.approx(expected, abs=1e-5)
    for token, logprob, top in zip(*[told[name][1:] for name in NAMES], strict=True):
        assert top == {token: logprob}
    assert choices(web, logprobs=False)[0]["logprobs"] is None


def test_ids_and_several_prompts_are_scored_as_they_are(web):
    ids = storyteller().encode(TEXT)
    prompts = [ids, [*ids[3:], 5, 5, 9], ids[:1]]
    found = choices(web, prompt=prompts)
    for prompt, choice in zip(prompts, found, strict=True):
        told = choice["logprobs"]["token_logprobs"]
        assert len(told) == len(prompt) + 1
        assert told[1:-1] == pytest.approx(forward(prompt), abs=1e-4)
    assert [choice["index"] for choice in found] == [0, 1, 2]


def test_a_soft_prompt_by_name_is_read_before_the_ids(web, state):
    ids = storyteller().encode(TEXT)
    for name in ("dog", "Emma"):
        prompt = PromptLibrary(state.prompts.folder)[name]
        [choice] = choices(web, prompt=ids, model=f"storyteller:{name}")
        told = choice["logprobs"]["token_logprobs"][-len(ids) : -1]
        assert told == pytest.approx(forward(ids, prompt), abs=1e-4)
        assert told != pytest.approx(forward(ids), abs=1e-4)


def test_the_end_of_a_text_counts_as_a_token_after_an_echoed_prompt(web):
    """Harnesses leave out the last token, which must be the new one."""
    model = storyteller()
    [end] = sorted(model.eos_ids)[:1]
    [choice] = choices(web, logit_bias={str(end): 100})
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == len(model.encode(TEXT)) + 1


def test_ids_that_do_not_fit_are_refused_with_how_many_would(web):
    ids = storyteller().encode(TEXT) * 1000
    reply = web.post("/v1/completions", json={"prompt": ids, "max_tokens": 1, "echo": True})
    assert reply.status_code == 400
    most = storyteller().context_length
    assert f"expected at most {most}" in reply.json()["error"]["message"]
    fitting = {"prompt": ids[:most], "max_tokens": 1, "echo": True, "logprobs": 0}
    told = web.post("/v1/completions", json=fitting).json()["choices"][0]["logprobs"]
    assert len(told["tokens"]) == most + 1


def test_streamed_chunks_have_what_the_whole_has(web):
    [whole] = choices(web, max_tokens=4, logprobs=2)
    body = {"prompt": TEXT, "max_tokens": 4, "echo": True, "logprobs": 2, "temperature": 0}
    reply = web.post("/v1/completions", json=body | {"stream": True})
    chunks = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    parts = [httpx.Response(200, text=chunk).json()["choices"][0] for chunk in chunks[:-1]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name in ("tokens", "text_offset", "token_logprobs"):
        joined = [value for part in parts if part["logprobs"] for value in part["logprobs"][name]]
        if name == "token_logprobs":
            assert joined[1:] == pytest.approx(whole["logprobs"][name][1:], abs=1e-4)
        else:
            assert joined == whole["logprobs"][name]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(prompts=st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=40), min_size=1,
                        max_size=4))  # fmt: skip
def test_any_ids_have_the_log_probabilities_of_a_forward(web, prompts):
    for prompt, choice in zip(prompts, choices(web, prompt=prompts), strict=True):
        told = choice["logprobs"]["token_logprobs"]
        assert told[0] is None
        assert told[1:-1] == pytest.approx(forward(prompt), abs=1e-3)
