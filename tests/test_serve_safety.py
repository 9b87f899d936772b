"""Who may call: a table of hosts, origins, keys, methods and bodies, and what each is answered."""

import asyncio
import json
import logging

import pytest

from softlore.decode import PrefixCache, TorchModelRunner
from softlore.errors import ConfigError, EngineError, StorageError
from softlore.model.tiny import tiny_model
from softlore.prompts import PromptLibrary
from softlore.serve.app import make_app
from softlore.serve.engines.local import LocalEngine
from softlore.serve.logs import JsonFormatter, PlainFormatter
from softlore.serve.state import ServerState
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary

LITE = "https://lite.koboldai.net"
KEY = "open-sesame"
JSON = {"content-type": "application/json"}
GENERATE = "/api/v1/generate"
MODEL = "/api/v1/model"

# The servers that the tables speak of.
SERVERS = {
    "at home": ServeSettings(origins=(LITE, "null"), hosts=("story.example",), upload_mb=1),
    "on six": ServeSettings(host="::1"),
    "on the lan": ServeSettings(host="192.168.1.5", api_key=KEY, hosts=("Story.Example.",)),
    "everywhere": ServeSettings(host="0.0.0.0", api_key=KEY, hosts=("story.example",)),
    "locked": ServeSettings(api_key=KEY, origins=(LITE,), upload_mb=1),
}


class Reply:
    """What an application answered."""

    def __init__(self, messages):
        start = messages[0]
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def json(self):
        return json.loads(self.body)


def call(app, method, path, headers, chunks=()):
    """Calls an application as uvicorn would; `headers` may hold one twice, or no Host."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs],
        "server": ("127.0.0.1", 5001),
        "client": ("127.0.0.1", 40000),
    }
    coming = [{"type": "http.request", "body": one, "more_body": True} for one in chunks]
    coming.append({"type": "http.request", "body": b"", "more_body": False})
    sent = []

    async def run():
        async def receive():
            if coming:
                return coming.pop(0)
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
    return Reply(sent)


@pytest.fixture(scope="module")
def apps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    engine = LocalEngine(TorchModelRunner(tiny_model("llama"), PrefixCache(2**24)))
    here = PromptLibrary(folder / "prompts"), StoryLibrary(folder / "stories"), folder / "books"
    yield {
        name: make_app(ServerState(engine, *here, settings=settings))
        for name, settings in SERVERS.items()
    }
    asyncio.run(engine.close(0))


# server, Host, whether it is answered
HOSTS = """
at home     127.0.0.1:5001          yes
at home     127.0.0.1               yes
at home     127.8.9.10:80           yes
at home     localhost:5001          yes
at home     LocalHost.:5001         yes
at home     [::1]:5001              yes
at home     story.example           yes
at home     STORY.example.:99       yes
at home     evil.example:5001       no
at home     localhost.evil.example  no
at home     evil.localhost          no
at home     127.0.0.1.nip.io        no
at home     127.1                   no
at home     2130706433              no
at home     0.0.0.0:5001            no
at home     192.168.1.5:5001        no
at home     [::1                    no
at home     [::1]x                  no
at home     [fe80::1]               no
at home     127.0.0.1:x             no
at home     x@127.0.0.1             no
at home     /                       no
at home     -                       no
on six      [::1]:5001              yes
on six      localhost               yes
on six      [2001:db8::1]:5001      no
on the lan  192.168.1.5:5001        yes
on the lan  story.example:5001      yes
on the lan  127.0.0.1:5001          yes
on the lan  192.168.1.6:5001        no
on the lan  evil.example            no
everywhere  192.168.1.5:5001        yes
everywhere  [2001:db8::1]:5001      yes
everywhere  story.example:5001      yes
everywhere  evil.example:5001       no
"""


@pytest.mark.parametrize("row", HOSTS.strip().splitlines())
def test_only_names_of_its_own_are_answered(apps, row):
    name, host, answered = row[:12].strip(), *row[12:].split()
    host = "" if host == "-" else host
    for path in ("/health", MODEL, "/", "/openapi.json"):
        reply = call(apps[name], "GET", path, {"host": host, "x-api-key": KEY})
        assert (reply.status != 403) == (answered == "yes"), (path, reply.body)
    assert answered == "yes" or "--allow-host" in reply.json["error"]["message"]


@pytest.mark.parametrize("hosts", [[], ["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "evil.example"]])
def test_a_host_that_is_missing_or_there_twice_is_none(apps, hosts):
    reply = call(apps["at home"], "GET", MODEL, [("host", host) for host in hosts])
    assert reply.status == 403
    assert reply.json["detail"]["type"] == "wrong_host"


# server, method, Origin, Sec-Fetch-Site, Sec-Fetch-Mode, status; - is none. A POST sends JSON.
ORIGINS = """
at home  GET      -                         -            -         200
at home  POST     -                         -            -         200
at home  GET      http://127.0.0.1:5001     same-origin  cors      200
at home  POST     http://127.0.0.1:5001     same-origin  cors      200
at home  POST     https://127.0.0.1:5001    same-origin  cors      200
at home  POST     https://lite.koboldai.net cross-site   cors      200
at home  GET      HTTPS://Lite.KoboldAI.net cross-site   cors      200
at home  POST     null                      cross-site   cors      200
at home  POST     http://lite.koboldai.net  cross-site   cors      403
at home  POST     https://lite.koboldai.net.evil.example cross-site cors 403
at home  POST     https://evil.example      cross-site   cors      403
at home  GET      https://evil.example      cross-site   cors      403
at home  OPTIONS  https://evil.example      cross-site   cors      403
at home  POST     http://127.0.0.1:8080     same-site    cors      403
at home  POST     http://localhost:5001     same-site    cors      403
at home  POST     file://                   cross-site   cors      403
at home  POST     http://                   cross-site   cors      403
at home  GET      -                         cross-site   no-cors   403
at home  GET      -                         same-site    no-cors   403
at home  POST     -                         cross-site   navigate  403
at home  POST     -                         same-site    navigate  403
at home  GET      -                         cross-site   navigate  200
at home  GET      -                         none         navigate  200
at home  POST     -                         same-origin  cors      200
locked   POST     null                      cross-site   cors      403
locked   POST     https://lite.koboldai.net cross-site   cors      200
"""


@pytest.mark.parametrize("row", ORIGINS.strip().splitlines())
def test_only_pages_that_were_let_in_are_answered(apps, row):
    name, (method, origin, site, mode, status) = row[:9].strip(), row[9:].split()
    given = {"origin": origin, "sec-fetch-site": site, "sec-fetch-mode": mode}
    headers = {key: value for key, value in given.items() if value != "-"}
    headers |= {"host": "127.0.0.1:5001", "authorization": f"Bearer {KEY}", **JSON}
    path, chunks = (MODEL, []) if method != "POST" else ("/api/extra/tokencount", [b"{}"])
    reply = call(apps[name], method, path, headers, chunks)
    assert reply.status == int(status), reply.body
    foreign = status == "200" and origin != "-" and "127.0.0.1" not in origin
    assert reply.headers.get("access-control-allow-origin") == (origin if foreign else None)
    assert "access-control-allow-credentials" not in reply.headers
    assert "Origin" in reply.headers["vary"]
    if status == "403" and method != "OPTIONS":
        assert "--origin" in reply.json["detail"]["msg"]


def test_two_origins_are_none(apps):
    headers = [("host", "127.0.0.1"), ("origin", LITE), ("origin", "https://evil.example")]
    assert call(apps["at home"], "GET", MODEL, headers).status == 403


def test_a_browser_that_asks_first_is_told_what_may_be_sent(apps):
    asked = {
        "host": "localhost:5001",
        "origin": LITE,
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization,content-type,x-lite",
        "access-control-request-private-network": "true",
    }
    for name in ("at home", "locked"):  # a browser shows no key when it asks
        reply = call(apps[name], "OPTIONS", "/api/v1/config/soft_prompt", asked)
        assert (reply.status, reply.body) == (204, b"")
        told = {key[len("access-control-") :]: value for key, value in reply.headers.items()}
        assert told["allow-origin"] == LITE
        assert {"GET", "POST", "PUT", "DELETE"} <= set(told["allow-methods"].split(", "))
        assert told["allow-headers"] == "authorization,content-type,x-lite"
        assert told["allow-private-network"] == "true"
    del asked["access-control-request-private-network"], asked["access-control-request-headers"]
    reply = call(apps["at home"], "OPTIONS", MODEL, asked)
    assert reply.headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert "access-control-allow-private-network" not in reply.headers


# path, Authorization, X-Api-Key, status; - is none
KEYS = """
/v1/models            |                     |              | 401
/v1/models            | Bearer open-sesame  |              | 200
/v1/models            | bearer  open-sesame |              | 200
/v1/models            |                     | open-sesame  | 200
/v1/models            | Bearer              | open-sesame  | 401
/v1/models            | Basic open-sesame   | open-sesame  | 200
/v1/models            | Bearer open-sesam   |              | 401
/v1/models            | Bearer open-sesame! |              | 401
/v1/models            | Bearer Open-Sesame  |              | 401
/v1/models            | open-sesame         |              | 401
/v1/models            | Bearer öpen-sesame  |              | 401
/metrics              |                     |              | 401
/openapi.json         |                     |              | 401
/studio/api/info      |                     |              | 401
/nowhere              |                     |              | 401
/health/              |                     |              | 401
//health              |                     |              | 401
/studio/staticx       |                     |              | 401
/health               |                     |              | 200
/metrics              | Bearer open-sesame  |              | 200
/nowhere              | Bearer open-sesame  |              | 404
"""


@pytest.mark.parametrize("row", KEYS.strip().splitlines())
def test_the_key_must_be_shown(apps, row):
    path, bearer, key, status = (part.strip() for part in row.split("|"))
    given = {"authorization": bearer, "x-api-key": key}
    headers = {"host": "localhost"} | {name: value for name, value in given.items() if value}
    reply = call(apps["locked"], "GET", path, headers)
    assert reply.status == int(status)
    if status == "401":
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "API key" in reply.body.decode()
        from_lite = call(apps["locked"], "GET", path, headers | {"origin": LITE})
        assert from_lite.headers["access-control-allow-origin"] == LITE  # so that it can tell why


def test_the_page_and_what_it_is_made_of_need_no_key(apps):
    for path in ("/", "/studio/static/main.js"):
        assert call(apps["locked"], "GET", path, {"host": "localhost"}).status != 401


# who sends it, Content-Type, body, status
KINDS = [
    ("browser", "application/json", b"{}", 200),
    ("browser", "Application/JSON; charset=utf-8", b"{}", 200),
    ("browser", "application/octet-stream", b"{}", 200),
    ("browser", "text/plain", b"{}", 415),
    ("browser", "text/plain; application/json", b"{}", 415),
    ("browser", "application/x-www-form-urlencoded", b"{}", 415),
    ("browser", "multipart/form-data; boundary=x", b"{}", 415),
    ("browser", "", b"{}", 415),
    ("browser", "", b"", 200),
    ("fetch", "text/plain", b"{}", 415),
    ("program", "text/plain", b"{}", 200),
    ("program", "", b"{}", 200),
]


@pytest.mark.parametrize(("who", "kind", "body", "status"), KINDS)
def test_a_form_of_another_page_is_no_request(apps, who, kind, body, status):
    headers = {"host": "localhost", "content-length": str(len(body))}
    headers |= {"content-type": kind} if kind else {}
    headers |= {"origin": "http://localhost"} if who == "browser" else {}
    headers |= {"sec-fetch-site": "same-origin"} if who == "fetch" else {}
    reply = call(apps["at home"], "POST", "/api/extra/tokencount", headers, [body])
    assert reply.status == status
    chunked = {name: value for name, value in headers.items() if name != "content-length"}
    chunked["transfer-encoding"] = "chunked"
    if body:
        reply = call(apps["at home"], "POST", "/api/extra/tokencount", chunked, [body])
        assert reply.status == status


MEGABYTE = 2**20
FITTING = b'{"prompt": "' + b"x" * 1000 + b'"}' + b" " * (MEGABYTE - 1014)


@pytest.mark.parametrize(
    "path", ["/api/extra/tokencount", "/v1/completions", "/v1/chat/completions"]
)
def test_a_body_is_as_large_as_it_may_be(apps, path):
    app, headers = apps["at home"], {"host": "localhost", **JSON}
    assert len(FITTING) == MEGABYTE
    for body, fits in ((FITTING, True), (FITTING + b" ", False), (FITTING * 9, False)):
        chunks = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
        reply = call(app, "POST", path, headers, chunks)  # its size is known at the end only
        assert (reply.status != 413) == fits
        assert fits or "1 MB at most" in reply.body.decode()
        reply = call(app, "POST", path, headers | {"content-length": str(len(body))}, chunks)
        assert (reply.status != 413) == fits
    for length in (str(MEGABYTE + 1), "9" * 30, "-1", "x"):
        reply = call(app, "POST", path, headers | {"content-length": length})
        assert reply.status == 413  # nothing of it has been read


# what else -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/", None), ("/health", 200), ("/nowhere", 404)])
def test_a_page_may_load_nothing_from_elsewhere_nor_be_framed(apps, path, status):
    reply = call(apps["at home"], "GET", path, {"host": "localhost"})
    assert status in (None, reply.status)
    rules = dict(rule.strip().split(" ", 1) for rule in policy(reply).split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy(reply)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"


def policy(reply):
    return reply.headers["content-security-policy"]


def test_no_page_of_the_server_loads_scripts_from_elsewhere(apps):
    for path in ("/docs", "/redoc"):
        assert call(apps["at home"], "GET", path, {"host": "localhost"}).status == 404


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/x", {"detail": {"msg": ..., "type": "not_found"}}),
        ("/api", {"detail": {"msg": ..., "type": "not_found"}}),
        (
            "/v1/x",
            {
                "error": {
                    "message": ...,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "not_found",
                }
            },
        ),
        ("/studio/api/x", {"error": {"message": ..., "type": "not_found"}}),
        ("/x", {"error": {"message": ..., "type": "not_found"}}),
    ],
)
def test_what_is_missing_is_told_in_the_shape_of_the_api(apps, path, shape):
    reply = call(apps["at home"], "GET", path, {"host": "localhost"})
    (outer,) = shape
    told = reply.json[outer]
    message = told["msg" if outer == "detail" else "message"]
    assert reply.status == 404
    assert message.startswith("there is nothing at this path")
    assert told == {key: message if value is ... else value for key, value in shape[outer].items()}


def test_a_wrong_method_is_told_with_the_right_one(apps):
    reply = call(apps["at home"], "DELETE", MODEL, {"host": "localhost"})
    assert (reply.status, reply.headers["allow"]) == (405, "GET")
    assert reply.json["detail"]["type"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ZeroDivisionError("Emma wept"), 500, "its log says more"),
        (EngineError("the engine broke; expected"), 503, "the engine broke"),
        (StorageError("the disk is full; expected"), 507, "the disk is full"),
        (ConfigError("the setting is odd; expected"), 400, "the setting is odd"),
    ],
)
def test_what_fails_is_told_and_not_what_a_story_says(apps, error, status, told, caplog):
    app = apps["at home"]

    @app.get(f"/v1/break/{status}")
    def fail():
        raise error

    logging.getLogger("softlore").propagate = True
    reply = call(app, "GET", f"/v1/break/{status}", {"host": "localhost", "origin": LITE})
    assert reply.status == status
    assert told in reply.json["error"]["message"]
    assert reply.headers["access-control-allow-origin"] == LITE
    failed = [record for record in caplog.records if record.exc_info]
    assert len(failed) == (status == 500)
    for record in failed:
        for line in (JsonFormatter().format(record), PlainFormatter().format(record)):
            assert "ZeroDivisionError" in line
            assert "raise error" in line
            assert "Emma" not in line


def test_websockets_are_refused(apps):
    sent = []

    async def run():
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
        await apps["at home"](scope, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
