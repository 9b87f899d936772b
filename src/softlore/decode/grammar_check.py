"""Tries grammars in a process of its own: a hostile one ends that process, and nothing else.

Run as a script, it reads the vocabulary as a line of JSON, answers with an empty line, and then
reads a grammar a line and answers with the error, or "". It imports nothing of softlore, so that it
starts at once.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

CPU_SECONDS = 2.0  # of one grammar
WALL_SECONDS = 60.0  # where there is no measure of processor time, or the machine is busy
MAX_MEMORY = 4 * 2**30  # bytes
LIMITS = {
    "max_grammar_size": 100_000,
    "max_lexer_states": 50_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}  # of llguidance's compiler, and of each step


class GrammarCheck:
    """The process, started with the first grammar, and again after one that ended it.

    Args:
        tokens: the bytes of each token.
        eos: ids that end a text; at least one.
    """

    def __init__(self, tokens: Sequence[bytes], eos: Sequence[int]) -> None:
        self._vocabulary = {"tokens": [token.hex() for token in tokens], "eos": list(eos)}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def error(self, grammar: str) -> str:
        """What is wrong with a grammar, as llguidance has it; "" if nothing is."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                self._ask(self._vocabulary)
            answer = self._ask(grammar)
            if answer is None:
                self._end()
                return f"it takes more than {CPU_SECONDS:g} seconds or {MAX_MEMORY >> 30} GB"
            return answer

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _ask(self, value: Any) -> str | None:
        """The answer to a line; None where the process ended first."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(WALL_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(value).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # a pipe that closed
            return None
        finally:
            timer.cancel()
        return str(json.loads(line)) if line else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


def make_tokenizer(
    tokens: Sequence[bytes], eos: Sequence[int], encode: Callable[[str], list[int]] | None = None
) -> Any:
    """The tokenizer of llguidance for tokens of these bytes.

    Args:
        tokens: those without bytes are never allowed.
        eos: ids that end a text; at least one.
        encode: ids of text that a grammar forces, [] where it has none; by default, and then, the
            longest tokens.
    """
    from llguidance import LLTokenizer

    longest = max(map(len, tokens))
    by_bytes = {token: i for i, token in reversed(list(enumerate(tokens))) if token}

    class GrammarTokens:
        eos_token_id, bos_token_id, special_token_ids = eos[0], None, sorted(set(eos))
        is_tokenizer_wrapper = True

        def __init__(self) -> None:
            self.tokens = list(tokens)

        def __call__(self, text: str | bytes) -> list[int]:
            data = text if isinstance(text, bytes) else text.encode()
            ids = encode(data.decode("utf-8", "replace")) if encode is not None else []
            at = len(data) if ids else 0
            while at < len(data):
                ends = range(min(len(data), at + longest), at, -1)
                end = next((end for end in ends if data[at:end] in by_bytes), 0)
                if not end:
                    break
                ids.append(by_bytes[data[at:end]])
                at = end
            return ids

    return LLTokenizer(GrammarTokens(), n_vocab=len(tokens), eos_token=list(eos))


def make_matcher(tokenizer: Any, grammar: str) -> Any:
    """The matcher of llguidance of a grammar, which may be one with an error."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(**LIMITS)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def _answer(tokenizer: Any, grammar: str) -> str:
    matcher = make_matcher(tokenizer, grammar)
    if not matcher.is_error():
        if not any(matcher.compute_bitmask()):
            return matcher.get_error() or "none of the model's tokens begins such a text"
        return ""
    return str(matcher.get_error())


def _limit_time() -> None:
    """Ends this process after `CPU_SECONDS` more of processor time, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        used = int(usage.ru_utime + usage.ru_stime + CPU_SECONDS) + 1
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (used, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, hard))


def main() -> None:
    """Answers until its input ends."""
    _limit_memory()
    vocabulary = json.loads(sys.stdin.readline())
    tokenizer = make_tokenizer([bytes.fromhex(t) for t in vocabulary["tokens"]], vocabulary["eos"])
    sys.stdout.write('""\n')
    sys.stdout.flush()
    for line in sys.stdin:
        _limit_time()
        sys.stdout.write(json.dumps(_answer(tokenizer, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
