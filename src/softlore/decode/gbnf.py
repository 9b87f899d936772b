r"""Translates grammars of llama.cpp (GBNF) into llguidance's notation, which is Lark's.

The two differ in their tokens alone: names, strings and classes of characters are written in the
other's way, and the rest stays as it is. llguidance has a converter of its own (1.9.1), which loses
`\u` escapes, takes `.` for anything but a newline, and makes greedy tokens of rules, so that a word
before `"s"` takes the s.

Source: llama.cpp, grammars/README.md and src/llama-grammar.cpp.
"""

from __future__ import annotations

import graphlib
import json
import re
from collections.abc import Mapping, Sequence

from softlore.errors import ConfigError

_RULE = re.compile(r"^[ \t]*[\w-]+\s*::=", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<space> [ \t\r\n]+ | \#[^\r\n]* )
      | (?P<name> [A-Za-z0-9_-]+ ) (?P<defined> \s* ::= )?
      | (?P<text> " (?: [^"\\] | \\. )* " )
      | (?P<characters> \[ (?: [^\]\\] | \\. )* \] )
      | (?P<count> \{ \s* \d+ \s* (?: , \s* \d* \s* )? \} )
      | (?P<sign> [()|*+?.] )""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_ANY = r"/[\x{0}-\x{10FFFF}]/"


def is_gbnf(grammar: str) -> bool:
    """Whether a grammar is in llama.cpp's notation: its rules are `name ::= …`."""
    return _RULE.search(grammar) is not None


def gbnf_to_lark(grammar: str) -> str:
    """The same grammar for llguidance; it takes time in proportion to the length.

    Without recursion, rules are one terminal, which llguidance's lexer runs as one automaton.
    With it they are read character by character, which is as exact and slower.

    Raises:
        ConfigError: what is no GBNF, a rule that is missing, or one that is there twice.
    """
    rules = _parse(grammar)
    used = {"root"}.union(
        *([part for part in rule if isinstance(part, _Name)] for rule in rules.values())
    )
    for name in sorted(used - set(rules)):
        raise _wrong(f"has no rule {name!r:.60}")
    terminal = not _is_recursive(rules)
    names = {name: f"{'RULE' if terminal else 'rule'}_{i}" for i, name in enumerate(rules)}
    lines = [f"start: {names['root']}"]
    for name, rule in rules.items():
        symbols = (names[part] if isinstance(part, _Name) else part for part in rule)
        lines.append(f"{names[name]}: {' '.join(symbols)}")
    return "\n".join(lines)


class _Name(str):
    """The name of a rule among the symbols of another."""


def _parse(grammar: str) -> dict[str, list[str]]:
    """The symbols of each rule, in Lark's notation but for the names of rules."""
    rules: dict[str, list[str]] = {}
    rule: list[str] = []
    at = 0
    while at < len(grammar):
        token = _TOKEN.match(grammar, at)
        if token is None or not (rules or token["defined"] or token["space"]):
            raise _wrong(f"cannot be read at {_place(grammar, at)}")
        if token["defined"]:
            _close_alternative(rule)
            if token["name"] in rules:
                raise _wrong(f"has the rule {token['name']!r:.60} twice")
            rule = rules[token["name"]] = []
        elif not token["space"]:
            if token[0] in ("|", ")"):
                _close_alternative(rule)
            rule.append(_symbol(token))
        at = token.end()
    _close_alternative(rule)
    return rules


def _close_alternative(rule: list[str]) -> None:
    """An alternative without symbols is the empty text."""
    if not rule or rule[-1] in ("|", "("):
        rule.append('""')


def _symbol(token: re.Match[str]) -> str:
    if token["name"]:
        return _Name(token["name"])
    if token["text"]:
        return json.dumps("".join(_characters(token["text"][1:-1])), ensure_ascii=False)
    if token["characters"]:
        return _class(token["characters"][1:-1])
    return _ANY if token[0] == "." else re.sub(r"\s", "", token[0])


def _is_recursive(rules: Mapping[str, Sequence[str]]) -> bool:
    """Whether a rule comes to itself again."""
    try:
        graphlib.TopologicalSorter(
            {
                name: {part for part in rule if isinstance(part, _Name)}
                for name, rule in rules.items()
            }
        ).prepare()
    except graphlib.CycleError:
        return True
    return False


def _characters(text: str) -> list[str]:
    """The characters that a string or a class stands for."""
    characters = []
    for x, u, long, escaped, plain in _CHARACTER.findall(text):
        code = int(x or u or long or "0", 16)
        if x or u or long:
            escaped = "" if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF else chr(code)
        else:
            escaped = plain or _ESCAPES.get(escaped, "")
        if not escaped:
            raise _wrong(f"has an escape that is none, in {text!r:.40}")
        characters.append(escaped)
    return characters


def _class(text: str) -> str:
    """A class of characters as a regular expression; every character by its number."""
    negated = text.startswith("^")
    text = text[negated:]
    parts = [match[0] for match in _CHARACTER.finditer(text)]
    codes = [f"\\x{{{ord(character):X}}}" for character in _characters(text)]
    if not codes:
        raise _wrong("has a class without characters")
    ends = (0, len(parts) - 1)  # where a "-" is itself
    ranged = [
        "-" if part == "-" and i not in ends else code
        for i, (part, code) in enumerate(zip(parts, codes, strict=True))
    ]
    return f"/[{'^' * negated}{''.join(ranged)}]/"


def _place(grammar: str, at: int) -> str:
    line = grammar.count("\n", 0, at) + 1
    return f"line {line}, {grammar[at : at + 30]!r}"


def _wrong(what: str) -> ConfigError:
    return ConfigError(
        f'grammar {what}; expected GBNF as llama.cpp has it, such as root ::= "yes" | "no"; fix it'
    )
