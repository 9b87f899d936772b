"""What a training has left in a folder of prompts, to compare with what another has."""

import torch

from softlore import PromptLibrary


def prompts_in(folder):
    """All that the prompts hold, but for when they were written."""
    return {name: p.replace(created="") for name, p in PromptLibrary(folder).items()}


def assert_same(found, expected):
    """The same prompts, bit for bit."""
    assert list(found) == list(expected)
    for name, prompt in found.items():
        assert torch.equal(prompt.tensor, expected[name].tensor), name
    assert found == expected


def leftovers(folder):
    """Names of files that are no prompts."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".safetensors")
