"""What is no prompt file at all, or changes while it is read; and files of random bytes."""

from __future__ import annotations

import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlore import SoftPrompt, load_prompt
from softlore.errors import PromptFileError, StorageError
from softlore.prompts import Reason, opening, read_header

GOOD = (Path(__file__).parent / "golden" / "prompt-v1-embedding.safetensors").read_bytes()


def put(folder: Path, content: bytes = GOOD) -> Path:
    path = folder / "dog.safetensors"
    path.write_bytes(content)
    return path


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", "a\0b"):
        for load in (SoftPrompt.load, load_prompt, read_header):
            with pytest.raises(PromptFileError) as caught:
                load(path)
            assert caught.value.reason == Reason.MISSING


def test_no_regular_file(tmp_path: Path) -> None:
    places = [tmp_path]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        places.append(tmp_path / "pipe.safetensors")
    for path in places:
        for load in (SoftPrompt.load, load_prompt, read_header):
            with pytest.raises(PromptFileError) as caught:
                load(path)
            assert caught.value.reason == Reason.NOT_A_FILE


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_no_permission(tmp_path: Path) -> None:
    path = put(tmp_path)
    path.chmod(0)
    with pytest.raises(StorageError, match="could not open"):
        SoftPrompt.load(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = put(tmp_path)
    os.truncate(path, 3 * 1024**3)  # takes no space
    with pytest.raises(PromptFileError, match="3,221,225,472 bytes; expected at most") as caught:
        SoftPrompt.load(path)
    assert caught.value.reason == Reason.TOO_LARGE


def test_a_file_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path)
    real = os.fstat

    def cut_after(handle: int) -> os.stat_result:
        status = real(handle)
        os.truncate(path, len(GOOD) - 8)
        return status

    monkeypatch.setattr(opening.os, "fstat", cut_after)
    with pytest.raises(PromptFileError, match="became shorter while it was read") as caught:
        SoftPrompt.load(path)
    assert caught.value.reason == Reason.CHANGED


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def others(folder: Path) -> dict[str, Path]:
    """Files of other formats, none a good one, by what the message says of them."""
    named = {
        "tensor.npy with meta.json": folder / "kobold.zip",
        "dtype is '<f8'": folder / "tune.npy",
        "the pickle names the global": folder / "old.pt",
        "the pickle is malformed": folder / "mkultra.json",
        "a Git LFS pointer": folder / "pointer.safetensors",
        "begins with b'once upo'": folder / "story.txt",
    }
    zipped, array, old, mkultra, pointer, story = named.values()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("tensor.npy", b"")
    np.save(array, np.zeros((2, 3)))
    old.write_bytes(pickle.dumps(Bomb(), protocol=4))
    mkultra.write_text('{"metadata": {"name": "dog"}, "tensor": "gASV"}' + " " * 40)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n" + "x" * 99)
    story.write_text("once upon a time" * 9)
    return named


def test_other_formats_are_named_and_never_loaded(tmp_path: Path) -> None:
    for likely, path in others(tmp_path).items():
        with pytest.raises(PromptFileError, match=likely):
            load_prompt(path)
        with pytest.raises(PromptFileError) as caught:
            SoftPrompt.load(path)
        assert caught.value.reason in (Reason.OTHER_FORMAT, Reason.HEADER_TOO_LARGE)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_flipped_bytes_are_refused_or_harmless(flips: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for place, value in flips:
        content[place] = value
    survives(bytes(content))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_any_header_is_refused_or_harmless(header: bytes) -> None:
    survives(struct.pack("<Q", len(header)) + header)
    survives(header)


def survives(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), content)
        try:
            tensor = load_prompt(path).tensor
        except PromptFileError:
            return
        assert tensor.isfinite().all()
