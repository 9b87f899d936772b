"""Training: examples, losses, tree batches, optimizers, checkpoints, workers, sweeps."""

from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.examples import EntryExamples, make_examples
from softlore.tune.execution import Execution
from softlore.tune.losses import LOSSES, Loss, LossTerm
from softlore.tune.objective import TrainingBatch, losses_of, run
from softlore.tune.trainable_prompt import TrainablePrompt, TrainingEstimate, TrainingProgress
from softlore.tune.trainer import WorldInfoTrainer
from softlore.tune.training_data import Company

__all__ = [
    "LOSSES",
    "Checkpointing",
    "Company",
    "EntryExamples",
    "Execution",
    "Loss",
    "LossTerm",
    "TrainablePrompt",
    "TrainingBatch",
    "TrainingConfig",
    "TrainingEstimate",
    "TrainingProgress",
    "WorldInfoTrainer",
    "losses_of",
    "make_examples",
    "run",
]
