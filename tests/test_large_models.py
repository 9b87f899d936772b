"""Models that are large for their machine: dtype, quantization, checkpointing, planning."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from running import save_tiny_model, softlore
from softlore import FrozenModel, WorldInfoTrainer
from softlore.errors import ModelError
from softlore.lore import Entry
from softlore.model import fingerprint as sketches
from softlore.model import placement, processor, shapes
from softlore.model.placement import Placement
from softlore.model.processor import ProcessorSpeed
from softlore.model.recompute import gradient_checkpointing
from softlore.model.tiny import CONFIGS, byte_tokenizer, tiny_hf, tiny_model
from softlore.model.unloaded import UnloadedModel
from softlore.settings import TrainingConfig
from softlore.storyteller import path as storyteller_path
from softlore.tune import Execution, objective, run
from softlore.tune.forecast import forecast
from test_objective import drawn, taken

SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
ENTRIES = [
    Entry(name="Ada", text="Ada wears a long red coat.", blocks=[("Ada wears", [" a red coat."])]),
    Entry(name="Bo", blocks=[("Bo keeps", [" a shop by the sea.", " bees."])]),
]


# gradient checkpointing ---------------------------------------------------------------------------


OTHERS = [("packed", "prefix"), ("packed", "embedding"), ("expanded", "embedding")]


@pytest.mark.parametrize(
    ("family", "layout", "kind"),
    [(family, "expanded", "prefix") for family in sorted(CONFIGS)]
    + [(family, *other) for family in ("gpt2", "gemma2", "mpt") for other in OTHERS],
)
def test_checkpointing_gives_the_same_losses_and_gradients_and_keeps_less(family, layout, kind):
    model = tiny_model(family)
    batch, prompts = drawn(model, kind)
    losses = run(model, batch, layout, 3)
    gradients = taken(prompts)
    with gradient_checkpointing(model):
        assert run(model, batch, layout, 3) == losses
        again = taken(prompts)
        less = objective.count_saved_bytes(model, lambda: run(model, batch, layout, 3))
    assert [torch.equal(again[name], gradients[name]) for name in gradients] == [True, True]
    taken(prompts)
    assert less < objective.count_saved_bytes(model, lambda: run(model, batch, layout, 3))


def test_the_plan_turns_checkpointing_on_where_one_branch_does_not_fit():
    model = tiny_model("llama")
    batch, _ = drawn(model, "prefix")
    weights = shapes.weight_bytes(model.hf)
    plenty = objective.measure_memory_plan(model, batch, 1 << 33)
    scarce = weights + 2 * plenty.bytes_per_token * (objective.smallest_pass(batch) - 1)
    assert not plenty.gradient_checkpointing
    plan = objective.measure_memory_plan(model, batch, scarce)
    assert plan.gradient_checkpointing
    assert plan.bytes_per_token < plenty.bytes_per_token
    assert not objective.measure_memory_plan(model, batch, scarce, False).gradient_checkpointing


def test_a_prompt_trained_with_checkpointing_is_the_same():
    def trained(checkpointed):
        settings = {"n_tokens": 3, "max_steps": 3, "distil_passages": 2, "passage_tokens": 6}
        execution = Execution(checkpointed=checkpointed)
        trainer = WorldInfoTrainer(
            tiny_model("llama"), entries=ENTRIES, execution=execution, **settings
        )
        prompts = trainer.train()
        assert bool(trainer.plan.gradient_checkpointing) == checkpointed
        return [prompts[entry.name].tensor for entry in ENTRIES]

    assert all(map(torch.equal, trained(True), trained(False)))


# dtype and device ---------------------------------------------------------------------------------


@pytest.fixture
def fast_bfloat16(monkeypatch, tmp_path):
    """A processor that is good at bfloat16, and models of any size that count as large."""
    monkeypatch.setattr(placement, "processor_speed", lambda *sizes: ProcessorSpeed(1e9, 4e9))
    monkeypatch.setattr(placement, "SMALL", 0)


def test_bfloat16_is_chosen_where_the_processor_is_good_at_it(fast_bfloat16, tmp_path):
    name = save_tiny_model(tmp_path)
    assert FrozenModel.from_pretrained(name, device="cpu").dtype == torch.bfloat16
    assert FrozenModel.from_pretrained(name, "float32", "cpu").dtype == torch.float32


def test_losses_and_prompts_are_float32_over_a_bfloat16_model(fast_bfloat16, tmp_path):
    model = FrozenModel.from_pretrained(save_tiny_model(tmp_path), device="cpu")
    assert model.logits(torch.zeros(1, 32, dtype=model.dtype)).dtype == torch.float32
    settings = {"n_tokens": 3, "max_steps": 2, "drift_guard": 0, "filler": "random"}
    prompt = WorldInfoTrainer(model, [("Ada wears", [" red."])], **settings).train()
    assert prompt.tensor.dtype == torch.float32


def test_a_small_model_stays_in_float32_whatever_is_measured(monkeypatch):
    monkeypatch.setattr(placement, "processor_speed", lambda *sizes: ProcessorSpeed(1e9, 9e9))
    chosen = Placement.choose(str(storyteller_path()), device="cpu")
    assert chosen.dtype == torch.float32


def test_a_processor_without_instructions_for_bfloat16_is_not_measured_with_it(monkeypatch):
    monkeypatch.setattr(processor, "FEATURES", ())
    speed = processor.measure_speed(64, 64, seconds=0.0)
    assert speed.float32 > 0
    assert not speed.prefers_bfloat16
    assert speed.of(torch.bfloat16) == speed.float32


def test_the_first_measurement_is_kept_for_later_commands(monkeypatch, tmp_path):
    monkeypatch.setattr(processor.platformdirs, "user_cache_path", lambda *a, **k: tmp_path)
    for near_the_margin in (ProcessorSpeed(1.0, 2.1), ProcessorSpeed(1.0, 1.9)):
        processor.stored_speed.cache_clear()
        monkeypatch.setattr(processor, "measure_speed", lambda *a, now=near_the_margin: now)
        assert processor.processor_speed(576, 1536).prefers_bfloat16
    (tmp_path / "processor.json").write_text("[1")
    processor.stored_speed.cache_clear()
    assert not processor.processor_speed(576, 1536).prefers_bfloat16
    processor.stored_speed.cache_clear()


@pytest.mark.parametrize(("large", "dtype"), [(False, torch.float32), (True, torch.float16)])
def test_apples_gpu_is_chosen_by_itself(monkeypatch, tmp_path, large, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(placement, "HALF_ON_MPS", 1 if large else 10**9)
    chosen = Placement.choose(save_tiny_model(tmp_path))
    assert (chosen.device.type, chosen.dtype) == ("mps", dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement.choose_device(None).type == "cuda"


# quantization -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantize", "missing", "expected"),
    [
        ("nf3", (), "expected one of nf4, int8"),
        ("nf4", ("bitsandbytes",), r"pip install 'softlore\[large\]'"),
        ("int8", ("accelerate",), r"pip install 'softlore\[large\]'"),
    ],
)
def test_a_quantization_that_cannot_be_had_is_refused(monkeypatch, quantize, missing, expected):
    found = placement.importlib.util.find_spec
    monkeypatch.setattr(
        placement.importlib.util,
        "find_spec",
        lambda name: None if name in missing else found("json"),
    )
    with pytest.raises(ModelError, match=expected):
        FrozenModel.from_pretrained("storyteller", device="cpu", quantize=quantize)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_prompts_are_trained_and_used_in_4_and_8_bits(quantize, tmp_path):
    pytest.importorskip("bitsandbytes")
    book = tmp_path / "lore.yaml"
    book.write_text("entries: [{name: Ada, blocks: [{call: Ada is, responses: [' very tall.']}]}]")
    options = ["--model", storyteller_path(), "--device", "cpu", "--quantize", quantize]
    trained = softlore("train", book, "--out", tmp_path, "--max-steps", 2, *options)
    assert trained.code == 0, trained.err
    written = softlore(
        "write", "[[soft:Ada]]Ada is", "--prompts", tmp_path, "--tokens", 4, *options
    )
    assert written.code == 0, written.err
    assert written.out.startswith("Ada is")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_quantized_model_trains_and_has_the_size_that_was_counted(tmp_path, family):
    pytest.importorskip("bitsandbytes")
    sizes = SMALL if family == "llama" else {"n_embd": 128}
    name = save_tiny_model(tmp_path, family, **sizes)
    plain = FrozenModel.from_pretrained(name, "bfloat16", "cpu")
    model = FrozenModel.from_pretrained(name, "bfloat16", "cpu", quantize="nf4")
    counted = shapes.model_bytes(plain.hf, "nf4")
    assert shapes.weight_bytes(model.hf) < counted < 1.15 * shapes.weight_bytes(model.hf)
    sketch = [m.fingerprint("prefix") for m in (plain, model)]
    assert sketches.difference(sketch[0]["embeddings"], sketch[1]["embeddings"]) < 0.01

    batch, prompts = drawn(model, "prefix")
    run(model, batch)
    quantized = taken(prompts)
    with gradient_checkpointing(model):
        run(model, batch)
    assert all(map(torch.equal, quantized.values(), taken(prompts).values()))


@pytest.mark.filterwarnings("ignore")
def test_gradients_go_through_quantized_weights_as_through_the_same_numbers_unpacked(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    name = save_tiny_model(tmp_path, **SMALL)
    quantized = FrozenModel.from_pretrained(name, "float32", "cpu", quantize="nf4")
    plain = FrozenModel.from_pretrained(name, "float32", "cpu")
    for path, module in quantized.hf.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            unpacked = functional.dequantize_4bit(module.weight.data, state)
            plain.hf.get_submodule(path).weight.data.copy_(unpacked)
    batch, prompts = drawn(plain, "prefix")
    losses = run(plain, batch)
    expected = taken(prompts)
    assert run(quantized, batch) == pytest.approx(losses, rel=1e-3)
    for name, gradient in taken(prompts).items():
        assert (gradient - expected[name]).norm() < 0.01 * expected[name].norm()


# a model in several places ------------------------------------------------------------------------


def test_a_split_model_trains_and_writes_as_the_whole_one(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    name = save_tiny_model(tmp_path / "model", "llama")
    whole = FrozenModel.from_pretrained(name, device="cpu")
    on = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    on |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    on |= {f"model.layers.{i}": "disk" for i in (1, 2, 3)}
    monkeypatch.setattr(placement, "AUTO_MAP", on)
    monkeypatch.chdir(tmp_path)
    split = FrozenModel.from_pretrained(name, "float32", "auto")
    assert split.device.type == "cpu"
    assert {p.device.type for p in split.hf.parameters()} == {"cpu", "meta"}
    ids = split.encode("Ada wears a red coat.")
    assert torch.equal(split.keys_values(ids), whole.keys_values(ids))
    for kind in ("prefix", "embedding"):
        results = []
        for model in (whole, split):
            batch, prompts = drawn(model, kind)
            results.append((run(model, batch), *taken(prompts).values()))
        assert results[0][0] == results[1][0]
        assert all(map(torch.equal, results[0][1:], results[1][1:]))


# planning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {}),
        ("llama", SMALL | {"vocab_size": 3000}),
        ("gemma3_text", {"hidden_size": 64}),
        ("gpt2", {"n_embd": 64, "n_layer": 6}),
    ],
)
def test_the_forecast_is_what_is_measured_within_a_tenth(family, sizes, kind):
    settings = {"kind": kind, "distil_passages": 12, "passage_tokens": 20, "max_steps": 1}
    hf = tiny_hf(family, **sizes)
    model = FrozenModel(hf, byte_tokenizer(), "real")
    trainer = WorldInfoTrainer(model, entries=ENTRIES, **settings)
    trainer.prepare()
    unloaded = UnloadedModel(hf.config, byte_tokenizer(), "planned", torch.float32)
    found = forecast(unloaded, ENTRIES, TrainingConfig.of(settings))
    assert found.per_token == pytest.approx(trainer.plan.bytes_per_token, rel=0.1)
    with_less = Execution(checkpointed=True).plan(model, trainer.draw())
    assert found.per_token_checkpointed == pytest.approx(with_less.bytes_per_token, rel=0.1)
    assert found.weights == pytest.approx(sum(t.nbytes for t in hf.parameters()), rel=0.01)
    assert found.update_tokens == pytest.approx(trainer.draw().tokens, rel=0.2)


def test_operations_are_four_a_weight_and_token():
    hf = tiny_hf("llama", **SMALL, vocab_size=300)
    unloaded = UnloadedModel(hf.config, byte_tokenizer(), "planned", torch.float32)
    found = forecast(unloaded, ENTRIES, TrainingConfig(distil_weight=0, drift_guard=0))
    layers = sum(p.numel() for p in hf.model.layers.parameters())
    assert found.update_flops == pytest.approx(4 * layers * found.update_tokens, rel=0.2)


def test_a_7b_shape_in_nf4_trains_on_a_card_of_24_gb():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    unloaded = UnloadedModel(config, byte_tokenizer(), "7b", torch.bfloat16)
    found = forecast(unloaded, ENTRIES, TrainingConfig(), "nf4")
    assert found.parameters == 6_738_415_616
    assert 3.7e9 < found.weights < 4.0e9
    assert found.cards()[24] in ("whole", "parts")
    plain = replace(found, weights=shapes.model_bytes(unloaded.hf))
    assert plain.weights == pytest.approx(2 * found.parameters, rel=0.001)
    assert plain.cards()[8] == plain.cards()[12] == "no"


def test_a_dry_run_reads_no_weights(tmp_path):
    name = save_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    book = tmp_path / "lore.json"
    blocks = [[{"call": b.call, "responses": list(b.responses)} for b in e.blocks] for e in ENTRIES]
    entries = [
        {"name": e.name, "text": e.text, "blocks": b} for e, b in zip(ENTRIES, blocks, strict=True)
    ]
    book.write_text(json.dumps({"name": "harbour", "entries": entries}))
    ended = softlore("train", book, "--model", name, "--dry-run", "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert ended.lines[0] == "harbour: 2 entries; nothing is loaded"
    assert report["parameters"] == sum(p.numel() for p in tiny_hf("llama").parameters())
    assert report["seconds"] is not None
    assert report["cards"]["8"] == "whole"
    assert not (tmp_path / "prompts").exists()
    ended = softlore("train", book, "--model", name, "--quantize", "nf4", "--dry-run")
    assert "in nf4, the rest in bfloat16, on cuda" in ended.err
