"""`softlore convert --push`: uploads a prompt, or a folder of them, to the Hugging Face hub."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softlore.cli import common, options
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.prompts import SoftPrompt
    from softlore.prompts.hub_push import HubUpload


class Push(NamedTuple):
    """What the options of `push_options` ask for."""

    repo_id: str
    private: bool
    licence: str | None
    dry_run: bool


class PushSource(NamedTuple):
    """The prompts to upload.

    Attributes:
        path: a file of any format, a PEFT adapter, or a folder of prompts.
        name: what to rename a single prompt to.
        task: which prompt of a multitask adapter.
        model: named where the prompts should carry its fingerprint.
    """

    path: Path
    name: str | None
    task: int | None
    model: common.ModelSource

    @property
    def is_library(self) -> bool:
        from softlore.prompts.formats import peft

        return self.path.is_dir() and not peft.is_adapter(self.path)

    def prompts(self) -> Iterator[SoftPrompt]:
        """The prompts, one at a time. Raises ConfigError, PromptError, StorageError."""
        model = self.model.load(brief=True) if self.model.name is not None else None
        for prompt in self._read():
            if model is not None:
                prompt = prompt if prompt.fingerprint else prompt.made_for(model)
                model.check_prompt(prompt)
            elif not prompt.base_model:
                common.say(f"{prompt.name} does not say which model it is for: --model adds it")
            yield prompt

    def _read(self) -> Iterator[SoftPrompt]:
        if self.is_library:
            yield from self._read_library()
            return
        from softlore.prompts import load_prompt

        prompt = load_prompt(self.path, self.task)
        if self.name is not None:
            prompt = prompt.replace(name=common.check_utf8(self.name, "--name"))
        yield prompt

    def _read_library(self) -> Iterator[SoftPrompt]:
        from softlore.prompts import PromptLibrary, SoftPrompt

        if self.name is not None or self.task is not None:
            raise ConfigError(
                f"{str(self.path)!r} is a folder of prompts, and --name and --task are for one; "
                "expected a file or an adapter's folder; leave them out"
            )
        listing = PromptLibrary(self.path).listing()
        for bad in listing.bad:
            common.say(f"left out: {bad.path.name}, which can't be read as a prompt ({bad.error})")
        if not listing.headers:
            raise ConfigError(
                f"the folder {str(self.path)!r} holds no prompts; expected softlore's "
                "*.safetensors; name the folder that `softlore inspect` shows, or convert the "
                "files first"
            )
        for header in listing.headers:
            yield SoftPrompt.load(header.path)


def push_options(function: options.Command) -> options.Command:
    """`--push` and its options, given to the command as `push`, a `Push`, or None."""

    @functools.wraps(function)
    def gathered(
        *args: Any,
        repo_id: str | None,
        private: bool,
        licence: str | None,
        dry_run: bool,
        **kwargs: Any,
    ) -> Any:
        if repo_id is None and (private or licence is not None or dry_run):
            raise ConfigError(
                "--private, --license and --dry-run are given without --push; expected "
                "--push OWNER/NAME with them; add it, or leave them out"
            )
        push = None if repo_id is None else Push(repo_id, private, licence, dry_run)
        return function(*args, push=push, **kwargs)

    command: Any = gathered
    for option in (
        click.option("--dry-run", is_flag=True,
                     help="push: show the card and the files, and upload nothing."),
        click.option("--license", "licence", metavar="SPDX",
                     help="push: the licence in the card, such as CC-BY-4.0.  [default: none]"),
        click.option("--private", is_flag=True, help="push: into a private repository."),
        click.option("--push", "repo_id", metavar="OWNER/NAME",
                     help="Upload FILE, or all prompts of a folder, to this repository of the "
                     "Hugging Face hub, such as ada/harbour-prompts, with a model card."),
    ):  # fmt: skip
        command = option(command)
    return command


def push_prompts(source: PushSource, push: Push, force: bool, json_path: str | None) -> None:
    """Uploads prompts with their card, or shows both, and reports it.

    Raises:
        SoftloreError: prompts that can't be read, or a hub that refuses.
    """
    from softlore.prompts import hub_push

    hub_push.check_repo_id(push.repo_id)
    with tempfile.TemporaryDirectory(prefix="softlore-push-") as folder:
        upload = hub_push.prepare_upload(source.prompts(), push.repo_id, Path(folder), push.licence)
        report: dict[str, Any] = {
                  "repo": push.repo_id, "private": push.private, "dry_run": push.dry_run,
                  "files": upload.sizes, "card": upload.card, "url": None}  # fmt: skip
        if not push.dry_run:
            report["url"] = _upload(upload, push.private, force)
    common.write_json(report, json_path)
    if json_path == "-":
        return
    if push.dry_run:
        _show(report)
    else:
        click.echo(f"uploaded {common.counted(len(upload.files), 'prompt')} to {report['url']}")


def _upload(upload: HubUpload, private: bool, force: bool) -> str:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from softlore.prompts import hub_push

    if not common.interactive():
        disable_progress_bars()
    size = sum(upload.sizes.values()) / 1024
    common.say(f"uploading {common.counted(len(upload.sizes), 'file')} ({size:.0f} KB) …")
    return hub_push.push(upload, private, force)


def _show(report: dict[str, Any]) -> None:
    click.echo(f"would be uploaded to {report['repo']} (nothing was):")
    for name, size in report["files"].items():
        click.echo(f"  {name} ({size / 1024:.0f} KB)")
    click.echo(f"\n{report['card']}", nl=False)
