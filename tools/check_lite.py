"""Drives KoboldAI Lite, unmodified, against `softlore serve` in a browser, and tells what failed.

    python tools/check_lite.py klite.embd

The page is Lite's one file, as koboldcpp carries it (`klite.embd`; the package aphrodite-engine
0.6.5 has version 167 in aphrodite/endpoints/kobold). It is served from an origin of its own. Tried
are: connect, write as it streams and whole, stop, retry, undo and redo, a grammar, World Info that
names a soft prompt, a chat. Printed is a table of what was requested of the server, with each
status, and of what the page complained of. Exit code 1 when anything failed. It needs Chromium and
playwright, and takes a minute or two.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from playwright.sync_api import Error, Page

from check_sillytavern import GRAMMAR, HEADINGS, Step, conclude, faults_of, new_page, served
from recording_proxy import Recorded, RecordingProxy, recording

NAME = "KoboldAI Lite"


class Session:
    """A writer at Lite's page."""

    def __init__(self, page: Page, proxy: RecordingProxy) -> None:
        self.page, self.proxy = page, proxy
        self.steps: list[Step] = []
        self._failed: list[str] = []
        page.on("pageerror", self._hear_error)
        page.on("dialog", lambda dialog: dialog.accept())

    def step(self, name: str, act: Callable[[], object]) -> None:
        """Does something, and keeps what came of it."""
        before = len(self.proxy.requests)
        self._failed.clear()
        step = Step(NAME, name)
        try:
            act()
            self.wait("!poll_in_progress && pending_response_id == ''")
        except (AssertionError, Error) as error:
            step.faults.append(str(error).split("Call log")[0].strip()[:300])
        step.requests = self.proxy.requests[before:]
        step.faults += faults_of(step.requests) + self._failed
        if box := self.page.query_selector("#msgboxcontainer:not(.hidden)"):
            step.faults.append(f"the page says: {box.inner_text()[:200]}")
            self.page.evaluate("hide_msgbox()")
        self.steps.append(step)
        print(step.row(), flush=True)

    def _hear_error(self, error: Error) -> None:
        if error.message != "signal is aborted without reason":  # Lite's own, of what it stops
            self._failed.append(f"page error: {error.message}")

    def wait(self, true: str) -> None:
        """Until an expression of the page's script is true."""
        self.page.wait_for_function(f"() => {true}")

    def text(self) -> str:
        """All of the story."""
        return str(self.page.evaluate("gametext_arr.join('')"))

    def change(self, **settings: object) -> None:
        """Changes settings, as their dialog does."""
        self.page.evaluate("(changed) => Object.assign(localsettings, changed)", settings)

    def generate(self, act: Callable[[], object]) -> list[Recorded]:
        """Does what begins a text, and waits for its end; the requests for it."""
        before = len(self.proxy.requests)
        act()
        self.wait("pending_response_id == '' && !poll_in_progress")
        requests = [r for r in self.proxy.requests[before:] if "generate" in r.path]
        texts = [r for r in requests if not r.path.endswith("check")]
        assert texts, "no text was requested"
        return texts

    def send(self, text: str) -> list[Recorded]:
        """Types a text and submits it."""
        self.page.fill("#input_text", text)
        before = len(self.text())
        texts = self.generate(lambda: self.page.click("#btnsend"))
        assert len(self.text()) > before + len(text), "nothing was written"
        return texts

    # The steps.

    def connect(self) -> None:
        self.wait("custom_kobold_endpoint != '' && perfdata != null")
        with contextlib.suppress(Error):  # the welcome, where there is one
            self.page.evaluate("hide_popups()")
        self.change(opmode=1, max_length=24, passed_ai_warning=True, multiline_replies=True)

    def stream(self) -> None:
        (request, *_) = self.send("Down the lane came a dog.")
        assert request.path.endswith("generate/stream"), request.path

    def whole(self) -> None:
        self.change(tokenstreammode=0)
        (request, *_) = self.send(" It was an old dog.")
        assert not request.path.endswith("stream"), request.path
        self.change(tokenstreammode=2)

    def stop(self) -> None:
        self.change(max_length=500)
        self.page.fill("#input_text", " Then the whole story was told:")
        self.page.click("#btnsend")
        self.wait("synchro_pending_stream.length > 10")
        self.page.evaluate("abort_generation()")
        self.change(max_length=24)
        assert any("abort" in request.path for request in self.proxy.requests), "no abort was sent"

    def again(self) -> None:
        self.send(" The lighthouse was dark.")
        first = self.text()
        self.generate(lambda: self.page.evaluate("btn_retry()"))
        assert self.text() != first, "there is no other text"
        self.page.evaluate("btn_back()")
        self.page.evaluate("btn_redo()")

    def grammar(self) -> None:
        self.change(grammar=GRAMMAR)
        before = self.text()
        self.send(" Was it far?")
        self.change(grammar="")
        written = self.text()[len(before) :].removeprefix(" Was it far?").strip()
        assert written in ("Yes.", "No."), f"the grammar does not hold: {written!r}"

    def world_info(self) -> None:
        self.page.evaluate("""() => current_wi.push({key: "Emma", keysecondary: "", keyanti: "",
            content: "[[soft:Emma]]", comment: "", folder: null, selective: false, constant: false,
            probability: 100, wigroup: "", widisabled: false})""")
        (request, *_) = self.send(" At the door stood Emma.")
        sent = str(request.body.get("memory", "")) + str(request.body.get("prompt"))
        assert "[[soft:Emma]]" in sent, "the entry was not sent"

    def chat(self) -> None:
        self.page.evaluate("restart_new_game()")
        self.change(opmode=3, chatname="User", chatopponent="Marta", gui_type_chat=0)
        self.send("Good evening. Who are you?")
        assert "Marta" in self.text(), "the other does not speak"


@contextlib.contextmanager
def another_origin(page: bytes) -> Iterator[str]:
    """Serves a page at every path, from an origin of its own; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("page", type=Path, help="Lite's file, such as klite.embd")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        origin = stack.enter_context(another_origin(options.page.read_bytes()))
        server = stack.enter_context(served(folder, "--origin", origin))
        proxy = stack.enter_context(recording(int(server.rpartition(":")[2])))
        page = stack.enter_context(new_page(1300, 900))
        session = Session(page, proxy)
        page.goto(f"{origin}/?host=127.0.0.1&port={proxy.port}")
        print(HEADINGS)
        session.step("connect", session.connect)
        session.step("write as it streams", session.stream)
        session.step("write whole", session.whole)
        session.step("stop", session.stop)
        session.step("retry, undo, redo", session.again)
        session.step("grammar", session.grammar)
        session.step("World Info", session.world_info)
        session.step("chat", session.chat)
    return conclude(session.steps, proxy)


if __name__ == "__main__":
    sys.exit(main())
