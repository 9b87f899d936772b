"""Control vectors: each text of a batch its own, as a plain forward with the same sums has them."""

import json
import math
import shlex
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from running import save_tiny_model, softlore
from softlore import (
    Context,
    ControlVector,
    Entry,
    SoftPrompt,
    WorldInfoTrainer,
    generate,
    runner_for,
    write,
)
from softlore.compare.methods import vector_of_text
from softlore.context.compose import compose, logits
from softlore.control.vectors import (
    contrast_of_contexts,
    contrast_of_texts,
    inner_layers,
    middle_layers,
    train_vector,
)
from softlore.decode import GenerationRequest
from softlore.decode.conditioning import Window
from softlore.errors import (
    ConfigError,
    PromptError,
    PromptFileError,
    PromptMismatchError,
    UnknownPromptError,
)
from softlore.lore import Block
from softlore.measure import drift, recall
from softlore.measure.losses import mean_kl
from softlore.measure.score import hidden_states_after, trunk
from softlore.model.steering import steered
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.prompts.control_vector import MAX_VECTORS, sum_vectors
from softlore.prompts.tags import split_vector_tags
from softlore.prompts.vector_folder import find_vector, load_vector, save_vector, vectors_in
from softlore.prompts.vector_gguf import load_vector_gguf, vector_to_gguf
from softlore.serve.compose import RequestComposer
from softlore.serve.prompt_store import PromptStore
from softlore.tune.checkpoint import Checkpointing

MODEL = tiny_model("llama")
DOG = SoftPrompt.from_text("Dog is a good boy", MODEL, name="dog", kind="prefix")
FAMILIES = ["llama", "gpt2", "gpt_neo", "bloom", "mpt", "falcon", "gemma3_text", "ctrl", "qwen2"]


def vector(model=MODEL, seed=0, name="dark", layers=(1, 2), size=2.0):
    directions = torch.zeros(model.layers, model.width)
    generator = torch.Generator().manual_seed(seed)
    directions[list(layers)] = size * torch.randn(len(layers), model.width, generator=generator)
    return ControlVector(name, directions, model.fingerprint("embedding"), model.name)


DARK, WARM = vector(), vector(seed=1, name="warm", layers=(0, 3))


def greedy(model, context, vectors=(), tokens=12, **more):
    return generate(model, context, tokens, temperature=0, vectors=vectors, **more)


# what they do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_plain_model_with_the_same_sums(family):
    model = tiny_model(family)
    dark = vector(model)
    layers = next(
        list(module)
        for module in model.hf.get_decoder().modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.layers
    )

    def adding(row):
        def hook(module, inputs, output):
            if isinstance(output, tuple):
                return (output[0] + row, *output[1:])
            return output + row

        return hook

    ids = torch.tensor([[*model.bos, *model.encode("The old house")]])
    hooks = [
        layer.register_forward_hook(adding(0.8 * row))
        for layer, row in zip(layers, dark.directions, strict=True)
    ]
    with torch.no_grad():
        expected = model.hf(ids).logits[0, -1].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    request = {"temperature": 1.0, "top_k": 0, "logprobs": 5, "seed": 1}
    (token,) = write(model, "The old house", 1, vectors=[(dark, 0.8)], **request)
    for i, logprob in token.top.items():
        assert logprob == pytest.approx(float(expected[i]), abs=1e-3)
    (bare,) = write(model, "The old house", 1, **request)
    assert list(bare.top.values()) != pytest.approx(list(token.top.values()), abs=1e-2)


def test_strengths_add_up_and_nothing_is_nothing():
    bare = greedy(MODEL, "Emma")
    assert greedy(MODEL, "Emma", [(DARK, 0)]) == bare
    assert greedy(MODEL, "Emma", [(DARK, 1.5), (DARK, -1.5)]) == bare
    assert greedy(MODEL, "Emma", [(DARK, 1.5)]) != bare
    both = ControlVector("both", DARK.directions - 0.5 * WARM.directions)
    assert greedy(MODEL, "Emma", [(DARK, 1), (WARM, -0.5)]) == greedy(MODEL, "Emma", [(both, 1)])
    assert logits(MODEL, "Emma").equal(logits(MODEL, "Emma"))  # the layers are as they were


def test_each_text_of_a_batch_has_its_own():
    from batches import write_batch

    requests = [
        GenerationRequest(text, tokens, seed=seed, vectors=vectors, sampling={"temperature": 1.0})
        for seed, (text, tokens, vectors) in enumerate(
            [
                ("The dog", 9, [(DARK, 1.0)]),
                ("Down the lane", 14, ()),
                (DOG + "The dog", 5, [(WARM, -2.0)]),
                ("The dog", 12, [(DARK, -1.0), (WARM, 1.0)]),
                ("A", 7, ()),
            ]
        )
    ]
    outputs, tokens = write_batch(MODEL, requests)
    for _ in tokens:
        pass
    for request, output in zip(requests, outputs, strict=True):
        alone = generate(
            MODEL, request.context, request.max_new_tokens, seed=request.seed,
            vectors=request.vectors, temperature=1.0,
        )  # fmt: skip
        assert output.text == alone


def test_what_was_read_with_a_vector_serves_no_text_without():
    runner = runner_for(MODEL)
    text = "The old house on the hill was dark. "
    steered = greedy(runner, text, [(DARK, 1.0)])
    again = write(runner, text, 12, temperature=0, vectors=[(DARK, 1.0)]).drained()
    assert again.text == steered
    assert again.cache_usage.reused > 0
    for vectors in ((), [(DARK, 0.5)], [(WARM, 1.0)]):
        other = write(runner, text, 12, temperature=0, vectors=vectors).drained()
        assert other.text == greedy(MODEL, text, vectors)
        assert other.cache_usage.reused == 0
        runner.clear()
        greedy(runner, text, [(DARK, 1.0)])
    assert write(runner, text, 2).drained().cache_usage.why == (
        "it was not read with these control vectors"
    )


def test_a_window_that_slides_keeps_its_vectors():
    tree = compose(MODEL, "some text of a story")
    steered = Window(type(tree)(tree.nodes, tree.prefixes, tree.at, DARK.directions))
    assert steered.slide(4, [1, 2]).tree.steering is DARK.directions
    text = "The dog ran. " * 15  # the context has 256 tokens
    conditioned = {"conditioning": "Horror ", "tokens": 90}
    assert greedy(MODEL, text, [(DARK, 1)], **conditioned) != greedy(MODEL, text, **conditioned)


def test_another_thread_is_not_steered():
    from threading import Thread

    from softlore.model.steering import changed

    seen, plain = [], logits(MODEL, "Emma")
    with changed(MODEL, lambda layer, hidden: hidden + 1):
        other = Thread(target=lambda: seen.append(logits(MODEL, "Emma")))
        other.start()
        other.join()
        assert not logits(MODEL, "Emma").allclose(plain)
    assert seen[0].equal(plain)


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        ([(DARK, math.nan)], "strength nan"),
        ([(DARK, 101)], "strength 101"),
        ([(DARK, True)], "strength True"),
        ([DARK], "expected control vectors with a strength each"),
        ("dark", "expected control vectors with a strength each"),
        ([("dark", 1)], "expected control vectors with a strength each"),
        (5, "expected control vectors with a strength each"),
        ([(DARK, 1)] * (MAX_VECTORS + 1), "at most 16"),
    ],
)
def test_odd_vectors_are_refused(vectors, told):
    with pytest.raises(ConfigError, match=told):
        generate(MODEL, "Emma", 2, vectors=vectors)


def test_a_vector_of_another_model_is_refused():
    wide = ControlVector("wide", torch.ones(MODEL.layers, MODEL.width + 1))
    with pytest.raises(PromptMismatchError, match=r"has shape \(4, 33\)"):
        generate(MODEL, "Emma", 2, vectors=[(wide, 1)])
    foreign = ControlVector("dark", DARK.directions, tiny_model("gpt2").fingerprint("embedding"))
    with pytest.raises(PromptMismatchError, match="another model"):
        generate(MODEL, "Emma", 2, vectors=[(foreign, 1)])
    assert generate(MODEL, "Emma", 2, seed=1, vectors=[(foreign, 1)], check=False)


@pytest.mark.parametrize(
    "directions", [torch.ones(4), torch.full((2, 3), math.nan), torch.ones(0, 3), [[1.0]]]
)
def test_odd_directions_are_refused(directions):
    with pytest.raises(PromptError):
        ControlVector("dark", directions)


# training ----------------------------------------------------------------------------------------


def test_the_mean_is_the_difference_of_the_plain_models_states():
    texts = ["a dark and cold night", "fear", "blood on the floor"], ["sun and roses", "laughter"]
    trained = train_vector(
        MODEL, "dark", contrast_of_texts(MODEL, *texts), layers=[0, 1, 2], last_token=True
    )
    sides = []
    for side in texts:
        states = []
        for text in side:
            with torch.no_grad():
                out = MODEL.hf(torch.tensor([MODEL.encode(text)]), output_hidden_states=True)
            states.append(torch.stack([h[0, -1] for h in out.hidden_states[1:4]]))
        sides.append(torch.stack(states).mean(0))
    expected = sides[0] - sides[1]
    scale = trained.training["scale"]
    assert torch.allclose(trained.directions[:3], scale * expected, rtol=1e-3, atol=1e-4)
    assert trained.layers == [0, 1, 2]


@pytest.mark.parametrize("method", ["pca", "pca_diff"])
def test_components_are_repengs(method):
    """repeng: principal components of pairs about their centres, or of their differences."""
    positive = [f"happy {word}" for word in ("dog", "house", "sea", "night", "tree")]
    negative = [text.replace("happy", "sad") for text in positive]
    contrast = contrast_of_texts(MODEL, positive, negative)
    trained = train_vector(MODEL, "happy", contrast, method=method, layers=[1, 2], last_token=True)
    for layer in (1, 2):
        rows = []
        for text in (text for pair in zip(positive, negative, strict=True) for text in pair):
            with torch.no_grad():
                out = MODEL.hf(torch.tensor([MODEL.encode(text)]), output_hidden_states=True)
            rows.append(out.hidden_states[layer + 1][0, -1].numpy().astype("f8"))
        rows = np.array(rows)
        data = rows[::2] - rows[1::2]
        if method == "pca":
            centre = (rows[::2] + rows[1::2]) / 2
            data = np.concatenate([rows[::2] - centre, rows[1::2] - centre])
        values, directions = np.linalg.eigh(np.cov(data.T))
        direction = directions[:, values.argmax()]
        along = rows @ direction
        if np.mean(along[::2] < along[1::2]) > 0.5:
            direction = -direction
        cosine = trained.directions[layer].numpy() @ direction
        assert cosine / np.linalg.norm(trained.directions[layer].numpy()) > 0.999


def test_strength_1_moves_the_last_layer_as_far_as_the_text_does():
    from softlore.control.vectors import _layer_states

    contrast = contrast_of_contexts(MODEL, ["Dark and cold."], ["Merry."], passages=8)
    trained = train_vector(MODEL, "dark", contrast)
    assert trained.layers == middle_layers(MODEL.layers) == [1, 2]
    positive, negative = (
        _layer_states(MODEL, side, False).mean(0)[-1]
        for side in (contrast.positive, contrast.negative)
    )
    steered = _layer_states(MODEL, contrast.negative, False, trained.directions).mean(0)[-1]
    goal = positive - negative
    assert float((steered - negative) @ goal) == pytest.approx(float(goal @ goal), rel=0.1)


def test_distillation_has_more_of_the_texts_effect_than_the_mean():
    """On passages of another seed, which neither was trained on."""
    text, seen = "The night was dark and cold. ", {"passages": 24, "after_positive": True}
    contrast = contrast_of_contexts(MODEL, [text], **seen)
    others = [ids for _, ids in contrast_of_contexts(MODEL, [text], seed=1, **seen).positive]
    before = contrast.positive[0][0]
    expected = hidden_states_after(MODEL, before, others)
    bare = trunk(MODEL, "")

    def missing(vectors):
        steering = sum_vectors(MODEL, vectors) if vectors else None
        states = hidden_states_after(MODEL, replace(bare, steering=steering), others)
        return mean_kl(MODEL, expected, states)

    settings = {"layers": [1, 2, 3], "seed": 3}
    mean = train_vector(MODEL, "dark", contrast, **settings)
    shares = []
    distilled = train_vector(
        MODEL,
        "dark",
        contrast,
        method="distil",
        max_steps=30,
        on_progress=shares.append,
        **settings,
    )
    again = train_vector(MODEL, "dark", contrast, method="distil", max_steps=30, **settings)
    assert distilled.directions.equal(again.directions)
    assert distilled.layers == [1, 2, 3]
    assert shares == pytest.approx([(i + 1) / 30 for i in range(30)])
    losses = distilled.training["held_out_loss"]
    assert losses["end"] < losses["start"]
    assert missing([(distilled, 1.0)]) < missing([(mean, 1.0)])
    assert missing([(distilled, 1.0)]) < 0.8 * missing([])


def test_distillation_of_texts_makes_texts_of_their_kind_likelier():
    """Long texts are learned from in several passages."""
    dark, merry = "the night was cold and dark " * 40, "the sun is warm "
    contrast = contrast_of_texts(MODEL, [dark, dark[4:]], [merry, merry * 2])
    trained = train_vector(MODEL, "dark", contrast, method="distil", max_steps=30)
    assert trained.layers == inner_layers(MODEL.layers) == [1, 2, 3]

    def likely(text, vectors):
        return recall(MODEL, Context("", vectors), [Block(call="The", responses=[" " + text])])

    other = dark[: len(dark) // 8]
    assert likely(other, [(trained, 1.0)]) < likely(other, []) - 0.2


def test_training_refuses_what_cannot_be():
    contrast = contrast_of_texts(MODEL, ["dark"], ["light", "bright"])
    for settings, told in (
        ({"method": "mode"}, "method is 'mode'"),
        ({"method": "pca"}, "compares pairs"),
        ({"layers": [4]}, "from 0 to 3"),
        ({"layers": []}, "expected one or more"),
    ):
        with pytest.raises(ConfigError, match=told):
            train_vector(MODEL, "dark", contrast, **settings)
    with pytest.raises(ConfigError, match="same effect"):
        train_vector(MODEL, "dark", contrast_of_texts(MODEL, ["dark"], ["dark"]))
    short = contrast_of_texts(MODEL, ["a"], ["b"])
    with pytest.raises(ConfigError, match="no text has more than 3 tokens"):
        train_vector(MODEL, "dark", short, method="distil")
    with pytest.raises(ConfigError, match="max_steps"):
        train_vector(MODEL, "dark", contrast, method="distil", max_steps="many")
    with pytest.raises(ConfigError, match="positive has no text"):
        contrast_of_contexts(MODEL, [" "])
    with pytest.raises(ConfigError, match="passages is 0"):
        contrast_of_contexts(MODEL, ["Dark."], passages=0)


def test_one_text_is_a_list_of_one():
    one = contrast_of_contexts(MODEL, "Dark.", "Merry.", passages=2)
    several = contrast_of_contexts(MODEL, ["Dark."], ["Merry."], passages=2)
    assert [ids for _, ids in one.negative] == [ids for _, ids in several.negative]
    assert [tree.length for tree, _ in one.negative] == [
        tree.length for tree, _ in several.negative
    ]


# files -------------------------------------------------------------------------------------------


def test_files_give_back_what_was_saved(tmp_path):
    path = save_vector(DARK, tmp_path)
    loaded = ControlVector.load(path)
    assert loaded.directions.equal(DARK.directions)
    assert loaded.fingerprint == DARK.fingerprint
    assert (loaded.name, loaded.base_model, loaded.created) == ("dark", MODEL.name, DARK.created)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert save_vector(DARK, tmp_path) == path
    other = save_vector(ControlVector("Dark", WARM.directions), tmp_path)  # of the same file name
    assert other != path
    assert set(vectors_in(tmp_path)) == {"dark", "Dark"}


def test_gguf_files_are_llamacpps(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "dark.gguf"
    vector_to_gguf(DARK, path, "llama")
    reader = gguf.GGUFReader(path)
    told = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    assert told["general.architecture"] == "controlvector"
    assert told["controlvector.model_hint"] == "llama"
    assert told["controlvector.layer_count"] == 2
    assert {tensor.name for tensor in reader.tensors} == {"direction.1", "direction.2"}
    loaded = load_vector(path, MODEL.layers)
    assert loaded.directions.equal(DARK.directions)
    assert greedy(MODEL, "Emma", [(loaded, 1)]) == greedy(MODEL, "Emma", [(DARK, 1)])
    with pytest.raises(PromptFileError, match="at most 1"):
        load_vector_gguf(path, 2)
    with pytest.raises(PromptError, match="layer 0"):
        vector_to_gguf(WARM, tmp_path / "warm.gguf")
    assert not list(tmp_path.glob("*.part"))


def hostile(path):
    """Files that are no control vectors, and what their refusal says."""
    good = path / "good.safetensors"
    DARK.save(good)
    data = good.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])

    def changed(edit, body=data[8 + length :]):
        new = json.loads(json.dumps(header))
        edit(new)
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + body

    def meta(**values):
        return changed(lambda h: h["__metadata__"].update(values))

    yield data[:-1], "bytes"
    yield b"\x80\x04pickle" + bytes(20), ""
    yield changed(lambda h: h.pop("__metadata__")), "softlore-vector"
    yield meta(format="softlore"), "softlore-vector"
    yield meta(format_version="2"), "version '2'"
    yield meta(fingerprint="[1]"), "expected an object"
    yield meta(training="{" * 10_000), ""
    yield meta(name="../../x"), "name"
    yield meta(name=""), "name"
    yield changed(lambda h: h["directions"].update(shape=[8, 4, 4])), "[layers, width]"
    yield changed(lambda h: h.update(prompt=h.pop("directions"))), "'directions'"
    yield data[: 8 + length] + struct.pack("<f", math.nan) * (len(data[8 + length :]) // 4), "NaN"


def test_hostile_files_are_refused(tmp_path):
    for number, (data, told) in enumerate(hostile(tmp_path)):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(data)
        with pytest.raises(PromptFileError) as refused:
            load_vector(file)
        assert told in str(refused.value), number
    known = vectors_in(tmp_path)
    assert list(known) == ["dark"]


def test_hostile_gguf_files_are_refused(tmp_path):
    gguf = pytest.importorskip("gguf")

    def file(name, architecture="controlvector", **tensors):
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in tensors.items():
            writer.add_tensor(key.replace("_", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    row = np.ones(32, dtype=np.float32)
    for path, told in (
        (file("model", "llama", direction_1=row), "'controlvector'"),
        (file("name", weights=row), "'weights'"),
        (file("far", direction_9999=row), "direction.9999"),
        (file("widths", direction_1=row, direction_2=np.ones(16, dtype=np.float32)), "one width"),
        (file("half", direction_1=row.astype(np.float16)), "float32"),
        (file("nan", direction_1=row * np.nan), "NaN"),
    ):
        with pytest.raises(PromptFileError) as refused:
            load_vector(path)
        assert told in str(refused.value)
    whole = file("whole", direction_1=row).read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(PromptFileError):
            load_vector(tmp_path / "cut.gguf")


def test_a_name_that_there_is_not(tmp_path):
    save_vector(DARK, tmp_path)
    with pytest.raises(UnknownPromptError, match="did you mean 'dark'"):
        find_vector("drak", tmp_path)


# the command -------------------------------------------------------------------------------------


def test_a_user_trains_shows_converts_and_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path / "vectors"))
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "tiny")
    told = "--positive", "Dark and cold.", "--negative", "Merry.", "--passages", "4"
    ended = softlore("vector", "train", "dark", "--model", model, *told)
    assert ended.code == 0, ended.err
    assert "control vector 'dark', layers 1-2: " in ended.out
    assert 'softlore write "The old house" --vector "dark=1.5"' in ended.err
    assert "dark" in softlore("vector", "inspect").out
    shown = softlore("vector", "inspect", "dark", "--json", "-")
    assert json.loads(shown.out)["training"]["positive"] == ["Dark and cold."]
    elsewhere = softlore("vector", "train", "far", "--vectors", "far", "--model", model, *told)
    line = shlex.split(elsewhere.err.splitlines()[-1].removeprefix("try it: softlore "))
    assert softlore(*line, "--model", model, "--tokens", "2").code == 0
    same = softlore("vector", "train", "again", "--model", model, *told)
    assert same.code == 0
    one, other = (find_vector(name).directions for name in ("dark", "again"))
    assert one.equal(other)
    distilled = ("--method", "distil", "--max-steps", "20", "--json", "-", "--layers", "1-3")
    ended = softlore("vector", "train", "cold", "--model", model, *told[:2], *distilled)
    record = json.loads(ended.out)
    assert record["layers"] == [1, 2, 3]
    assert record["training"]["held_out_loss"].keys() == {"bare", "start", "end"}
    pytest.importorskip("gguf")
    converted = softlore("vector", "convert", "dark", "--to", "gguf")
    assert converted.code == 0, converted.err
    writing = "write", "The old house", "--model", model, "--tokens", "8", "--seed", "1"
    outs = [
        softlore(*writing, *more)
        for more in ((), ("--vector", "dark=30"), ("--vector", "dark.gguf=30"))
    ]
    assert [ended.code for ended in outs] == [0, 0, 0], outs[1].err
    assert outs[0].out != outs[1].out == outs[2].out


def test_the_command_refuses_with_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path / "none"))
    model = save_tiny_model(tmp_path / "tiny")
    (tmp_path / "a.txt").write_text("Dark.\n\nCold.\n")
    for arguments, part in (
        (["train", "x"], "one pair of the two"),
        (["train", "x", "--negative", "a"], "one side of the contrast"),
        (["train", "x", "--positive-texts", tmp_path / "a.txt"], "one side of the contrast"),
        (["train", "x", "--positive", "a", "--layers", "x"], "--layers is 'x'"),
        (["train", "x", "--positive", "a", "--layers", "9", "--model", model], "from 0 to"),
        (["train", "x", "--positive", "a", "--layers", f"0-{10**12}", "--model", model], "from 0"),
        (["train", "../x", "--positive", "a", "--negative", "b", "--model", model], "name"),
        (["inspect", "nothing"], "there is no control vector 'nothing'"),
    ):
        ended = softlore("vector", *arguments)
        assert ended.code == 2, arguments
        assert part in ended.err
        assert "Traceback" not in ended.err
    assert "train one" in softlore("vector", "inspect").out
    ended = softlore("write", "The", "--model", model, "--vector", "dark=x")
    assert ended.code == 2
    assert "--vector 'dark=x' has strength 'x'" in ended.err


def test_a_story_is_written_with_a_vector(tmp_path):
    from softlore.story import StoryLibrary
    from softlore.story.session import StorySession

    texts = []
    for number, vectors in enumerate(((), [(DARK, 2.0)])):
        with StoryLibrary(tmp_path).open_or_create(f"story {number}") as story:
            story.set(seed=1)
            story.add("The old house", "writer")
            session = StorySession(story, MODEL)
            texts.append("".join(session.continue_story(8, vectors=vectors, temperature=0)))
    assert texts[0] != texts[1]


# tags --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain", "strengths"),
    [
        ("a [[vector:dark=0.8]]b", "a b", {"dark": 0.8}),
        ("[[vector:dark]][[vector:Emma's tone=-2.5]]", "", {"dark": 1.0, "Emma's tone": -2.5}),
        ("[[vector:dark=1]] x [[vector:dark=2]]", " x ", {"dark": 2.0}),
        (r"[[vector:\dark=1]]", "[[vector:dark=1]]", {}),
        (r"[[vector:\\dark]]", r"[[vector:\dark]]", {}),
        ("[[vector:dark=loud]]", "[[vector:dark=loud]]", {}),
        ("[[vector:../../x=1]]", "[[vector:../../x=1]]", {}),
        ("[[vector:=1]] [[vector:dark=1]", "[[vector:=1]] [[vector:dark=1]", {}),
    ],
)
def test_tags_of_vectors_are_taken_out(text, plain, strengths):
    assert split_vector_tags(text) == (plain, strengths)


@given(st.text(alphabet="[]vector:dark=1.\\ -\n", max_size=60))
def test_text_without_a_tag_stays(text):
    plain, strengths = split_vector_tags(text)
    assert strengths or len(plain) >= len(text) - text.count("\\")
    assert plain == text or "[[vector:" in text


def test_a_clients_text_may_name_vectors(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path / "vectors"))
    save_vector(DARK)
    save_vector(ControlVector("dark.gguf", WARM.directions))
    store = PromptStore(PromptLibrary(tmp_path / "prompts"), MODEL)
    engine = SimpleNamespace(model=MODEL)
    composer = RequestComposer(SimpleNamespace(engine=engine, prompt_store=store, book=None))
    plain = composer.compose("The dog ran.")
    for text, memory in (
        ("The [[vector:dark=2]]dog ran.", ""),
        ("The dog ran.", "[[vector:dark=2]]"),
    ):
        request = composer.compose(text, memory=memory)
        assert request.context == plain.context
        assert [(vector.name, strength) for vector, strength in request.vectors] == [("dark", 2.0)]
    messages = composer.compose(["[[vector:dark]]Hi.", "The dog ran."])
    assert [strength for _, strength in messages.vectors] == [1.0]
    assert composer.count("[[vector:dark=2]]dog") == composer.count("dog")
    with pytest.raises(UnknownPromptError, match="'drak'"):
        composer.compose("[[vector:drak]]")
    named = composer.compose("[[vector:dark.gguf]]x").vectors[0][0]  # a name, not a path
    assert named.directions.equal(WARM.directions)
    foreign = ControlVector("other", DARK.directions, tiny_model("gpt2").fingerprint("embedding"))
    save_vector(foreign)
    with pytest.raises(PromptMismatchError):
        composer.compose("[[vector:other]]x")


# contexts that carry vectors ----------------------------------------------------------------------


def test_a_context_is_steered_by_its_vectors():
    runner = runner_for(MODEL)
    context = Context("The old house", [(DARK, 1.0)])
    assert greedy(runner, context) == greedy(MODEL, "The old house", [(DARK, 1.0)])
    both = greedy(MODEL, Context("The old ", [(DARK, 0.5)]) + Context("house", [(WARM, 1.0)]))
    assert both == greedy(MODEL, "The old house", [(DARK, 0.5), (WARM, 1.0)])
    assert greedy(MODEL, context, [(DARK, -1.0)]) == greedy(MODEL, "The old house")
    assert context != Context("The old house")
    assert Context(context) == context
    assert context.body == context
    assert repr(context) == "Context('The old house', dark=1)"
    with pytest.raises(ConfigError, match="expected control vectors with a strength each"):
        Context("a", [DARK])


def test_measures_of_a_context_are_of_its_vectors():
    blocks = [Block(call="The house", responses=[" was old", " was dark"])]
    context = Context("", [(DARK, 1.0)])
    with steered(MODEL, DARK.directions[None]):
        expected = recall(MODEL, "", blocks)
    assert recall(MODEL, context, blocks) == pytest.approx(expected, rel=1e-4)
    assert recall(MODEL, "", blocks) != pytest.approx(expected, rel=1e-2)
    passages = [MODEL.encode("It was a dark and stormy night, and the rain fell.")]
    assert drift(MODEL, context, passages) > 0
    assert drift(MODEL, Context("", [(DARK, 0.0)]), passages) == pytest.approx(0, abs=1e-6)


def test_a_vector_is_distilled_into_a_soft_prompt(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path / "vectors"))
    save_vector(DARK)
    model = save_tiny_model(tmp_path / "model")
    command = ["hard", "distil", "--name", "dark", "--model", model, "--prompts", tmp_path / "p"]
    few = ["--vector", "dark=2", "--max-steps", "2", "--n-tokens", "2", "--json", "-"]
    done = softlore(*command, *few)
    assert done.code == 0, done.err
    assert json.loads(done.out)["n_tokens"] == 2
    refused = softlore(*command, "--vector", "darc")
    assert refused.code == 2
    assert "did you mean 'dark'" in refused.err
    assert "give one of the three" in softlore(*command, "--vector", "dark", "--code", "a").err


def test_a_training_is_resumed_with_the_same_vector_only(tmp_path):
    def train(vector, strength):
        conditioning = Context("", [(vector, strength)])
        few = {"n_tokens": 2, "max_steps": 2, "distil_passages": 4}
        kept = Checkpointing(tmp_path / "kept")
        trainer = WorldInfoTrainer(
            MODEL, conditionings={"dark": conditioning}, checkpointing=kept, **few
        )
        return trainer.train()["dark"]

    first = train(DARK, 1.0)
    assert torch.equal(train(DARK, 1.0).key_values, first.key_values)
    for vector, strength in ((replace(WARM, name="dark"), 1.0), (DARK, 2.0)):
        with pytest.raises(ConfigError, match="is of another run"):
            train(vector, strength)


def test_an_entry_too_long_for_a_vector_is_compared_without(tmp_path):
    entry = Entry(name="Ada", text="Ada wears a red hat. " * 11, blocks=[("Ada", [" ran"])])
    assert vector_of_text(MODEL, entry, seed=0) is None
    short = entry.model_copy(update={"text": "Ada wears a red hat."})
    assert vector_of_text(MODEL, short, seed=0).vectors[0][0].name == "Ada"
