"""mkultra's trainers, with its objective, files and optimizers, on top of softlore's."""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlore import tune
from softlore.errors import LoreError
from softlore.lore import Block
from softlore.mkultra.soft_prompt import MkultraSoftPrompt
from softlore.prompts import SoftPrompt
from softlore.tune import Checkpointing, TrainingProgress
from softlore.tune.initial import scale_of

NAME = "prompt"  # of the only entry


def _constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A constant learning rate, as in mkultra."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


# mkultra's objective: no drift guard, random tokens as filler.
_CLASSIC: dict[str, Any] = {
    "kind": "embedding",
    "filler": "random",
    "max_spacing": 0,
    "drift_guard": 0.0,
    "schedule": _constant,
}


def _make_trainer(
    model: Any,
    optimizer: Any,
    on_step: Callable[[TrainingProgress], bool | None],
    settings: Mapping[str, Any],
    **source: Any,
) -> tune.WorldInfoTrainer[Any]:
    """A softlore trainer that starts from the model's learned embedding.

    Args:
        model: a PromptTuningLM.
        optimizer: one over `model.get_soft_params()`, or softlore's `optimizer` setting, or None.
        on_step: called after each update; True stops.
        settings: fields of `TrainingConfig`.
        source: what to train on, and other arguments of softlore's WorldInfoTrainer.
    """
    model.eval()  # no dropout in training, as in generation
    settings = dict(settings)
    if isinstance(optimizer, torch.optim.Optimizer):
        unit = float(scale_of(model.frozen, model.learned_embedding.detach(), "embedding"))
        settings["optimizer"] = functools.partial(
            WrappedOptimizer, wrapped=optimizer, model=model, unit=unit
        )
    elif optimizer is not None:
        settings["optimizer"] = optimizer
    rows = model.learned_embedding.detach().float().cpu()
    start = SoftPrompt(
        name="start",
        kind="embedding",
        tensor=rows,
        fingerprint=model.frozen.fingerprint("embedding"),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, rows.numpy().tobytes().hex())),
    )
    settings |= {"n_tokens": len(rows), "initial": start}
    return tune.WorldInfoTrainer(model.frozen, on_step=on_step, **source, **settings)


class WrappedOptimizer(torch.optim.Optimizer):
    """Makes the trainer's updates by an optimizer over the model's learned embedding.

    The trainer's parameter is in units of `unit`, the root mean square of the model's embedding
    rows; the learned embedding is in mkultra's, so that learning rate and weight decay have the
    meaning that they have there:

        learned = parameter × unit,    gradient of learned = gradient of parameter / unit
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        wrapped: torch.optim.Optimizer,
        model: Any,
        unit: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.wrapped = wrapped
        self.learned: torch.nn.Parameter = model.learned_embedding
        self.unit = unit
        group = wrapped.param_groups[0]
        if len(group["params"]) != 1 or group["params"][0] is not self.learned:
            wrapped.state.clear()  # made before the learned embedding was replaced
            group["params"] = [self.learned]
        del wrapped.param_groups[1:]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the wrapped optimizer, from the gradient of the trainer's parameter."""
        parameter: Tensor = self.param_groups[0]["params"][0]
        self.learned.copy_(parameter * self.unit)
        assert parameter.grad is not None
        self.learned.grad = (parameter.grad / self.unit).to(self.learned)
        self.wrapped.step()
        self.learned.grad = None
        parameter.copy_(self.learned / self.unit)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of the wrapped optimizer."""
        self.wrapped.load_state_dict(state_dict)


class MkultraWorldInfoTrainer:
    """mkultra's `WorldInfoTrainer`: trains the learned embedding on calls and responses.

    Args:
        model: a PromptTuningLM.
        tokenizer: ignored; the model's is used.
        optimizer: one over `model.get_soft_params()`; default: softlore's.
        blocks: `{"call": …, "response": …}` or `(call, [responses])`.
        max_spacing: maximum number of random tokens between soft prompt and call.
        max_block_size: maximum number of tokens of soft prompt, spacing, call and response; where
            call and response alone are longer, there is no spacing.
        min_loss: stop at this mean loss of the responses, nats per token.
        repeat_to_fill: repeat each response as often as `max_block_size` allows.
        settings: fields of softlore's `TrainingConfig`, such as `drift_guard`.

    Attributes:
        losses: mean response loss of each update so far, nats per token.

    Raises:
        ConfigError, LoreError: invalid settings or blocks.
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
            _length(model, block, response) for block in self.blocks for response in block.responses
        )
        self.settings = _CLASSIC | {
            "max_spacing": max(0, min(max_spacing, room - longest)),
            "min_loss": min_loss or None,
            **settings,
        }

    def train(self, epochs: int | None = None) -> None:
        """Trains the model's learned embedding until `min_loss`.

        Args:
            epochs: the limit, at one update per block and epoch as in mkultra; default: softlore's
                `max_steps` updates.
        """
        settings = dict(self.settings)
        if epochs is not None:
            settings["max_steps"] = epochs * len(self.blocks)
        trainer = _make_trainer(
            self.model, self.optimizer, self._on_step, settings, blocks=self.blocks, name=NAME
        )
        self.model.set_soft_prompt_embeds(trainer.train().embeddings)

    def _on_step(self, progress: TrainingProgress) -> None:
        self.losses.append(progress.trainables[NAME].history["response"][-1])


class SoftPromptTrainer:
    """Trains the model's learned embedding on a text, resumable from a project folder.

    The folder holds a checkpoint with the optimizer's state, from which the same arguments resume
    with the same results as without a break; mkultra's JSON files, `PROJECT-step-N.json`; and
    `loss_log.csv`. A folder that mkultra made is resumed from its last JSON file.

    Args:
        model: a PromptTuningLM; its learned embedding is set to the current state of training.
        optimizer: one over `model.get_soft_params()`; default: softlore's.
        project_dir: the folder; created where needed.
        text_path: a text file, UTF-8.
        block_size: tokens per block: `evaluate` reads one at a time, an epoch has an update each.
        n_tokens: length of the soft prompt.
        ema_alpha: weight of the last update in the smoothed loss.
        checkpoint_interval: updates from one JSON file to the next.
        shuffle_seed: of all random numbers.
        settings: fields of softlore's `TrainingConfig`, such as `drift_guard`.

    Attributes:
        sp_step: updates so far, including earlier sessions.
        ema_loss: their smoothed loss, nats per token.
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
        settings = _CLASSIC | {"max_steps": 10**7, "seed": shuffle_seed or 0, **settings}
        self._trainer = _make_trainer(
            model,
            optimizer,
            self._on_step,
            settings,
            corpus=text,
            name=NAME,
            checkpointing=Checkpointing(self.folder / "checkpoint.safetensors"),
        )
        self._trainer.prepare()
        self._remaining = 0
        self._update_model()

    @property
    def sp_step(self) -> int:
        return self._before + self._trainer.step

    def train(self, num_training_steps: int | None = None) -> None:
        """Trains for a number of updates; default: an epoch, one update per block."""
        self._remaining = len(self.blocks) if num_training_steps is None else num_training_steps
        if self._remaining > 0:
            self._trainer.train()
        self._update_model()
        self._save()

    @torch.no_grad()
    def evaluate(self, eval_percentage: float = 0.1) -> float:
        """Mean loss, nats per token, of a share of the blocks (at least one), evenly spread."""
        scored = [block for block in self.blocks if len(block) > 1]
        count = min(len(scored), max(1, round(eval_percentage * len(scored))))
        losses = []
        for i in range(count):
            ids = torch.tensor([scored[i * len(scored) // count]])
            losses.append(float(self.model(input_ids=ids, labels=ids).loss))
        return sum(losses) / len(losses)

    def _start(self, n_tokens: int) -> int:
        """Loads the project's first state into the model; returns mkultra's updates until then."""
        path = self.folder / "start.json"
        if not path.exists():
            steps = {_step(file): file for file in self.folder.glob("*-step-*.json")}
            if steps:
                prompt = MkultraSoftPrompt.from_file(steps[max(steps)])
                prompt.get_metadata()["step"] = max(steps)
            else:
                self.model.initialize_soft_prompt(n_tokens)
                metadata = {"name": f"{self.folder.name} start", "step": 0}
                prompt = MkultraSoftPrompt.from_tuning_model(self.model, metadata)
            prompt.to_file(path)
        start = MkultraSoftPrompt.from_file(path)
        self.model.set_soft_prompt(start)
        return int(start.get_metadata()["step"])

    def _on_step(self, progress: TrainingProgress) -> bool:
        """Logs an update; returns whether it was the last one."""
        loss = progress.trainables[NAME].history["response"][-1]
        last = self.ema_loss
        self.ema_loss = loss if last is None else last + self.ema_alpha * (loss - last)
        with (self.folder / "loss_log.csv").open("a", encoding="utf-8") as log:
            log.write(f"{self.sp_step},{self.ema_loss}\n")
        if self.sp_step % self.checkpoint_interval == 0:
            self._update_model()
            self._save()
        self._remaining -= 1
        return self._remaining <= 0

    def _update_model(self) -> None:
        """Sets the model's learned embedding to the current state."""
        self.model.set_soft_prompt_embeds(self._trainer.prompts()[NAME].embeddings)

    def _save(self) -> None:
        name = f"{self.folder.name} Step {self.sp_step}"
        metadata = {"name": name, "step": self.sp_step, "loss": self.ema_loss}
        prompt = MkultraSoftPrompt.from_tuning_model(self.model, metadata)
        prompt.to_file(self.folder / f"{self.folder.name}-step-{self.sp_step}.json")


def _length(model: Any, block: Block, response: str) -> int:
    """The number of tokens of a call and one of its responses."""
    frozen = model.frozen
    return len(frozen.encode(block.call)) + len(frozen.encode(response, inside=True))


def _filled(model: Any, block: Block, room: int) -> Block:
    """A block whose responses are repeated while call and response fit into `room` tokens."""
    responses = []
    for response in block.responses:
        repeated = response
        while _length(model, block, repeated + response) <= room:
            repeated += response
        responses.append(repeated)
    return Block(call=block.call, responses=responses)


def _step(path: Path) -> int:
    """The update in a checkpoint's name."""
    match = re.search(r"-step-(\d+)\.json$", path.name)
    return int(match[1]) if match else -1
