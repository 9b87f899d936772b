"""A chain: each datum's prompt holds what the model wrote for the one before it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softlore.decode import generate, runner_for
from softlore.decode.writing import Runnable
from softlore.disk import storage_error
from softlore.errors import ConfigError, ContextError, SoftloreError
from softlore.prompts import Context, PromptSource

TEMPLATE = "{previous} {item}"
_FIELD = re.compile(r"\{(previous|item)\}")


@dataclass(frozen=True)
class Link:
    """One datum of a chain: the item, the prompt it came to, and what was written after it."""

    item: str
    prompt: str
    output: str


def chain(
    model: Runnable,
    items: Iterable[str],
    template: str = TEMPLATE,
    *,
    tokens: int = 80,
    prompts: PromptSource = (),
    done: Sequence[Link] = (),
    seed: int = 0,
    **settings: Any,
) -> Iterator[Link]:
    """Writes once for each item, in order, feeding each output into the next prompt.

    Args:
        template: text in which `{item}` and `{previous}` (the output before, at first nothing)
            stand for themselves, and tags `[[soft:NAME]]` for `prompts`.
        done: links of a run that was stopped: they are gone through again, not written again.
        seed: item i is written with seed + i, so that a chain that was stopped ends the same.
        settings: what `generate` takes besides.

    Raises:
        ConfigError: a template without either field, or links that are of another chain.
        ContextError: an item that cannot be written on; the message says which, and why.
    """
    if not _FIELD.search(template):
        raise ConfigError(
            f"the template {template!r:.100} names neither {{previous}} nor {{item}}; expected at "
            f"least one of them, as in {TEMPLATE!r}; put it in"
        )
    return _links(model, items, template, tokens, prompts, done, seed, settings)


def _links(
    model: Runnable,
    items: Iterable[str],
    template: str,
    tokens: int,
    prompts: PromptSource,
    done: Sequence[Link],
    seed: int,
    settings: dict[str, Any],
) -> Iterator[Link]:
    previous, runner = "", runner_for(model)
    for place, item in enumerate(items):
        prompt = fill(template, previous, item)
        if place < len(done):
            link = done[place]
            if (link.item, link.prompt) != (item, prompt):
                raise ConfigError(
                    f"link {place + 1} of what is there is {link.prompt!r:.60}, but the items and "
                    f"the template now give {prompt!r:.60}; expected the same chain; write to "
                    "another file, or begin again"
                )
        else:
            try:
                context = Context.parse(prompt, prompts)
                output = generate(runner, context, tokens, seed=seed + place, **settings)
            except SoftloreError as error:
                raise ContextError(f"item {place + 1}, {item!r:.60}: {error}") from error
            link = Link(item, prompt, output)
        yield link
        previous = link.output


def fill(template: str, previous: str, item: str) -> str:
    """The template with its fields filled in; braces that are no field stay."""
    values = {"previous": previous, "item": item}
    return _FIELD.sub(lambda match: values[match[1]], template).lstrip(" ")


def line(link: Link) -> str:
    """A link as a line of JSON."""
    return json.dumps(asdict(link), ensure_ascii=False) + "\n"


def read_links(path: str | os.PathLike[str]) -> list[Link]:
    """The whole lines of a file of links; a last one that was cut off is left out.

    Raises:
        ConfigError: a line that is no link.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode("utf-8", "strict")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} can't be read ({error}); name another file") from error
    found = []
    for number, told in enumerate(text.split("\n")[:-1], start=1):
        try:
            data = json.loads(told)
            found.append(Link(**{key: str(data[key]) for key in ("item", "prompt", "output")}))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"line {number} of {str(path)!r} is no link of a chain; expected an object of "
                "item, prompt and output; name another file"
            ) from error
    return found


@contextlib.contextmanager
def adding_links(
    path: str | os.PathLike[str], again: bool = False
) -> Iterator[Callable[[Link], None]]:
    """Gives what adds a link to a file: each is on the disk before the next one is written.

    What is there stays, but for a last line that was cut off; with `again`, nothing does.
    """
    path = Path(path)
    try:
        with path.open("r+b" if path.exists() and not again else "w+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)

            def add(link: Link) -> None:
                file.write(line(link).encode())
                file.flush()
                os.fsync(file.fileno())

            yield add
    except OSError as error:
        raise storage_error("write", path, error) from error
