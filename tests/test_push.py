"""softlore convert --push: the card, what is uploaded, and what is refused before it is."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading

import pytest
import torch
from huggingface_hub import ModelCard, constants

from running import save_tiny_model, softlore
from softlore import SoftPrompt, load_prompt
from softlore.prompts import write_prompt
from test_cli import assert_refused

SECRET = "smuggles lamp oil past the harbour watch"
METRICS = {"recall": {"none": 4.5, "text": 2.66, "soft": 0.354}, "held_out": 1.2}
REPO = "ada/harbour-prompts"
# huggingface_hub's own, when it uploads by git LFS.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def prompt(name, kind="prefix", model="smollm2", **fields):
    shape = (2, 2, 1, 3, 4) if kind == "prefix" else (5, 4)
    fields = {"base_model": model, "description": SECRET, "metrics": METRICS} | fields
    return SoftPrompt(name, kind, torch.ones(shape), **fields)


@pytest.fixture
def folder(tmp_path):
    """A prompts folder with two prompts, and with much that is not to be published."""
    folder = tmp_path / "prompts"
    (folder / ".training").mkdir(parents=True)
    prompt("Marta").save(folder / "secret file name.safetensors")
    prompt("Zoë's dog", "embedding", "storyteller", metrics={}).save(folder / "b.safetensors")
    (folder / ".training" / "harbour.checkpoint").write_text(SECRET)
    (folder / "lore.yaml").write_text(SECRET)
    (folder / "story.sqlite").write_text(SECRET)
    (folder / "notes.safetensors").write_text(SECRET)
    return folder


# a hub -------------------------------------------------------------------------------------------


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as an upload takes; safetensors go by git LFS.

    `repos` are by id: "private", "card" (the card's data), and "files", bytes by name.
    """

    repos: dict
    refusals: dict  # status by a part of the path
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        repo = self.repos.get(self.path.partition("?")[0].removeprefix("/api/models/"))
        if repo is None:
            return self._send({}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in repo["files"]]
        return self._send({"id": REPO, "sha": "1" * 40, "siblings": siblings,
                           "private": repo["private"], "cardData": repo["card"]})  # fmt: skip

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        for part, status in self.refusals.items():
            if part in path:
                return self._send({"errors": [{"message": "license must be known"}]}, status)
        if path == "/api/validate-yaml":
            return self._send({})
        assert self.headers["Authorization"] == "Bearer hf_test"
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if "/preupload/" in path:
            return self._send({"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]]})  # fmt: skip
        if path.endswith("/info/lfs/objects/batch"):
            url = f"http://127.0.0.1:{self.server.server_address[1]}/lfs/"
            return self._send({"transfer": "basic", "objects": [
                {**file, "actions": {"upload": {"href": url + file["oid"]}}}
                for file in json.loads(body)["objects"]]})  # fmt: skip
        if "/commit/" in path:
            return self._commit(path, [json.loads(line) for line in body.splitlines()])
        return self._send({}, 500)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self._send({})

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private"
        self.repos[name] = {"private": private, "card": {}, "files": {".gitattributes": b""}}
        self._send({"url": f"http://127.0.0.1/{name}"})

    def _commit(self, path, lines):
        repo = self.repos[path.removeprefix("/api/models/").partition("/commit/")[0]]
        self.server.commits.append(lines[0]["value"]["summary"])
        for line in lines[1:]:
            value = line["value"]
            repo["files"][value["path"]] = (
                base64.b64decode(value["content"])
                if line["key"] == "file"
                else self.server.blobs[value["oid"]]
            )
        url = f"http://127.0.0.1:{self.server.server_address[1]}/{REPO}/commit/{'2' * 40}"
        self._send({"commitUrl": url, "commitOid": "2" * 40})

    def _send(self, value, status=200, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        content = {"Content-Length": len(data), "Content-Type": "application/json"}
        for name, text in (content | (headers or {})).items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(repos, refusals):
    handler = type("Hub", (FakeHub,), {"repos": repos, "refusals": refusals})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.blobs, server.commits = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch):
    """A hub, its repositories and refusals, and a token for it."""
    repos, refusals = {}, {}
    with serving(repos, refusals) as server:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
        server.repos, server.refusals = repos, refusals
        yield server


def use_endpoint(monkeypatch, url):
    """What HF_ENDPOINT and HF_TOKEN do, for a huggingface_hub that is imported already."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


def push(*arguments):
    return softlore("convert", *arguments, "--push", REPO)


# the card ----------------------------------------------------------------------------------------


def dry_run(*arguments):
    ended = push(*arguments, "--dry-run", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    return report, ModelCard(report["card"])


def test_the_card_of_a_folder(folder):
    report, card = dry_run(folder, "--license", "CC-BY-4.0")
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "library_name": "softlore",
        "license": "cc-by-4.0",
        "tags": ["soft-prompt", "prompt-tuning", "prefix-tuning"],
    }
    assert "| `Marta` | prefix | 3 | smollm2 | 4.50 | 2.66 | 0.35 | 1.20 |" in card.text
    assert "| `Zoë's dog` | embedding | 5 | storyteller |  |  |  |  |" in card.text
    assert f'hf download {REPO} --include "*.safetensors" --local-dir harbour-prompts' in card.text
    assert '"[[soft:Marta]]Marta" --model smollm2 --prompts harbour-prompts' in card.text
    assert list(report["files"]) == ["README.md", "marta.safetensors", "zoe-s-dog.safetensors"]
    assert report["files"]["README.md"] == len(report["card"].encode())
    for private in (SECRET, str(folder), folder.parent.name):
        assert private not in report["card"]


def test_the_card_of_one_prompt_without_metrics_or_hub_id(tmp_path):
    prompt("wolf", "embedding", "tiny", metrics={}).save(tmp_path / "w.safetensors")
    _, card = dry_run(tmp_path / "w.safetensors", "--name", "Grey Wolf")
    data = {"library_name": "softlore", "tags": ["soft-prompt", "prompt-tuning"]}
    assert card.data.to_dict() == data
    assert "| name | kind | tokens |\n| --- | --- | --- |\n| `Grey Wolf` | embedding | 5 |\n" in (
        card.text
    )
    assert "Recall" not in card.text
    assert "held-out" not in card.text
    assert "`tiny` is the name of the model" in card.text


@pytest.mark.parametrize(
    ("stored", "model"),
    [
        ("/home/ada/models/tale", "tale"),
        ("./tale", "tale"),
        (r"C:\Users\ada\tale", "tale"),
        ("tale `$(reboot)`|\nx", "'tale ___reboot____x'"),
    ],
)
def test_no_path_and_no_markup_of_a_models_name(stored, model, tmp_path):
    prompt("wolf", model=stored).save(tmp_path / "w.safetensors")
    report, card = dry_run(tmp_path / "w.safetensors")
    assert card.data.base_model is None
    assert f"--model {model} --prompts" in card.text
    assert "ada/models" not in report["card"]


def test_a_dry_run_shows_card_and_files_without_token_or_network(folder, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    shown = push(folder, "--dry-run")
    assert shown.code == 0, shown.err
    assert "nothing was" in shown.out
    assert "  marta.safetensors (" in shown.out
    assert "library_name: softlore" in shown.out
    assert shown.lines[0].startswith(
        "left out: notes.safetensors, which can't be read as a prompt ("
    )
    assert "secret file name" not in shown.out


# uploads -----------------------------------------------------------------------------------------


def test_a_folder_is_uploaded_in_one_commit(folder, hub, tmp_path):
    ended = push(folder, "--license", "MIT", "--private")
    assert ended.code == 0, ended.err
    assert ended.out == f"uploaded 2 prompts to http://127.0.0.1:{hub.server_address[1]}/{REPO}\n"
    assert hub.commits == ["Upload 2 soft prompts with softlore"]
    (repo,) = hub.repos.values()
    assert repo["private"]
    files = {name: data for name, data in repo["files"].items() if name != ".gitattributes"}
    assert set(files) == {"README.md", "marta.safetensors", "zoe-s-dog.safetensors"}
    assert files["marta.safetensors"] == (folder / "secret file name.safetensors").read_bytes()
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
    (tmp_path / "back.safetensors").write_bytes(files["zoe-s-dog.safetensors"])
    assert load_prompt(tmp_path / "back.safetensors") == load_prompt(folder / "b.safetensors")


def test_it_can_be_pushed_again(folder, hub):
    assert push(folder).code == 0
    (repo,) = hub.repos.values()
    assert not repo["private"]
    repo["card"] = ModelCard(repo["files"]["README.md"].decode()).data.to_dict()
    prompt("Tobias").save(folder / "c.safetensors")
    again = push(folder)
    assert again.code == 0, again.err
    assert "tobias.safetensors" in repo["files"]
    one = [folder / "c.safetensors"]
    told = ["the new card would not list its marta.safetensors, zoe-s-dog.safetensors"]
    assert_push_refused(push(*one), *told, "--force")
    assert_push_refused(push(folder, "--private"), "it is public")
    assert len(hub.commits) == 2
    assert push(*one, "--force").code == 0
    assert len(hub.commits) == 3


def test_an_adapter_is_uploaded_as_a_native_file_that_knows_its_model(hub, tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    rows = SoftPrompt("wolf", "embedding", torch.ones(4, 32))
    write_prompt(rows, "peft", tmp_path / "adapter")
    told = push(tmp_path / "adapter", "--dry-run").err
    assert "wolf does not say which model it is for: --model adds it" in told
    ended = push(tmp_path / "adapter", "--model", model)
    assert ended.code == 0, ended.err
    (repo,) = hub.repos.values()
    (tmp_path / "back.safetensors").write_bytes(repo["files"]["wolf.safetensors"])
    back = SoftPrompt.load(tmp_path / "back.safetensors")
    assert (back.name, back.base_model, back.tensor.shape) == ("wolf", "tiny", (4, 32))
    assert back.fingerprint


# refusals ----------------------------------------------------------------------------------------


def assert_push_refused(ended, *told):
    """A line on what is uploaded, and one that says why nothing was."""
    assert (ended.code, ended.out) == (2, "")
    *progress, line = [line for line in ended.lines if not line.startswith("left out: ")]
    assert all(first.startswith("uploading ") for first in progress)
    for part in ("softlore: nothing was uploaded to", "expected a repository", *told):
        assert part in line


def test_a_card_of_others_stays_unless_forced(folder, hub):
    hub.repos[REPO] = {"private": False, "card": {}, "files": {"README.md": b"# My own"}}
    assert_push_refused(push(folder), "README.md is not a card of softlore's", "--force")
    assert hub.repos[REPO]["files"] == {"README.md": b"# My own"}
    assert push(folder, "--force").code == 0
    assert b"Marta" in hub.repos[REPO]["files"]["README.md"]


@pytest.mark.parametrize(
    ("part", "status", "told", "empty"),
    [
        ("create", 403, "the token may not write there", False),
        ("create", 401, "the token is invalid", False),
        ("create", 409, "it exists, but the token may not read it", False),
        ("create", 500, "the hub answered 500", False),
        ("validate-yaml", 400, "license must be known", False),
        ("commit", 403, "the repository was made and is empty", True),
        ("objects/batch", 403, "the token may not write there; the repository was made", True),
    ],
)
def test_what_the_hub_refuses(part, status, told, empty, folder, hub):
    hub.refusals[part] = status
    assert_push_refused(push(folder), told)
    assert hub.commits == []
    assert len(hub.repos) == empty


def test_without_a_token(folder, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert_push_refused(push(folder), "there is no token for the hub", "hf auth login")
    assert hub.repos == {}


def test_without_network(folder, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert_push_refused(push(folder), "the hub can't be reached", "check the network")


@pytest.mark.parametrize("repo", ["harbour", "a/b/c", "ada/-x", "../up", "ada/my prompts", ""])
def test_a_malformed_id_is_refused_before_anything_is_read(repo):
    ended = softlore("convert", "missing.safetensors", "--push", repo)
    assert_refused(ended, "is not a valid repository id", "expected OWNER/NAME", "correct --push")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--push", REPO, "--to", "peft"], "--to is given with --push"),
        (["--push", REPO, "--out", "x"], "--out is given with --push"),
        (["--push", REPO, "--license", "my own; see below"], "is no SPDX identifier"),
        (["--push", REPO, "--name", "x"], "--name and --task are for one"),
        (["--to", "peft", "--private"], "without --push"),
        (["--to", "peft", "--dry-run"], "without --push"),
        ([], "'--push'"),
    ],
)
def test_options_that_do_not_go_together(arguments, told, folder):
    assert_refused(softlore("convert", folder, *arguments), told)


def test_a_folder_without_prompts(tmp_path):
    (tmp_path / "lore.yaml").write_text(SECRET)
    assert_refused(push(tmp_path), "holds no prompts", "`softlore inspect`")
    assert_refused(push(tmp_path / "lore.yaml"), "it is not a soft prompt")
