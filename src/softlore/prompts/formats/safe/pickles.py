"""Parses pickles without unpickling: a stack machine for the few opcodes that tensors need.

A pickle is a program for a stack machine. Python's unpickler imports and calls whatever functions
it names, so loading one runs any code of its author. The machine here has the opcodes that build
plain data; a global stays a mere name (`Global`), and a call of it calls the function that
`AllowedGlobals` lists under that name, which returns inert values (see `torch_files.py`).
Everything else is rejected with the name of the opcode or the global. Work and memory are bounded
by the pickle's length and MAX_STEPS.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from softlore.prompts.reasons import Reason, refuse

MAX_STEPS = 20_000  # opcodes; a tensor takes about 50, an optimizer's state a few hundred
MAX_NAME_BYTES = 256

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
DAMAGED = "the file was cut or damaged in transfer, or is malicious: get it again"


@dataclass(frozen=True)
class Global:
    """The name of a global in a pickle; nothing is imported."""

    name: str


@dataclass(frozen=True)
class AllowedGlobals:
    """The globals that a pickle may name.

    Attributes:
        calls: stand-in functions by the name of the global that they replace. Each gets the
            arguments, a tuple of anything, and rejects what it does not expect.
        types: globals that may be named, but not called.
        persistent: the function that resolves persistent ids; none may occur if None.
    """

    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)
    types: frozenset[str] = frozenset()
    persistent: Callable[[Any], Any] | None = None


def parse_pickle(data: memoryview, allowed: AllowedGlobals, start: int = 0) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and the index of its end.

    Bytes in it are memoryviews into `data`; dicts, lists, tuples, text, numbers and None are
    Python's; everything else is the result of a function of `allowed`. Raises PromptFileError.
    """
    return _Machine(data, allowed, start).run()


class _Machine:
    """A stack, the stacks set aside by marks, and a memo; a method for each group of opcodes."""

    def __init__(self, data: memoryview, allowed: AllowedGlobals, start: int) -> None:
        self.data = data
        self.allowed = allowed
        self.offset = start
        self.frame_end: int | None = None
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        for _ in range(MAX_STEPS):
            opcode = self.take(1)[0]
            if opcode == _STOP:
                break
            step = _STEPS.get(opcode)
            if step is None:
                name = _NAMES.get(opcode, f"0x{opcode:02x}, which is unknown")
                _refuse_hostile(
                    Reason.PICKLE_OPCODE,
                    f"the pickle holds the opcode {name} at byte {self.offset - 1}; expected those "
                    "of plain data and tensors",
                )
            step(self)
        else:
            _refuse_hostile(
                Reason.PICKLE_TOO_LARGE,
                f"the pickle has more than {MAX_STEPS:,} opcodes; expected the few that one soft "
                "prompt takes",
            )
        return self.end()

    def end(self) -> tuple[Any, int]:
        value = self.pop()
        if self.stack or self.marked:
            self.damaged("values are left over at its end")
        return value, self.offset

    def take(self, count: int) -> memoryview:
        """The next bytes; a frame may not end among them."""
        end = self.offset + count
        if end > len(self.data):
            self.damaged(f"it ends where {count:,} more bytes are expected")
        if self.frame_end is not None:
            if end > self.frame_end:
                self.damaged("its frame ends within an opcode")
            if end == self.frame_end:
                self.frame_end = None
        start, self.offset = self.offset, end
        return self.data[start:end]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError:
            self.damaged("a text in it is not UTF-8")

    def line(self) -> str:
        """A line of at most MAX_NAME_BYTES, without its newline."""
        window = bytes(self.data[self.offset : self.offset + MAX_NAME_BYTES])
        end = window.find(b"\n")
        if end < 0:
            self.damaged(f"a global's name in it has no end within {MAX_NAME_BYTES} bytes")
        line = self.text(end)
        self.take(1)
        return line

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            self.damaged("it takes a value from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        if not self.marked:
            self.damaged("it returns to a mark that it never set")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.damaged(f"it adds to what is not a {kind.__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        if not self.stack:
            self.damaged("it stores a value of an empty stack")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.damaged(f"it recalls value {index}, which it never stored")
        self.push(self.memo[index])

    def name(self, module: Any, name: Any) -> None:
        """Pushes a `Global` onto the stack if it is allowed, without importing it."""
        full = f"{module}.{name}" if type(module) is type(name) is str else ""
        if full not in self.allowed.calls and full not in self.allowed.types:
            _refuse_hostile(
                Reason.PICKLE_GLOBAL,
                f"the pickle names the global {full!r:.120} at byte {self.offset}; expected "
                f"{', '.join(sorted(self.allowed.calls)) or 'none'}",
            )
        self.push(Global(full))

    def call(self) -> None:
        arguments, called = self.pop(), self.pop()
        function = self.allowed.calls.get(called.name) if type(called) is Global else None
        if function is None or type(arguments) is not tuple:
            shown = called.name if type(called) is Global else type(called).__name__
            _refuse_hostile(
                Reason.PICKLE_CALL,
                f"the pickle calls {shown!r:.120} with {type(arguments).__name__}; expected one "
                f"of {', '.join(sorted(self.allowed.calls))} with a tuple",
            )
        self.push(function(arguments))

    def persistent(self) -> None:
        if self.allowed.persistent is None:
            _refuse_hostile(
                Reason.PICKLE_OPCODE,
                f"the pickle holds the opcode BINPERSID at byte {self.offset - 1}; expected none, "
                "as all of its data is in the pickle",
            )
        self.push(self.allowed.persistent(self.pop()))

    def add_items(self, values: list[Any]) -> None:
        """Appends to the list on top of the stack."""
        self.top(list).extend(values)

    def add_pairs(self, values: list[Any]) -> None:
        """Adds keys and values, in turns, to the dict on top of the stack.

        Keys are text or numbers: hashing a deep tuple may never end.
        """
        target = self.top(dict)
        if len(values) % 2:
            self.damaged("a key in it has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                _refuse_hostile(
                    Reason.PICKLE_CALL,
                    f"the pickle holds a dict with a key of type {type(key).__name__}; expected "
                    "text or a small whole number",
                )
            target[key] = value

    def frame(self) -> None:
        length = self.number("<Q")
        if self.frame_end is not None or length > len(self.data) - self.offset:
            self.damaged(f"it has a frame of {length:,} bytes that cannot be there")
        self.frame_end = self.offset + length if length else None

    def protocol(self) -> None:
        version = self.number("<B")
        if not 2 <= version <= 5:
            self.damaged(f"it is of protocol {version}, where 2 to 5 are known")

    def pop_many(self, count: int) -> list[Any]:
        """The last values, in the order in which they were pushed."""
        return [self.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def damaged(self, why: str) -> NoReturn:
        refuse(
            Reason.PICKLE_DAMAGED,
            f"the pickle is malformed: {why}, at byte {self.offset}; expected what pickle.dumps "
            f"writes; {DAMAGED}",
        )


def _refuse_hostile(reason: Reason, message: str) -> NoReturn:
    refuse(
        reason,
        f"{message}; pickles can run code, so only what a saved tensor needs is read, and none of "
        "it is run; do not trust the file",
    )


_STOP = ord(".")
# Any other opcode is rejected.
_STEPS: dict[int, Callable[[_Machine], Any]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    # plain values
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("X"): lambda m: m.push(m.text(m.number("<I"))),
    0x8C: lambda m: m.push(m.text(m.number("<B"))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    # containers
    ord("("): _Machine.mark,
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push(tuple(m.pop_many(1))),
    0x86: lambda m: m.push(tuple(m.pop_many(2))),
    0x87: lambda m: m.push(tuple(m.pop_many(3))),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.add_items([m.pop()]),
    ord("e"): lambda m: m.add_items(m.pop_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.add_pairs(m.pop_many(2)),
    ord("u"): lambda m: m.add_pairs(m.pop_mark()),
    # the memo
    0x94: lambda m: m.remember(len(m.memo)),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    # globals and calls: stand-ins only
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*m.pop_many(2)),
    ord("R"): _Machine.call,
    ord("Q"): _Machine.persistent,
}
