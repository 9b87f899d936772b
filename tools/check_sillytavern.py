"""Drives SillyTavern, unmodified, against `softlore serve` in a browser, and tells what failed.

    npm pack sillytavern@1.19.0 && tar xf sillytavern-1.19.0.tgz
    (cd package && npm install --omit=dev)
    python tools/check_sillytavern.py package

For each kind of API that SillyTavern has for such a server: connect, write, stream, stop,
regenerate, swipe, continue, impersonate, token probabilities, a grammar, World Info that names a
soft prompt, and a group of two. Printed is a table of what was requested of the server, with each
status, and of what the page complained of. Exit code 1 when anything failed. It needs node,
Chromium and playwright, and takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Error, Page, Response, sync_playwright

from recording_proxy import Recorded, RecordingProxy, recording
from softlore import FrozenModel, SoftPrompt

SECONDS = 300  # for any one thing: generous, since the machine may be busy
TRIES = 5  # of what a text that ends early may spoil
PROMPTS = {"Emma": " a long red coat", "Tobias": " keeps the lighthouse"}
PROBABILITIES = "#logprobs_generation_output"
GRAMMAR = 'root ::= " Yes." | " No."'
SCHEMA = (
    '{"type": "object", "properties": {"mood": {"enum": ["calm", "wild"]}}, "required": ["mood"], '
    '"additionalProperties": false}'
)
HEADINGS = "| API | step | requests to softlore | result |\n|---|---|---|---|"
READY = "window.SillyTavern?.getContext().characters.length"
CHATS = """
async () => {
  const context = SillyTavern.getContext();
  const create = (path, body) => fetch(path, {
    method: "POST", headers: context.getRequestHeaders(), body: JSON.stringify(body)});
  for (const name of ["Marta", "Jonas"])
    await create("/api/characters/create", {
      ch_name: name, description: `${name} lives at the harbour.`, first_mes: "Good evening.",
      personality: "", scenario: "", mes_example: "", talkativeness: "0.5", tags: []});
  await create("/api/groups/create", {
    name: "Harbour", members: ["Marta.png", "Jonas.png"], allow_self_responses: true,
    activation_strategy: 1, generation_mode: 0, disabled_members: [], chat_metadata: {},
    fav: false, chat_id: "Harbour", chats: ["Harbour"], auto_mode_delay: 5});
  await create("/api/worldinfo/edit", {name: "Harbour", data: {entries: {0: {
    uid: 0, key: ["Emma"], keysecondary: [], comment: "Emma", content: "[[soft:Emma]]",
    constant: false, selective: true, selectiveLogic: 0, order: 100, position: 1, depth: 4,
    disable: false, probability: 100, useProbability: true}}}});
}
"""
WRITING = """
async () => {
  const {isGenerating, swipeState} = await import("/script.js");
  return isGenerating() || swipeState !== "none" || $("#mes_stop").is(":visible");
}
"""
HEAR = """
() => {
  const {eventSource, eventTypes: at} = SillyTavern.getContext();
  window.heard = {token: 0, ended: 0, toasts: []};
  eventSource.on(at.STREAM_TOKEN_RECEIVED, () => heard.token++);
  for (const kind of ["error", "warning"]) {
    const shown = toastr[kind];
    toastr[kind] = (...told) => (heard.toasts.push(`${kind}: ${told[0]}`), shown(...told));
  }
}
"""


@dataclass(frozen=True)
class Kind:
    """A kind of API that SillyTavern can call.

    Attributes:
        api: its name in SillyTavern's slash commands.
        path: what follows the server's address.
        streaming, length, grammar: ids of the page's fields.
        schema: the grammar field takes a JSON schema.
        probabilities: SillyTavern shows token probabilities of it: streamed, whole.
        tokenizer: who counts tokens for SillyTavern; `api_current` is the server.
    """

    name: str
    api: str
    path: str = ""
    streaming: str = "streaming_textgenerationwebui"
    length: str = "amount_gen"
    grammar: str = ""
    schema: bool = False
    probabilities: tuple[bool, ...] = (True, False)
    tokenizer: str = "api_current"


KINDS = [
    Kind("KoboldAI Classic", "kobold", "/api", "streaming_kobold", grammar="grammar",
         probabilities=(), tokenizer="best_match"),
    Kind("Text Completion, KoboldCpp", "koboldcpp", grammar="grammar_string_textgenerationwebui"),
    Kind("Text Completion, llama.cpp", "llamacpp", grammar="tabby_json_schema", schema=True),
    # SillyTavern 1.19 takes a grammar for these two, and does not send it.
    Kind("Text Completion, vLLM", "vllm"),
    Kind("Text Completion, generic", "generic", probabilities=(), tokenizer="best_match"),
    Kind("Chat Completion, custom", "custom", "/v1", "stream_toggle", "openai_max_tokens"),
]  # fmt: skip


@dataclass
class Step:
    """What was done, what the server was asked for it, and what went wrong."""

    kind: str
    name: str
    requests: list[Recorded] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def row(self) -> str:
        """A line of the table."""
        counted: dict[str, int] = {}
        for request in self.requests:
            counted[str(request)] = counted.get(str(request), 0) + 1
        asked = "; ".join(f"{text} ×{n}" if n > 1 else text for text, n in counted.items())
        told = "; ".join(self.faults).replace("|", "\\|").replace("\n", " ")
        return f"| {self.kind} | {self.name} | {asked} | {told or 'fine'} |"


class Session:
    """A writer at SillyTavern's page."""

    def __init__(self, page: Page, proxy: RecordingProxy, server: str) -> None:
        self.page = page
        self.proxy = proxy
        self.steps: list[Step] = []
        self._server = server
        self._failed: list[str] = []
        page.on("response", self._hear_response)
        page.on("pageerror", self._hear_error)

    def step(self, kind: Kind, name: str, act: Callable[[Kind], object]) -> Step:
        """Does something, and keeps what came of it."""
        before = len(self.proxy.requests)
        self._failed.clear()
        step = Step(kind.name, name)
        try:
            act(kind)
            self.wait(lambda: all(r.ended for r in self.proxy.requests), "a request has no end")
        except (AssertionError, TimeoutError, Error) as error:
            step.faults.append(str(error).split("Call log")[0].strip()[:300])
        step.requests = self.proxy.requests[before:]
        step.faults += faults_of(step.requests)
        step.faults += self._failed + self.page.evaluate("() => heard.toasts.splice(0)")
        self.steps.append(step)
        print(step.row(), flush=True)
        return step

    def wait(self, true: Callable[[], bool], why: str) -> None:
        """Until something is so."""
        end = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > end:
                raise TimeoutError(why)
            self.page.wait_for_timeout(50)

    def command(self, text: str) -> str:
        """What a slash command returns."""
        return str(self.page.evaluate(
            "async (text) => (await SillyTavern.getContext()"
            ".executeSlashCommandsWithOptions(text)).pipe", text))  # fmt: skip

    def enter(self, field: str, value: str | bool) -> None:
        """Changes a field of the settings, as a hand does, wherever it is on the page."""
        self.page.evaluate(
            """([id, value]) => {
              const field = $(`#${id}`);
              typeof value === "boolean" ? field.prop("checked", value) : field.val(value);
              field.trigger("input").trigger("change");
            }""", [field, value])  # fmt: skip

    def click(self, selector: str) -> None:
        """Clicks what is on the page, be it shown or in a menu."""
        self.page.evaluate("(selector) => $(selector).last().trigger('click')", selector)

    def writing(self) -> bool:
        """Whether SillyTavern is busy with a text, and would ignore a click for another."""
        return bool(self.page.evaluate(WRITING))

    def last(self) -> dict[str, Any]:
        """The newest message of the chat."""
        return dict(self.page.evaluate("() => SillyTavern.getContext().chat.at(-1)"))

    def generates(self, act: Callable[[], object], texts: int = 1) -> list[Recorded]:
        """Does what begins so many texts, and waits for their end; the requests for them."""
        before = len(self.proxy.requests)
        act()
        self.wait(lambda: len(_texts(self.proxy.requests[before:])) >= texts,
                  f"fewer than {texts} texts were requested")  # fmt: skip
        self.wait(lambda: not self.writing(), "the text does not end")
        return _texts(self.proxy.requests[before:])

    def send(self, text: str, texts: int = 1) -> list[Recorded]:
        """Sends a message, and waits for the replies."""
        sent = self.generates(lambda: self.click_send(text), texts)
        last = self.last()
        assert not last["is_user"], "there is no reply"
        assert last["mes"].strip(), "the reply is empty"
        return sent

    def click_send(self, text: str) -> None:
        """Writes into the field and clicks until SillyTavern takes it.

        It ignores clicks while it still does something about the last one, such as saving the chat.
        """
        self.page.fill("#send_textarea", text)

        def taken() -> bool:
            self.click("#send_but")
            return not self.page.input_value("#send_textarea")

        self.wait(taken, "what was sent stays in the field")

    def _hear_response(self, response: Response) -> None:
        if response.status >= 400:
            self._failed.append(f"page: {response.request.method} {urlsplit(response.url).path} "
                                f"{response.status}")  # fmt: skip

    def _hear_error(self, error: Error) -> None:
        if error.message != "Clicked stop button":  # SillyTavern's own reason of what it ends
            self._failed.append(f"page error: {error.message}")

    # The steps.

    def connect(self, kind: Kind) -> None:
        url = f"http://127.0.0.1:{self.proxy.port}{kind.path}"
        self.command(f"/api-url api={kind.api} connect=false {url}")
        self.command(f"/api quiet=true {kind.api}")
        online = "() => SillyTavern.getContext().onlineStatus"
        self.wait(lambda: self.page.evaluate(online) != "no_connection", "it does not connect")
        if kind.api == "custom":
            self.enter("custom_model_id", "storyteller")
        else:
            self.command(f"/tokenizer {kind.tokenizer}")
        self.command("/go Seraphina")
        self.click("#option_start_new_chat")
        self.page.click(".popup-button-ok:visible")
        self.wait(lambda: not self.page.is_visible(".popup-button-ok"), "the question stays")
        self.wait(lambda: len(self.page.query_selector_all("#chat .mes")) == 1, "no new chat")

    def write(self, kind: Kind) -> None:
        self.enter(kind.streaming, False)
        self.enter(kind.length, "24")
        self.send("Where did the boats go?")

    def stream(self, kind: Kind) -> None:
        self.enter(kind.streaming, True)
        self.page.evaluate("() => heard.token = 0")
        (request, *_) = self.send("And what is in the old house?")
        assert request.body.get("stream") or "stream" in request.path, "it was not streamed"
        assert self.page.evaluate("() => heard.token") > 1, "the page had no piece by piece"

    def stop(self, kind: Kind) -> None:
        self.enter(kind.length, "700")
        self.enter("ban_eos_token_textgenerationwebui", True)
        try:
            for streaming in (True, False):
                self.enter(kind.streaming, streaming)
                # One that came to its own end before the click, by a stop string, stopped nothing.
                stopped = any(self._stops(streaming) for _ in range(TRIES))
                assert stopped, f"{TRIES} texts ended before they could be stopped"
                self.wait(lambda: self._running() == 0, "the server writes on")
        finally:
            self.enter("ban_eos_token_textgenerationwebui", False)
            self.enter(kind.length, "24")

    def _stops(self, streaming: bool) -> bool:
        """Begins a text, and stops it; whether it had not ended by then."""
        before = len(self.proxy.requests)
        self.page.evaluate("() => heard.token = 0")

        def begun() -> bool:
            if streaming:
                return bool(self.page.evaluate("() => heard.token > 3"))
            return self._running() > 0

        def act() -> None:
            self.click_send("Tell me everything about it.")
            self.wait(lambda: begun() or self._ended(before), "nothing is written")
            self.click("#mes_stop")

        texts = self.generates(act)
        self.wait(lambda: all(r.ended for r in texts), "a request has no end")
        return any(r.gone for r in texts)

    def _ended(self, before: int) -> bool:
        """Whether a text was requested since then, and has ended."""
        texts = _texts(self.proxy.requests[before:])
        return bool(texts) and all(r.ended for r in texts) and not self.writing()

    def again(self, kind: Kind) -> None:
        self.enter(kind.streaming, True)
        self.send("Go on.")
        first = self.last()["mes"]
        self.generates(lambda: self.click("#option_regenerate"))
        assert self.last()["mes"].strip() not in ("", first.strip()), "there is no other text"
        self.generates(lambda: self.click("#chat .last_mes .swipe_right"))
        assert len(self.last()["swipes"]) >= 2, "there is no second swipe"

    def go_on(self, kind: Kind) -> None:
        begun = self.last()["mes"]
        self.generates(lambda: self.click("#option_continue"))
        assert self.last()["mes"].startswith(begun[:20]), "the text was not continued"
        self.generates(lambda: self.click("#option_impersonate"))
        assert self.page.input_value("#send_textarea").strip(), "nothing was written for the user"
        self.page.fill("#send_textarea", "")

    def probabilities(self, kind: Kind) -> None:
        self.enter("request_token_probabilities", True)
        if not self.page.is_visible(PROBABILITIES):
            self.click("#option_toggle_logprobs")
            self.page.wait_for_selector(PROBABILITIES)
        for streaming in kind.probabilities:
            self.enter(kind.streaming, streaming)
            (request, *_) = self.send("Is it far?")
            assert request.body.get("logprobs"), "SillyTavern did not ask for them"
            shown = f"{PROBABILITIES} .logprobs_output_token"
            kind_of = "streamed" if streaming else "whole"
            self.wait(lambda: len(self.page.query_selector_all(shown)) > 1,  # noqa: B023
                      f"no probabilities are shown of a {kind_of} text")  # fmt: skip
        self.enter("request_token_probabilities", False)

    def grammar(self, kind: Kind) -> None:
        self.enter(kind.grammar, SCHEMA if kind.schema else GRAMMAR)
        self.enter(kind.length, "200")  # as JSON has room for whitespace
        try:
            self.send("Yes or no?")
            text = self.last()["mes"].strip()
            allowed = r'\{\s*"mood"\s*:\s*"(calm|wild)"\s*\}' if kind.schema else r"Yes\.|No\."
            assert re.fullmatch(allowed, text), f"the grammar does not hold: {text!r}"
        finally:
            self.enter(kind.grammar, "{}" if kind.schema else "")
            self.enter(kind.length, "24")

    def world_info(self, kind: Kind) -> None:
        (request, *_) = self.send("Have you seen Emma?")
        sent = str(request.body.get("prompt") or request.body.get("messages"))
        assert "[[soft:Emma]]" in sent, "the entry was not sent"

    def group(self, kind: Kind) -> None:
        def opens() -> bool:
            self.command("/go Harbour")
            return bool(self.page.evaluate("() => SillyTavern.getContext().groupId"))

        self.wait(opens, "the group does not open")
        self.send("Who is at the door?", texts=2)

    def _running(self) -> int:
        load = httpx.get(f"{self._server}/health", timeout=SECONDS).json()["load"]
        return int(load["running"] + load["waiting"])


def _texts(requests: list[Recorded]) -> list[Recorded]:
    return [r for r in requests if re.search(r"generate(/stream)?$|completions?$", r.path)]


def faults_of(requests: list[Recorded]) -> list[str]:
    """The requests that failed, with what the server said."""
    return [f"{r}: {_told(r)}" for r in requests if r.status >= 300]


def _told(request: Recorded) -> str:
    return request.reply.partition(b"\r\n\r\n")[2].decode(errors="replace")[:300]


@contextlib.contextmanager
def process(command: list[str], url: str | None = None, **options: Any) -> Iterator[str]:
    """A server in a process of its own, until it says where it is; its address."""
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            end = time.monotonic() + SECONDS
            while True:
                log.seek(0)
                told = log.read()
                if running.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{command[0]} did not start:\n{told[-3000:]}")
                if found := re.search(r"(?:studio|Go to:) +(http://[\w.:]+\d)", told):
                    break
                time.sleep(0.1)
            yield found[1]
        finally:
            running.terminate()
            running.wait(60)


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """`softlore serve` on the storyteller, with two soft prompts, and with more options."""
    model = FrozenModel.from_pretrained("storyteller")
    (folder / "prompts").mkdir()
    for name, text in PROMPTS.items():
        SoftPrompt.from_text(text, model, name=name).save(folder / f"prompts/{name}.safetensors")
    command = [sys.executable, "-m", "softlore", "serve", "--port", "0", *options]
    for name in ("prompts", "stories", "lorebooks"):
        command += [f"--{name}", str(folder / name)]
    with process(command) as url:
        yield url


@contextlib.contextmanager
def new_page(width: int, height: int) -> Iterator[Page]:
    """A page of Chromium, which shows nothing on the screen."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])  # fmt: skip
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(SECONDS * 1000)
        yield page
        browser.close()


@contextlib.contextmanager
def tavern(source: Path, folder: Path) -> Iterator[str]:
    """SillyTavern, with settings and chats of its own in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["node", "server.js", "--dataRoot", str(folder / "data"), "--port", port]
    command += ["--configPath", str(folder / "config.yaml"), "--browserLaunchEnabled", "false"]
    with process(command, cwd=source, env={**os.environ, "NODE_ENV": "production"}) as url:
        yield url


def run(session: Session, kinds: list[Kind]) -> None:
    """All steps of each kind."""
    for kind in kinds:
        session.step(kind, "connect", session.connect)
        session.step(kind, "write", session.write)
        session.step(kind, "stream", session.stream)
        session.step(kind, "stop", session.stop)
        session.step(kind, "regenerate, swipe", session.again)
        session.step(kind, "continue, impersonate", session.go_on)
        if kind.probabilities:
            session.step(kind, "token probabilities", session.probabilities)
        if kind.grammar:
            session.step(kind, "grammar", session.grammar)
        session.step(kind, "World Info", session.world_info)
        session.step(kind, "group", session.group)


def conclude(steps: list[Step], proxy: RecordingProxy) -> int:
    """Prints how many steps failed; the exit code."""
    failed = [step for step in steps if step.faults]
    print(f"\n{len(steps)} steps, {len(proxy.requests)} requests; {len(failed)} failed")
    return 1 if failed else 0


def enter(session: Session, characters: int) -> None:
    """Waits for the page with so many characters; it asks for a name until it has saved one."""
    asked = ".popup:has(.onboarding) .popup-button-ok"

    def ready() -> bool:
        session.click(asked)
        return bool(session.page.evaluate(f"() => {READY} >= {characters}"))

    session.wait(ready, "the page does not load")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sillytavern", type=Path, help="its folder, with node_modules")
    parser.add_argument("--api", nargs="*", help="only these: " + ", ".join(k.api for k in KINDS))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(served(folder))
        proxy = stack.enter_context(recording(int(server.rpartition(":")[2])))
        url = stack.enter_context(tavern(options.sillytavern, folder))
        page = stack.enter_context(new_page(1500, 1000))
        session = Session(page, proxy, server)
        page.goto(url)
        enter(session, 1)
        page.evaluate(CHATS)
        page.reload()
        enter(session, 3)
        page.evaluate(HEAR)
        session.command("/world Harbour")
        print(HEADINGS)
        run(session, [kind for kind in KINDS if not options.api or kind.api in options.api])
    return conclude(session.steps, proxy)


if __name__ == "__main__":
    sys.exit(main())
