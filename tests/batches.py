"""Several texts generated side by side, for tests."""

from softlore.decode import RunningBatch, TorchModelRunner
from softlore.decode.model_runner import ModelRunner


def write_batch(model, requests):
    """The outputs, and the tokens as they come, each with the number of its text."""
    batch = RunningBatch(model if isinstance(model, ModelRunner) else TorchModelRunner(model))
    groups = [batch.add(request) for request in requests]

    def tokens():
        while len(batch):
            for group, token in batch.step():
                yield groups.index(group), token

    return [group.output for group in groups], tokens()
