"""Training: lessons, tree batches, losses, learners, checkpoints."""

from softlore.tune.config import TrainingConfig
from softlore.tune.learner import Learner
from softlore.tune.lessons import Lesson, make_lesson
from softlore.tune.objective import Batch, run
from softlore.tune.trainer import Estimate, Progress, WorldInfoTrainer

__all__ = [
    "Batch",
    "Estimate",
    "Learner",
    "Lesson",
    "Progress",
    "TrainingConfig",
    "WorldInfoTrainer",
    "make_lesson",
    "run",
]
