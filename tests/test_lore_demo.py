"""The demo lorebook is large enough and has no errors."""

from softlore.demo import lorebook_path, openings
from softlore.lore import Lorebook, check

BOOK = Lorebook.load(lorebook_path())


def test_the_demo_lorebook_has_no_warnings():
    assert check(BOOK) == []


def test_it_is_large_enough():
    assert len(BOOK) >= 6
    assert sum(len(block.responses) for entry in BOOK for block in entry.blocks) >= 60
    for entry in BOOK:
        assert entry.keys
        assert 50 <= len(entry.text.split()) <= 90, entry.name
        assert len(entry.blocks) >= 5
        assert 3 <= len(entry.held_out) <= 4


def test_responses_are_short_and_nobody_elses():
    owners = {}
    for entry in BOOK:
        for block in entry.blocks:
            for response in block.responses:
                assert 2 <= len(response.split()) <= 14, response
                assert owners.setdefault(response, entry.name) == entry.name


def test_held_out_calls_ask_for_trained_facts():
    """A held-out response is a trained one, or the end of one: it has no new facts."""
    for entry in BOOK:
        trained = " ".join(response for block in entry.blocks for response in block.responses)
        for block in entry.held_out:
            for response in block.responses:
                assert response.rstrip(".") in trained, (entry.name, response)


def test_every_entry_has_openings():
    named = [name for name, _ in openings()]
    assert set(named) == {entry.name for entry in BOOK}
    for name, opening in openings():
        assert opening.endswith(tuple(block.call for block in BOOK[name].blocks))
