"""`softlore serve`: the KoboldAI and OpenAI APIs, and the studio in a browser."""

from __future__ import annotations

import functools
import gc
import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.gguf import LLAMACPP, cache_options, check_gguf, gguf_option, gguf_runner
from softlore.errors import ConfigError, SoftloreError
from softlore.settings import ServeSettings

if TYPE_CHECKING:
    from softlore.lore import Lorebook
    from softlore.serve.engines import Engine
    from softlore.serve.state import ServerState

MEGABYTE = 2**20
NEEDED = ("fastapi", "httpx", "prometheus_client", "uvicorn")  # of the extra `serve`


@click.command()
@click.option("--lorebook", type=options.FILE, help="Lore, activated in texts of all clients.")
@options.setting_options(ServeSettings)
@click.option("--api-key-file", type=options.FILE,
              help="File with the API key, which hides it from lists of processes.",
              )  # fmt: skip
@click.option("--stories", "stories_folder", type=options.FOLDER,
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--lorebooks", "books_folder", type=options.FOLDER,
              help="Folder of the studio's lorebooks.  [default: softlore's own]")  # fmt: skip
@click.option("--engine", "engine_name", default="local", show_default=True,
              type=click.Choice(["local", "vllm", LLAMACPP]),
              help="What generates the texts.")  # fmt: skip
@gguf_option
@click.option("--context", type=click.IntRange(64),
              help="gguf: tokens of a text at most.  [default: the model's, 8192 at most]",
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
@options.with_model
@options.threads_option
@options.prompts_option
def command(
    lorebook: Path | None,
    source: common.ModelSource,
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
    threads: int | None,
    **given: Any,
) -> None:
    """Serve stories to KoboldAI Lite, SillyTavern, the openai client, and a studio in the browser.

    Text of any client may name soft prompts as [[soft:NAME]]. With --lorebook, lore is activated
    when a text mentions it, also for clients without World Info. Only programs on this machine and
    the server's own page can call; --origin allows other pages, --host other machines.

    \b
    Example:
      softlore serve --lorebook lore.yaml --open
      softlore serve --origin https://lite.koboldai.net
      softlore serve --engine llamacpp --gguf my-model-Q4_K.gguf
      softlore serve --host 0.0.0.0 --api-key-file key.txt --allow-host story.example.net
    """
    _check_engine(engine_name, engine_url, gguf)
    settings = _settings(given)
    with common.require_extra("serve"):
        _check_extra()
    from softlore.serve.listening import listen, url_of

    listening = listen(settings)

    def start(model: str | None) -> ServerState:
        from softlore.lore import Lorebook

        book = None if lorebook is None else Lorebook.load(lorebook)
        chosen = source if model is None else source._replace(name=model)
        with chosen.loading(book.model if book else None, gguf=gguf) as shown:
            import softlore.serve.server  # noqa: F401 - takes part of the time
            from softlore.serve import logs

            logs.set_up(log_level)
            common.use_threads(threads)
            if gguf is not None:
                engine = _gguf_engine(gguf, source.name, context, cache, cache_mb, settings)
            else:
                engine = _engine(shown, settings, engine_url, engine_key)
        return _state(engine, settings, book, lorebook, folder, stories_folder, books_folder)

    url = url_of(listening)
    pages = [url] if opens else []  # to open once

    def ready(state: ServerState) -> None:
        _announce(url, state, engine_url)
        while pages:
            click.launch(pages.pop())

    with listening:
        _serve(start, listening, ready, changes=engine_name == "local")


def _serve(
    start: Callable[[str | None], ServerState],
    listening: socket.socket,
    ready: Callable[[ServerState], None],
    changes: bool,
) -> None:
    """Serves until a signal stops it, with another model whenever the studio asks for one.

    Meanwhile connections wait: the socket goes on listening.

    Args:
        start: makes a state with the model of a name; None: the one to begin with.
        ready: called with the state when its requests are accepted.
        changes: whether the studio may ask for another model.
    """
    name, state = None, start(None)
    from softlore.serve.server import Server
    from softlore.serve.studio.training_process import TrainingProcess

    while True:
        # The objects of the model and the libraries stay: a collection that looked at them all
        # would hold up every running text by a fifth of a second.
        gc.collect()
        gc.freeze()
        # Before there are threads, and a server: the studio's trainings run in a copy.
        training = TrainingProcess.start(state.engine.model, state.prompts, [listening])
        state.run_training = None if training is None else training.run
        server = Server(state, functools.partial(ready, state))
        state.change_model = server.change_model if changes else None
        try:
            server.serve_on(listening.dup())
        finally:
            if training is not None:
                training.close()
        wanted = server.next_model
        if wanted is None:
            return
        del server, state  # frees the memory that the next model needs
        gc.unfreeze()
        gc.collect()
        name, state = _start_anew(start, wanted, name)


def _start_anew(
    start: Callable[[str | None], ServerState], wanted: str, previous: str | None
) -> tuple[str | None, ServerState]:
    """A state with the model that is wanted, or again the previous one where that fails."""
    try:
        return wanted, start(wanted)
    except (SoftloreError, MemoryError) as error:
        reason = str(error) or "the memory is too small"
    state = start(previous)
    state.notice = f"{wanted} could not be loaded: {reason}"
    common.say(state.notice)
    return previous, state


def _settings(given: dict[str, Any]) -> ServeSettings:
    settings = options.chosen(given)
    if (path := settings.pop("api_key_file", None)) is not None:
        settings["api_key"] = common.read_text(path, "--api-key-file").strip()
    if not settings.get("api_key"):
        settings.pop("api_key", None)
    return ServeSettings(**settings)


def _check_extra() -> None:
    """Checks that the packages of the extra exist, without importing them, which takes seconds."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def _check_engine(name: str, url: str | None, gguf: Path | None) -> None:
    if (name == "vllm") != (url is not None):
        raise ConfigError(
            f"--engine is {name} and --engine-url {url!r}; expected a URL with vllm and none with "
            "others; fix one of them"
        )
    check_gguf("--engine", name, gguf)


def _limits(settings: ServeSettings) -> dict[str, Any]:
    names = ("slots", "queue", "queue_seconds", "text_seconds")
    return {name: getattr(settings, name) for name in names}


def _engine(
    source: common.ModelSource,
    settings: ServeSettings,
    url: str | None,
    key: str | None,
) -> Engine:
    """This process as the engine, or the vLLM server at a URL."""
    model, limits = source.load(), _limits(settings)
    if url is not None:
        from softlore.serve.engines.vllm import VLLMEngine

        limits.pop("queue_seconds")
        return VLLMEngine(model, url, api_key=key, **limits)
    from softlore.decode import PrefixCache, TorchModelRunner
    from softlore.serve.engines.local import LocalEngine

    return LocalEngine(TorchModelRunner(model, PrefixCache(settings.keep_mb * MEGABYTE)), **limits)


def _gguf_engine(
    gguf: Path,
    model_name: str | None,
    context: int | None,
    cache: tuple[str, bool],
    cache_mb: int,
    settings: ServeSettings,
) -> Engine:
    from softlore.serve.engines.local import LocalEngine

    runner = gguf_runner(gguf, model_name, context, cache, settings.slots, cache_mb)
    return LocalEngine(runner, **_limits(settings) | {"slots": runner.n_sequences})


def _state(
    engine: Engine,
    settings: ServeSettings,
    book: Lorebook | None,
    book_file: Path | None,
    folder: Path | None,
    stories_folder: Path | None,
    books_folder: Path | None,
) -> ServerState:
    from softlore.prompts import PromptLibrary
    from softlore.serve.state import ServerState, default_books
    from softlore.story import StoryLibrary

    return ServerState(
        engine=engine,
        prompts=PromptLibrary(folder),
        stories=StoryLibrary(stories_folder),
        books=books_folder or default_books(),
        settings=settings,
        book=book,
        book_file=book_file,
    )


def _announce(url: str, state: ServerState, engine_url: str | None) -> None:
    """Prints the addresses of the page and the APIs."""
    settings, book = state.settings, state.book
    lines = {
        "studio": url,
        "KoboldAI API": f"{url}/api",
        "OpenAI API": f"{url}/v1",
        "model": repr(state.engine.model) + (f", run by {engine_url}" if engine_url else ""),
        "prompts": f"{len(state.prompts)} in {state.prompts.folder}",
        "stories": str(state.stories.folder),
        "lorebook": "none"
        if book is None
        else f"{book.name}, {common.counted(len(book), 'entry', 'entries')}",
        "pages that may call": ", ".join(settings.origins)
        or "none but its own (--origin lets others in)",
        "API key": "needed" if settings.api_key else "none: only this machine can call",
    }
    for name, value in lines.items():
        common.say(f"  {name:20} {value}")
    common.say("Ctrl-C stops it; texts under way may end")
