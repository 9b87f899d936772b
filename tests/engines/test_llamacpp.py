import json
import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="make engines installs it")

from batches import write_batch
from engines.gguf_files import gguf_file, gguf_model, transformers_model
from engines.llama_servers import llama_server
from softlore import (
    Context,
    Entry,
    Lorebook,
    SoftPrompt,
    generate,
    logits,
    runner_for,
)
from softlore.context import compose
from softlore.decode import GenerationRequest, write, write_request
from softlore.decode.llamacpp import LlamaCppModelRunner
from softlore.errors import (
    ConfigError,
    ContextOverflowError,
    ModelError,
    PromptMismatchError,
    UnsupportedModelError,
)
from softlore.measure.gain import EntryGain, measure_gain
from softlore.model import require_frozen_model
from softlore.model.gguf import CacheTypes, GGUFModel, weights
from softlore.model.tiny import byte_tokenizer
from softlore.prompts.formats import llamacpp
from softlore.serve.engines.local import LocalEngine
from studio_calls import studio
from waiting import wait_until

pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("default")]
FAMILIES = ("storyteller", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2")
TEXT = "The dog ran down the lane and"


def prompt(family, text, kind, name="Dog"):
    return SoftPrompt.from_text(text, transformers_model(family), name=name, kind=kind)


def contexts(family):
    prefix = prompt(family, "A big brown dog, he", "prefix")
    other = prompt(family, "The rain on the sea", "prefix", "Rain")
    rows = prompt(family, "the old fox", "embedding", "Fox")
    return {
        "plain": Context([TEXT]),
        "rows": Context([TEXT, rows, " and then the"]),
        "prefix": Context([prefix, TEXT]),
        "two": Context([prefix, other, TEXT]),
        "all": Context([other, prefix, TEXT, rows, " ran"]),
    }


def read(runner, context, at_once=5):
    sequence = runner.start(compose(runner.model, context))
    while sequence.logits is None:
        runner.prefill([sequence], at_once)
    runner.remove(sequence)
    return sequence.logits


def off(ours, theirs):
    """The largest difference of log-probabilities."""
    return float((ours.log_softmax(0) - theirs.log_softmax(0)).abs().max())


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_err_no_more_than_plain_text_does(family, flash):
    model = transformers_model(family)
    runner = LlamaCppModelRunner(gguf_model(family), 2, CacheTypes("f32", "f32", flash))
    errors, far = {}, {}
    for name, context in contexts(family).items():
        want = logits(model, context)[-1]
        errors[name] = off(read(runner, context), want)
        far[name] = off(logits(model, TEXT)[-1], want)
    runner.close()
    assert errors.pop("plain") < 0.05
    assert max(errors.values()) < 0.05
    assert min(far[name] for name in errors) > 0.3  # the prompts do change something


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_cache_of_any_type_holds_prefixes(kind):
    model = transformers_model("storyteller")
    runner = LlamaCppModelRunner(GGUFModel(gguf_file("storyteller")), 2, CacheTypes(kind, kind))
    found = contexts("storyteller")
    errors = {n: off(read(runner, c), logits(model, c)[-1]) for n, c in found.items()}
    runner.close()
    plain = errors.pop("plain")
    assert max(errors.values()) < 4 * plain + 0.01, (plain, errors)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_quantized_file_knows_its_prompts_and_no_others(kind):
    gguf = GGUFModel(gguf_file("storyteller", kind))
    ours = prompt("storyteller", "A big brown dog", "prefix")
    gguf.check_prompt(ours)
    gguf.check_prompt(prompt("storyteller", "A big brown dog", "embedding"))
    strange = ours.replace(fingerprint=transformers_model("llama").fingerprint("prefix"))
    with pytest.raises(PromptMismatchError):
        gguf.check_prompt(strange)


@pytest.mark.parametrize("context", ["plain", "prefix", "two", "all"])
def test_greedy_texts_are_softlores_own(context):
    model = transformers_model("storyteller")
    request = GenerationRequest(contexts("storyteller")[context], 24, sampling={"temperature": 0})
    alone = write_request(model, request).drained()
    runner = LlamaCppModelRunner(GGUFModel(gguf_file("storyteller")), 4, CacheTypes("f32", "f32"))
    for _ in range(2):  # the second time most of it is known
        outputs, tokens = write_batch(runner, [request, request, request])
        assert len(list(tokens)) >= 3
        assert [one.ids for one in outputs] == [alone.ids] * 3
    runner.close()


def test_texts_at_once_are_each_what_they_are_alone():
    gguf = GGUFModel(gguf_file("storyteller"))
    cast = list(contexts("storyteller").values())
    requests = [GenerationRequest(cast[i % 5], 6 + i, seed=i) for i in range(12)]
    runner = LlamaCppModelRunner(gguf, 12, CacheTypes("f32", "f32"))
    together, tokens = write_batch(runner, requests)
    list(tokens)
    for request, one in zip(requests, together, strict=True):
        single = LlamaCppModelRunner(gguf, 1, CacheTypes("f32", "f32"))
        (alone,), tokens = write_batch(single, [request])
        list(tokens)
        single.close()
        assert one.ids == alone.ids
    held = runner.memory_usage()
    assert held.tokens == 0
    assert held.cached_tokens > 0
    runner.clear()
    assert runner.memory_usage().cached_tokens == 0
    runner.close()


def test_a_text_that_goes_on_reads_only_what_is_new():
    runner = LlamaCppModelRunner(GGUFModel(gguf_file("storyteller")), 2, CacheTypes("f32", "f32"))
    prefix = contexts("storyteller")["prefix"]
    first = read(runner, prefix)
    sequence = runner.start(compose(runner.model, prefix + " then the"))
    assert sequence.cache_usage.reused == len(runner.model.encode(TEXT))
    runner.remove(sequence)
    assert off(read(runner, prefix), first) < 1e-3
    runner.close()


def test_codes_are_known_and_mixed():
    model, gguf = transformers_model("storyteller"), GGUFModel(gguf_file("storyteller"))
    assert gguf.control_codes == model.control_codes
    conditioning = [("<|Horror|>", 1.5), ("<|Humor|>", -0.5)]
    request = GenerationRequest(TEXT, 16, conditioning=conditioning, sampling={"temperature": 0})
    runner = LlamaCppModelRunner(gguf, 3, CacheTypes("f32", "f32"))
    (output,), tokens = write_batch(runner, [request])
    list(tokens)
    assert output.ids == write_request(model, request).drained().ids
    runner.close()
    small = LlamaCppModelRunner(gguf, 1)
    with pytest.raises(ConfigError, match="has room for 1"):
        write_batch(small, [request])
    small.close()


def test_what_is_too_long_or_no_model_is_refused(tmp_path):
    gguf = GGUFModel(gguf_file("storyteller"), context_length=64)
    runner = LlamaCppModelRunner(gguf, 1)
    with pytest.raises(ContextOverflowError):
        write_batch(runner, [GenerationRequest("dog " * 200)])
    runner.close()
    with pytest.raises(ModelError, match="there is no GGUF file"):
        GGUFModel(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="of version 0"):
        GGUFModel(tmp_path / "bad.gguf")
    with pytest.raises(ConfigError, match="need flash attention"):
        CacheTypes("q8_0", "q8_0", flash=False)


def test_another_models_tokenizer_is_refused(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="other ids"):
        GGUFModel(gguf_file("storyteller"), str(tmp_path))


# a real llama-server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slots")
    with llama_server(folder, "--slot-save-path", f"{folder}/") as client:
        yield client, folder


@pytest.mark.parametrize("by", ["ids", "text"])
def test_llama_server_restores_a_slot_file_and_writes_the_same(server, by):
    client, folder = server
    prefix = prompt("storyteller", "A big brown dog, he", "prefix")
    saved, file = folder / "dog.safetensors", folder / "dog.bin"
    prefix.save(saved)
    done = subprocess.run(
        [sys.executable, "-m", "softlore", "convert", saved, "--to", "llamacpp", "--gguf",
         gguf_file("storyteller"), "--cache-type", "f32", "--out", file, "--force", "--json", "-"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    restored = client.post("/slots/0?action=restore", json={"filename": file.name}).json()
    assert restored["n_restored"] == len(prefix)
    begin = [*told["ids"], TEXT] if by == "ids" else told["text"] + TEXT
    body = {"prompt": begin, "n_predict": 24, "temperature": 0, "id_slot": 0, "cache_prompt": True}
    answer = client.post("/completion", json=body).json()
    request = GenerationRequest(Context([prefix, TEXT]), 24, sampling={"temperature": 0})
    alone = write_request(transformers_model("storyteller"), request).drained()
    assert answer["content"] == alone.text
    without = GenerationRequest(TEXT, 24, sampling={"temperature": 0})
    assert write_request(transformers_model("storyteller"), without).drained().text != alone.text


def test_placeholders_are_words_that_encode_to_themselves():
    gguf = GGUFModel(gguf_file("storyteller"))
    stands = llamacpp.prefix_placeholder(prompt("storyteller", "A big brown dog", "prefix"), gguf)
    assert gguf.encode(stands.text) == stands.ids


# the server and the commands --------------------------------------------------------------------


def test_the_studio_writes_with_it_and_trains_on_its_weights(tmp_path):
    gguf = GGUFModel(gguf_file("storyteller"))
    engine = LocalEngine(LlamaCppModelRunner(gguf, 4), slots=4)
    with studio(tmp_path, engine=engine) as calls:
        saved = prompt("storyteller", "Emma wore a red coat.", "prefix", "Emma")
        calls.state.prompts.save(saved)
        (tmp_path / "books").mkdir(exist_ok=True)
        book = Lorebook(
            name="lore", entries=[Entry(name="Emma", keys=["Emma"], text="Emma wore a red coat.")]
        )
        book.save(tmp_path / "books" / "lore.yaml")
        calls.call("POST", "stories", json={"name": "one", "book": "lore"})
        calls.post("stories", "one", "turns", text="At the gate stood Emma, who wore")
        text, _ = calls.write("one", tokens=12)
        assert text
        assert calls.texts("one")[-1] == text
        settings = {"max_steps": 2, "n_tokens": 4, "drift_guard": 0, "distil_passages": 4}
        calls.post("trainings", book="lore", overwrite=True, **settings)
        wait_until(
            lambda: calls.get("trainings")[0]["state"] == "done",
            lambda: calls.get("trainings"),
            alive=lambda: calls.get("trainings")[0]["state"] != "failed",
        )
        learned = calls.state.prompts["Emma"]
        assert learned.digest != saved.digest
        gguf.check_prompt(learned)
    assert engine.load().running == 0


def test_weights_are_loaded_once_and_have_the_files_fingerprints():
    gguf = GGUFModel(gguf_file("storyteller", "Q8_0"))
    model = require_frozen_model(gguf, "training")
    assert require_frozen_model(gguf, "measuring") is model
    assert model.name == gguf.name
    assert model.tokenizer_fingerprint == gguf.tokenizer_fingerprint
    assert (model.bos_id, model.eos_ids) == (gguf.bos_id, gguf.eos_ids)
    for kind in ("prefix", "embedding"):
        gguf.check_prompt(SoftPrompt.from_text("an old dog", model, name="Dog", kind=kind))
        model.check_prompt(prompt("storyteller", "an old dog", kind).made_for(gguf))
    entry = Entry(name="Emma", text="Emma wore a red coat.")
    assert measure_gain(gguf, entry).text is not None
    assert measure_gain(gguf, entry) != EntryGain.assumed(entry, None)


def test_without_the_packages_training_is_refused_with_the_reason(monkeypatch):
    gguf = GGUFModel(gguf_file("storyteller"))
    monkeypatch.setattr(weights, "PACKAGES", ("gguf", "no_such_package"))
    with pytest.raises(UnsupportedModelError, match=r"training needs weights.*no_such_package"):
        require_frozen_model(gguf, "training")
    entry = Entry(name="Emma", text="Emma wore a red coat.")
    assert measure_gain(gguf, entry) == EntryGain.assumed(entry, None)


def test_write_runs_a_file_with_both_kinds(tmp_path):
    for kind, name in (("prefix", "Dog"), ("embedding", "Fox")):
        one = prompt("storyteller", "the big brown animal", kind, name)
        one.save(tmp_path / f"{name}.safetensors")
    command = [sys.executable, "-m", "softlore", "write", "[[soft:Dog]]The [[soft:Fox]] ran"]
    more = ["--prompts", tmp_path, "--tokens", "12", "--temperature", "0"]
    here = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    file = ["--gguf", gguf_file("storyteller"), "--cache-type", "f32"]
    there = subprocess.run([*command, *more, *file], capture_output=True, text=True, check=True)
    assert here.stdout == there.stdout
    bad = [*command, *more, "--gguf", tmp_path / "Dog.safetensors"]
    ended = subprocess.run(bad, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


def softlore(*arguments, **more):
    command = [sys.executable, "-m", "softlore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_generate_takes_a_model_in_a_file_and_a_runner_caches_its_turns():
    model, gguf = transformers_model("storyteller"), GGUFModel(gguf_file("storyteller"))
    context = contexts("storyteller")["all"]
    text = generate(model, context, 12, temperature=0)
    assert generate(gguf, context, 12, temperature=0) == text
    runner = runner_for(gguf)
    for _ in range(2):
        stream = write(runner, context, 12, temperature=0).drained()
        assert stream.text == text
    assert stream.cache_usage.read == 1
    runner.close()


def test_chain_runs_a_file(tmp_path):
    prompt("storyteller", "the big brown animal", "prefix", "Dog").save(
        tmp_path / "Dog.safetensors"
    )
    items = ["chain", "a storm", "a lighthouse", "--template", "[[soft:Dog]]{previous} {item}"]
    more = ["--prompts", tmp_path, "--tokens", "8", "--temperature", "0"]
    here = softlore(*items, *more)
    there = softlore(*items, *more, "--gguf", gguf_file("storyteller"), "--cache-type", "f32")
    assert here.returncode == there.returncode == 0, there.stderr
    assert here.stdout == there.stdout
    assert len(there.stdout.splitlines()) == 2


def test_a_story_is_written_with_a_file_and_learns_from_its_weights(tmp_path):
    prompt("storyteller", "Emma wore a red coat.", "prefix", "Emma").save(
        tmp_path / "Emma.safetensors"
    )
    file = ["--gguf", gguf_file("storyteller"), "--cache-type", "f32"]
    texts = []
    for name, more in (("here", []), ("there", file)):
        found = softlore(
            "story", name, "--stories", tmp_path, "--prompts", tmp_path,
            "--tokens", "10", "--temperature", "0", "--seed", "1", *more,
            input="[[soft:Emma]]At the gate stood Emma, who wore\n\n/quit\n",
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        texts.append(found.stdout.replace(name, ""))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 40
    listed = softlore("learn", "there", "--stories", tmp_path, "--list", *file[:2])
    assert "has no lorebook" in listed.stderr  # and nothing about the file
