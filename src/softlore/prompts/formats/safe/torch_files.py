"""Tensors in files of torch.save (both forms) and in pickles, read without torch.load.

A tensor is pickled as a call of `torch._utils._rebuild_tensor_v2` with a storage, an offset, a
shape and strides. The storage's bytes are in the pickle itself (as a nested torch.save), after it
(the older form of torch.save), or in a member of a zip (the newer form). The device is ignored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from softlore.prompts.formats.rows import (
    ITEM_BYTES,
    MAX_BYTES,
    Rows,
    check_finite,
    check_rows,
    to_float32,
)
from softlore.prompts.formats.safe.pickles import DAMAGED, AllowedGlobals, Global, parse_pickle
from softlore.prompts.formats.safe.zips import Archive
from softlore.prompts.reasons import Reason, refuse

MAX_PICKLE_BYTES = 1024 * 1024  # data.pkl: a few KB, as the numbers are elsewhere
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

_REBUILD = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_FROM_BYTES = "torch.storage._load_from_bytes"
_ORDERED = "collections.OrderedDict"
# dtype and bytes per number, by torch's name of the storage.
_STORAGES = {
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.DoubleStorage": ("F64", 8),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}
_TYPES = frozenset(_STORAGES)


@dataclass
class Storage:
    """A one-dimensional array of numbers, of which tensors are views.

    Attributes:
        dtype: as in `_STORAGES`.
        key: its name in the file.
        count: of numbers.
        data: their bytes, once they are read.
    """

    dtype: str
    key: str
    count: int
    data: bytes | memoryview | None = None


@dataclass(frozen=True)
class TensorView:
    """A tensor as a pickle describes it; only the types are checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def rows(self) -> Rows:
        """The numbers in float32, finite: `[n_tokens, width]`. Raises PromptFileError."""
        shape = check_rows(self.shape)
        _check_dtype(self.storage.dtype)
        strides = self.strides[-2:]
        last = self.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if shape[0] * shape[1] > self.storage.count or last >= self.storage.count:
            refuse(
                Reason.TORCH_STRIDES,
                f"the tensor of shape {list(shape)}, strides {list(strides)} and offset "
                f"{self.offset} reaches beyond its storage of {self.storage.count:,} numbers, or "
                f"repeats some; expected one number each within it; {DAMAGED}",
            )
        if self.storage.data is None:
            _refuse_storage(
                f"the file has no numbers for the storage {self.storage.key!r:.40}; expected "
                f"{self.storage.count:,}"
            )
        item = ITEM_BYTES[self.storage.dtype]
        used = memoryview(self.storage.data)[item * self.offset : item * (last + 1)]
        stored = to_float32(used, self.storage.dtype)
        if strides == (shape[1], 1):
            return check_finite(stored.reshape(shape))
        view = np.lib.stride_tricks.as_strided(
            stored, shape, tuple(4 * step for step in strides), writeable=False
        )
        return check_finite(np.ascontiguousarray(view))


def parse_pickled_tensor(data: bytes) -> TensorView:
    """The tensor in the bytes of `pickle.dumps(tensor)`. Raises PromptFileError."""
    storages: list[Storage] = []

    def load_from_bytes(arguments: tuple[Any, ...]) -> Storage:
        # Only once: thousands of calls, each with thousands of opcodes, would take minutes.
        if len(arguments) != 1 or type(arguments[0]) is not memoryview or storages:
            _refuse_call(_FROM_BYTES, "one value, of bytes, once")
        storages.append(_nested_storage(arguments[0]))
        return storages[0]

    view = memoryview(data)
    value, end = parse_pickle(view, AllowedGlobals(_CALLS | {_FROM_BYTES: load_from_bytes}))
    _check_end(view, end)
    if not isinstance(value, TensorView):
        refuse(
            Reason.NO_TENSOR,
            f"the pickle holds {describe(value)}; expected one tensor; take the tensor out of it "
            "where it was made",
        )
    return value


def read_torch_legacy(data: memoryview, calls: bool = True) -> Any:
    """The object that torch.save wrote in its older form, tensors as TensorView.

    The form is five pickles (a magic number, a version, facts about the machine, the object, the
    keys of its storages), then for each key a count (int64) and as many numbers.

    Args:
        calls: whether the object may be a tensor, or only a storage.

    Raises PromptFileError.
    """
    known: dict[str, Storage] = {}
    magic, offset = parse_pickle(data, AllowedGlobals())
    if magic != MAGIC or type(magic) is not int:
        refuse(
            Reason.PICKLE_DAMAGED,
            f"the first pickle holds {describe(magic)}; expected torch.save's magic number; this "
            "is another kind of pickle, in which no soft prompt is stored",
        )
    version, offset = parse_pickle(data, AllowedGlobals(), offset)
    system, offset = parse_pickle(data, AllowedGlobals(), offset)
    little = system.get("little_endian") if isinstance(system, dict) else None
    if version != PROTOCOL or little is not True:
        refuse(
            Reason.TORCH_STORAGE,
            f"torch.save's version is {describe(version)}, its byte order little: "
            f"{describe(little)}; expected {PROTOCOL} and True; save it again on a common machine",
        )
    allowed = AllowedGlobals(_CALLS if calls else {}, _TYPES, lambda name: _storage(name, known))
    value, offset = parse_pickle(data, allowed, offset)
    keys, offset = parse_pickle(data, AllowedGlobals(), offset)
    _set_data(data, offset, keys, known)
    return value


def is_torch_zip(archive: Archive) -> bool:
    """Whether a zip is of torch.save's newer form: exactly one data.pkl in a folder."""
    return len(_data_pickles(archive)) == 1


def read_torch_zip(archive: Archive) -> Any:
    """The object that torch.save wrote in its newer form, tensors as TensorView.

    Storages have no data yet: see `load_storage`. Raises PromptFileError.
    """
    (pickle,) = _data_pickles(archive)
    top = pickle.removesuffix("data.pkl")
    if top + "byteorder" in archive.members:
        order = archive.read(top + "byteorder", 16)
        if order != b"little":
            refuse(
                Reason.TORCH_STORAGE,
                f"the numbers are in byte order {order!r}; expected b'little'; save it again on "
                "a common machine",
            )
    known: dict[str, Storage] = {}
    allowed = AllowedGlobals(_CALLS, _TYPES, lambda name: _storage(name, known))
    data = memoryview(archive.read(pickle, MAX_PICKLE_BYTES))
    value, end = parse_pickle(data, allowed)
    _check_end(data, end)
    return value


def load_storage(archive: Archive, view: TensorView) -> TensorView:
    """The view, with its storage's bytes read from the archive."""
    (pickle,) = _data_pickles(archive)
    member = f"{pickle.removesuffix('data.pkl')}data/{view.storage.key}"
    _check_dtype(view.storage.dtype)
    if member not in archive.members:
        _refuse_storage(f"the archive has no member {member!r:.80}; expected the numbers in it")
    data = archive.read(member, MAX_BYTES)
    if len(data) != ITEM_BYTES[view.storage.dtype] * view.storage.count:
        _refuse_length(view.storage, len(data))
    view.storage.data = data
    return view


def _data_pickles(archive: Archive) -> list[str]:
    return [name for name in archive.members if name.endswith("/data.pkl")]


def describe(value: object) -> str:
    """A short description of a value. Never its full repr, which could fill the memory."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int | str):
        return f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 2**63 else "an int"
    if isinstance(value, TensorView):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, dict):
        keys = ", ".join(f"{key!r:.30}" for key in list(value)[:6])
        return f"a dict of {len(value)} ({keys}{', …' if len(value) > 6 else ''})"
    return f"a {type(value).__name__}"


def _storage(name: Any, known: dict[str, Storage]) -> Storage:
    """The storage of a persistent id: ("storage", type, key, location, count[, None])."""
    form = name if type(name) is tuple and len(name) in (5, 6) else (None,) * 5
    word, kind, key, location, count, *view = form
    known_type = type(kind) is Global and kind.name in _STORAGES
    fits = word == "storage" and type(key) is type(location) is str and type(count) is int
    if not (known_type and fits and 0 <= count <= MAX_BYTES and view in ([], [None])):
        _refuse_storage(
            f"the pickle's id for numbers outside it is {describe(name)}; expected 'storage', a "
            "type of storage, a key, a device and a count"
        )
    dtype, _ = _STORAGES[kind.name]
    storage = known.setdefault(key, Storage(dtype, key, count))
    if (storage.dtype, storage.count) != (dtype, count):
        _refuse_storage(
            f"the storage {key!r:.40} is once {storage.count} × {storage.dtype}, once {count} × "
            f"{dtype}; expected the same each time"
        )
    return storage


def _set_data(data: memoryview, offset: int, keys: Any, known: dict[str, Storage]) -> None:
    """Sets the bytes of each storage, which are between `offset` and the end of `data`."""
    if type(keys) is not list or any(type(key) is not str for key in keys):
        _refuse_storage(f"the list of storages is {describe(keys)}; expected their keys")
    if sorted(keys) != sorted(known):
        _refuse_storage(
            f"the file lists {len(keys)} storages, its tensors use {len(known)} others; expected "
            "the same"
        )
    for key in keys:
        storage = known[key]
        item = next(size for dtype, size in _STORAGES.values() if dtype == storage.dtype)
        begin, end = offset + 8, offset + 8 + item * storage.count
        if end > len(data) or struct.unpack_from("<q", data, offset)[0] != storage.count:
            _refuse_length(storage, max(0, len(data) - begin))
        storage.data = data[begin:end]
        offset = end
    if offset != len(data):
        _refuse_storage(f"{len(data) - offset:,} bytes follow the last storage; expected none")


def _refuse_storage(message: str) -> NoReturn:
    refuse(Reason.TORCH_STORAGE, f"{message}; {DAMAGED}")


def _refuse_length(storage: Storage, n_bytes: int) -> NoReturn:
    _refuse_storage(
        f"the storage {storage.key!r:.40} has {n_bytes:,} bytes in the file, or another count; "
        f"expected {storage.count:,} × {storage.dtype}"
    )


def _check_end(data: memoryview, end: int) -> None:
    if end != len(data):
        refuse(
            Reason.PICKLE_DAMAGED,
            f"{len(data) - end:,} bytes follow the pickle; expected nothing after it; {DAMAGED}",
        )


def _check_dtype(dtype: str) -> None:
    if dtype not in ITEM_BYTES:
        refuse(
            Reason.DTYPE,
            f"the tensor's dtype is {dtype}; expected F32 (F16 and BF16 are read too); convert it "
            "to float32 where it was made",
        )


def _nested_storage(data: memoryview) -> Storage:
    """The storage in the bytes of a nested torch.save."""
    storage = read_torch_legacy(data, calls=False)
    if not isinstance(storage, Storage):
        _refuse_storage(f"the bytes in the pickle hold {describe(storage)}; expected a storage")
    return storage


def _tensor(arguments: tuple[Any, ...]) -> TensorView:
    """Stand-in for `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    if not 6 <= len(arguments) <= 7 or not isinstance(arguments[0], Storage):
        _refuse_call(_REBUILD, "a storage, an offset, a shape, strides, a flag and hooks")
    storage, offset, shape, strides = arguments[:4]
    numbers = (offset, *shape, *strides) if type(shape) is type(strides) is tuple else (-1,)
    sound = len(numbers) < 20 and all(type(n) is int and 0 <= n < 2**40 for n in numbers)
    if not sound or len(shape) != len(strides) or arguments[5] not in (None, {}):
        _refuse_call(_REBUILD, "an offset, a shape and strides of whole numbers, and no hooks")
    return TensorView(storage, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> TensorView:
    """Stand-in for `_rebuild_parameter(tensor, requires_grad, hooks)`: a trained tensor."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorView):
        _refuse_call(_PARAMETER, "a tensor, a flag and hooks")
    return arguments[0]


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        _refuse_call(_ORDERED, "nothing")
    return {}


def _refuse_call(name: str, expected: str) -> NoReturn:
    refuse(
        Reason.PICKLE_CALL,
        f"the pickle calls {name} with other values than torch does; expected {expected}; "
        f"{DAMAGED}",
    )


_CALLS = {_REBUILD: _tensor, _PARAMETER: _parameter, _ORDERED: _ordered}
