"""llama.cpp's and vLLM's routes beside KoboldAI's and OpenAI's, and what else clients ask for."""

import json
import logging

import httpx
import pytest
import torch

from api_server import make_state, served, storyteller
from softlore.decode.samplers.temperature import SmoothingLogitsProcessor
from softlore.serve.lenient import sampling_of
from softlore.settings import SamplingParams, ServeSettings

PROMPT = "Once upon a time"
KOBOLD = {"prompt": PROMPT, "max_length": 6, "sampler_seed": 3}
# What SillyTavern 1.19 sends to a server of the type llama.cpp, shortened.
SILLY = {
    "prompt": PROMPT, "max_new_tokens": 8, "max_tokens": 8, "n_predict": 8, "num_predict": 8,
    "temperature": 0.7, "top_p": 0.9, "typical_p": 1, "seed": 7, "min_p": 0.1, "rep_pen": 1.1,
    "repeat_penalty": 1.1, "repeat_last_n": 64, "rep_pen_range": 64, "stop": ["\nUser:"],
    "stopping_strings": ["\nUser:"], "truncation_length": 1024, "ignore_eos": True, "n": 1,
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc",
                 "temperature", "adaptive_p"],
    "custom_token_bans": "", "logit_bias": [[5, False]], "grammar": "", "cache_prompt": True,
}  # fmt: skip


def post(web, path, **body):
    reply = web.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(reply):
    return [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]


def test_props_tell_the_context_and_the_chat_template(web):
    props = web.get("/props", params={"model": "storyteller"}).json()
    assert props["default_generation_settings"]["n_ctx"] == storyteller().context_length
    assert props["chat_template"] == ""
    storyteller().tokenizer.chat_template = {"default": "{{ messages }}", "tools": "x"}
    try:
        assert web.get("/props").json()["chat_template"] == "{{ messages }}"
    finally:
        storyteller().tokenizer.chat_template = None


def test_sillytaverns_request_is_completed_whole_and_streamed_alike(web):
    whole = post(web, "/completion", **SILLY)
    assert whole["content"]
    assert (whole["stop"], whole["stop_type"]) == (True, "limit")
    assert whole["tokens_predicted"] == len(whole["tokens"]) == 8
    assert whole["tokens_evaluated"] == len(storyteller().encode(PROMPT))
    told = events(web.post("/completion", json=SILLY | {"stream": True}))
    assert "".join(one["content"] for one in told) == whole["content"]
    assert [one["stop"] for one in told] == [False] * (len(told) - 1) + [True]
    stopped = post(web, "/completion", **SILLY | {"stop": [whole["content"][3:6]]})
    assert stopped["content"] == whole["content"][:3]
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", whole["content"][3:6])
    assert len(post(web, "/completion", **SILLY | {"n": 2})) == 2


def test_probabilities_have_the_shape_that_sillytavern_reads(web):
    told = post(web, "/completion", **SILLY, n_probs=3)["completion_probabilities"]
    assert len(told) == 8
    for one in told:
        assert one["content"] == one["token"]
        assert len(one["top_logprobs"]) == 3
        assert all(set(likely) >= {"token", "logprob"} for likely in one["top_logprobs"])
    streamed = events(web.post("/completion", json=SILLY | {"n_probs": 3, "stream": True}))
    tokens = [one["token"] for part in streamed for one in part["completion_probabilities"]]
    assert tokens == [one["token"] for one in told]


def test_nothing_is_written_where_n_predict_is_0(web):
    assert post(web, "/completion", prompt=PROMPT, n_predict=0)["content"] == ""


@pytest.mark.parametrize(("path", "body"), [
    ("/completion", {"prompt": {"a": 1}}),
    ("/completion", {"prompt": [[99999999]]}),
    ("/completion", {"prompt": "[[soft:nobody]]"}),
    ("/detokenize", {"tokens": [99999999]}),
    ("/detokenize", {"tokens": ["x"]}),
    ("/tokenize", []),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_words(web, path, body):
    reply = web.post(path, json=body)
    assert reply.status_code in (400, 404)
    assert "expected" in reply.json()["error"]["message"] or "soft" in reply.text


def test_ids_and_text_turn_into_each_other_as_llamacpp_and_vllm_do_it(web):
    ids = storyteller().encode(PROMPT)
    assert post(web, "/tokenize", content=PROMPT) == {"tokens": ids}
    pieces = post(web, "/tokenize", content=PROMPT, with_pieces=True)["tokens"]
    assert "".join(one["piece"] for one in pieces) == PROMPT
    vllm = post(web, "/tokenize", model="storyteller", prompt=PROMPT)
    assert (vllm["tokens"], vllm["count"]) == (ids, len(ids))
    assert vllm["max_model_len"] == storyteller().context_length
    back = post(web, "/detokenize", tokens=ids)
    assert back["content"] == back["prompt"] == PROMPT
    assert post(web, "/tokenize", content="") == {"tokens": []}


# KoboldAI's ---------------------------------------------------------------------------------------


def test_log_probabilities_of_the_last_text_can_be_had_by_its_key_alone(web):
    told = post(web, "/api/v1/generate", **KOBOLD, logprobs=True, genkey="mine")["results"][0]
    assert post(web, "/api/extra/last_logprobs", genkey="mine")["logprobs"] == told["logprobs"]
    assert post(web, "/api/extra/last_logprobs", genkey="other") == {"logprobs": None}
    assert web.get("/api/extra/last_logprobs").json() == {"logprobs": None}
    web.post("/api/extra/generate/stream", json=KOBOLD | {"logprobs": True, "genkey": "yours"})
    streamed = post(web, "/api/extra/last_logprobs", genkey="yours")["logprobs"]
    assert streamed["tokens"] == told["logprobs"]["tokens"]


def test_performance_is_that_of_the_newest_text(web):
    before = web.get("/api/extra/perf").json()
    post(web, "/api/v1/generate", **KOBOLD, bypass_eos=True)
    perf = web.get("/api/extra/perf").json()
    assert perf["total_gens"] == before["total_gens"] + 1
    assert (perf["last_token_count"], perf["stop_reason"]) == (6, 0)
    assert perf["last_input_count"] == len(storyteller().encode(PROMPT))
    assert perf["last_process"] > 0 < perf["last_eval"]
    assert (perf["queue"], perf["idle"]) == (0, 1)
    assert perf["uptime"] > before["uptime"]


def test_there_are_no_models_of_images(web):
    assert web.get("/sdapi/v1/sd-models").json() == []


def test_a_client_without_the_key_learns_that_there_is_one(tmp_path, caplog):
    state = make_state(tmp_path)
    state.settings = ServeSettings(api_key="secret-key")
    with served(state) as url, httpx.Client(base_url=url, timeout=60) as web:
        assert web.get("/api/v1/model").json() == {"result": "koboldcpp/protected-model"}
        assert web.get("/api/extra/version").json()["protected"] is True
        assert web.get("/api/v1/info/version").status_code == 200
        key = {"Authorization": "Bearer secret-key"}
        assert web.get("/api/v1/model", headers=key).json() == {"result": "storyteller"}
        with caplog.at_level(logging.WARNING, "softlore"):
            refused = web.post("/api/v1/generate", json=KOBOLD, headers={"Origin": url})
            assert refused.status_code == 401
            assert (
                web.get("/v1/models", headers={"Origin": "https://lite.example"}).status_code == 403
            )
    [of_key, of_origin] = [record.getMessage() for record in caplog.records]
    assert url in of_key
    assert "--api-key-file" in of_key
    assert "'https://lite.example'" in of_origin
    assert of_origin.endswith("--origin https://lite.example")


# samplers by clients' names -----------------------------------------------------------------------


def found(**sent):
    return SamplingParams.of(sampling_of(sent, storyteller()))


@pytest.mark.parametrize("name", ["rep_pen_range", "repeat_last_n"])
def test_a_range_of_0_turns_the_penalty_off(name):
    assert found(rep_pen=1.2, **{name: 0}).repetition_penalty == 1.0
    assert found(rep_pen=1.2, **{name: "0"}).repetition_penalty == 1.0
    assert found(rep_pen=1.2, **{name: 64}).repetition_penalty == 1.2
    assert found(rep_pen=1.2, **{name: -1}).repetition_penalty == 1.2  # llama.cpp: the context
    assert (
        found(rep_pen=1.2, repetition_penalty_range=0).repetition_penalty == 1.2
    )  # the whole text


def test_bans_of_ids_come_as_a_list_a_text_or_false():
    for sent in ([5, 17], "5,17", "5, 17"):
        assert found(custom_token_bans=sent).banned == (5, 17)
    assert found(custom_token_bans="").banned == ()
    assert found(logit_bias=[[5, False], [6, 1.5]]).logit_bias == ((5, -100.0), (6, 1.5))


def test_llamacpps_names_of_samplers_give_their_order():
    order = found(samplers=["penalties", "typ_p", "adaptive_p", "temperature"]).order
    assert order == ("repetition_penalty", "presence_frequency", "typical", "temperature",
                     "smoothing")  # fmt: skip


def test_the_smoothing_curve_is_cubic_and_1_is_quadratic():
    scores = torch.tensor([[2.0, 1.0, -1.0, -torch.inf]])
    curve = SmoothingLogitsProcessor(0.5, 3.0)
    below = scores - 2.0
    assert torch.allclose(curve(scores, scores), 2.0 + 0.5 * below**3)
    quadratic = SmoothingLogitsProcessor(0.5)(scores, scores)
    assert torch.allclose(quadratic, 2.0 - 0.5 * below**2)
    assert found(smoothing_factor=0.3, smoothing_curve=2.5).smoothing_curve == 2.5
    assert found(smoothing_factor=0.3, smoothing_curve=0).smoothing_curve == 1.0
