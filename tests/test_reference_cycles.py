"""Tensors are freed when the last reference to them goes, not when Python's collector runs.

The collector counts objects, not bytes: a few of them in a circle held
gigabytes of keys and values.
"""

import gc

import pytest
import torch

from softlore import WorldInfoTrainer, write
from softlore.lore import Entry, Lorebook
from softlore.measure import evaluate
from softlore.model.tiny import tiny_model
from softlore.story import StoryLibrary
from softlore.story.session import StorySession

ENTRY = Entry(name="Ada", text="Ada wears a red coat.", blocks=[("Ada wore", [" a red coat."])])


def write_two(model, folder):
    write(model, "Once", max_new_tokens=12, seed=1)
    write(model, "Once there was", max_new_tokens=12, seed=2)


def tell(model, folder):
    with StoryLibrary(folder).create("one") as story:
        session = StorySession(story, model)
        for _ in range(3):
            session.add(" And then.")
            for _ in session.continue_story(6):
                pass


def train(model, folder):
    trainer = WorldInfoTrainer(model, entries=[ENTRY], n_tokens=2, max_steps=2, distil_passages=2)
    prompts = trainer.train()
    evaluate(
        model,
        Lorebook(name="town", entries=[ENTRY]),
        prompts,
        stories=1,
        story_tokens=4,
        distances=[0],
    )


@pytest.fixture
def in_circles():
    """Calls a function; returns the shapes of the tensors that only the collector would free."""

    def run(function, *given):
        gc.collect()
        gc.disable()
        try:
            function(*given)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            return [tuple(x.shape) for x in gc.garbage if isinstance(x, torch.Tensor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    return run


@pytest.mark.parametrize("work", [write_two, tell, train])
def test_no_tensor_is_left_in_a_circle(in_circles, tmp_path, work):
    model = tiny_model("llama")
    assert in_circles(work, model, tmp_path) == []
