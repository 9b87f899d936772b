"""A writing session that is killed: the story has all text but that of the unfinished turn."""

import functools
import os
import random
import sys

import pytest

from running import Running, save_tiny_model
from softlore.story import StoryLibrary

KILLS = int(os.environ.get("SOFTLORE_KILLS", "50"))
TOKENS = 6


def read_from(path):
    """Makes a file the standard input of this process."""
    os.dup2(os.open(path, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, encoding="utf-8")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    save_tiny_model(tmp_path / "model")
    script = tmp_path / "script.txt"
    script.write_text("".join(f"Then day {i} came.\n\n" for i in range(2000)), encoding="utf-8")
    draw = random.Random(1)
    before, unfinished = [], 0
    for kill in range(KILLS):
        run = Running(
            tmp_path / f"run{kill}", "story", "tale", "--stories", tmp_path / "stories",
            "--model", tmp_path / "model", "--tokens", TOKENS, "--seed", 1,
            at_start=functools.partial(read_from, script),
        )  # fmt: skip
        run.wait_for(tmp_path / "stories" / "tale.story")
        if kill % 5 == 0:  # else a busy machine writes nothing before it is killed
            run.wait_for_output()
        ended = run.end(after=draw.uniform(0.0, 0.8))
        assert ended.code < 0, ended.err
        with StoryLibrary(tmp_path / "stories").open("tale") as story:
            turns = [(turn.id, turn.by, turn.text) for turn in story.turns]
        assert turns[: len(before)] == before  # nothing that was kept is ever lost
        saved = plain("".join(text for _, by, text in turns[len(before) :] if by == "model"))[-40:]
        printed = plain(ended.out)
        if printed and saved:  # else it was killed before it had written anything
            at = printed.rfind(saved)
            # What the story has not: a part of the turn that was being written, if anything.
            assert at >= 0 or saved.endswith(printed[-TOKENS:])
            rest = printed[at + len(saved) :] if at >= 0 else ""
            assert len(rest) <= TOKENS
            unfinished += bool(rest)
        before = turns
    assert len(before) > 3
    assert unfinished  # some were killed in the middle of a turn


def plain(text):
    """A text without its line ends: a turn in which nothing was said shows as one."""
    return text.replace("\n", "").replace("\r", "")
