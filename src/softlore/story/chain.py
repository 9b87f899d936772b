"""Chains: each item's prompt holds what the model generated for the one before it."""

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
    """One item of a chain, the prompt made from it, and what was generated after that."""

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
    """Generates a text for each item, in order, feeding each output into the next prompt.

    Args:
        model: or a runner, which then caches what it reads from item to item.
        template: text in which `{item}` and `{previous}` (the output before, first empty) are
            replaced, and tags `[[soft:NAME]]` name `prompts`.
        done: links of a run that was stopped: they are yielded again, not generated again.
        seed: item i has seed + i, so that a chain that was stopped ends the same.
        settings: others of `generate`.

    Raises:
        ConfigError: a template without either field, or links of another chain.
        ContextError: a prompt that cannot be generated from; the message says which, and why.
    """
    if not _FIELD.search(template):
        raise ConfigError(
            f"the template {template!r:.100} names neither {{previous}} nor {{item}}; expected at "
            f"least one of them, as in {TEMPLATE!r}; add one"
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
    for index, item in enumerate(items):
        prompt = fill(template, previous, item)
        if index < len(done):
            link = done[index]
            if (link.item, link.prompt) != (item, prompt):
                raise ConfigError(
                    f"link {index + 1} in the file has the prompt {link.prompt!r:.60}, but items "
                    f"and template now give {prompt!r:.60}; expected the same chain; write to "
                    "another file, or overwrite this one"
                )
        else:
            try:
                context = Context.parse(prompt, prompts)
                output = generate(runner, context, tokens, seed=seed + index, **settings)
            except SoftloreError as error:
                raise ContextError(f"item {index + 1}, {item!r:.60}: {error}") from error
            link = Link(item, prompt, output)
        yield link
        previous = link.output


def fill(template: str, previous: str, item: str) -> str:
    """The template with its fields replaced; other braces stay."""
    values = {"previous": previous, "item": item}
    return _FIELD.sub(lambda match: values[match[1]], template).lstrip(" ")


def line(link: Link) -> str:
    """A link as a line of JSON."""
    return json.dumps(asdict(link), ensure_ascii=False) + "\n"


def read_links(path: str | os.PathLike[str]) -> list[Link]:
    """The links in a file; an incomplete last line is ignored.

    Raises:
        ConfigError: a line that is not a link.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode("utf-8", "strict")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} can't be read ({error}); name another file") from error
    links = []
    for number, row in enumerate(text.split("\n")[:-1], start=1):
        try:
            data = json.loads(row)
            links.append(Link(**{key: str(data[key]) for key in ("item", "prompt", "output")}))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"line {number} of {str(path)!r} is not a link of a chain; expected an object of "
                "item, prompt and output; name another file"
            ) from error
    return links


@contextlib.contextmanager
def adding_links(
    path: str | os.PathLike[str], overwrite: bool = False
) -> Iterator[Callable[[Link], None]]:
    """Yields a function that appends a link to a file and waits until it is on the disk.

    The file's links stay, except for an incomplete last line; with `overwrite`, none does.
    """
    path = Path(path)
    try:
        with path.open("r+b" if path.exists() and not overwrite else "w+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)

            def add(link: Link) -> None:
                file.write(line(link).encode())
                file.flush()
                os.fsync(file.fileno())

            yield add
    except OSError as error:
        raise storage_error("write", path, error) from error
