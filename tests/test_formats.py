"""Files of other programs: read as they are, written as those programs would, and round again."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from softlore import SoftPrompt, load_prompt
from softlore.errors import PromptError, PromptFileError
from softlore.prompts import Reason
from softlore.prompts.formats import kobold, mkultra
from softlore.prompts.formats.rows import import_name, time_of

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "prompts"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

rows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 8)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
names = st.text("abcXYZ éж09 -_.'", min_size=1, max_size=20).filter(
    lambda name: any(c.isalnum() for c in name) and name == name.strip() and "  " not in name
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


FOLDER = tempfile.TemporaryDirectory(prefix="softlore-formats-")


def put(name: str, content: bytes) -> Path:
    path = Path(tempfile.mkdtemp(dir=FOLDER.name)) / name
    path.write_bytes(content)
    return path


def saved(value: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def same_bits(prompt: SoftPrompt, tensor: torch.Tensor) -> bool:
    expected = tensor.detach().float().contiguous()
    return torch.equal(prompt.embeddings.view(torch.int32), expected.view(torch.int32))


def as_mkultra(tensor: torch.Tensor, **metadata: Any) -> bytes:
    pickled = base64.b64encode(pickle.dumps(tensor, protocol=4)).decode()
    return json.dumps({"metadata": metadata, "tensor": pickled}).encode()


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/prompts")
@pytest.mark.parametrize("name", ["iotest.json", "emma_gpt2.json"])
def test_mkultra_files_equal_an_independent_read(name: str) -> None:
    file = json.loads((SHARED / name).read_text())
    prompt = load_prompt(SHARED / name)
    assert prompt.name == file["metadata"]["name"]
    assert prompt.uuid == file["metadata"]["uuid"]
    assert prompt.description == file["metadata"]["description"]
    assert prompt.created.startswith("2021-06-")
    assert prompt.fingerprint == {}
    # The numbers stand behind their count, which stands behind the last inner pickle.
    count = prompt.embeddings.numel()
    data = base64.b64decode(file["tensor"])
    begin = data.index(struct.pack("<q", count)) + 8
    expected = struct.unpack_from(f"<{count}f", data, begin)
    assert prompt.embeddings.flatten().tolist() == list(expected)
    assert prompt.embeddings.shape[1] == 768


@given(rows, st.sampled_from(list(DTYPES)), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_mkultra_values(values: Any, dtype: str, batch: bool, nested: bool) -> None:
    tensor = torch.from_numpy(values).clamp(-60000, 60000).to(DTYPES[dtype])
    content = as_mkultra(tensor[None] if batch else tensor, name="dog", step=7, loss=0.5)
    if nested:
        content = json.dumps({"saved": content.decode(), "other": [1, "{"][:1]}).encode()
    prompt = load_prompt(put("x.json", content))
    assert same_bits(prompt, tensor)
    assert prompt.extra == {"mkultra.step": "7", "mkultra.loss": "0.5"}


@given(rows, names, texts, texts)
@settings(max_examples=40)
def test_kobold_and_mkultra_round_trips(values: Any, name: str, about: str, author: str) -> None:
    made = SoftPrompt(
        name=name,
        kind="embedding",
        tensor=torch.from_numpy(values),
        description=about,
        author=author,
        base_model="gpt2",
        created="2026-11-24T10:00:00Z",
    )
    path = Path(tempfile.mkdtemp(dir=FOLDER.name)) / "x"
    kobold.write(made, path)
    back = load_prompt(path)
    assert same_bits(back, made.tensor)
    assert (back.name, back.description, back.base_model) == (made.name, about, "gpt2")
    assert back.author == (author if author.strip() else "")
    mkultra.write(made, path)
    back = load_prompt(path)
    assert same_bits(back, made.tensor)
    fields = ("name", "description", "author", "uuid", "created")
    assert all(getattr(back, field) == getattr(made, field) for field in fields)
    mkultra.write(back.replace(name="again"), path)
    assert load_prompt(path).replace(name=made.name) == back


@given(rows, st.sampled_from(list(DTYPES)), st.booleans(), st.sampled_from("TPSC"))
@settings(max_examples=40)
def test_mtj_by_torch(values: Any, dtype: str, zipped: bool, layout: str) -> None:
    tensor = torch.from_numpy(values).clamp(-60000, 60000).to(DTYPES[dtype])
    shaped = {
        "T": tensor.T.contiguous().T,
        "P": torch.nn.Parameter(tensor),
        "S": torch.cat([tensor, tensor])[len(tensor) :],
        "C": tensor,
    }[layout]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    state = {"tensor": shaped, "opt_state": optimizer.state_dict(), "step": 4, "loss": 0.25}
    prompt = load_prompt(put("dog.mtjsp", saved(state, zipped)))
    assert same_bits(prompt, tensor)
    assert prompt.name == "dog"
    assert prompt.extra == {"mtj.step": "4", "mtj.loss": "0.25"}


@given(rows, st.sampled_from(["<f4", "<f2", "V2"]), st.booleans())
@settings(max_examples=40)
def test_arrays_in_each_packing(values: Any, dtype: str, fortran: bool) -> None:
    tensor = torch.from_numpy(values).clamp(-60000, 60000)
    if dtype == "V2":
        tensor = tensor.bfloat16()
        stored = tensor.view(torch.uint16).numpy().view("V2")
    else:
        stored = tensor.numpy().astype(dtype)
        tensor = torch.from_numpy(stored.astype(np.float32))
    stored = np.asfortranarray(stored) if fortran else stored
    array, npz, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, stored, allow_pickle=False)
    np.savez_compressed(npz, tensor=stored, opt_state=np.array([{}], dtype=object), step=3)
    with zipfile.ZipFile(packed, "w", compression=zipfile.ZIP_LZMA) as archive:
        archive.writestr("tensor.npy", array.getvalue())
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("meta.json", '{"name": "dog", "supported": ["a", "b"]}')
    for file in (array, npz, packed):
        assert same_bits(load_prompt(put("dog.any", file.getvalue())), tensor)


class Mine:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the optimizer's state was loaded",)


def test_the_optimizer_s_state_is_never_loaded() -> None:
    npz = io.BytesIO()
    state = np.array([Mine()], dtype=object)
    np.savez_compressed(npz, tensor=np.ones((2, 3), np.float32), opt_state=state, step=3)
    assert len(load_prompt(put("x.mtjsp", npz.getvalue()))) == 2


def test_kobold_s_archive_is_what_its_loader_checks(tmp_path: Path) -> None:
    made = SoftPrompt(name="dog", kind="embedding", tensor=torch.ones(2, 3))
    for path in (tmp_path / "a.zip", tmp_path / "b.zip"):
        kobold.write(made, path)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        meta = json.loads(archive.read("meta.json"))
        assert meta == {"name": "dog", "description": "", "supported": []}
        with archive.open("tensor.npy") as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        tensor = np.load(archive.open("tensor.npy"), allow_pickle=False)
    assert (version, shape, fortran, dtype) == ((1, 0), (2, 3), False, np.dtype("<f4"))
    assert tensor.shape[0] < 2048
    assert np.isfinite(tensor).all()


def test_mkultra_s_own_way_of_loading_takes_ours() -> None:
    made = SoftPrompt(name="dog", kind="embedding", tensor=torch.randn(2, 3), description="d")
    read = json.loads(mkultra.to_json(made))
    assert torch.equal(pickle.loads(base64.b64decode(read["tensor"])), made.tensor)
    assert {"name", "uuid", "description", "epoch"} == set(read["metadata"])


def test_a_prefix_has_no_place_there(tmp_path: Path) -> None:
    prefix = SoftPrompt(name="dog", kind="prefix", tensor=torch.ones(2, 2, 1, 3, 4))
    for module in (kobold, mkultra):
        with pytest.raises(PromptError, match="expected the embedding kind"):
            module.write(prefix, tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_a_native_key_that_is_no_json_is_kept(tmp_path: Path) -> None:
    extra = {"mkultra.note": "[" * 99, "mkultra.step": "7"}
    made = SoftPrompt(name="dog", kind="embedding", tensor=torch.ones(2, 3), extra=extra)
    metadata = json.loads(mkultra.to_json(made))["metadata"]
    assert (metadata["note"], metadata["step"]) == ("[" * 99, 7)


def test_what_metadata_becomes() -> None:
    cases: dict[str, tuple[Any, str]] = {
        "plain": ("Emma Violence", "Emma Violence"),
        "a path": ("../Emma/Violence", ".. Emma Violence"),
        "brackets": ("[[soft:x]]", "soft x"),
        "nothing": ("", "file"),
        "signs": ("!?", "file"),
        "a number": (7, "file"),
        "long": ("a" * 999, "a" * 128),
    }
    for given_name, expected in cases.values():
        content = as_mkultra(torch.ones(2, 3), name=given_name, epoch=True, description=None)
        prompt = load_prompt(put("file.json", content))
        assert prompt.name == expected
        assert prompt.created == ""
        assert prompt.extra["mkultra.epoch"] == "true"
        assert prompt.extra["mkultra.description"] == "null"
    assert import_name(None, "…") == "imported"
    assert time_of(0) == "1970-01-01T00:00:00Z"
    for never in (-1, 10**400, float("nan"), float("inf"), "0", None):
        assert time_of(never) == ""


def test_a_width_of_another_model_is_told(tmp_path: Path) -> None:
    from softlore.errors import PromptMismatchError
    from softlore.model.tiny import tiny_model

    model = tiny_model("gpt2")
    prompt = load_prompt(put("x.json", as_mkultra(torch.ones(2, model.width + 1), name="dog")))
    with pytest.raises(PromptMismatchError, match=r"has shape \(2, \d+\); expected \(2, \d+\)"):
        model.check_prompt(prompt)
    fits = load_prompt(put("x.json", as_mkultra(torch.ones(2, model.width), name="dog")))
    with pytest.raises(PromptMismatchError, match="carries no sketch"):
        model.check_prompt(fits)


def peak_of_reading(path: Path) -> tuple[str, int]:
    """What reading the file comes to, and the most memory (MB) that a process of its own takes."""
    code = (
        "import sys\nfrom softlore import load_prompt\n"
        "try: print(len(load_prompt(sys.argv[1])))\n"
        "except ValueError as error: print(error.reason)\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    came_to, _, kilobytes, _ = done.stdout.split()
    return came_to, int(kilobytes) // 1024


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")


@linux
def test_a_bomb_does_not_fill_the_memory(tmp_path: Path) -> None:
    packed = tmp_path / "bomb.zip"
    with zipfile.ZipFile(packed, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", "{}")
        with archive.open("tensor.npy", "w") as file:
            for _ in range(256):
                file.write(bytes(4 * 1024 * 1024))
    came_to, peak = peak_of_reading(packed)
    assert came_to == Reason.TOO_LARGE
    assert peak < 320  # Python and torch take 220


@linux
@pytest.mark.slow
@pytest.mark.parametrize("packing", ["npy", "kobold", "mkultra", "torch", "torch-legacy"])
def test_the_largest_files_stay_below_512_mb(packing: str, tmp_path: Path) -> None:
    tensor = torch.randn(2047, 4096 if packing == "mkultra" else 8192)
    path = tmp_path / "large"
    if packing == "npy":
        path = tmp_path / "large.npy"
        np.save(path, tensor.numpy())
    elif packing.startswith("torch"):
        state = {"tensor": tensor, "step": 1}
        torch.save(state, path, _use_new_zipfile_serialization=packing == "torch")
    else:
        prompt = SoftPrompt(name="dog", kind="embedding", tensor=tensor)
        {"kobold": kobold, "mkultra": mkultra}[packing].write(prompt, path)
    came_to, peak = peak_of_reading(path)
    assert came_to == "2047"
    assert peak < 512


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((2, 3)))
    with pytest.raises(PromptFileError, match=r"cannot read the prompt file .*x\.npy"):
        load_prompt(path)
