"""mkultra's trainers train, as there; where they had a bug, these have none."""

import re

import pytest
import torch

from running import save_tiny_model
from softlore import storyteller
from softlore.errors import LoreError
from softlore.mkultra import GPT2PromptTuningLM, SoftPrompt, SoftPromptTrainer, WorldInfoTrainer
from test_examples import _executed

BLOCKS = [{"call": "The dog", "response": " is good."}, ("The cat", [" is not.", " is away."])]
TEXT = "The rain it fell on Tilly Moor, and Tilly Moor was wet. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture
def model(folder):
    model = GPT2PromptTuningLM.from_pretrained(folder)
    model.initialize_soft_prompt(n_tokens=6)
    return model


def adam(model):
    return torch.optim.Adam([model.get_soft_params()], lr=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adafactor(params=p),
        lambda p: torch.optim.AdamW([p], lr=0.05),
        lambda p: None,
    ],
)
def test_world_info_is_learned(model, make):
    weights = model.get_input_embeddings().weight.clone()
    optimizer = make(model.get_soft_params())
    blocks = [dict(BLOCKS[0]), BLOCKS[1]]
    trainer = WorldInfoTrainer(model=model, tokenizer=None, optimizer=optimizer, blocks=blocks)
    before = model.learned_embedding.detach().clone()
    assert trainer.train(epochs=12) is None
    assert len(trainer.losses) == 24  # an update a block, as in mkultra
    assert trainer.losses[-1] < trainer.losses[0]
    assert not torch.equal(model.learned_embedding, before)
    assert torch.equal(model.get_input_embeddings().weight, weights)
    assert blocks == BLOCKS  # mkultra wrote token ids into them
    assert len(SoftPrompt.from_tuning_model(model, {"name": "pets"})) == 6


def test_an_update_is_what_mkultra_makes(model):
    # One response, no spacing, plain gradient descent: exactly the numbers of a hand-written loop.
    call, response = (model.frozen.encode(text) for text in ("The dog", " is good."))
    start = model.learned_embedding.detach().clone()
    optimizer = torch.optim.SGD(params=model.get_soft_params(), lr=0.3, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ids = torch.tensor([call + response])
        labels = torch.tensor([[-100] * len(call) + response])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    by_hand = model.learned_embedding.detach().clone()
    model.set_soft_prompt_embeds(start)
    model.learned_embedding.grad = None
    optimizer = torch.optim.SGD(params=model.get_soft_params(), lr=0.3, weight_decay=0.1)
    WorldInfoTrainer(model, None, optimizer, BLOCKS[:1]).train(epochs=3)
    assert torch.allclose(model.learned_embedding, by_hand, atol=1e-5)


def test_training_ends_at_min_loss(model):
    trainer = WorldInfoTrainer(model, None, adam(model), BLOCKS[:1], min_loss=4.0)
    trainer.train()
    assert sum(trainer.losses[-5:]) / len(trainer.losses[-5:]) <= 4.0
    assert len(trainer.losses) < 500


def test_an_optimizer_follows_its_soft_prompt(model):
    # In mkultra an optimizer made before initialize_soft_prompt trained nothing.
    optimizer = adam(model)
    model.initialize_soft_prompt(n_tokens=9)
    before = model.learned_embedding.detach().clone()
    WorldInfoTrainer(model, None, optimizer, BLOCKS).train(epochs=1)
    assert not torch.equal(model.learned_embedding, before)


def test_training_may_start_from_nothing(model):
    model.set_soft_prompt_embeds(torch.zeros(4, 32))
    trainer = WorldInfoTrainer(model, None, adam(model), BLOCKS)
    trainer.train(epochs=6)
    assert trainer.losses[-1] < trainer.losses[0]
    assert len(model.learned_embedding) == 4


def test_a_block_longer_than_its_room_has_no_spacing(model):
    # mkultra drew a number between 0 and a negative one, and crashed.
    trainer = WorldInfoTrainer(model, None, adam(model), BLOCKS, max_spacing=50, max_block_size=10)
    assert trainer.settings["max_spacing"] == 0
    trainer.train(epochs=1)
    roomy = WorldInfoTrainer(model, None, adam(model), BLOCKS, 50, max_block_size=30)
    assert roomy.settings["max_spacing"] == 30 - 6 - len("The dog is good.")
    trainer = WorldInfoTrainer(model, None, adam(model), BLOCKS, max_spacing=10**5)
    assert trainer.settings["max_spacing"] == 256 - 6 - len("The dog is good.")  # the context


def test_random_filler_holds_no_special_token(model, monkeypatch):
    # mkultra drew from all ids.
    seen = set()
    embed = model.frozen.embed_ids

    def spy(ids):
        if isinstance(ids, list):  # of a text; tensors are samples of the whole vocabulary
            seen.update(ids)
        return embed(ids)

    monkeypatch.setattr(model.frozen, "embed_ids", spy)
    WorldInfoTrainer(model, None, adam(model), BLOCKS, max_spacing=200).train(epochs=12)
    assert len(seen) > 200
    assert not seen & model.frozen.special_ids


@pytest.mark.parametrize("size", [20, 64, 10**6])
def test_repeating_to_fill_leaves_room_for_the_soft_prompt(model, size):
    # mkultra left the prompt's length out, and passed the context; or had no response at all.
    trainer = WorldInfoTrainer(
        model, None, adam(model), BLOCKS[:1], max_block_size=size, repeat_to_fill=True
    )
    (block,) = trainer.blocks
    response = " is good."
    count = block.responses[0].count(response)
    assert block.responses[0] == count * response
    used = 6 + len("The dog") + count * len(response)
    most = min(size, 256)
    assert count == 1 or used <= most
    assert used + len(response) > most
    trainer.train(epochs=1)


def test_no_blocks_are_refused(model):
    with pytest.raises(LoreError, match="no blocks"):
        WorldInfoTrainer(model)


# a text, in a folder ------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "tilly.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def trainer_of(folder, project, text, **more):
    model = GPT2PromptTuningLM.from_pretrained(folder)
    return SoftPromptTrainer(
        model=model,
        optimizer=adam(model),
        project_dir=project,
        text_path=text,
        n_tokens=6,
        checkpoint_interval=2,
        shuffle_seed=1,
        pairs_per_step=2,
        **more,
    )


def test_a_text_is_learned_and_gone_on_with_as_if_without_a_break(folder, tmp_path, text):
    # mkultra's checkpoints were without the optimizer's state.
    trainer = trainer_of(folder, tmp_path / "whole", text)
    before = trainer.evaluate(1.0)
    trainer.train(6)
    assert trainer.evaluate(1.0) < before
    part = trainer_of(folder, tmp_path / "part", text)
    part.train(2)
    part.train(1)
    again = trainer_of(folder, tmp_path / "part", text)
    assert again.sp_step == 3
    assert torch.equal(again.model.learned_embedding, part.model.learned_embedding)
    again.train(3)
    assert again.sp_step == trainer.sp_step == 6
    assert torch.equal(again.model.learned_embedding, trainer.model.learned_embedding)


def test_a_project_holds_mkultras_files(folder, tmp_path, text):
    trainer = trainer_of(folder, tmp_path / "tilly", text, block_size=50)
    trainer.train()  # an epoch
    steps = -(-len(TEXT) // 50)
    assert trainer.sp_step == steps
    names = {path.name for path in (tmp_path / "tilly").glob("*-step-*.json")}
    assert names == {f"tilly-step-{n}.json" for n in (2, 4, steps)}
    last = SoftPrompt.from_file(tmp_path / "tilly" / f"tilly-step-{steps}.json")
    assert last.get_metadata()["step"] == steps
    assert last.get_metadata()["loss"] == pytest.approx(trainer.ema_loss)
    assert torch.equal(last.get_inputs_embeds(), trainer.model.learned_embedding)
    log = (tmp_path / "tilly" / "loss_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == [str(n + 1) for n in range(steps)]


def test_mkultras_own_project_is_gone_on_with(folder, tmp_path, text):
    for step, value in ((20, 0.1), (100, 0.2)):
        rows = torch.full((6, 32), value)
        SoftPrompt.from_inputs_embeds(rows).to_file(tmp_path / f"old-step-{step}.json")
    trainer = trainer_of(folder, tmp_path, text)
    assert trainer.sp_step == 100
    assert torch.allclose(trainer.model.learned_embedding, torch.tensor(0.2))
    trainer.train(1)
    again = trainer_of(folder, tmp_path, text)
    assert again.sp_step == 101
    assert torch.equal(again.model.learned_embedding, trainer.model.learned_embedding)


# the notebook -------------------------------------------------------------------------------------

# mkultra's World Info notebook: its import lines changed, its two missing commas and the name of
# its trainer mended, nothing else. `gpt2` is a folder beside it here.
NOTEBOOK = """
from transformers.pipelines import pipeline
from softlore.mkultra import GPT2PromptTuningLM
from softlore.mkultra import GPT2TokenizerFast
from softlore.mkultra import SoftPrompt
from softlore.mkultra import WorldInfoTrainer
from torch.optim import Adafactor

model = GPT2PromptTuningLM.from_pretrained("gpt2")
tokenizer = GPT2TokenizerFast.from_pretrained("gpt2")
model.initialize_soft_prompt(n_tokens=20)
block = ("Description of dog:", ["Dog is a good boy", "Dog loves pets"])
trainer = WorldInfoTrainer(
    model=model,
    optimizer=Adafactor(params=model.get_soft_params()),
    blocks = [block],
    max_spacing=0, # Setting this to 0 for illustrative purposes
    min_loss=0.4
)

trainer.train()
"""


@pytest.mark.slow
def test_the_world_info_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").symlink_to(storyteller.path())
    names = {}
    exec(NOTEBOOK, names)
    model, tokenizer = names["model"], names["tokenizer"]
    assert sum(names["trainer"].losses[-5:]) / 5 <= 0.4
    call = tokenizer("Description of dog:", return_tensors="pt").input_ids
    output = model.generate(call, do_sample=False, max_new_tokens=8)
    assert re.search(r"good boy|loves pets", tokenizer.decode(output[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_example_runs(tmp_path):
    output = "\n".join(_executed("mkultra.ipynb", tmp_path))
    for way in ("generate:", "pipeline:"):
        assert re.search(way + ".*(good boy|loves pets)", output)
    assert "20 tokens" in output
