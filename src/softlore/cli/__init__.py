"""The command line: a click group of lazily imported commands; errors become exit codes.

A command is a module of this folder with a click command named `command`; it is imported only
when it is called, so that `softlore --help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

import click

from softlore import __version__
from softlore.errors import SoftloreError, StorageError

# name -> what it does (shown by --help without importing the command)
COMMANDS = {
    "demo": "Train a small lorebook and show what it does to a story.",
    "train": "Turn a lorebook into soft prompts.",
    "sweep": "Find the best training settings for a lorebook.",
    "write": "Continue a text, which may hold [[soft:NAME]].",
    "story": "Write a story turn by turn; lore is activated when it is mentioned.",
    "serve": "Serve KoboldAI and OpenAI clients, and a studio in the browser.",
    "learn": "Continue training prompts on accepted lines of a story.",
    "chain": "Continue each of many items, each after the last output.",
    "inspect": "Show a prompt file, or all prompts in a folder.",
    "convert": "Convert a soft prompt to or from another program's format.",
    "models": "List models by name, get one, and choose the default.",
    "codes": "List the control codes of a model.",
    "attribute": "Find the control code under which a text is the likeliest.",
    "vector": "Train, show and convert control vectors.",
    "hard": "Distil, search and test plain-text prompts.",
    "lore": "Import, show and export lorebooks; suggest entries from a story.",
    "compare": "Compare text, control codes and soft prompts on the same lore.",
    "evaluate": "Measure recall, drift, copy and fidelity of trained prompts.",
}
INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"softlore.cli.{name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Abort("stopped") from None
        except BrokenPipeError:  # the reader of the pipe has ended, as with `| head`
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="softlore")
def commands() -> None:
    """Lore as soft prompts: a frozen language model that knows your characters and places.

    \b
    Example:
      softlore demo
      softlore train lore.yaml
      softlore write "Down the lane came [[soft:Emma]]Emma, who wore"
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and ends the program with its exit code.

    0 done, 1 a check or training failed, 2 bad usage or input, 130 stopped.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Read when torch is imported. Threads that wait spin a moment only, as other programs may run:
    # torch's default spins for milliseconds, and beside a busy program is a third as fast.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = commands.main(arguments, prog_name="softlore", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt) as stop:
        _print_error(str(stop) or "stopped")
        sys.exit(INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f" (see {where.command_path} --help)" if where is not None else ""
        _print_error(error.format_message().rstrip(".") + hint)
        sys.exit(2)
    except SoftloreError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _print_error(
            "there is not enough memory; expected room for the model and a few texts; close other "
            "programs, or use a smaller model, a smaller --dtype or shorter texts"
        )
        sys.exit(1)
    except OSError as error:
        _print_error(
            f"{error.strerror or error}: {error.filename or 'the disk'}; fix it and run again"
        )
        sys.exit(StorageError.exit_code)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch or Python has run out of memory."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _print_error(message: str) -> None:
    """Prints a message as one line on standard error."""
    click.echo("softlore: " + " ".join(message.split()), err=True)
