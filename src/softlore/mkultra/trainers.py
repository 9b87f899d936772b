"""mkultra's trainers over softlore's: its arguments, its files, its optimizer."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softlore.errors import LoreError
from softlore.lore import Block
from softlore.mkultra.classic import CLASSIC, make_trainer
from softlore.mkultra.soft_prompt import SoftPrompt
from softlore.tune import TrainingProgress

NAME = "prompt"  # of the only entry


class WorldInfoTrainer:
    """Trains the model's learned embedding on calls and their responses.

    Args:
        model: a PromptTuningLM.
        tokenizer: there for mkultra's sake; the model's own is used.
        optimizer: one that has `model.get_soft_params()`; by default softlore's.
        blocks: `{"call": …, "response": …}` or `(call, [responses])`.
        max_spacing: most random tokens between soft prompt and call.
        max_block_size: most tokens of soft prompt, spacing, call and response together; a call
            and response that are longer by themselves have no spacing.
        min_loss: stop at this mean loss of the responses, nats a token.
        repeat_to_fill: repeat each response as often as `max_block_size` has room for.
        settings: fields of softlore's `TrainingConfig`, such as `drift_guard`.

    Attributes:
        losses: mean response loss of each update so far.

    Raises:
        ConfigError, LoreError: settings or blocks that can't be trained.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        optimizer: Any = None,
        blocks: Sequence[Any] = (),
        max_spacing: int = 0,
        max_block_size: int = 1024,
        min_loss: float | None = 0,
        repeat_to_fill: bool = False,
        **settings: Any,
    ) -> None:
        if not blocks:
            raise LoreError("no blocks to train on; expected at least one; give one")
        self.model = model
        self.optimizer = optimizer
        self.blocks = [Block.model_validate(block) for block in blocks]
        self.losses: list[float] = []
        most = min(max_block_size, model.frozen.context_length or max_block_size)
        room = most - len(model.learned_embedding) - len(model.frozen.bos)
        if repeat_to_fill:
            self.blocks = [_filled(model, block, room) for block in self.blocks]
        longest = max(
            _length(model, block, one) for block in self.blocks for one in block.responses
        )
        self.settings = CLASSIC | {
            "max_spacing": max(0, min(max_spacing, room - longest)),
            "min_loss": min_loss or None,
            **settings,
        }

    def train(self, epochs: int | None = None) -> None:
        """Trains until `min_loss`; what is learned stands in the model.

        Args:
            epochs: as many updates as mkultra makes in so many epochs, one a block; by default as
                many as softlore's `max_steps`.
        """
        settings = dict(self.settings)
        if epochs is not None:
            settings["max_steps"] = epochs * len(self.blocks)
        trainer = make_trainer(
            self.model, self.optimizer, self._note, settings, blocks=self.blocks, name=NAME
        )
        self.model.set_soft_prompt_embeds(trainer.train().embeddings)

    def _note(self, progress: TrainingProgress) -> None:
        self.losses.append(progress.trainables[NAME].history.response[-1])


class SoftPromptTrainer:
    """Trains the model's learned embedding on a text, in a folder that it can go on from.

    The folder holds a checkpoint with the optimizer's state, from which the same arguments go on
    as if there had been no break; mkultra's JSON files, `PROJECT-step-N.json`; and
    `loss_log.csv`. A folder of mkultra's own is gone on with from its last JSON file.

    Args:
        model: a PromptTuningLM; its learned embedding is set to where training stands.
        optimizer: one that has `model.get_soft_params()`; by default softlore's.
        project_dir: the folder; made if it is not there.
        text_path: a text file, UTF-8.
        block_size: tokens of text that `evaluate` reads at a time, and by which an epoch counts.
        n_tokens: length of the soft prompt.
        ema_alpha: how much the last update counts in the loss that is told.
        checkpoint_interval: updates from one JSON file to the next.
        shuffle_seed: of every draw.
        settings: fields of softlore's `TrainingConfig`, such as `drift_guard`.

    Attributes:
        sp_step: updates made so far, those of earlier sessions too.
        ema_loss: their smoothed loss, nats a token.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        project_dir: str | os.PathLike[str] = "project",
        text_path: str | os.PathLike[str] = "text.txt",
        block_size: int = 32,
        n_tokens: int = 20,
        ema_alpha: float = 0.1,
        checkpoint_interval: int = 200,
        shuffle_seed: int | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.folder = Path(project_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ema_alpha = ema_alpha
        self.ema_loss: float | None = None
        self.checkpoint_interval = checkpoint_interval
        text = Path(text_path).read_text(encoding="utf-8")
        ids = model.frozen.encode(text)
        self.blocks = [ids[at : at + block_size] for at in range(0, len(ids), block_size)]
        self._before = self._start(n_tokens)
        settings = CLASSIC | {"max_steps": 10**7, "seed": shuffle_seed or 0, **settings}
        self._trainer = make_trainer(
            model,
            optimizer,
            self._note,
            settings,
            corpus=text,
            name=NAME,
            checkpoint=self.folder / "checkpoint.safetensors",
        )
        self._trainer.prepare()
        self._left = 0
        self._settle()

    @property
    def sp_step(self) -> int:
        return self._before + self._trainer.step

    def train(self, num_training_steps: int | None = None) -> None:
        """Trains for so many updates; by default an epoch, one update a block."""
        self._left = len(self.blocks) if num_training_steps is None else num_training_steps
        if self._left > 0:
            self._trainer.train()
        self._settle()
        self._write()

    @torch.no_grad()
    def evaluate(self, eval_percentage: float = 0.1) -> float:
        """Mean loss, nats a token, of a share of the blocks (at least one), evenly spread."""
        scored = [block for block in self.blocks if len(block) > 1]
        count = min(len(scored), max(1, round(eval_percentage * len(scored))))
        losses = []
        for i in range(count):
            ids = torch.tensor([scored[i * len(scored) // count]])
            losses.append(float(self.model(input_ids=ids, labels=ids).loss))
        return sum(losses) / len(losses)

    def _start(self, n_tokens: int) -> int:
        """Puts into the model what the project began with; how many updates mkultra had made."""
        kept = self.folder / "start.json"
        if not kept.exists():
            steps = {_step(path): path for path in self.folder.glob("*-step-*.json")}
            if steps:
                prompt = SoftPrompt.from_file(steps[max(steps)])
                prompt.get_metadata()["step"] = max(steps)
            else:
                self.model.initialize_soft_prompt(n_tokens)
                told = {"name": f"{self.folder.name} start", "step": 0}
                prompt = SoftPrompt.from_tuning_model(self.model, told)
            prompt.to_file(kept)
        start = SoftPrompt.from_file(kept)
        self.model.set_soft_prompt(start)
        return int(start.get_metadata()["step"])

    def _note(self, progress: TrainingProgress) -> bool:
        """Logs an update; says whether it was the last one asked for."""
        loss = progress.trainables[NAME].history.response[-1]
        last = self.ema_loss
        self.ema_loss = loss if last is None else last + self.ema_alpha * (loss - last)
        with (self.folder / "loss_log.csv").open("a", encoding="utf-8") as log:
            log.write(f"{self.sp_step},{self.ema_loss}\n")
        if self.sp_step % self.checkpoint_interval == 0:
            self._settle()
            self._write()
        self._left -= 1
        return self._left <= 0

    def _settle(self) -> None:
        """Puts what has been learned into the model."""
        self.model.set_soft_prompt_embeds(self._trainer.prompts()[NAME].embeddings)

    def _write(self) -> None:
        told = {"name": f"{self.folder.name} Step {self.sp_step}", "step": self.sp_step}
        prompt = SoftPrompt.from_tuning_model(self.model, told | {"loss": self.ema_loss})
        prompt.to_file(self.folder / f"{self.folder.name}-step-{self.sp_step}.json")


def _length(model: Any, block: Block, response: str) -> int:
    """Tokens of a call and one of its responses."""
    frozen = model.frozen
    return len(frozen.encode(block.call)) + len(frozen.encode(response, inside=True))


def _filled(model: Any, block: Block, room: int) -> Block:
    """A block whose responses are repeated while call and response fit."""
    responses = []
    for response in block.responses:
        repeated = response
        while _length(model, block, repeated + response) <= room:
            repeated += response
        responses.append(repeated)
    return Block(call=block.call, responses=responses)


def _step(path: Path) -> int:
    """The update that a checkpoint's name tells of."""
    found = re.search(r"-step-(\d+)\.json$", path.name)
    return int(found[1]) if found else -1
