"""A page of another origin, as KoboldAI Lite is, in a real browser: calls what Lite calls.

Lite's own source is not at hand; the calls are those of its table of endpoints and fields.
"""

import contextlib
import functools
import http.server
import threading

import pytest

from browsing import launched, needs_browser
from serving import serving

pytestmark = needs_browser
PAGE = b"<!doctype html><meta charset=utf-8><title>a page of another origin</title>"
KEY = "a-key-of-the-house"
CALLS = """
async ([url, key]) => {
  const headers = {"Content-Type": "application/json", "Authorization": `Bearer ${key}`};
  const get = async (path) => (await fetch(url + path, {headers})).json();
  const post = async (path, body) =>
    (await fetch(url + path, {method: "POST", headers, body: JSON.stringify(body)}));
  const asked = {prompt: "The old house", max_length: 12, sampler_seed: 7, genkey: "KCPP1"};
  const told = {
    model: await get("/api/v1/model"),
    version: await get("/api/extra/version"),
    count: await (await post("/api/extra/tokencount", {prompt: "The old house"})).json(),
    whole: await (await post("/api/v1/generate", asked)).json(),
  };
  const streamed = async (body, enough) => {
    const reader = (await post("/api/extra/generate/stream", body)).body.getReader();
    const decoder = new TextDecoder();
    let lines = "", text = "", finish = null, events = 0;
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return {text, finish, events};
      lines += decoder.decode(value, {stream: true});
      for (let end; (end = lines.indexOf("\\n\\n")) >= 0; lines = lines.slice(end + 2)) {
        const [name, data] = lines.slice(0, end).split("\\n");
        if (name !== "event: message" || !data.startsWith("data: ")) throw new Error(lines);
        const event = JSON.parse(data.slice(6));
        text += event.token;
        finish = event.finish_reason;
        events += 1;
        if (events === enough) post("/api/extra/abort", {genkey: body.genkey});
      }
    }
  };
  told.stream = await streamed(asked, -1);
  told.check = await (await post("/api/extra/generate/check", {genkey: "KCPP1"})).json();
  told.aborted = await streamed({...asked, max_length: 400, genkey: "KCPP2"}, 3);
  return told;
}
"""


class Silent(http.server.BaseHTTPRequestHandler):
    """Answers every path with the same page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def another_site():
    """The origin of a page that is not the server's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


def test_a_page_that_was_let_in_writes_streams_aborts_and_counts(browser, tmp_path):
    with another_site() as friend, another_site() as stranger:
        options = ("--origin", friend, "--api-key", KEY)
        with serving(tmp_path, *options) as server:
            call = functools.partial(called, browser, server.url)
            told = call(friend)
            assert told["model"] == {"result": "storyteller"}
            assert told["version"]["result"] == "KoboldCpp"
            assert told["count"]["value"] == len(told["count"]["ids"]) > 0
            [result] = told["whole"]["results"]
            assert told["stream"]["text"] == result["text"] != ""
            assert told["stream"]["finish"] == result["finish_reason"] == "length"
            assert told["stream"]["events"] >= 3
            assert told["check"] == {"results": [{"text": ""}]}
            assert 3 <= told["aborted"]["events"] < 400
            with pytest.raises(Exception, match="Failed to fetch"):
                call(stranger)


def called(browser, url, origin):
    page = browser.new_page()
    try:
        page.goto(origin)
        return page.evaluate(CALLS, [url, KEY])
    finally:
        page.close()
