"""`softlore serve`: the KoboldAI and OpenAI APIs, and the studio in a browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.gguf import LLAMACPP, cache_options, check_gguf, gguf_option, gguf_runner
from softlore.cli.options import load_model, model_options, prompts_option, read_text, wanting
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.serve.engines import Engine
    from softlore.serve.state import ServerState
    from softlore.settings import ServeSettings

MEGABYTE = 2**20
NEEDED = ("fastapi", "httpx", "prometheus_client", "uvicorn")  # of the extra `serve`


@click.command()
@click.option("--lorebook", type=click.Path(path_type=Path, dir_okay=False),
              help="Lore that wakes in every client's text.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5001, show_default=True, type=click.IntRange(0, 65535),
              help="0 takes a free one.")  # fmt: skip
@click.option("--api-key", envvar="SOFTLORE_API_KEY", show_envvar=True,
              help="What callers must show; needed where others can call.")  # fmt: skip
@click.option("--api-key-file", type=click.Path(path_type=Path, dir_okay=False),
              help="The same, from a file, so that no list of processes shows it.")  # fmt: skip
@click.option("--origin", "origins", multiple=True, metavar="URL",
              help="Pages from here may call too, such as https://lite.koboldai.net; may be given "
              "often.")  # fmt: skip
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME",
              help="A name by which the server may be called; may be given often.")  # fmt: skip
@click.option("--slots", default=64, show_default=True, type=click.IntRange(1),
              help="Texts that are written at once.")  # fmt: skip
@click.option("--queue", default=64, show_default=True, type=click.IntRange(0),
              help="Texts that may wait; more are answered 503.")  # fmt: skip
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1),
              help="Seconds that a text may take.")  # fmt: skip
@click.option("--keep-mb", default=512, show_default=True, type=click.IntRange(0),
              help="Memory for what was read of stories, so that their next turns read less.",
              )  # fmt: skip
@click.option("--upload-mb", default=64, show_default=True, type=click.IntRange(1),
              help="The largest request.")  # fmt: skip
@click.option("--stories", "stories_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--lorebooks", "books_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the studio's lorebooks.  [default: softlore's own]")  # fmt: skip
@click.option("--engine", "engine_name", default="local", show_default=True,
              type=click.Choice(["local", "vllm", LLAMACPP]),
              help="What writes the texts.")  # fmt: skip
@gguf_option
@click.option("--context", type=click.IntRange(64),
              help="gguf: tokens a text may have.  [default: the model's, 8192 at most]",
              )  # fmt: skip
@click.option("--cache-mb", default=2048, show_default=True, type=click.IntRange(1),
              help="gguf: memory for keys and values; with less, fewer texts at once.",
              )  # fmt: skip
@cache_options
@click.option("--engine-url", help="vllm: its address, such as http://127.0.0.1:8000.")
@click.option("--engine-key", envvar="SOFTLORE_ENGINE_KEY", help="vllm: its API key.")
@click.option("--open", "opens", is_flag=True, help="Open the studio in the browser.")
@click.option("--log-level", default="info", show_default=True,
              type=click.Choice(["debug", "info", "warning", "error"]))  # fmt: skip
@model_options
@prompts_option
def command(
    lorebook: Path | None,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    stories_folder: Path | None,
    books_folder: Path | None,
    engine_name: str,
    engine_url: str | None,
    engine_key: str | None,
    gguf: Path | None,
    context: int | None,
    cache_mb: int,
    cache: tuple[str, bool],
    opens: bool,
    log_level: str,
    **given: Any,
) -> None:
    """Serve stories to KoboldAI Lite, SillyTavern, the openai client, and a studio in the browser.

    Text of any client may name soft prompts as [[soft:NAME]]. With --lorebook, lore wakes when a
    text mentions it, for clients that know nothing of that. Only this machine can call, and only
    the server's own page and programs; --origin lets other pages in, --host other machines.

    \b
    Example:
      softlore serve --lorebook lore.yaml --open
      softlore serve --origin https://lite.koboldai.net
      softlore serve --engine llamacpp --gguf my-model-Q4_K.gguf
      softlore serve --host 0.0.0.0 --api-key-file key.txt --allow-host story.example.net
    """
    _check_engine(engine_name, engine_url, gguf)
    settings = _settings(given)
    with wanting("serve"):
        _check_extra()
    from softlore.serve.listening import listen, url_of

    listening = listen(settings)
    click.echo(f"loading {gguf or model_name or 'the storyteller'} …", err=True)
    from softlore.lore import Lorebook
    from softlore.prompts import PromptLibrary
    from softlore.serve import logs
    from softlore.serve.server import Server
    from softlore.serve.state import ServerState, default_books
    from softlore.story import StoryLibrary

    logs.set_up(log_level)
    book = Lorebook.load(lorebook) if lorebook is not None else None
    engine: Engine
    if gguf is not None:
        from softlore.serve.engines.local import LocalEngine

        runner = gguf_runner(gguf, model_name, context, cache, settings.slots, cache_mb)
        engine = LocalEngine(runner, **_limits(settings) | {"slots": runner.n_sequences})
    else:
        model = load_model(model_name or (book.model if book else None), dtype, device)
        engine = _engine(model, settings, engine_url, engine_key)
    state = ServerState(
        engine=engine,
        prompts=PromptLibrary(folder),
        stories=StoryLibrary(stories_folder),
        books=books_folder or default_books(),
        settings=settings,
        book=book,
    )
    url = url_of(listening)

    def ready() -> None:
        _tell(url, state, engine_url)
        if opens:
            click.launch(url)

    Server(state, ready).serve_on(listening)


def _settings(given: dict[str, Any]) -> ServeSettings:
    from softlore.settings import ServeSettings

    path, key = given.pop("api_key_file"), given.pop("api_key")
    if path is not None:
        key = read_text(path, "--api-key-file").strip()
    seconds = given.pop("timeout")
    return ServeSettings(api_key=key or None, text_seconds=seconds, **given)


def _check_extra() -> None:
    """Looks for what the server needs without importing it, which takes seconds."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def _check_engine(name: str, url: str | None, gguf: Path | None) -> None:
    if (name == "vllm") != (url is not None):
        raise ConfigError(
            f"--engine is {name} and --engine-url {url!r}; expected a URL with vllm and none with "
            "others; mend one of them"
        )
    check_gguf("--engine", name, gguf)


def _limits(settings: ServeSettings) -> dict[str, Any]:
    return {
        "slots": settings.slots,
        "queue": settings.queue,
        "queue_seconds": settings.queue_seconds,
        "text_seconds": settings.text_seconds,
    }


def _engine(
    model: FrozenModel, settings: ServeSettings, url: str | None, key: str | None
) -> Engine:
    limits = _limits(settings)
    if url is not None:
        from softlore.serve.engines.vllm import VLLMEngine

        limits.pop("queue_seconds")
        return VLLMEngine(model, url, api_key=key, **limits)
    from softlore.decode import PrefixCache, TorchModelRunner
    from softlore.serve.engines.local import LocalEngine

    return LocalEngine(TorchModelRunner(model, PrefixCache(settings.keep_mb * MEGABYTE)), **limits)


def _tell(url: str, state: ServerState, engine_url: str | None) -> None:
    settings = state.settings
    book = state.book
    entries = "1 entry" if book is not None and len(book) == 1 else f"{len(book or ())} entries"
    origins = ", ".join(settings.origins) or "none but its own (--origin lets others in)"
    told = {
        "studio": url,
        "KoboldAI API": f"{url}/api",
        "OpenAI API": f"{url}/v1",
        "model": repr(state.engine.model) + (f", run by {engine_url}" if engine_url else ""),
        "prompts": f"{len(state.prompts)} in {state.prompts.folder}",
        "stories": str(state.stories.folder),
        "lorebook": f"{book.name}, {entries}" if book is not None else "none",
        "pages that may call": origins,
        "API key": "needed" if settings.api_key else "none: only this machine can call",
    }
    for name, value in told.items():
        click.echo(f"  {name:20} {value}", err=True)
    click.echo("Ctrl-C stops it; texts under way may end", err=True)
