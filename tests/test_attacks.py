"""Hostile pickles: every known trick is refused by its own error, and none of it is run.

Where a trick works on Python's own unpickler, it makes a folder, the canary; a test shows that it
does there, and every test that it does not here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softlore import load_prompt
from softlore.errors import PromptFileError
from softlore.prompts import Reason as R

PROTO = b"\x80\x04"
GOOD = pickle.dumps(torch.ones(2, 3), protocol=4)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


MKDIR = named("os", "mkdir")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
FROM_BYTES = named("torch.storage", "_load_from_bytes")
ORDERED = named("collections", "OrderedDict")


def raw_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def mkdir(canary: str) -> bytes:
    """A pickle that makes the folder, as plainly as can be."""
    return PROTO + MKDIR + text(canary) + b"\x85R."


# Tricks that work on Python's own unpickler: name -> (pickle, reason, what the message says)
Trick = tuple[Callable[[str], bytes], R, str]
WORKING: dict[str, Trick] = {
    "REDUCE": (mkdir, R.PICKLE_GLOBAL, r"names the global 'os\.mkdir'"),
    "os.system": (
        lambda c: PROTO + named("os", "system") + text(f'mkdir "{c}"') + b"\x85R.",
        R.PICKLE_GLOBAL,
        r"'os\.system'",
    ),
    "posix.system, protocol 0": (
        lambda c: named("os", "system") + f"(S'mkdir \"{c}\"'\ntR.".encode(),
        R.PICKLE_GLOBAL,
        r"'os\.system'",
    ),
    "STACK_GLOBAL": (
        lambda c: PROTO + text("os") + text("mkdir") + b"\x93" + text(c) + b"\x85R.",
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
    "INST": (lambda c: b"(" + text(c) + b"ios\nmkdir\n.", R.PICKLE_OPCODE, "opcode INST"),
    "OBJ": (lambda c: b"(" + MKDIR + text(c) + b"o.", R.PICKLE_GLOBAL, r"'os\.mkdir'"),
    "names put together from the memo": (
        lambda c: (
            PROTO
            + text("torch._utils") + b"\x940" + text("mkdir") + b"\x940" + text("os") + b"q\x000"
            + b"h\x00h\x01\x93" + text(c) + b"\x85R."
        ),
        R.PICKLE_OPCODE,
        "opcode POP",
    ),
    "an allowed name replaced in the memo": (
        lambda c: (
            PROTO
            + b"]" + text("torch._utils") + b"q\x00a" + text("os") + b"q\x00\x85a0"
            + b"h\x00" + text("mkdir") + b"\x93" + text(c) + b"\x85R."
        ),
        R.PICKLE_OPCODE,
        "opcode POP",
    ),
    "a chain of attributes from an allowed module": (
        lambda c: (
            PROTO + text("torch._utils") + text("logging.os.mkdir") + b"\x93" + text(c) + b"\x85R."
        ),
        R.PICKLE_GLOBAL,
        r"'torch\._utils\.logging\.os\.mkdir'",
    ),
    "getattr": (
        lambda c: (
            PROTO + named("builtins", "getattr") + named("torch._utils", "logging") + text("os")
            + b"\x86R\x940" + named("builtins", "getattr") + b"h\x00" + text("mkdir") + b"\x86R"
            + text(c) + b"\x85R."
        ),
        R.PICKLE_GLOBAL,
        r"'builtins\.getattr'",
    ),
    "eval": (
        lambda c: (
            PROTO + named("builtins", "eval") + text(f"__import__('os').mkdir({c!r})") + b"\x85R."
        ),
        R.PICKLE_GLOBAL,
        r"'builtins\.eval'",
    ),
    "exec by its Python 2 name": (
        lambda c: (
            b"\x80\x02" + named("__builtin__", "eval") + text(f"__import__('os').mkdir({c!r})")
            + b"\x85R."
        ),
        R.PICKLE_GLOBAL,
        r"'__builtin__\.eval'",
    ),
    "after a good tensor": (
        lambda c: GOOD[:2] + GOOD[11:-1] + b"0" + mkdir(c)[2:],
        R.PICKLE_OPCODE,
        "opcode POP",
    ),
    "as a value within a dict": (
        lambda c: PROTO + b"}" + text("a") + mkdir(c)[2:-1] + b"s.",
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
    "BUILD with a state that is made by a call": (
        lambda c: PROTO + ORDERED + b")R" + mkdir(c)[2:-1] + b"b.",
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
    "NEWOBJ of a class that acts": (
        lambda c: (
            PROTO + named("os", "mkdir") + text(c) + b"\x85R0" + named("builtins", "object")
            + b")\x81."
        ),
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
    "within the bytes of a storage": (
        lambda c: PROTO + FROM_BYTES + raw_bytes(legacy(mkdir(c))) + b"\x85R.",
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
    "in place of torch's magic number": (
        lambda c: PROTO + FROM_BYTES + raw_bytes(mkdir(c) + b"\0" * 99) + b"\x85R.",
        R.PICKLE_GLOBAL,
        r"'os\.mkdir'",
    ),
}  # fmt: skip


def legacy(value: bytes, keys: bytes = b"\x80\x02].", data: bytes = b"") -> bytes:
    """torch.save's older form, around the pickle `value`."""
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    return magic + b"\x80\x02M\xe9\x03." + system + value + keys + data


def storage_id(kind: bytes = named("torch", "FloatStorage"), count: bytes = b"K\x06") -> bytes:
    return b"(" + text("storage") + kind + text("0") + text("cuda:0") + count + b"tQ"


KEYS = b"\x80\x02]" + text("0") + b"a."
SIX = struct.pack("<q6f", 6, *range(6))


def with_storage(inner: bytes, rest: bytes = b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89)") -> bytes:
    """A pickled tensor around the bytes of a storage."""
    tail = rest[:-1] + ORDERED + b")R" if rest.endswith(b")") else rest
    return PROTO + REBUILD + b"(" + FROM_BYTES + raw_bytes(inner) + b"\x85R" + tail + b"tR."


GOOD_STORAGE = legacy(b"\x80\x02" + storage_id() + b".", KEYS, SIX)


def shaped(shape: bytes, strides: bytes = b"K\x03K\x01\x86", offset: bytes = b"K\x00") -> bytes:
    return with_storage(GOOD_STORAGE, offset + shape + strides + b"\x89)")


def persistent(inner: bytes) -> bytes:
    return with_storage(legacy(b"\x80\x02" + inner, KEYS, SIX))


# The others: name -> (pickle, reason, what the message says)
PICKLES: dict[str, tuple[bytes, R, str]] = {
    # opcodes
    "NEWOBJ": (PROTO + ORDERED + b")\x81.", R.PICKLE_OPCODE, "opcode NEWOBJ at"),
    "NEWOBJ_EX": (PROTO + ORDERED + b")}\x92.", R.PICKLE_OPCODE, "opcode NEWOBJ_EX"),
    "BUILD": (PROTO + ORDERED + b")R}b.", R.PICKLE_OPCODE, "opcode BUILD"),
    "OBJ of an allowed class": (b"(" + ORDERED + b"o.", R.PICKLE_OPCODE, "opcode OBJ"),
    "EXT1": (PROTO + b"\x82\x01.", R.PICKLE_OPCODE, "opcode EXT1"),
    "EXT2": (PROTO + b"\x83\x01\x01.", R.PICKLE_OPCODE, "opcode EXT2"),
    "EXT4": (PROTO + b"\x84\x01\0\0\0.", R.PICKLE_OPCODE, "opcode EXT4"),
    "PERSID": (PROTO + b"Pevil\n.", R.PICKLE_OPCODE, "opcode PERSID"),
    "BINPERSID": (PROTO + text("evil") + b"Q.", R.PICKLE_OPCODE, "opcode BINPERSID"),
    "DUP": (PROTO + b"]2\x86.", R.PICKLE_OPCODE, "opcode DUP"),
    "POP_MARK": (PROTO + b"(1N.", R.PICKLE_OPCODE, "opcode POP_MARK"),
    "LONG in text": (b"L" + b"9" * 100_000 + b"L\n.", R.PICKLE_OPCODE, "opcode LONG at"),
    "INT in text": (b"I" + b"9" * 100_000 + b"\n.", R.PICKLE_OPCODE, "opcode INT"),
    "LONG4 of 2 GB": (PROTO + b"\x8b\xff\xff\xff\x7f.", R.PICKLE_OPCODE, "opcode LONG4"),
    "LONG4 of less than nothing": (PROTO + b"\x8b\0\0\0\x80.", R.PICKLE_OPCODE, "LONG4"),
    "FLOAT in text": (b"F1.5\n.", R.PICKLE_OPCODE, "opcode FLOAT"),
    "STRING": (b"S'x'\n.", R.PICKLE_OPCODE, "opcode STRING"),
    "GET in text": (b"]p0\ng0\n.", R.PICKLE_OPCODE, "opcode PUT"),
    "FROZENSET": (PROTO + b"(\x91.", R.PICKLE_OPCODE, "opcode FROZENSET"),
    "BYTEARRAY8 of 8 EiB": (PROTO + b"\x96" + b"\xff" * 8, R.PICKLE_OPCODE, "BYTEARRAY8"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", R.PICKLE_OPCODE, "opcode NEXT_BUFFER"),
    "no opcode": (PROTO + b"\xff.", R.PICKLE_OPCODE, "0xff, which is unknown"),
    # sizes
    "a mark a million deep": (PROTO + b"(" * 10**6, R.PICKLE_TOO_LARGE, "more than 20,000"),
    "tuples a million deep": (PROTO + b")" + b"\x85" * 10**6, R.PICKLE_TOO_LARGE, "20,000"),
    "tuples 19,000 deep": (PROTO + b")" + b"\x85" * 19_000 + b".", R.NO_TENSOR, "a tuple"),
    "lists 19,000 deep": (PROTO + b"]" * 9_500 + b"a" * 9_499 + b".", R.NO_TENSOR, "a list"),
    "a dict keyed by a tuple of 2^40 parts": (
        PROTO + b"}" + b"N" + b"\x94h\x00\x86" + b"".join(b"\x94h%c\x86" % i for i in range(1, 40))
        + b"Ns.",
        R.PICKLE_CALL,
        "a key of type tuple",
    ),
    "a tuple of 2^40 parts": (
        PROTO + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40)) + b".",
        R.NO_TENSOR,
        "holds a tuple",
    ),
    "BINUNICODE of 4 GB": (PROTO + b"X\xff\xff\xff\xff.", R.PICKLE_DAMAGED, "4,294,967,295 more"),
    "BINBYTES8 of 8 EiB": (PROTO + b"\x8e" + b"\xff" * 8, R.PICKLE_DAMAGED, "it ends where"),
    # structure
    "nothing": (b"", R.PICKLE_DAMAGED, "it ends where"),
    "no STOP": (PROTO + b"N", R.PICKLE_DAMAGED, "it ends where"),
    "STOP alone": (b".", R.PICKLE_DAMAGED, "empty stack"),
    "values left over": (PROTO + b"NN.", R.PICKLE_DAMAGED, "left over"),
    "a mark left over": (PROTO + b"N(N.", R.PICKLE_DAMAGED, "left over"),
    "something after it": (GOOD + b"x", R.PICKLE_DAMAGED, "1 bytes follow"),
    "BINGET of what was never stored": (PROTO + b"h\x07.", R.PICKLE_DAMAGED, "recalls value 7"),
    "LONG_BINGET": (PROTO + b"j\xff\xff\xff\xff.", R.PICKLE_DAMAGED, "recalls value 4294967295"),
    "MEMOIZE of nothing": (PROTO + b"\x94.", R.PICKLE_DAMAGED, "empty stack"),
    "TUPLE without a mark": (PROTO + b"Nt.", R.PICKLE_DAMAGED, "never set"),
    "TUPLE3 of one": (PROTO + b"N\x87.", R.PICKLE_DAMAGED, "empty stack"),
    "SETITEMS on a list": (PROTO + b"](NNu.", R.PICKLE_DAMAGED, "not a dict"),
    "SETITEMS of an odd number": (PROTO + b"}(Nu.", R.PICKLE_DAMAGED, "no value"),
    "APPENDS to a tuple": (PROTO + b")(Ne.", R.PICKLE_DAMAGED, "not a list"),
    "APPEND to nothing": (PROTO + b"Na.", R.PICKLE_DAMAGED, "not a list"),
    "protocol 255": (b"\x80\xff.", R.PICKLE_DAMAGED, "protocol 255"),
    "text that is not UTF-8": (PROTO + b"X\1\0\0\0\xff.", R.PICKLE_DAMAGED, "not UTF-8"),
    "a global without an end": (b"c" + b"a" * 999, R.PICKLE_DAMAGED, "no end within 256"),
    "a frame of 8 EiB": (PROTO + b"\x95" + b"\xff" * 8 + b"N.", R.PICKLE_DAMAGED, "a frame"),
    "a frame within a frame": (
        PROTO + b"\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 2) + b"N.",
        R.PICKLE_DAMAGED,
        "a frame of 2 bytes",
    ),
    "a frame that ends within an opcode": (
        PROTO + b"\x95" + struct.pack("<Q", 3) + text("os") + b".",
        R.PICKLE_DAMAGED,
        "frame ends within an opcode",
    ),
    # names and calls
    "a global of no text": (PROTO + b"K\x01K\x02\x93.", R.PICKLE_GLOBAL, "names the global ''"),
    "attributes of what is allowed": (
        PROTO + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",
        R.PICKLE_GLOBAL,
        "__globals__",
    ),
    "a call of a text": (PROTO + text("x") + b")R.", R.PICKLE_CALL, "calls 'str' with tuple"),
    "a call of a result": (PROTO + ORDERED + b")R)R.", R.PICKLE_CALL, "calls 'dict'"),
    "a call with a list": (PROTO + ORDERED + b"]R.", R.PICKLE_CALL, "with list"),
    "a call with nothing": (PROTO + REBUILD + b")R.", R.PICKLE_CALL, "other values"),
    "OrderedDict of something": (PROTO + ORDERED + b"]\x85R.", R.PICKLE_CALL, "expected nothing"),
    "_load_from_bytes of a text": (
        PROTO + FROM_BYTES + text("x") + b"\x85R.", R.PICKLE_CALL, "of bytes"
    ),
    "_load_from_bytes a thousand times": (
        PROTO + b"(" + FROM_BYTES + b"\x94" + raw_bytes(GOOD_STORAGE) + b"\x85\x94R"
        + b"h\x00h\x01R" * 1000 + b"t.",
        R.PICKLE_CALL,
        "of bytes, once",
    ),
    "_load_from_bytes within itself": (
        PROTO + FROM_BYTES
        + raw_bytes(legacy(PROTO + FROM_BYTES + raw_bytes(GOOD_STORAGE) + b"\x85R.")) + b"\x85R.",
        R.PICKLE_GLOBAL,
        "_load_from_bytes",
    ),
    "a global alone": (PROTO + REBUILD + b".", R.NO_TENSOR, "a Global"),
    "a number": (PROTO + b"K\x01.", R.NO_TENSOR, "holds 1; expected one tensor"),
    "a storage alone": (
        PROTO + FROM_BYTES + raw_bytes(GOOD_STORAGE) + b"\x85R.", R.NO_TENSOR, "a Storage"
    ),
    # tensors
    "10^9 rows": (shaped(b"J\0\xca\x9a\x3bK\x03\x86"), R.SHAPE, "1000000000 for n_tokens"),
    "2048 rows": (shaped(b"M\0\x08K\x03\x86"), R.SHAPE, "2048 for n_tokens"),
    "a width of 2^31": (shaped(b"K\x02\x8a\x05\0\0\0\x80\0\x86"), R.SHAPE, "2147483648 for width"),
    "no rows": (shaped(b"K\x00K\x03\x86"), R.SHAPE, "0 for n_tokens"),
    "one axis": (shaped(b"K\x06\x85", b"K\x01\x85"), R.SHAPE, "1 axes; expected 2"),
    "two in the batch": (
        shaped(b"K\x02K\x01K\x03\x87", b"K\x03K\x03K\x01\x87"), R.SHAPE, "3 axes; expected 2"
    ),
    "a negative size": (shaped(b"J\xff\xff\xff\xffK\x03\x86"), R.PICKLE_CALL, "whole numbers"),
    "true for a size": (shaped(b"\x88K\x03\x86"), R.PICKLE_CALL, "whole numbers"),
    "more sizes than strides": (shaped(b"K\x02K\x03\x86", b"K\x01\x85"), R.PICKLE_CALL, "strides"),
    "more rows than numbers": (shaped(b"K\x03K\x03\x86"), R.TORCH_STRIDES, "of 6 numbers"),
    "rows far apart": (
        shaped(b"K\x02K\x03\x86", b"M\xff\xffK\x01\x86"), R.TORCH_STRIDES, "reaches beyond"
    ),
    "one row a thousand times": (
        shaped(b"M\xe8\x03K\x03\x86", b"K\x00K\x01\x86"), R.TORCH_STRIDES, "repeats some"
    ),
    "an offset beyond the end": (
        shaped(b"K\x02K\x03\x86", offset=b"K\x01"), R.TORCH_STRIDES, "offset 1 reaches beyond"
    ),
    "float64": (pickle.dumps(torch.ones(2, 3).double(), protocol=4), R.DTYPE, "is F64"),
    "whole numbers": (pickle.dumps(torch.ones(2, 3).long(), protocol=4), R.DTYPE, "is I64"),
    "NaN": (pickle.dumps(torch.full((2, 3), torch.nan), protocol=4), R.NOT_FINITE, "6 of the"),
    "infinite bfloat16": (
        pickle.dumps(torch.full((2, 3), torch.inf).bfloat16(), protocol=4), R.NOT_FINITE, "6 of"
    ),
    "a sparse tensor": (
        pickle.dumps(torch.eye(3).to_sparse(), protocol=4), R.PICKLE_GLOBAL, "sparse"
    ),
    # storages
    "an id that is a text": (persistent(text("storage") + b"Q."), R.TORCH_STORAGE, "'storage'"),
    "an id with a call in it": (
        persistent(b"(" + text("storage") + MKDIR + b"tQ."), R.PICKLE_GLOBAL, r"'os\.mkdir'"
    ),
    "an unknown storage": (
        persistent(storage_id(named("torch", "QInt8Storage")) + b"."), R.PICKLE_GLOBAL, "QInt8"
    ),
    "10^9 numbers in 200 bytes": (
        persistent(storage_id(count=b"J\0\xca\x9a\x3b") + b"."),
        R.TORCH_STORAGE,
        "expected 'storage'",
    ),
    "more numbers than there are": (
        persistent(storage_id(count=b"K\x07") + b"."), R.TORCH_STORAGE, "expected 7 × F32"
    ),
    "a storage of two sizes": (
        persistent(storage_id() + b"0" + storage_id(count=b"K\x05") + b"."), R.PICKLE_OPCODE, "POP"
    ),
    "a storage cut short": (with_storage(GOOD_STORAGE[:-1]), R.TORCH_STORAGE, "has 23 bytes"),
    "something after the storage": (with_storage(GOOD_STORAGE + b"x"), R.TORCH_STORAGE, "1 bytes"),
    "no keys": (
        with_storage(legacy(b"\x80\x02" + storage_id() + b".")), R.TORCH_STORAGE, "lists 0"
    ),
    "keys of numbers": (
        with_storage(legacy(b"\x80\x02" + storage_id() + b".", b"\x80\x02]K\x00a.")),
        R.TORCH_STORAGE,
        "the list of storages",
    ),
    "a key twice": (
        with_storage(
            legacy(b"\x80\x02" + storage_id() + b".", KEYS[:-1] + text("0") + b"a.", SIX + SIX)
        ),
        R.TORCH_STORAGE,
        "lists 2",
    ),
    "another magic number": (
        with_storage(b"\x80\x02K\x07." + GOOD_STORAGE), R.PICKLE_DAMAGED, "magic number"
    ),
    "numbers of a big-endian machine": (
        with_storage(GOOD_STORAGE.replace(b"\x88s.", b"\x89s.")), R.TORCH_STORAGE, "little: False"
    ),
}  # fmt: skip


def in_json(pickled: bytes) -> str:
    tensor = base64.b64encode(pickled).decode()
    return json.dumps({"metadata": {"name": "dog"}, "tensor": tensor})


def refused(path: Path, reason: R, expected: str) -> None:
    with pytest.raises(PromptFileError, match=expected) as caught:
        load_prompt(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert message.startswith(f"cannot read the prompt file {str(path)!r}: ")
    assert "expected" in message
    assert len(message) < 1000


@pytest.mark.parametrize("trick", WORKING)
def test_a_trick_that_works_on_pickle(trick: str, tmp_path: Path) -> None:
    make, reason, expected = WORKING[trick]
    canary = tmp_path / "canary"
    path = tmp_path / "dog.json"
    path.write_text(in_json(make(str(canary))))
    refused(path, reason, expected)
    (tmp_path / "old.pt").write_bytes(make(str(canary)))
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
        archive.writestr("a/data.pkl", make(str(canary)))
    for other in ("old.pt", "new.pt"):
        with pytest.raises(PromptFileError, match="expected"):
            load_prompt(tmp_path / other)
    assert not canary.exists()


@pytest.mark.parametrize("trick", WORKING)
def test_the_trick_does_work_there(trick: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with contextlib.suppress(Exception):  # what a trick leaves behind is often no use
        pickle.loads(WORKING[trick][0](str(canary)))
    assert canary.exists()


@pytest.mark.parametrize("attack", PICKLES)
def test_a_hostile_or_broken_pickle(attack: str, tmp_path: Path) -> None:
    pickled, reason, expected = PICKLES[attack]
    path = tmp_path / "dog.json"
    path.write_text(in_json(pickled))
    refused(path, reason, expected)


def test_the_unchanged_pickles_are_good(tmp_path: Path) -> None:
    path = tmp_path / "dog.json"
    for pickled in (GOOD, with_storage(GOOD_STORAGE), shaped(b"K\x02K\x03\x86")):
        path.write_text(in_json(pickled))
        assert load_prompt(path).embeddings.shape == (2, 3)
