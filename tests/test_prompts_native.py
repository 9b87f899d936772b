"""The native file: golden bytes, round trips, and writes that fail or are killed."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlore import SoftPrompt, load_prompt
from softlore.disk import write_atomically
from softlore.errors import PromptError, StorageError
from softlore.prompts import Reason, is_name, read_header

GOLDEN = Path(__file__).parent / "golden"
PLACE = {"created": "2026-11-23T12:00:00Z", "library_version": "0.1.0", "base_model": "tiny"}
DOG = SoftPrompt(
    "dog",
    "embedding",
    torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.25, -0.125]]),
    fingerprint={"embeddings": {"rows": 8, "columns": 3}},
    uuid="00000000-0000-4000-8000-000000000001",
    description="Dog is a good boy",
    author="Zoë",
    licence="CC0-1.0",
    tokenizer_fingerprint="sha256:00",
    training={"seed": 0, "n_tokens": 2},
    metrics={"recall": 0.25},
    data_hash="sha256:11",
    extra={"x-mood": "merry"},
    **PLACE,  # type: ignore[arg-type]
)
EMMA = SoftPrompt(
    "Emma's house",
    "prefix",
    torch.tensor([[[[[1.0, 2.0], [3.0, 4.0]]], [[[-1.0, -2.0], [-3.0, -4.0]]]]]),
    uuid="00000000-0000-4000-8000-000000000002",
    **PLACE,  # type: ignore[arg-type]
)
DOG_HEADER = (
    rb'{"__metadata__":{"author":"Zo' + b"\xc3\xab" + rb'","base_model":"tiny",'
    rb'"convention":"inputs_embeds","created":"2026-11-23T12:00:00Z","data_hash":"sha256:11",'
    rb'"description":"Dog is a good boy",'
    rb'"fingerprint":"{\"embeddings\": {\"columns\": 3, \"rows\": 8}}",'
    rb'"format":"softlore","format_version":"1","kind":"embedding","library_version":"0.1.0",'
    rb'"licence":"CC0-1.0","metrics":"{\"recall\": 0.25}","name":"dog",'
    rb'"tokenizer_fingerprint":"sha256:00","training":"{\"n_tokens\": 2, \"seed\": 0}",'
    rb'"uuid":"00000000-0000-4000-8000-000000000001","x-mood":"merry"},'
    rb'"prompt":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
)
DOG_VALUES = bytes.fromhex("0000803f 000000c0 0000003f 00000000 00005040 000000be")
EMMA_VALUES = bytes.fromhex(
    "0000803f 00000040 00004040 00008040 000080bf 000000c0 000040c0 000080c0"
)


def test_golden_embedding_is_these_bytes() -> None:
    padded = DOG_HEADER + b" " * (-len(DOG_HEADER) % 8)
    literal = struct.pack("<Q", len(padded)) + padded + DOG_VALUES
    assert (GOLDEN / "prompt-v1-embedding.safetensors").read_bytes() == literal


def test_golden_prefix_ends_in_these_bytes() -> None:
    raw = (GOLDEN / "prompt-v1-prefix.safetensors").read_bytes()
    assert raw.endswith(EMMA_VALUES)
    header = json.loads(raw[8 : -len(EMMA_VALUES)])
    assert header["prompt"] == {"dtype": "F32", "shape": [1, 2, 1, 2, 2], "data_offsets": [0, 32]}
    assert header["__metadata__"]["convention"] == "past_key_values"


@pytest.mark.parametrize(("kind", "prompt"), [("embedding", DOG), ("prefix", EMMA)])
def test_golden_files_read_and_write_as_ever(kind: str, prompt: SoftPrompt, tmp_path: Path) -> None:
    golden = GOLDEN / f"prompt-v1-{kind}.safetensors"
    assert SoftPrompt.load(golden) == prompt == load_prompt(str(golden))
    assert safetensors.torch.load_file(golden)["prompt"].equal(prompt.tensor)
    prompt.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == golden.read_bytes()


def test_header_alone() -> None:
    header = read_header(GOLDEN / "prompt-v1-prefix.safetensors")
    assert (header.name, header.kind, header.n_tokens) == ("Emma's house", "prefix", 2)
    assert (header.dtype, header.shape, header.data_bytes) == ("F32", (1, 2, 1, 2, 2), 32)
    assert header.metadata["base_model"] == "tiny"
    assert header.fields()["training"] == {}


# Round trips

NAMES = st.text(max_size=40).filter(is_name)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.dictionaries(
    TEXTS,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
SHAPES = st.one_of(
    st.tuples(st.just("embedding"), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    st.tuples(
        st.just("prefix"),
        st.tuples(
            st.integers(1, 3), st.just(2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)
        ),
    ),
)


@st.composite
def prompts(draw: st.DrawFn) -> SoftPrompt:
    kind, shape = draw(SHAPES)
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    values = draw(hnp.arrays(np.float32, shape, elements=finite))
    texts = {key: draw(TEXTS) for key in ("description", "author", "licence", "base_model")}
    nested = {key: draw(JSON) for key in ("fingerprint", "training", "metrics")}
    extra = draw(st.dictionaries(TEXTS.map("x-{}".format), TEXTS, max_size=3))
    return SoftPrompt(draw(NAMES), kind, torch.from_numpy(values), extra=extra, **texts, **nested)


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_round_trip_is_bit_equal(prompt: SoftPrompt) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "1.safetensors"), Path(folder, "2.safetensors")
        prompt.save(first)
        loaded = SoftPrompt.load(first)
        assert loaded == prompt
        assert loaded.tensor.numpy().tobytes() == prompt.tensor.numpy().tobytes()
        loaded.save(second)
        assert second.read_bytes() == first.read_bytes()
        with safetensors.safe_open(first, "pt") as file:  # the library agrees
            assert file.keys() == ["prompt"]
            assert file.metadata()["name"] == prompt.name
            assert file.get_tensor("prompt").equal(prompt.tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    half = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    metadata = {
        "format": "softlore",
        "format_version": "1",
        "kind": "embedding",
        "convention": "inputs_embeds",
        "name": "dog",
    }
    safetensors.torch.save_file({"prompt": half}, path, metadata)
    loaded = SoftPrompt.load(path)
    assert loaded.tensor.equal(half.float())
    assert (loaded.uuid, loaded.created, loaded.training) == ("", "", {})


def test_metadata_too_long_for_a_header_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"' takes 1,0.* expected at most 1,048,576; shorten"):
        DOG.replace(description="x" * 1024 * 1024).save(tmp_path / "dog.safetensors")
    assert not list(tmp_path.iterdir())


# Writing


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"could not write .* make the folder first"):
        DOG.save(tmp_path / "none" / "dog.safetensors")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").mkdir()
    with pytest.raises(StorageError, match="it is a folder"):
        DOG.save(tmp_path / "dog.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dog.safetensors"
    DOG.save(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, fails, full)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            EMMA.save(path)
    assert SoftPrompt.load(path) == DOG
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupt(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "dog.safetensors").symlink_to(tmp_path / "precious")
    DOG.save(tmp_path / "dog.safetensors")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert SoftPrompt.load(tmp_path / "dog.safetensors") == DOG


def test_files_get_the_users_usual_permissions(tmp_path: Path) -> None:
    DOG.save(tmp_path / "dog.safetensors")
    (tmp_path / "plain").write_bytes(b"")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


QUOTA = """
import resource, sys, torch
from softlore import SoftPrompt
from softlore.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    SoftPrompt("dog", "embedding", torch.ones(64, 64)).save(sys.argv[1])
except StorageError as error:
    print("refused:", error)
"""

KILLS = """
import os, signal, sys, time, torch
from softlore import SoftPrompt
path, kills = sys.argv[1], 12
prompts = [SoftPrompt("dog", "embedding", torch.full((2000, 512), float(i))) for i in range(2)]
prompts[0].save(path)
for kill in range(kills):
    child = os.fork()
    while child == 0:
        for prompt in prompts:
            prompt.save(path)
    time.sleep(0.02 + 0.003 * kill)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tensor = SoftPrompt.load(path).tensor
    assert tensor.eq(tensor[0, 0]).all()
print("whole after", kills)
"""


@pytest.mark.skipif(os.name == "nt", reason="no file-size limit there")
def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    DOG.save(path)
    done = subprocess.run(
        [sys.executable, "-c", QUOTA, str(path)], capture_output=True, text=True, check=True
    )
    assert "refused: could not write" in done.stdout
    assert "File too large; the file is larger than allowed" in done.stdout
    assert SoftPrompt.load(path) == DOG
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no fork there")
def test_killed_while_writing_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "whole after 12\n"


def test_the_dump_in_the_documentation_is_of_the_golden_file() -> None:
    page = (GOLDEN.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    dump = bytearray()
    for line in page.splitlines():
        offset, colon, rest = line.partition(": ")
        if colon and len(offset) == 8 and all(digit in "0123456789abcdef" for digit in offset):
            assert int(offset, 16) == len(dump)
            dump += bytes.fromhex(rest[:48])
    assert bytes(dump) == (GOLDEN / "prompt-v1-embedding.safetensors").read_bytes()


def test_the_documentation_names_every_reason() -> None:
    page = (GOLDEN.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    missing = [reason for reason in Reason if f"`{reason}`" not in page]
    assert missing == [Reason.DUPLICATE_NAME]  # of a folder, not of a file
