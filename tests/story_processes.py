"""A plain model of a story in memory, and processes that write stories until they are killed.

`python story_processes.py kill FOLDER ROUNDS` kills a writer in each round and prints a line for
it: a story's name, and how many operations were acknowledged.
`python story_processes.py add STORY WORD TIMES LOOK` says "ready", waits for a line, adds `TIMES`
turns and prints how often the head had been moved by somebody else.
"""

import os
import random
import signal
import sys
import time

from softlore.story import ROOT, Story, StoryLibrary


class Model:
    """What a story should be: turns, a journal of (head, memory), and where it stands in it."""

    def __init__(self):
        self.turns = {}  # number -> (parent, by, text)
        self.copies = {}  # number -> what it is a copy or a version of
        self.journal = [(ROOT, "")]
        self.at = 0
        self.marked = set()

    @property
    def head(self):
        return self.journal[self.at][0]

    @property
    def memory(self):
        return self.journal[self.at][1]

    @property
    def path(self):
        numbers, number = [], self.head
        while number != ROOT:
            numbers.append(number)
            number = self.turns[number][0]
        return numbers[::-1]

    @property
    def text(self):
        return "".join(self.turns[number][2] for number in self.path)

    def leaves(self):
        parents = {parent for parent, _, _ in self.turns.values()}
        return [number for number in reversed(self.turns) if number not in parents]

    def _put(self, parent, by, text):
        self.turns[len(self.turns) + 1] = (parent, by, text)
        return len(self.turns)

    def _do(self, head, memory):
        self.journal = [*self.journal[: self.at + 1], (head, memory)]
        self.at += 1

    def add(self, text, by="writer", after=None):
        parent = self.head if after is None else after
        self._do(self._put(parent, by, text), self.memory)

    def edit(self, number, text):
        path = self.path
        place = path.index(number)
        if self.turns[number][2] == text:
            return
        parent = self.turns[number][0]
        for old in path[place:]:
            _, by, old_text = self.turns[old]
            parent = self._put(parent, by, text if old == number else old_text)
            self.copies[parent] = old
            if old != number and old in self.marked:
                self.marked.add(parent)
        self._do(parent, self.memory)

    def cut(self, number):
        self._do(self.turns[number][0], self.memory)

    def go_to(self, number):
        if number != self.head:
            self._do(number, self.memory)

    def set(self, memory):
        if memory != self.memory:
            self._do(self.head, memory)

    def undo(self):
        self.at = max(0, self.at - 1)

    def redo(self):
        self.at = min(len(self.journal) - 1, self.at + 1)

    def mark(self, number, kept=True):
        (self.marked.add if kept else self.marked.discard)(number)


def draw_operation(model, draw):
    """A name and arguments, of an operation that both a Model and a Story have."""
    path = model.path
    name = draw.choice(
        ["add"] * 6 + ["edit", "cut", "go_to", "set", "undo", "undo", "redo", "mark"]
    )
    if name in ("edit", "cut", "mark") and path:
        number = draw.choice(path[-8:])
        more = {"edit": {"text": f"edited {draw.random()}. "}, "cut": {}, "mark": {}}[name]
        return name, (number,), more
    if name == "go_to":
        return name, (draw.choice([ROOT, *model.turns]),), {}
    if name == "set":
        return name, (), {"memory": f"It is {draw.random()}."}
    if name in ("undo", "redo"):
        return name, (), {}
    text = f"turn {draw.random()} " * draw.choice((1, 1, 1, 400))
    return "add", (text,), {"by": draw.choice(["writer", "model"])}


def differs(story, model):
    """In what a story is not as the model has it; empty if in nothing."""
    path = model.path
    expected = {
        "turns": [(number, *model.turns[number]) for number in path],
        "text": model.text,
        "length": len(path),
        "memory": model.memory,
        "undo": model.at > 0,
        "redo": model.at < len(model.journal) - 1,
        "branches": model.leaves(),
        "kept": [number for number in path if number in model.marked],
    }
    found = {
        "turns": [(turn.id, turn.parent, turn.by, turn.text) for turn in story.turns],
        "text": story.text,
        "length": len(story),
        "memory": story.settings.memory,
        "undo": bool(story.undoable),
        "redo": bool(story.redoable),
        "branches": [branch.id for branch in story.branches()],
        "kept": [turn.id for turn in story.kept()],
    }
    return {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}


def write_until_killed(folder, name, log):
    draw, model = random.Random(name), Model()
    with StoryLibrary(folder).open_or_create(name) as story:
        while True:
            operation, arguments, more = draw_operation(model, draw)
            getattr(model, operation)(*arguments, **more)
            getattr(story, operation)(*arguments, **more)
            os.write(log, b".")


def kill_writers(folder, rounds):
    draw = random.Random(rounds)
    for number in range(rounds):
        name = f"round {number}"
        log = os.path.join(folder, f"{name}.log")
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        writer = os.fork()
        if writer == 0:
            write_until_killed(folder, name, descriptor)
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        os.close(descriptor)
        print(name, os.path.getsize(log), sep="\t", flush=True)


def add_turns(path, word, times, look):
    moved = 0
    with Story(path) as story:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(times):
            story.add(f"{word}{number} ", "model")
            moved += story.moved_by_other
            if look:
                assert f"{word}{number} " in [turn.text for turn in story.turns]
    print(moved)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_writers(sys.argv[2], int(sys.argv[3]))
    else:
        add_turns(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "look")
