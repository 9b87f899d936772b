"""The main walks through the code stay short, and docs/contributing.md lists their files.

A walk is what a reader follows from a command or a request to the numbers: the files on the call
stack at each station of it. The wider count, of all files in which anything runs on the way, is
printed (pytest -s).
"""

import contextlib
import functools
import inspect
import json
import re
import sys
import threading
import urllib.request
from pathlib import Path

import softlore as package
from api_server import make_state, served
from running import save_tiny_model, softlore
from softlore.context import tree_batch
from softlore.decode import model_runner
from softlore.decode.batch import SequenceGroup
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.serve import openai_forms
from softlore.serve.service import GenerationService
from softlore.settings import SamplingParams
from softlore.story import composing
from softlore.tune import WorldInfoTrainer, trainer

SOURCE = Path(package.__file__).parent
UPDATE = WorldInfoTrainer.update.__code__
CONTRIBUTING = (Path(__file__).parent.parent / "docs" / "contributing.md").read_text("utf-8")
TRAIN, KOBOLD, TEMPERATURE = 12, 16, 6  # files at most


class Walk:
    """The files of this package that are met, in order."""

    def __init__(self, first=""):
        self.files = []
        self.first = first

    def add_stack(self, function):
        """Adds the files of the call stack from `first` on, and that of the function called."""
        frame, files = sys._getframe(2), [inspect.unwrap(function).__code__.co_filename]
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        files.reverse()
        starts = [i for i, name in enumerate(files) if name.endswith(self.first)]
        for name in files[starts[0] if starts else 0 :]:
            self.add(name)

    def add(self, name):
        path = Path(name)
        if path.is_relative_to(SOURCE):
            file = path.relative_to(SOURCE).as_posix()
            if file not in self.files:
                self.files.append(file)

    def station(self, patch, owner, name, when=lambda: True):
        """Adds the stack of each call of a function or method."""
        plain = owner.__dict__[name]
        function = plain.__func__ if isinstance(plain, classmethod) else plain

        @functools.wraps(function)
        def watched(*args, **kwargs):
            if when():
                self.add_stack(function)
            return function(*args, **kwargs)

        patch.setattr(owner, name, classmethod(watched) if plain is not function else watched)


@contextlib.contextmanager
def traced(wanted):
    """Calls `wanted(frame)` for every call of a Python function, in new threads too."""

    def profile(frame, event, _):
        if event == "call":
            wanted(frame)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_from_the_command_train_to_the_loss(tmp_path, monkeypatch):
    model = save_tiny_model(tmp_path / "model")
    book = tmp_path / "book.json"
    book.write_text(json.dumps([["The dog", [" ran."]]]))
    walk, wide = Walk("cli/train.py"), Walk()
    walk.station(monkeypatch, WorldInfoTrainer, "update")
    walk.station(monkeypatch, trainer, "draw_batch")
    for owner, name in ((tree_batch, "splice"), (FrozenModel, "hidden"), (FrozenModel, "logits")):
        walk.station(monkeypatch, owner, name, when=updating)
    with traced(lambda frame: wide.add(frame.f_code.co_filename)):
        ended = softlore(
            "train", book, "--model", model, "--out", tmp_path / "out", "--max-steps", 1
        )
    assert ended.code == 0, ended.err
    check(walk, "From `softlore train` to the loss", TRAIN, wide)


def test_from_a_request_of_kobold_to_the_logits(tmp_path, monkeypatch):
    walk, wide = Walk("serve/kobold.py"), Walk()
    body = {"prompt": "The [[soft:dog]] ran and [[soft:Emma]]", "max_length": 2}
    with traced(lambda frame: wide.add(frame.f_code.co_filename)):
        state = make_state(tmp_path)
        wide.files.clear()
        walk.station(monkeypatch, GenerationService, "respond")
        walk.station(monkeypatch, Context, "parse")
        walk.station(monkeypatch, composing.ContextComposer, "plan")
        for name in ("activate", "choose_within_budget", "compose"):
            walk.station(monkeypatch, composing, name)
        walk.station(monkeypatch, SequenceGroup, "from_request")
        walk.station(monkeypatch, model_runner, "splice")
        walk.station(monkeypatch, FrozenModel, "hidden")
        walk.station(monkeypatch, FrozenModel, "logits")
        with served(state) as url:
            request(f"{url}/api/v1/generate", body)
    check(walk, "From a KoboldAI request to the logits", KOBOLD, wide)


def test_from_a_temperature_of_openai_to_the_sampler(tmp_path):
    """The files that read, convert or apply the number; those that only pass the request do not."""
    walk, sentinel = Walk(), 0.7309
    walk.add(openai_forms.__file__)  # a field of its body

    def is_it(value):
        number = vars(value).get("temperature") if isinstance(value, SamplingParams) else value
        return isinstance(number, float) and number == sentinel

    def look(frame):
        if not Path(frame.f_code.co_filename).is_relative_to(SOURCE):
            return
        code = frame.f_code
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(is_it(frame.f_locals.get(name)) for name in arguments):
            walk.add(frame.f_code.co_filename)

    with traced(look):
        state = make_state(tmp_path)
        with served(state) as url:
            body = {"model": "storyteller", "prompt": "The", "max_tokens": 2}
            request(f"{url}/v1/completions", body | {"temperature": sentinel})
    check(walk, "From an OpenAI temperature to the sampler", TEMPERATURE)


def updating():
    """Whether the caller runs within an update of training."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not UPDATE:
        frame = frame.f_back
    return frame is not None


def check(walk, name, most, wide=None):
    print(f"\n{name}: {len(walk.files)} files", *walk.files, sep="\n  ")
    if wide is not None:
        print(f"{name}: {len(wide.files)} files in which anything runs")
    _, _, listed = CONTRIBUTING.partition(f"**{name}**\n\n")
    files = re.findall(r"^\d+\. `(.*?)`", listed.partition("\n\n")[0], re.MULTILINE)
    assert sorted(files) == sorted(walk.files)
    assert 1 < len(walk.files) <= most


def request(url, body):
    sent = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent) as response:
        return json.load(response)
