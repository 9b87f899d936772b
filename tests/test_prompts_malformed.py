"""Every way in which a prompt file can be wrong is refused, each with its own reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softlore import SoftPrompt, load_prompt
from softlore.errors import PromptFileError
from softlore.prompts import Reason, read_header

METADATA = {
    "format": "softlore",
    "format_version": "1",
    "kind": "embedding",
    "convention": "inputs_embeds",
    "name": "dog",
}
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
VALUES = np.arange(6, dtype="<f4").tobytes()


def frame(header: bytes, data: bytes = VALUES) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def built(data: bytes = VALUES, **changes: Any) -> bytes:
    """A good file, but for `changes`: to the tensor's entry, or `metadata`, or `header`."""
    metadata = METADATA | changes.pop("metadata", {})
    header = {
        "__metadata__": {key: value for key, value in metadata.items() if value is not None},
        "prompt": ENTRY | changes.pop("entry", {}),
    }
    header |= changes.pop("header", {})
    assert not changes
    present = {key: value for key, value in header.items() if value is not None}
    return frame(json.dumps(present).encode(), data)


def entry(data: bytes = VALUES, **changes: Any) -> bytes:
    return built(data, entry=changes)


def metadata(**changes: Any) -> bytes:
    return built(metadata=changes)


def floats(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


R = Reason
PREFIX = {"kind": "prefix", "convention": "past_key_values"}
GOOD = built()
TEXT = GOOD[8:-24]

# name: (the file, the reason, what the message says was found)
MALFORMED: dict[str, tuple[bytes, Reason, str]] = {
    # the frame
    "empty": (b"", R.TOO_SHORT, "has 0 bytes"),
    "cut in the length": (GOOD[:7], R.TOO_SHORT, "has 7 bytes"),
    "cut after the length": (GOOD[:9], R.TOO_SHORT, "has 9 bytes"),
    "cut in the header": (GOOD[:60], R.HEADER_CUT, "ends after 52 of them"),
    "header of 1 MiB and a byte": (
        struct.pack("<Q", 1024**2 + 1) + b"?" * 64,
        R.HEADER_TOO_LARGE,
        "1,048,577 bytes; expected at most 1,048,576",
    ),
    "header of all bits": (b"\xff" * 64, R.HEADER_TOO_LARGE, "18,446,744,073,709,551,615"),
    "no header": (frame(b"", VALUES), R.HEADER_START, "begins with b''"),
    # the JSON
    "space before the brace": (frame(b" " + TEXT), R.HEADER_START, "begins with b' '"),
    "byte order mark": (frame(b"\xef\xbb\xbf" + TEXT), R.HEADER_START, r"begins with b'\\xef'"),
    "a list": (frame(b"[]      "), R.HEADER_START, r"begins with b'\['"),
    "not UTF-8": (frame(TEXT.replace(b"dog", b"d\xffg")), R.HEADER_NOT_UTF8, "is not UTF-8"),
    "not JSON": (frame(b"{dog}   "), R.HEADER_NOT_JSON, "is not JSON"),
    "unfinished": (frame(TEXT[:-1]), R.HEADER_NOT_JSON, "is not JSON"),
    "text after the header": (frame(TEXT + b"{}"), R.HEADER_NOT_JSON, "is not JSON: Extra data"),
    "null padding": (frame(TEXT + b"\0\0"), R.HEADER_NOT_JSON, "is not JSON"),
    "NaN": (
        frame(TEXT.replace(b"[2, 3]", b"[NaN, 3]")),
        R.HEADER_NOT_JSON,
        "NaN is not a JSON number",
    ),
    "a number of 5,000 digits": (
        frame(TEXT.replace(b"[2, 3]", b"[" + b"9" * 5000 + b"]")),
        R.HEADER_NOT_JSON,
        "is not JSON",
    ),
    "too deep": (built(header={"prompt": [[[1]]]}), R.TOO_DEEP, "4 deep; expected at most 3"),
    "far too deep": (
        frame(b'{"a":' + b"[" * 500_000),
        R.TOO_DEEP,
        "500001 deep; expected at most 3",
    ),
    "tensor twice": (
        frame(TEXT[:-1] + b', "prompt": {}}'),
        R.DUPLICATE_KEY,
        "has the key 'prompt' twice",
    ),
    "shape twice": (
        frame(TEXT.replace(b'"dtype"', b'"shape": [9], "dtype"')),
        R.DUPLICATE_KEY,
        "has the key 'shape' twice",
    ),
    "name twice": (
        frame(TEXT.replace(b'"name"', b'"name": "cat", "name"')),
        R.DUPLICATE_KEY,
        "has the key 'name' twice",
    ),
    # the metadata's types
    "no metadata": (built(header={"__metadata__": None}), R.NO_METADATA, "no __metadata__"),
    "metadata is a list": (built(header={"__metadata__": []}), R.METADATA_TYPE, "is list"),
    "metadata holds a number": (metadata(format_version=1), R.METADATA_TYPE, "is int"),
    "metadata holds an object": (metadata(training={}), R.METADATA_TYPE, "is dict"),
    # the tensor's entry
    "no tensor": (built(b"", header={"prompt": None}), R.NO_TENSOR, "has no tensor"),
    "two tensors": (
        built(header={"other": ENTRY}),
        R.OTHER_TENSORS,
        "has the tensors 'prompt', 'other'; expected exactly one",
    ),
    "tensor of another name": (
        built(header={"prompt": None, "prompt_embeddings": ENTRY}),
        R.OTHER_TENSORS,
        "'prompt_embeddings'; expected exactly one, 'prompt'",
    ),
    "entry is text": (built(header={"prompt": "F32"}), R.TENSOR_ENTRY, "entry is str"),
    "entry lacks its shape": (
        built(header={"prompt": {"dtype": "F32", "data_offsets": [0, 24]}}),
        R.TENSOR_ENTRY,
        r"entry is \['data_offsets', 'dtype'\]",
    ),
    "entry has something else": (entry(stride=[3, 1]), R.TENSOR_ENTRY, "'stride'"),
    "dtype F64": (entry(dtype="F64"), R.DTYPE, "'F64'; expected F32"),
    "dtype I32": (entry(dtype="I32"), R.DTYPE, "'I32'; expected F32"),
    "dtype is a list": (entry(dtype=["F32"]), R.DTYPE, r"\['F32'\]; expected F32"),
    "shape is a number": (entry(shape=6), R.SHAPE, "shape is 6"),
    "shape holds a fraction": (entry(shape=[2.0, 3]), R.SHAPE, r"shape is \[2.0, 3\]"),
    "shape holds true": (entry(shape=[True, 6]), R.SHAPE, r"shape is \[True, 6\]"),
    "shape is negative": (entry(shape=[-2, -3]), R.SHAPE, r"shape is \[-2, -3\]"),
    "shape overflows": (
        entry(shape=[2**62, 4]),
        R.SHAPE,
        "at most 8 whole numbers, none of them huge",
    ),
    "shape of nine axes": (entry(shape=[1] * 8 + [6]), R.SHAPE, "at most 8 whole numbers"),
    "offsets are one": (entry(data_offsets=[24]), R.OFFSETS, r"are \[24\]; expected two"),
    "offsets are negative": (entry(data_offsets=[-24, 0]), R.OFFSETS, "expected two whole"),
    "offsets are text": (entry(data_offsets="0, 24"), R.OFFSETS, "expected two whole"),
    "offsets begin late": (
        entry(data_offsets=[4, 28]),
        R.OFFSETS,
        r"\[4, 28\]; expected \[0, 24\]",
    ),
    "offsets end early": (entry(data_offsets=[0, 20]), R.OFFSETS, r"expected \[0, 24\]"),
    "offsets go back": (entry(data_offsets=[24, 0]), R.OFFSETS, r"expected \[0, 24\]"),
    "offsets of another dtype": (entry(dtype="F16"), R.OFFSETS, r"expected \[0, 12\] for F16"),
    "tensor is cut": (built(VALUES[:-1]), R.DATA_LENGTH, "23 bytes of tensor; expected 24"),
    "something after the tensor": (built(VALUES + b"\0"), R.DATA_LENGTH, "25 bytes of tensor"),
    # what the metadata says
    "no format": (metadata(format=None), R.NOT_SOFTLORE, "'format' is None; expected 'softlore'"),
    "format of PEFT": (metadata(format="pt"), R.NOT_SOFTLORE, "may be a PEFT adapter"),
    "no version": (metadata(format_version=None), R.VERSION, "'format_version' is None"),
    "version is a word": (metadata(format_version="one"), R.VERSION, "expected a whole number"),
    "version in other digits": (metadata(format_version="١"), R.VERSION, "expected a whole"),
    "version 0": (metadata(format_version="0"), R.VERSION, "'0'; expected 1 to 1"),
    "newer version": (
        metadata(format_version="2"),
        R.NEWER_VERSION,
        r"made by a newer softlore \(format version 2\); .* update softlore",
    ),
    "no name": (metadata(name=None), R.METADATA_MISSING, "metadata name is missing"),
    "no kind": (metadata(kind=None), R.METADATA_MISSING, "metadata kind is missing"),
    "no convention": (metadata(convention=None), R.METADATA_MISSING, "convention is missing"),
    "unknown kind": (metadata(kind="suffix"), R.METADATA_VALUE, "'suffix' is unknown"),
    "unknown convention": (metadata(convention="raw"), R.METADATA_VALUE, "'convention' is 'raw'"),
    "convention of the other kind": (
        metadata(convention="past_key_values"),
        R.METADATA_VALUE,
        "expected 'inputs_embeds' for the embedding kind",
    ),
    "name with a bracket": (metadata(name="a]]b"), R.METADATA_VALUE, r"prompt name 'a\]\]b' holds"),
    "name is a path": (metadata(name="../dog"), R.METADATA_VALUE, "holds '/'"),
    "created is no time": (metadata(created="soon"), R.METADATA_VALUE, "created is 'soon'"),
    "lone surrogate": (metadata(author="\ud800"), R.METADATA_VALUE, "lone surrogate"),
    "lone surrogate in an unknown key": (metadata(x="\ud800"), R.METADATA_VALUE, "surrogate"),
    "training is no JSON": (metadata(training="{"), R.METADATA_VALUE, "'training' is not JSON"),
    "training is a list": (metadata(training="[]"), R.METADATA_VALUE, "holds list"),
    "metrics hold infinity": (
        metadata(metrics='{"loss": Infinity}'),
        R.METADATA_VALUE,
        "Infinity is not a JSON number",
    ),
    "metrics overflow": (metadata(metrics='{"loss": 1e999}'), R.METADATA_VALUE, "metrics cannot"),
    "fingerprint has a key twice": (
        metadata(fingerprint='{"a": 1, "a": 2}'),
        R.DUPLICATE_KEY,
        "'fingerprint' has the key 'a' twice",
    ),
    "fingerprint is too deep": (
        metadata(fingerprint="[" * 100_000),
        R.TOO_DEEP,
        "'fingerprint' is nested 100000 deep",
    ),
    # the shape, by kind
    "one axis": (entry(shape=[6]), R.SHAPE, "1 axes; expected 2"),
    "no rows": (entry(b"", shape=[0, 3], data_offsets=[0, 0]), R.SHAPE, "0 for n_tokens"),
    "2048 rows": (
        entry(b"\0" * 8192, shape=[2048, 1], data_offsets=[0, 8192]),
        R.SHAPE,
        "2048 for n_tokens; expected 1 to 2047",
    ),
    "embedding said to be a prefix": (built(metadata=PREFIX), R.SHAPE, "2 axes; expected 5"),
    "prefix of three parts": (
        built(
            b"\0" * 12, metadata=PREFIX, entry={"shape": [1, 3, 1, 1, 1], "data_offsets": [0, 12]}
        ),
        R.SHAPE,
        "3 for key and value",
    ),
    # the values
    "NaN value": (built(floats(0, 1, float("nan"), 3, 4, 5)), R.NOT_FINITE, "1 of its 6"),
    "infinite values": (
        built(floats(0, float("inf"), -float("inf"), 3, 4, 5)),
        R.NOT_FINITE,
        "2 of its 6 values are NaN or infinite",
    ),
    "infinite half": (
        entry(b"\x00\x7c" + b"\0" * 10, dtype="F16", data_offsets=[0, 12]),
        R.NOT_FINITE,
        "1 of its 6",
    ),
}


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "dog.safetensors"
        path.write_bytes(content)
        return path

    return write


def test_the_unchanged_file_is_good(put: Callable[[bytes], Path]) -> None:
    assert SoftPrompt.load(put(GOOD)).tensor.flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, put: Callable[[bytes], Path]) -> None:
    content, reason, expected = MALFORMED[case]
    path = put(content)
    with pytest.raises(PromptFileError, match=expected) as caught:
        SoftPrompt.load(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert message.startswith(f"cannot read the prompt file {str(path)!r}: ")
    assert "expected" in message
    assert len(message) < 700
    if reason is not Reason.OTHER_FORMAT:
        with pytest.raises(PromptFileError) as again:
            load_prompt(path)
        assert again.value.reason == reason


def test_the_values_are_not_read_for_the_header(put: Callable[[bytes], Path]) -> None:
    header = read_header(put(built(floats(*[float("nan")] * 6))))
    assert header.n_tokens == 2
