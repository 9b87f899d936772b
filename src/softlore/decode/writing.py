"""`generate`: a context in, text out, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

from softlore.context import compose
from softlore.context.compose import Readable, heading
from softlore.decode.loop import decode
from softlore.decode.mixing import Mixed, Steering, dosed, with_bare
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.sliding import Headed, decode_sliding
from softlore.errors import ConfigError
from softlore.lore.styles import BRACKETED
from softlore.model import FrozenModel
from softlore.prompts import Context


@overload
def generate(
    model: FrozenModel,
    context: Readable,
    max_new_tokens: int = ...,
    *,
    stream: Literal[True],
    stop: str | Sequence[str] = ...,
    seed: int | None = ...,
    check: bool = ...,
    head: Steering = ...,
    **sampling: Any,
) -> Iterator[str]: ...
@overload
def generate(
    model: FrozenModel,
    context: Readable,
    max_new_tokens: int = ...,
    *,
    stream: Literal[False] = ...,
    stop: str | Sequence[str] = ...,
    seed: int | None = ...,
    check: bool = ...,
    head: Steering = ...,
    **sampling: Any,
) -> str: ...
def generate(
    model: FrozenModel,
    context: Readable,
    max_new_tokens: int = 80,
    *,
    stream: bool = False,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    check: bool = True,
    head: Steering = "",
    **sampling: Any,
) -> str | Iterator[str]:
    """Writes on from a context.

    Args:
        context: text, a SoftPrompt, or a Context of both.
        max_new_tokens: the most tokens to write; the model's own end, a stop string or the
            context's end may come sooner.
        stream: return an iterator of text as it comes.
        stop: a string, or several, that end the writing; not part of what is returned.
        seed: makes the draws repeatable.
        check: refuse prompts of another model.
        head: what stands before the context and stays there: a control code, say; or several with
            a strength each, `[(horror, 1.5), (humor, -0.5)]` (see `decode.mixing`). With one the
            writing goes on past the context's end, the window sliding under the head.
        sampling: fields of `Sampling` (temperature, top_k, top_p, min_p, repetition_penalty,
            penalized, banned); temperature 0 is greedy. What a model is never to write is banned
            in any case (CTRL: unknown words, and links).

    Returns:
        The new text, without the context.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected at least 1; ask for more")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in stops):
        raise ConfigError(f"stop is {stop!r}; expected strings of at least one character; mend it")
    banned = (*sampling.pop("banned", ()), *model.banned_ids)
    if any(p.training.get("style") == BRACKETED for p in Context(context).prompts):
        banned += model.bracket_ids  # what was learned in brackets is told without them
    chooser = Chooser(Sampling(**sampling, banned=banned), seed)
    heads = dosed(head)
    if heads:
        steps = _headed(model, context, heads, chooser, max_new_tokens, check)
    else:
        steps = decode(model, [compose(model, context, check=check)], chooser, max_new_tokens)
    ids = (step[0] for step in steps)
    pieces = _text(model, ids, stops)
    return pieces if stream else "".join(pieces)


def _headed(
    model: FrozenModel,
    context: Readable,
    heads: Sequence[tuple[Readable, float]],
    chooser: Chooser,
    max_new_tokens: int,
    check: bool,
) -> Iterator[list[int]]:
    """Steps of writing under heads, each a row, and the bare text too where it has a weight."""
    heads = with_bare(heads)
    rows = [
        Headed(compose(model, context, check=check, head=head), heading(model, head))
        for head, _ in heads
    ]
    choose = chooser if len(rows) == 1 else Mixed(chooser, [weight for _, weight in heads])
    return decode_sliding(model, rows, choose, max_new_tokens)


def _text(model: FrozenModel, ids: Iterator[int], stop: tuple[str, ...]) -> Iterator[str]:
    """Text of a run of ids, piece by piece, ending before any stop string.

    A piece is held back while a stop string may begin in it. Bytes that make no character, or
    none yet, are left out.
    """
    written: list[int] = []
    told = 0
    text = ""
    for i in ids:
        if i in model.eos_ids:
            break
        written.append(i)
        text = model.decode(written, inside=True).replace("\ufffd", "")
        cuts = [at for at in (text.find(s, max(0, told - len(s))) for s in stop) if at >= 0]
        if cuts:
            text = text[: min(cuts)]
            break
        safe = len(text) - _unsure(text, stop)
        if safe > told:
            yield text[told:safe]
            told = safe
    if len(text) > told:
        yield text[told:]


def _unsure(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    held = (
        n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(held, default=0)
