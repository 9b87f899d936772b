"""Training curves as TensorBoard and Weights & Biases read them."""

import importlib.machinery
import sys
import types

import pytest

from running import save_tiny_model, softlore
from softlore import WorldInfoTrainer
from softlore.errors import ConfigError
from softlore.model.tiny import tiny_model
from softlore.tune.curves import TensorBoardCurves, WandbCurves

BLOCKS = [("Ada wears", [" a red coat."])]
SETTINGS = {"n_tokens": 2, "max_steps": 3, "max_spacing": 0, "drift_guard": 0}


def trained(curves):
    with curves:
        trainer = WorldInfoTrainer(
            tiny_model("llama"), BLOCKS, name="Ada", on_step=curves, **SETTINGS
        )
        trainer.train()
    return trainer.trainables["Ada"].history["response"]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_the_losses_of_every_update(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = trained(TensorBoardCurves(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["scalars"] == ["recall/Ada"]
    read = events.Scalars("recall/Ada")
    assert [event.step for event in read] == [1, 2, 3]
    assert [event.value for event in read] == pytest.approx(losses)


def test_wandb_is_sent_the_losses_of_every_update(monkeypatch):
    logged, finished = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(1)
    )
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init = lambda project, **options: run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    losses = trained(WandbCurves())
    assert logged == [(i + 1, {"recall/Ada": loss}) for i, loss in enumerate(losses)]
    assert finished == [1]


@pytest.mark.parametrize("curves", [TensorBoardCurves, WandbCurves])
def test_a_missing_package_is_named_with_its_extra(curves, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'softlore\[curves\]'"):
        curves(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_curves(tmp_path):
    pytest.importorskip("tensorboard")
    model = save_tiny_model(tmp_path / "model")
    book = tmp_path / "lore.json"
    book.write_text('[{"call": "Ada wears", "response": " a red coat."}]')
    quick = ["--max-steps", "2", "--n-tokens", "2", "--drift-guard", "0", "--max-spacing", "0"]
    out = ["--out", tmp_path / "prompts", "--log-dir", tmp_path / "runs"]
    ended = softlore("train", book, "--model", model, *out, *quick)
    assert ended.code == 0, ended.err
    assert list((tmp_path / "runs").glob("events.out.tfevents*"))
    ended = softlore("train", book, "--model", model, *out, "--group-size", "2")
    assert ended.code == 2
    assert "--log-dir" in ended.err
