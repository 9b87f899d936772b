"""Public functions refuse arguments of odd types and sizes with SoftloreError, never otherwise."""

import math
import resource
import tempfile
from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softlore
from softlore import (
    Context,
    ControlVector,
    Entry,
    FrozenModel,
    Lorebook,
    PromptLibrary,
    SoftloreError,
    SoftPrompt,
    WorldInfoTrainer,
    embed,
    generate,
    load_prompt,
    logits,
    runner_for,
    write,
)
from softlore.control import Code, attribute, codes_of
from softlore.decode.samplers.penalties import RangedRepetitionLogitsProcessor
from softlore.errors import (
    ConfigError,
    ContextError,
    InputError,
    PromptError,
    StorageError,
    UnsupportedModelError,
)
from softlore.model.tiny import tiny_model
from softlore.settings import SamplingParams, TrainingConfig, table
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.execution import Execution
from softlore.tune.training_data import Company

MODEL = tiny_model("llama")
VECTOR = ControlVector("dark", torch.ones(MODEL.layers, MODEL.width))
PROMPT = SoftPrompt.from_text("a dog", MODEL, name="dog")
_SCRATCH = tempfile.TemporaryDirectory(prefix="softlore-odd-")
FOLDER = _SCRATCH.name
PROMPT.save(f"{FOLDER}/dog.safetensors")
BOOK = Lorebook(name="b", entries=[Entry(name="Emma", text="x")])
BOOK.save(f"{FOLDER}/b.yaml")
LIBRARY = PromptLibrary(FOLDER)


class Thing:
    """Of no type that anything expects."""


ODD = [
    None, True, False, 1.5, math.nan, math.inf, -1, 0, 2**64, 10**30, -(10**30), 1j, "", "3", "a",
    "\ud83d", "a\0b", "x" * 5000, b"x", [], {}, [None], (), ["a"], {"a": 1}, {1: 2}, Thing(),
    Thing, [[]], {"a"}, [("a",)], [("a", "b")], [("a", 1.0)], [3, 4], torch.tensor(1),
    torch.zeros(2, 3), PROMPT, Context("a" + PROMPT), MODEL,
]  # fmt: skip
LEAVES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(st.characters(), max_size=9)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=3), LEAVES)


def saved(save, value):
    """Calls `save` with a path that is none of a file here."""
    if not isinstance(value, str | bytes) or value in ("", "\ud83d", "a\0b"):
        save(value)


def some(value):
    """Some tokens of a text of any length."""
    stream = write(MODEL, "a", value)
    next(stream, None)
    stream.close()


CALLS = {
    "write: model": lambda v: generate(v, "a", 1),
    "write: context": lambda v: generate(MODEL, v, 1),
    "write: max_new_tokens": some,
    "generate: stream": lambda v: [*generate(MODEL, "a", 1, stream=v)],
    "runner_for: model": runner_for,
    "runner_for: n_sequences": lambda v: runner_for(MODEL, v),
    "runner_for: cached": lambda v: runner_for(MODEL, 1, v),
    "embed: model": lambda v: embed(v, "a"),
    "embed: context": lambda v: embed(MODEL, v),
    "logits: model": lambda v: logits(v, "a"),
    "logits: context": lambda v: logits(MODEL, v),
    "encode": MODEL.encode,
    "encode: inside": lambda value: MODEL.encode("a b", inside=value),
    "decode": MODEL.decode,
    "decode: inside": lambda v: MODEL.decode(v, inside=True),
    "ControlVector: name": lambda v: ControlVector(v, VECTOR.directions),
    "ControlVector: directions": lambda v: ControlVector("a", v),
    "ControlVector: training": lambda v: ControlVector("a", VECTOR.directions, training=v),
    "ControlVector: base_model": lambda v: ControlVector("a", VECTOR.directions, base_model=v),
    "ControlVector.load": ControlVector.load,
    "ControlVector.check": VECTOR.check,
    "write: vectors": lambda v: generate(MODEL, "a", 1, vectors=v),
    "write: vectors[]": lambda v: generate(MODEL, "a", 1, vectors=[v]),
    "from_text: text": lambda v: SoftPrompt.from_text(v, MODEL),
    "from_text: model": lambda v: SoftPrompt.from_text("a", v),
    "SoftPrompt: tensor": lambda v: SoftPrompt("a", "embedding", v),
    "SoftPrompt.load": SoftPrompt.load,
    "SoftPrompt.save": lambda v: saved(PROMPT.save, v),
    "SoftPrompt.replace": lambda v: PROMPT.replace(name=v),
    "SoftPrompt.replace: unknown": lambda v: PROMPT.replace(colour=v),
    "SoftPrompt.made_for": lambda v: PROMPT.made_for(v),
    "Context": Context,
    "Context.parse: text": lambda v: Context.parse(v, {"dog": PROMPT}),
    "Context.parse: prompts": lambda v: Context.parse("a [[soft:dog]]", v),
    "Context.token_count": lambda v: Context("a").token_count(v),
    "PromptLibrary": lambda v: PromptLibrary(v),
    "PromptLibrary[]": lambda v: LIBRARY[v],
    "PromptLibrary: in": lambda v: v in LIBRARY,
    "PromptLibrary.get": LIBRARY.get,
    "PromptLibrary.header": LIBRARY.header,
    "PromptLibrary.remove": lambda v: LIBRARY.remove(v) if v != "dog" else None,
    "PromptLibrary.save": lambda v: LIBRARY.save(v) if v is not PROMPT else None,
    "load_prompt": load_prompt,
    "load_prompt: task": lambda v: load_prompt(f"{FOLDER}/dog.safetensors", v),
    "Lorebook.load": Lorebook.load,
    "Lorebook.load: name": lambda v: Lorebook.load(f"{FOLDER}/b.yaml", v),
    "Lorebook.from_data": Lorebook.from_data,
    "Lorebook.from_bytes": lambda v: Lorebook.from_bytes(v, "s"),
    "Lorebook.from_bytes: source": lambda v: Lorebook.from_bytes(b"a: 1", v),
    "Lorebook.to_format": BOOK.to_format,
    "Lorebook.save": lambda v: saved(BOOK.save, v),
    "Lorebook.save: format": lambda v: BOOK.save(f"{FOLDER}/c.json", v),
    "Lorebook[]": lambda v: BOOK[v],
    "Lorebook: in": lambda v: v in BOOK,
    "Lorebook.save: into": lambda v: BOOK.save(f"{FOLDER}/c.png", "sillytavern", into=v),
    "SoftPrompt: name": lambda v: SoftPrompt(v, "embedding", PROMPT.tensor),
    "SoftPrompt: kind": lambda v: SoftPrompt("a", v, PROMPT.tensor),
    "SoftPrompt.cast: device": lambda v: PROMPT.cast(v, torch.float32),
    "SoftPrompt.cast: dtype": lambda v: PROMPT.cast("cpu", v),
    "Context.parse: repair": lambda v: Context.parse("a", [], repair=v),
    "check_prompt": lambda v: MODEL.check_prompt(v),
    "check_prompt: any_model": lambda v: MODEL.check_prompt(PROMPT, v),
    "codes_of": codes_of,
    "attribute: model": lambda v: attribute(v, "a b", CODES),
    "attribute: text": lambda v: attribute(MODEL, v, CODES),
    "attribute: codes": lambda v: attribute(MODEL, "a b", v),
    "attribute: prior": lambda v: attribute(MODEL, "a b", CODES, v),
    "attribute: conditioning": lambda v: attribute(MODEL, "a b", {"v": Code("v", v)}),
    "WorldInfoTrainer: model": lambda v: WorldInfoTrainer(v, BLOCKS),
    "WorldInfoTrainer: blocks": lambda v: WorldInfoTrainer(MODEL, v),
    "WorldInfoTrainer: responses": lambda v: WorldInfoTrainer(MODEL, [("Emma wears", v)]),
}
BLOCKS = [("Emma wears", [" a coat"])]
CODES = {"a": Code("a", "In short:"), "dog": Code("dog", PROMPT)}
_FIELDS = ("name", "kind", "n_tokens", "fingerprint", "uuid", "description", "training", "metrics")


def _keyword(call, field, /, *arguments, **usual):
    return lambda v: call(*arguments, **(usual | {field: v}))


for _name in ("stop", "seed", "check", "conditioning", "logprobs", "nonsense"):
    CALLS[f"write: {_name}"] = _keyword(generate, _name, MODEL, "a", 1)
for _name in table(SamplingParams):
    CALLS[f"sampling: {_name}"] = _keyword(generate, _name, MODEL, "a", 2)
for _name in (*_FIELDS, "extra", "created", "colour", "tensor"):
    CALLS[f"from_text: {_name}"] = _keyword(SoftPrompt.from_text, _name, "a b", MODEL)
for _name in ("entries", "corpus", "conditionings"):
    CALLS[f"WorldInfoTrainer: {_name}"] = _keyword(WorldInfoTrainer, _name, MODEL)
for _name in ("name", "company", "checkpointing", "execution", "on_step", "on_phase", "nonsense"):
    CALLS[f"WorldInfoTrainer: {_name}"] = _keyword(WorldInfoTrainer, _name, MODEL, BLOCKS)
for _name in table(TrainingConfig):
    CALLS[f"training: {_name}"] = _keyword(WorldInfoTrainer, _name, MODEL, BLOCKS)
for _of, _class in (("company", Company), ("checkpointing", Checkpointing)):
    for _name in (one.name for one in fields(_class)):
        CALLS[f"{_of}: {_name}"] = lambda v, of=_of, class_=_class, name=_name: WorldInfoTrainer(
            MODEL, BLOCKS, **{of: class_(**{name: v})}
        )
for _name in ("time_budget", "clock", "started", "memory", "ranks", "processes", "checkpointed"):
    CALLS[f"execution: {_name}"] = lambda v, name=_name: WorldInfoTrainer(
        MODEL, BLOCKS, execution=Execution(**{name: v})
    )
for _name in (*Entry.model_fields, "nonsense"):
    CALLS[f"Entry: {_name}"] = _keyword(Entry, _name, name="A", text="x")
for _name in (*Lorebook.model_fields, "nonsense"):
    CALLS[f"Lorebook: {_name}"] = _keyword(Lorebook, _name, name="A", entries=[])


def refusal(call, *arguments):
    """The message with which a call refuses its arguments; "" where it does not."""
    try:
        call(*arguments)
    except SoftloreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
def test_odd_values_are_refused_or_work(name):
    for value in ODD:
        refusal(CALLS[name], value)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.sampled_from(sorted(CALLS)), VALUES)
def test_any_values_are_refused_or_work(name, value):
    if name not in ("SoftPrompt.save", "Lorebook.save"):  # which would write where they are told
        refusal(CALLS[name], value)


@pytest.mark.parametrize("name", ["name", "dtype", "device", "quantize"])
def test_models_with_odd_values_are_refused_or_load(name):
    named = {"name": "storyteller"}
    for value in ODD:
        if name != "name" or not isinstance(value, str) or value in ("\ud83d", "a\0b", "x" * 5000):
            refusal(lambda value=value: FrozenModel.from_pretrained(**(named | {name: value})))


def test_every_public_name_is_tried():
    tried = {name.split(":")[0].split(".")[0].removesuffix("[]") for name in CALLS}
    tried |= {"generate", "FrozenModel", "SoftloreError", "__version__"}
    assert set(softlore.__all__) <= tried


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: generate(MODEL, "a \ud83d b", 2), InputError, "halves of characters"),
        (lambda: generate(MODEL, "a", 2, stop=None), ConfigError, "stop is None; expected strings"),
        (lambda: generate(MODEL, "a", 2, seed=2**64), ConfigError, "seed is 18446744073709551616;"),
        (lambda: generate(MODEL, "a", 2, seed=1.5), ConfigError, "seed is 1.5; expected a whole"),
        (lambda: generate(MODEL, "a", 1.5), ConfigError, "max_new_tokens is 1.5; expected"),
        (lambda: generate(MODEL, "a", "3"), ConfigError, "max_new_tokens is '3'; expected"),
        (lambda: generate(MODEL, "a", 0), ConfigError, "max_new_tokens is 0; expected at least 1"),
        (lambda: generate(MODEL, "a", 2, temperature=math.nan), ConfigError, "temperature is nan"),
        (lambda: generate("a", "a"), UnsupportedModelError, "expected a FrozenModel"),
        (lambda: embed(None, "a"), ConfigError, r"model of embed\(\) is None; expected a Frozen"),
        (
            lambda: WorldInfoTrainer("storyteller", BLOCKS),
            ConfigError,
            r"model of WorldInfoTrainer\(\) is 'storyteller'; expected a FrozenModel",
        ),
        (lambda: PROMPT.cast("cpu", 1), PromptError, "cannot be cast to 'cpu' and 1; expected a"),
        (lambda: Context(torch.tensor(1)), ContextError, "a context was given Tensor"),
        (lambda: load_prompt("x" * 300), StorageError, "could not open"),
    ],
)
def test_messages_have_words(call, error, message):
    with pytest.raises(error, match=message):
        call()


# sizes -------------------------------------------------------------------------------------------

SIZES = [name for name, one in table(SamplingParams).items() if one.type is int]


def peak():
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [2**20, 10**9, 10**18])
def test_a_size_is_refused_or_takes_the_memory_of_the_text(name, size):
    on = {"repetition_penalty": 1.2, "dry_multiplier": 1.0, "repetition_slope": 1.0}
    before = peak()
    told = refusal(lambda: generate(MODEL, "The dog", 3, **(on | {name: size})))
    assert not told or f"{name} is {size}; expected" in told
    assert peak() - before < 32


def test_a_range_beyond_the_text_takes_no_memory():
    before = peak()
    processor = RangedRepetitionLogitsProcessor(1.2, 10**12, 0.7)
    scores = processor(torch.tensor([[3, 4, 3]]), torch.ones(1, 9))
    assert scores[0, 3] == pytest.approx(1 / 1.2)  # the newest has all of it
    assert peak() - before < 32


def test_many_sequences_are_made_as_they_are_needed():
    before = peak()
    assert generate(runner_for(MODEL, 10**9), "The dog", 3, seed=1)
    assert peak() - before < 32
