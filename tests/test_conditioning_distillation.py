"""Hard into soft: what stands before a text, distilled into a soft prompt as it is."""

import json

import pytest
import torch

from running import save_tiny_model, softlore
from softlore import PromptLibrary, SoftPrompt, WorldInfoTrainer
from softlore.decode import sample_passages
from softlore.errors import ConfigError, LoreError, UnsupportedModelError
from softlore.measure.conditioning import conditioning_fidelity, conditioning_trees
from softlore.measure.score import passage_hidden_states, trunk
from softlore.model.tiny import tiny_model
from softlore.tune import Checkpointing
from softlore.tune.passages import run_teacher

SMALL = {"n_tokens": 6, "max_steps": 60, "passage_tokens": 10, "distil_passages": 24}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", bos=True)


def log_softmax(model, hidden):
    return model.logits(hidden).log_softmax(-1)


def test_a_mixed_teacher_thinks_the_mixture(model):
    """The weighted sum of hidden states has the logits of the mixed log-probabilities."""
    conditionings = [("A cold wind. ", 1.5), ("A joke. ", -0.4)]
    passages = [model.encode("the old house was dark"), model.encode("she ran")]
    found = run_teacher(model, conditioning_trees(model, conditionings), passages)
    alone = [
        passage_hidden_states(model, conditioning, passages) for conditioning, _ in conditionings
    ]
    bare = passage_hidden_states(model, "", passages)
    for i, passage in enumerate(found):
        expected = 1.5 * log_softmax(model, alone[0][i]) - 0.4 * log_softmax(model, alone[1][i])
        expected = (expected - 0.1 * log_softmax(model, bare[i])).log_softmax(-1)
        assert torch.allclose(log_softmax(model, passage.target), expected, atol=1e-3)


def test_passages_of_a_mixture_of_one_are_those_of_the_head(model):
    openers = ["The", "A", "She"]
    tree = trunk(model, "A cold wind. ")
    plain = sample_passages(model, tree, openers, 6, 12, seed=3)
    halves = [(tree, 0.5), (tree, 0.5)]
    assert sample_passages(model, halves, openers, 6, 12, seed=3) == plain


@pytest.mark.parametrize("kind", ["prefix", "embedding"])
def test_distilling_keeps_much_of_what_a_head_does(model, kind):
    conditionings = {
        "wind": "A cold wind blew. ",
        "mixed": [("A cold wind blew. ", 0.7), ("A joke. ", 0.3)],
    }
    made = WorldInfoTrainer(model, conditionings=conditionings, kind=kind, **SMALL).train()
    assert set(made) == set(conditionings)
    start = SoftPrompt.from_text("x", model, name="x", kind=kind)
    for name, prompt in made.items():
        assert conditioning_fidelity(model, conditionings[name], prompt) > conditioning_fidelity(
            model, conditionings[name], start
        )
    assert conditioning_fidelity(
        model, conditionings["wind"], conditionings["wind"]
    ) == pytest.approx(1, abs=1e-4)
    assert conditioning_fidelity(model, conditionings["wind"], "") == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_distilled_is_refused(model):
    with pytest.raises(ConfigError, match="is empty"):
        WorldInfoTrainer(model, conditionings={"x": ""}, **SMALL).train()
    with pytest.raises(ConfigError, match="is empty"):
        WorldInfoTrainer(model, conditionings={"x": [("a", 0.0)]}, **SMALL).train()
    with pytest.raises(LoreError, match="expected at most"):
        WorldInfoTrainer(model, conditionings={"x": "word " * 60}, **SMALL).train()
    with pytest.raises(ConfigError, match="give just one"):
        WorldInfoTrainer(model, conditionings={"x": "a"}, corpus="b")
    capped = tiny_model("gemma2")
    with pytest.raises(UnsupportedModelError, match="caps its logits"):
        WorldInfoTrainer(capped, conditionings={"x": [("a", 0.5)]}, **SMALL).train()
    WorldInfoTrainer(capped, conditionings={"x": "a cat"}, **(SMALL | {"max_steps": 1})).train()


def test_a_stopped_run_goes_on_and_one_of_another_head_is_refused(model, tmp_path):
    path = tmp_path / "kept"
    conditionings = {"x": [("A cold wind. ", 1.5)]}

    def train(conditionings, on_step=None):
        return WorldInfoTrainer(
            model,
            conditionings=conditionings,
            checkpointing=Checkpointing(path),
            on_step=on_step,
            **(SMALL | {"max_steps": 6}),
        )

    whole = WorldInfoTrainer(
        model, conditionings=conditionings, **(SMALL | {"max_steps": 6})
    ).train()["x"]
    train(conditionings, lambda progress: progress.step == 2).train()
    with pytest.raises(ConfigError, match="another run"):
        train({"x": [("A cold wind. ", 1.6)]}).train()
    assert torch.equal(train(conditionings).train()["x"].tensor, whole.tensor)


def test_distil_command(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "style.txt").write_text("A cold wind blew.")
    common = ["hard", "distil", "--model", model, "--prompts", tmp_path / "out", "--max-steps", "2"]
    ended = softlore(*common, tmp_path / "style.txt", "--name", "wind", "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["name"] == "wind"
    assert "of its effect" in ended.err
    ended = softlore(*common, "--name", "more", "--code", "wind=1.5", "--n-tokens", "4")
    assert ended.code == 0, ended.err
    assert len(PromptLibrary(tmp_path / "out")["more"]) == 4
    for arguments, said in (
        (["--name", "x"], "give one of the three"),
        (["--name", "x", tmp_path / "style.txt", "--code", "wind"], "give one of the three"),
        (["--name", "x", "--code", "none"], "neither a code"),
        (["--name", "a/b", tmp_path / "style.txt"], "a/b"),
        (["--name", "x", tmp_path / "none.txt"], "can't be read"),
    ):
        refused = softlore(*common, *arguments)
        assert refused.code == 2, refused.out
        assert said in refused.err
        assert len(refused.lines_after_loading) == 1
