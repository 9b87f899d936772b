"""Pickles, parsed and never loaded: a small walker over the few opcodes that tensors need.

A pickle is a program. Python's unpickler runs it, and so runs whatever its author wished. This
walker knows the opcodes that build plain data, takes a global for the mere name it is, and
"calls" only functions of ours that a format lists by that name, which return inert values.
Everything else is refused, by the name of the opcode or the global. Work and memory are bounded
by the pickle's length and MAX_STEPS.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from softlore.errors import PromptFileError
from softlore.prompts.opening import refuse
from softlore.prompts.reasons import Reason

MAX_STEPS = 20_000  # opcodes; a tensor takes about fifty, an optimizer's state a few hundred
MAX_NAME_BYTES = 256

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
DAMAGED = "the file was cut or damaged on its way, or made to mislead: get it again"
_HOSTILE = (
    "pickles can run code, so only what a saved tensor needs is read, and none of it is run; do "
    "not trust the file"
)


@dataclass(frozen=True)
class Global:
    """A global that a pickle names: its name, and nothing more."""

    name: str


@dataclass(frozen=True)
class AllowedGlobals:
    """What a pickle may speak of.

    Attributes:
        calls: functions of ours by the global that they stand for; each is given the arguments,
            a tuple of anything, and refuses what it does not expect.
        types: globals that may be named, not called.
        persistent: what stands for a persistent id, given the id; none may occur if None.
    """

    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)
    types: frozenset[str] = frozenset()
    persistent: Callable[[Any], Any] | None = None


def parse_pickle(data: memoryview, vocabulary: AllowedGlobals, start: int = 0) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    Bytes in it are memoryviews into `data`; dicts, lists, tuples, text, numbers and None are
    Python's own; the rest is what `vocabulary` makes of it. Raises PromptFileError.
    """
    return _Walk(data, vocabulary, start).run()


class _Walk:
    """The unpickler's machine: a stack, the stacks set aside by marks, and a memo."""

    def __init__(self, data: memoryview, vocabulary: AllowedGlobals, start: int) -> None:
        self.data = data
        self.vocabulary = vocabulary
        self.place = start
        self.frame_end: int | None = None
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        for _ in range(MAX_STEPS):
            opcode = self.take(1)[0]
            if opcode == _STOP:
                return self.end()
            step = _STEPS.get(opcode)
            if step is None:
                name = _NAMES.get(opcode, f"0x{opcode:02x}, which is none")
                refuse(
                    Reason.PICKLE_OPCODE,
                    f"the pickle holds the opcode {name} at byte {self.place - 1}; expected those "
                    f"of plain data and tensors; {_HOSTILE}",
                )
            step(self)
        raise PromptFileError(
            f"the pickle has more than {MAX_STEPS:,} opcodes; expected the few that one soft "
            f"prompt takes; {_HOSTILE}",
            reason=Reason.PICKLE_TOO_LARGE,
        )

    def end(self) -> tuple[Any, int]:
        value = self.pop()
        if self.stack or self.marked:
            self.damaged("values are left over at its end")
        return value, self.place

    def take(self, count: int) -> memoryview:
        """The next bytes; a frame that was announced may not end among them."""
        end = self.place + count
        if end > len(self.data):
            self.damaged(f"it ends where {count:,} more bytes are expected")
        if self.frame_end is not None:
            if end > self.frame_end:
                self.damaged("its frame ends within an opcode")
            if end == self.frame_end:
                self.frame_end = None
        taken = self.data[self.place : end]
        self.place = end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError:
            self.damaged("a text in it is not UTF-8")

    def line(self) -> str:
        """A line of at most MAX_NAME_BYTES, without its end."""
        window = bytes(self.data[self.place : self.place + MAX_NAME_BYTES])
        end = window.find(b"\n")
        if end < 0:
            self.damaged(f"a global's name in it has no end within {MAX_NAME_BYTES} bytes")
        line = self.text(end)
        self.take(1)
        return line

    def pop(self) -> Any:
        if not self.stack:
            self.damaged("it takes a value from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        if not self.marked:
            self.damaged("it goes back to a mark that it never set")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.damaged(f"it adds to what is not a {kind.__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        if not self.stack:
            self.damaged("it remembers a value of an empty stack")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.damaged(f"it recalls value {index}, which it never stored")
        self.stack.append(self.memo[index])

    def name(self, module: Any, name: Any) -> None:
        """Puts a global on the stack, if it is one of the vocabulary's."""
        full = f"{module}.{name}" if type(module) is type(name) is str else ""
        if full not in self.vocabulary.calls and full not in self.vocabulary.types:
            refuse(
                Reason.PICKLE_GLOBAL,
                f"the pickle names the global {full!r:.120} at byte {self.place}; expected "
                f"{', '.join(sorted(self.vocabulary.calls)) or 'none'}; {_HOSTILE}",
            )
        self.stack.append(Global(full))

    def call(self) -> None:
        arguments, called = self.pop(), self.pop()
        function = self.vocabulary.calls.get(called.name) if type(called) is Global else None
        if function is None or type(arguments) is not tuple:
            shown = called.name if type(called) is Global else type(called).__name__
            refuse(
                Reason.PICKLE_CALL,
                f"the pickle calls {shown!r:.120} with {type(arguments).__name__}; expected one "
                f"of {', '.join(sorted(self.vocabulary.calls))} with a tuple; {_HOSTILE}",
            )
        self.stack.append(function(arguments))

    def persistent(self) -> None:
        if self.vocabulary.persistent is None:
            refuse(
                Reason.PICKLE_OPCODE,
                f"the pickle holds the opcode BINPERSID at byte {self.place - 1}; expected none, "
                f"as nothing lies outside this pickle; {_HOSTILE}",
            )
        self.stack.append(self.vocabulary.persistent(self.pop()))

    def put(self, target: dict[Any, Any], values: list[Any]) -> None:
        """Adds keys and values to a dict. Keys are short: hashing a deep tuple takes for ever."""
        if len(values) % 2:
            self.damaged("a key in it has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                refuse(
                    Reason.PICKLE_CALL,
                    f"the pickle holds a dict with a key of type {type(key).__name__}; expected "
                    f"text or a small whole number; {_HOSTILE}",
                )
            target[key] = value

    def frame(self) -> None:
        length = self.number("<Q")
        if self.frame_end is not None or length > len(self.data) - self.place:
            self.damaged(f"it announces a frame of {length:,} bytes that cannot be there")
        self.frame_end = self.place + length if length else None

    def protocol(self) -> None:
        version = self.number("<B")
        if not 2 <= version <= 5:
            self.damaged(f"it is of protocol {version}, where 2 to 5 are known")

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))

    def wrap(self, count: int) -> None:
        if len(self.stack) < count:
            self.damaged("it takes a value from an empty stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def wrap_marked(self) -> None:
        values = self.pop_mark()  # which changes the stack, so it stands before the append
        self.stack.append(tuple(values))

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.put(self.top(dict), [key, value])

    def set_items(self) -> None:
        values = self.pop_mark()
        self.put(self.top(dict), values)

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def extend(self) -> None:
        values = self.pop_mark()
        self.top(list).extend(values)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def damaged(self, why: str) -> NoReturn:
        refuse(
            Reason.PICKLE_DAMAGED,
            f"the pickle is not sound: {why}, at byte {self.place}; expected what pickle.dumps "
            f"writes; {DAMAGED}",
        )


_STOP = ord(".")
# Written out: an opcode that is not here is refused.
_STEPS: dict[int, Callable[[_Walk], Any]] = {
    0x80: _Walk.protocol,
    0x95: _Walk.frame,
    # plain values
    ord("N"): lambda walk: walk.stack.append(None),
    0x88: lambda walk: walk.stack.append(True),
    0x89: lambda walk: walk.stack.append(False),
    ord("J"): lambda walk: walk.stack.append(walk.number("<i")),
    ord("K"): lambda walk: walk.stack.append(walk.number("<B")),
    ord("M"): lambda walk: walk.stack.append(walk.number("<H")),
    0x8A: _Walk.long,
    ord("G"): lambda walk: walk.stack.append(walk.number(">d")),
    ord("X"): lambda walk: walk.stack.append(walk.text(walk.number("<I"))),
    0x8C: lambda walk: walk.stack.append(walk.text(walk.number("<B"))),
    ord("B"): lambda walk: walk.stack.append(walk.take(walk.number("<I"))),
    ord("C"): lambda walk: walk.stack.append(walk.take(walk.number("<B"))),
    0x8E: lambda walk: walk.stack.append(walk.take(walk.number("<Q"))),
    # containers
    ord("("): _Walk.mark,
    ord(")"): lambda walk: walk.stack.append(()),
    0x85: lambda walk: walk.wrap(1),
    0x86: lambda walk: walk.wrap(2),
    0x87: lambda walk: walk.wrap(3),
    ord("t"): _Walk.wrap_marked,
    ord("]"): lambda walk: walk.stack.append([]),
    ord("a"): _Walk.append,
    ord("e"): _Walk.extend,
    ord("}"): lambda walk: walk.stack.append({}),
    ord("s"): _Walk.set_item,
    ord("u"): _Walk.set_items,
    # the memo
    0x94: lambda walk: walk.remember(len(walk.memo)),
    ord("q"): lambda walk: walk.remember(walk.number("<B")),
    ord("r"): lambda walk: walk.remember(walk.number("<I")),
    ord("h"): lambda walk: walk.recall(walk.number("<B")),
    ord("j"): lambda walk: walk.recall(walk.number("<I")),
    # names and calls: stand-ins only
    ord("c"): lambda walk: walk.name(walk.line(), walk.line()),
    0x93: _Walk.stack_global,
    ord("R"): _Walk.call,
    ord("Q"): _Walk.persistent,
}
