"""The header of a GGUF file: its metadata and the table of its tensors, checked before use.

A header is a list of values by key, then a list of tensors with their shapes, types and places:

    "GGUF" version  n_tensors n_values   (key type value)…   (name shape type offset)…   tensors

Every length in it is checked against the size of the file before anything is read, so that a
damaged or hostile file costs no more time or memory than its own size. Source: ggml's gguf.md.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from softlore.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_VALUES = 10_000  # keys of the metadata; models have about 40
MAX_TENSORS = 100_000
MAX_TEXT = 1 << 24  # bytes of a text; chat templates have a few thousand
MAX_ITEMS = 1 << 25  # of a list; vocabularies have up to 300,000
MAX_NAME = 64  # characters of a model's name
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_TEXT, _LIST = 8, 9
# "SmolLM2-135M.Q4_1", "gemma-3-270m-q4_k_m", "model-f16", …
_QUANTIZATION = re.compile(r"[-._](i?q\d\w*|tq\d\w*|b?f(16|32)|mxfp4\w*)$", re.IGNORECASE)
_TELLS_NOTHING = re.compile(r"(ggml-)?model|weights|sha256\W?\w+|[0-9a-f]{16,}", re.IGNORECASE)


@dataclass(frozen=True)
class GGUFList:
    """A list in the metadata, which is decoded when it is needed: `Header.items`.

    Attributes:
        kind: ggml's number of its items' type.
        count: of its items.
        start, end: its place in the file, in bytes.
    """

    kind: int
    count: int
    start: int
    end: int


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's place in the file.

    Attributes:
        shape: in torch's order.
        kind: ggml's number of its type.
        start: in bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        values: numbers, texts and `GGUFList`s by key.
        size: bytes of the file.
    """

    path: Path
    values: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]
    size: int

    @property
    def architecture(self) -> str:
        """The model's family, as llama.cpp names it."""
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """The file's name without its quantization; the model's own where that tells nothing."""
        stem = _QUANTIZATION.sub("", self.path.stem)
        if not _TELLS_NOTHING.fullmatch(stem):
            return stem
        given = " ".join(self.text("general.name").split())
        plain = given.isprintable() and not set(given) & set("/\\") and len(given) <= MAX_NAME
        return given if given.strip(".") and plain else self.path.stem

    def text(self, key: str) -> str:
        """A text of the metadata; empty if there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | float | None:
        """A number of the metadata, None if there is none; `key` without the architecture."""
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int | float) else None

    def items(self, key: str) -> list[Any]:
        """The items of a list in the metadata; empty if there is none."""
        told = self.values.get(key)
        if not isinstance(told, GGUFList):
            return []
        with _mapped(self.path) as data:
            reader = _HeaderReader(self.path, data, told.start)
            return list(reader.items(told.kind, told.count))

    def tensor(self, name: str) -> GGUFTensor | None:
        """The tensor of a name, or None."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that is, or is named as, a GGUF file."""
    where = Path(path)
    try:
        if not where.is_file():
            return False
        if where.suffix.lower() == ".gguf":
            return True
        with where.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads a file's header, and checks that each tensor lies within the file.

    Raises:
        ModelError: it can't be read, is no GGUF file, or is damaged.
    """
    where = Path(path)
    try:
        with _mapped(where) as data:
            return _HeaderReader(where, data).read()
    except OSError as error:
        raise ModelError(
            f"{str(path)!r} can't be read ({error.strerror or error}); expected a GGUF file; check "
            "the path and its permissions"
        ) from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, mapped."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""  # which cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


class _HeaderReader:
    """Reads values one after another; each read is checked against the size of the file."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, at: int = 0) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), at

    def read(self) -> Header:
        if self.data[:4] != MAGIC:
            raise ModelError(
                f"{str(self.path)!r} does not begin with GGUF; expected a GGUF file; check that it "
                "is one, and was downloaded whole"
            )
        self.at = 4
        (version,) = self.take("I")
        if version not in VERSIONS:
            self.damaged(
                f"it is of version {version}", "version 2 or 3, of a little-endian machine"
            )
        n_tensors, n_values = self.take("QQ")
        if n_tensors > MAX_TENSORS or n_values > MAX_VALUES:
            self.damaged(f"it declares {n_tensors:,} tensors and {n_values:,} values")
        values = {}
        for _ in range(n_values):
            key = self.text()
            values[key] = self.value(*self.take("I"))
        return self.tensors(values, n_tensors)

    def tensors(self, values: dict[str, Any], count: int) -> Header:
        told = [self.tensor() for _ in range(count)]
        align = values.get("general.alignment", 32)
        if not isinstance(align, int) or not 1 <= align <= 1 << 16:
            self.damaged(f"its alignment is {align!r:.40}")
        begin = -(-self.at // align) * align
        placed = tuple(
            GGUFTensor(name, shape, kind, begin + offset) for name, shape, kind, offset in told
        )
        if len({tensor.name for tensor in placed}) < count:
            self.damaged("two tensors have one name")
        for tensor in placed:
            if tensor.start + _least_bytes(tensor.elements) > self.size:
                self.damaged(f"the tensor {tensor.name!r:.60} lies beyond its end")
        return Header(self.path, values, placed, self.size)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        (n,) = self.take("I")
        if n > 4:
            self.damaged(f"the tensor {name!r:.60} has {n} dimensions")
        shape = self.take(f"{n}Q")
        kind, offset = self.take("IQ")
        return name, tuple(reversed(shape)), kind, offset

    def value(self, kind: int) -> Any:
        if kind in _FORMATS:
            return self.take(_FORMATS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            self.damaged(f"a value has the type {kind}")
        kind, count = self.take("IQ")
        if count > MAX_ITEMS:
            self.damaged(f"a list has {count:,} items")
        start = self.at
        self.skip(kind, count)
        return GGUFList(kind, count, start, self.at)

    def skip(self, kind: int, count: int) -> None:
        """Passes over the items of a list."""
        if kind in _FORMATS:
            self.forward(count * struct.calcsize("<" + _FORMATS[kind]))
            return
        if kind != _TEXT:
            self.damaged(f"a list has items of type {kind}")
        unpack, data, at, size = struct.Struct("<Q").unpack_from, self.data, self.at, self.size
        for _ in range(count):
            if at + 8 > size:
                self.damaged("it ends within a list")
            at += 8 + unpack(data, at)[0]
        self.at = at
        self.forward(0)

    def items(self, kind: int, count: int) -> Iterator[Any]:
        if kind in _FORMATS:
            yield from self.take(f"{count}{_FORMATS[kind]}")
        else:
            for _ in range(count):
                yield self.text()

    def text(self) -> str:
        (length,) = self.take("Q")
        if length > MAX_TEXT:
            self.damaged(f"a text has {length:,} bytes")
        start = self.at
        self.forward(length)
        return self.data[start : self.at].decode("utf-8", "replace")

    def take(self, form: str) -> tuple[Any, ...]:
        start = self.at
        self.forward(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.data, start)

    def forward(self, count: int) -> None:
        self.at += count
        if self.at > self.size:
            self.damaged(f"it ends after {self.size:,} bytes, within its header")

    def damaged(self, what: str, expected: str = "a whole GGUF file") -> NoReturn:
        raise ModelError(
            f"the GGUF file {str(self.path)!r} is damaged or unknown: {what}; expected {expected}; "
            "download it again"
        )


def _least_bytes(elements: int) -> int:
    """Bytes that so many elements take at least: no type has fewer than 1.5 bits each."""
    return elements * 3 // 16
