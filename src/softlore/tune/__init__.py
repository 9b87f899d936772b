"""Training: examples, tree batches, losses, trainables, checkpoints."""

from softlore.settings import TrainingConfig
from softlore.tune.examples import EntryExamples, make_examples
from softlore.tune.objective import TrainingBatch, run
from softlore.tune.trainable_prompt import TrainablePrompt
from softlore.tune.trainer import TrainingEstimate, TrainingProgress, WorldInfoTrainer

__all__ = [
    "EntryExamples",
    "TrainablePrompt",
    "TrainingBatch",
    "TrainingConfig",
    "TrainingEstimate",
    "TrainingProgress",
    "WorldInfoTrainer",
    "make_examples",
    "run",
]
