"""Hostile archives, arrays, JSON and paths: each is refused by its own error."""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import test_attacks
import test_prompts_malformed
from softlore import SoftPrompt, load_prompt
from softlore.errors import PromptFileError
from softlore.prompts import Reason as R
from test_attacks import refused

ROWS = np.arange(6, dtype="<f4")
META = b'{"name": "dog", "description": ""}'


def npy(header: str, body: bytes = ROWS.tobytes(), version: int = 1) -> bytes:
    raw = header.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + body


def array(descr: str = "'<f4'", order: str = "False", shape: str = "(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


TENSOR = npy(array())


@dataclass
class Member:
    """A member of an archive, and what the archive says of it where that is not so."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    packed: bytes | None = None
    said_size: int | None = None
    said_packed: int | None = None
    crc: int | None = None
    own_name: bytes | None = None
    start: int | None = None


def archive(*members: Member, count: int | None = None, comment: bytes = b"") -> bytes:
    body, directory = b"", b""
    for member in members:
        packed = member.data if member.packed is None else member.packed
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.said_size is None else member.said_size
        packed_size = len(packed) if member.said_packed is None else member.said_packed
        own = member.own_name or member.name
        start = len(body) if member.start is None else member.start
        fixed = struct.pack("<5H3L", 20, member.flags, member.method, 0, 33, crc, packed_size, size)
        body += b"PK\x03\x04" + fixed + struct.pack("<2H", len(own), 0) + own + packed
        directory += (
            b"PK\x01\x02\x14\0" + fixed + struct.pack("<5H2L", len(member.name), *[0] * 5, start)
        )
        directory += member.name
    number = len(members) if count is None else count
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, len(directory), len(body), len(comment)
    )
    return body + directory + end + comment


def kobold(tensor: bytes = TENSOR, meta: bytes = META) -> bytes:
    return archive(Member(b"tensor.npy", tensor), Member(b"meta.json", meta))


def zip_of(name: bytes = b"tensor.npy", data: bytes = TENSOR, **lies: object) -> bytes:
    return archive(Member(b"meta.json", META), Member(name, data, **lies))  # type: ignore[arg-type]


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def torch_zip(pickled: bytes, *others: Member) -> bytes:
    return archive(Member(b"a/data.pkl", pickled), *others)


GOOD = kobold()
ZEROS = bytes(64 * 1024 * 1024)
BOMB = deflated(ZEROS)
HUGE = npy(array(shape="(2, 3)"), bytes(24))
DATA_PKL = pickle.dumps({"tensor": 1, "step": 2}, protocol=2)
PROTO2 = b"\x80\x02"
CHECKPOINT = (
    PROTO2 + b"}" + test_attacks.text("tensor") + test_attacks.REBUILD + b"("
    + test_attacks.storage_id() + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89" + test_attacks.ORDERED
    + b")RtRs" + test_attacks.text("step") + b"K\x05s."
)  # fmt: skip
NUMBERS = Member(b"a/data/0", ROWS.tobytes())

# name: (the file, the reason, what the message says)
FILES: dict[str, tuple[bytes, R, str]] = {
    # archives
    "a zip that is cut": (GOOD[:-30], R.ZIP_DAMAGED, "no end record"),
    "a zip's end alone": (GOOD[-22:], R.ZIP_DAMAGED, "after the end record"),
    "an empty zip": (archive(), R.OTHER_FORMAT, "holds nothing"),
    "a zip with something after it": (GOOD + b"x", R.ZIP_DAMAGED, "single complete archive"),
    "a part of several": (
        GOOD[:-18] + b"\1\0" + GOOD[-16:], R.ZIP_DAMAGED, "single complete archive"
    ),
    "more members than listed": (
        archive(Member(b"meta.json", META), count=2), R.ZIP_DAMAGED, "breaks off"
    ),
    "thousands of members": (
        archive(*(Member(b"%d" % n, b"") for n in range(3000))), R.ZIP_MEMBERS, "3,000 members"
    ),
    "two members of a name": (
        archive(Member(b"tensor.npy", TENSOR), Member(b"tensor.npy", HUGE)),
        R.ZIP_NAME,
        "two members 'tensor.npy'",
    ),
    "a path upwards": (zip_of(b"../tensor.npy"), R.ZIP_NAME, "'../tensor.npy'"),
    "a path upwards, within": (zip_of(b"a/../../x"), R.ZIP_NAME, "plain name"),
    "a path from the root": (zip_of(b"/etc/passwd"), R.ZIP_NAME, "plain name"),
    "a path upwards in Windows": (zip_of(b"..\\x"), R.ZIP_NAME, "plain name"),
    "a path to a drive": (zip_of(b"C:\\x"), R.ZIP_NAME, "plain name"),
    "a null in a name": (zip_of(b"tensor.npy\0.txt"), R.ZIP_NAME, "plain name"),
    "no name": (zip_of(b""), R.ZIP_NAME, "plain name"),
    "another name": (zip_of(own_name=b"another.ny"), R.ZIP_NAME, "calls itself 'another.ny'"),
    "members that overlap": (
        archive(Member(b"meta.json", META), Member(b"tensor.npy", TENSOR, start=8)),
        R.ZIP_OVERLAP,
        "overlaps what follows",
    ),
    "all members in one place": (
        archive(*(Member(b"%d" % n, TENSOR, start=0) for n in range(9))), R.ZIP_OVERLAP, "overlaps"
    ),
    "a member in the directory": (
        archive(Member(b"tensor.npy", TENSOR, said_packed=10**6)), R.ZIP_OVERLAP, "overlaps"
    ),
    "a member that is elsewhere": (
        archive(Member(b"meta.json", META), Member(b"tensor.npy", TENSOR, start=50)),
        R.ZIP_OVERLAP,
        "overlaps",
    ),
    "an encrypted member": (zip_of(flags=1), R.ZIP_ENCRYPTED, "is encrypted"),
    "a strongly encrypted member": (zip_of(flags=0x41), R.ZIP_ENCRYPTED, "is encrypted"),
    "bzip2": (zip_of(method=12), R.ZIP_METHOD, "by method 12"),
    "an unknown method": (zip_of(method=99), R.ZIP_METHOD, "by method 99"),
    "another checksum": (zip_of(crc=0), R.ZIP_CHECKSUM, "expected 00000000"),
    "a size of 4 GiB": (zip_of(said_size=0xFFFFFFFF), R.TOO_LARGE, "ZIP64"),
    "a size of 3 GiB": (zip_of(said_size=3 * 2**30), R.TOO_LARGE, "3,221,225,472 bytes"),
    "a size that is too small": (zip_of(said_size=3), R.ZIP_DAMAGED, "unpacks to 94 bytes"),
    "a bomb": (
        zip_of(data=ZEROS, method=8, packed=BOMB), R.ZIP_BOMB, "to 67,108,864; expected at most 100"
    ),
    "a bomb that says it is small": (
        zip_of(data=ZEROS, method=8, packed=BOMB, said_size=1000), R.ZIP_BOMB, "more than the 1,000"
    ),
    "a bomb in meta.json": (
        archive(Member(b"tensor.npy", TENSOR), Member(b"meta.json", ZEROS, 8, packed=BOMB)),
        R.TOO_LARGE,
        "expected at most 1,048,576",
    ),
    "deflate that says it is larger": (
        zip_of(method=8, packed=deflated(TENSOR), said_size=999), R.ZIP_DAMAGED, "unpacks to 94"
    ),
    "deflate that is cut": (
        zip_of(method=8, packed=deflated(TENSOR)[:-4]), R.ZIP_DAMAGED, "does not end"
    ),
    "deflate that is none": (zip_of(method=8), R.ZIP_DAMAGED, "cannot be unpacked"),
    "deflate and something after it": (
        zip_of(method=8, packed=deflated(TENSOR) + b"x"), R.ZIP_DAMAGED, "does not end"
    ),
    "LZMA with a dictionary of 4 GiB": (
        zip_of(method=14, packed=b"\x09\x14\x05\0\x5d\xff\xff\xff\xff" + bytes(40)),
        R.ZIP_BOMB,
        "unpacks to more than the 94 bytes",
    ),
    "LZMA of odd properties": (
        zip_of(method=14, packed=b"\x09\x14\x05\0\xff" + bytes(40)), R.ZIP_DAMAGED, "properties"
    ),
    "an archive in an archive": (
        archive(Member(b"prompt.zip", GOOD)), R.OTHER_FORMAT, "holds 'prompt.zip'"
    ),
    "a tensor without its meta.json": (
        archive(Member(b"tensor.npy", TENSOR)), R.OTHER_FORMAT, "with meta.json"
    ),
    "meta.json is no JSON": (kobold(meta=b"{"), R.NOT_JSON, "meta.json is not JSON"),
    "meta.json is a list": (kobold(meta=b"[]"), R.METADATA_TYPE, "holds list"),
    "meta.json in another encoding": (kobold(meta=b"\xff\xfe"), R.NOT_UTF8, "byte 0"),
    "meta.json of half a character": (
        kobold(meta=b'{"description": "\\ud800"}'), R.METADATA_VALUE, "surrogate"
    ),
    "a description of half a megabyte": (
        kobold(meta=json.dumps({"description": "x" * 500_000}).encode()),
        R.METADATA_TOO_LARGE,
        "500,000 characters",
    ),
    # torch.save's archives
    "torch.save of no prompt": (torch_zip(DATA_PKL), R.BARE_TENSOR, "a dict of 2"),
    "torch.save of a call": (
        torch_zip(test_attacks.mkdir("canary")), R.PICKLE_GLOBAL, r"'os\.mkdir'"
    ),
    "torch.save without its numbers": (torch_zip(CHECKPOINT), R.TORCH_STORAGE, "'a/data/0'"),
    "torch.save with too few numbers": (
        torch_zip(CHECKPOINT, Member(b"a/data/0", b"12")), R.TORCH_STORAGE, "2 bytes"
    ),
    "torch.save by a big-endian machine": (
        torch_zip(CHECKPOINT, NUMBERS, Member(b"a/byteorder", b"big")), R.TORCH_STORAGE, "b'big'"
    ),
    "torch.save of two pickles": (
        torch_zip(CHECKPOINT, Member(b"b/data.pkl", CHECKPOINT)), R.OTHER_FORMAT, "one data.pkl"
    ),
    # arrays
    "an array of objects": (npy(array("'|O'")), R.DTYPE, "array of objects is a pickle"),
    "an array of doubles": (npy(array("'<f8'"), bytes(48)), R.DTYPE, "'<f8'; expected '<f4'"),
    "an array of big-endian floats": (npy(array("'>f4'")), R.DTYPE, "'>f4'"),
    "an array of records": (npy(array("[('a', '<f4')]")), R.NPY_HEADER, "as NumPy writes it"),
    "V2 of an odd size": (npy(array("'|V2'"), bytes(11)), R.DATA_LENGTH, "11 bytes"),
    "V3": (npy(array("'|V3'"), bytes(18)), R.DTYPE, "'|V3'"),
    "V2 that is NaN": (npy(array("'|V2'"), b"\xc0\x7f" * 6), R.NOT_FINITE, "6 of the"),
    "an expression": (
        npy(array(shape="(__import__('os').mkdir('canary'), 3)")), R.NPY_HEADER, "as NumPy writes"
    ),
    "a product": (npy(array(shape="(2 * 9**9**9, 3)")), R.NPY_HEADER, "as NumPy writes"),
    "10^9 rows": (npy(array(shape="(1000000000, 3)")), R.SHAPE, "1000000000 for n_tokens"),
    "a size of 40 digits": (npy(array(shape="(" + "9" * 40 + ", 3)")), R.NPY_HEADER, "as NumPy"),
    "a negative size": (npy(array(shape="(-2, -3)")), R.NPY_HEADER, "as NumPy writes it"),
    "2048 rows": (npy(array(shape="(2048, 1)"), bytes(8192)), R.SHAPE, "2048 for n_tokens"),
    "rows of 2 GiB": (npy(array(shape="(2047, 262144)")), R.SHAPE, "2,146,435,072 bytes"),
    "three axes": (npy(array(shape="(2, 1, 3)")), R.SHAPE, "3 axes; expected 2"),
    "one axis": (npy(array(shape="(6,)")), R.SHAPE, "1 axes; expected 2"),
    "no axes": (npy(array(shape="()")), R.SHAPE, "0 axes; expected 2"),
    "33 axes": (npy(array(shape="(" + "1, " * 33 + ")")), R.NPY_HEADER, "as NumPy writes it"),
    "numbers that are cut": (TENSOR[:-1], R.DATA_LENGTH, "23 bytes of numbers; expected 24"),
    "numbers too many": (TENSOR + b"x", R.DATA_LENGTH, "something after its end"),
    "a header of 4 GiB": (
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(40), R.NPY_HEADER, "4,294,967,295 bytes"
    ),
    "a header that is cut": (TENSOR[:30], R.NPY_HEADER, "expected at most 1,024, all within"),
    "version 9": (npy(array(), version=9), R.NPY_HEADER, "version 1, 2 or 3"),
    "NaN": (npy(array(), np.full(6, np.nan, "<f4").tobytes()), R.NOT_FINITE, "6 of the tensor's 6"),
    "an infinite half": (npy(array("'<f2'"), b"\0\x7c" * 6), R.NOT_FINITE, "6 of the tensor's 6"),
    # JSON
    "JSON a million deep": (b"[" * 10**6, R.TOO_LARGE, "1,000,000 brackets"),
    "JSON a million deep, closed": (b'{"a":' * 10**6 + b"}" * 10**6, R.TOO_LARGE, "brackets"),
    "JSON 100,000 deep": (b"[" * 10**5 + b"]" * 10**5, R.TOO_DEEP, "100000 deep"),
    "JSON of ten million lists": (
        b"[" + b"[]," * 10**7 + b"[]]", R.TOO_LARGE, "20,000,002 brackets, commas"
    ),
    "JSON of ten million strings": (b'""' * 10**7, R.TOO_LARGE, "20,000,000 brackets, commas"),
    "JSON that is cut": (b'{"metadata": {"name": "dog"}, ', R.NOT_JSON, "is not JSON"),
    "JSON in another encoding": (b'{"a": "\xff"}', R.NOT_UTF8, "byte 7"),
    "JSON of nothing": (b"{}", R.OTHER_FORMAT, "holds 0 mkultra soft prompts"),
    "a lorebook": (b'{"name": "x", "entries": []}', R.OTHER_FORMAT, "if it is a lorebook"),
    "a tensor twice": (b'{"tensor": "", "tensor": ""}', R.DUPLICATE_KEY, "'tensor' twice"),
    "two prompts": (b'[{"tensor": ""}, {"tensor": ""}]', R.SEVERAL_PROMPTS, "holds 2"),
    "a tensor that is no base64": (b'{"tensor": "#"}', R.BASE64, "is not base64"),
    "a tensor of half a character": (b'{"tensor": "\\ud800"}', R.BASE64, "is not base64"),
    "metadata that is a list": (
        json.dumps({"metadata": [], "tensor": ""}).encode(), R.METADATA_TYPE, "metadata is list"
    ),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", R.NOT_JSON, "is not JSON"),
    # safetensors
    "tensors that overlap": (
        test_prompts_malformed.built(header={"b": test_prompts_malformed.ENTRY}),
        R.OTHER_TENSORS,
        "expected exactly one",
    ),
    "safetensors of 10^9 rows": (
        test_prompts_malformed.entry(shape=[10**9, 3], data_offsets=[0, 12 * 10**9]),
        R.DATA_LENGTH,
        "24 bytes",
    ),
    "a bare safetensors file": (
        test_prompts_malformed.frame(
            json.dumps({"x": test_prompts_malformed.ENTRY}).encode()
        ),
        R.OTHER_TENSORS,
        "has the tensors 'x'.*bare tensors do not say",
    ),
    "a PEFT adapter without its folder": (
        test_prompts_malformed.frame(
            json.dumps({"prompt_embeddings": test_prompts_malformed.ENTRY}).encode()
        ),
        R.OTHER_TENSORS,
        "to a PEFT adapter: name its folder",
    ),
    # others
    "an empty file": (b"", R.TOO_SHORT, "the file is empty"),
    "a byte": (b"\x80", R.OTHER_FORMAT, "begins with"),
    "gzip": (b"\x1f\x8b" + bytes(60), R.OTHER_FORMAT, "gzip"),
    "a model of llama.cpp": (b"GGUF" + bytes(60), R.OTHER_FORMAT, "GGUF"),
    "a script": (b"#!/bin/sh\nmkdir canary\n" * 9, R.OTHER_FORMAT, "as no known format"),
}  # fmt: skip


@pytest.mark.parametrize("attack", FILES)
def test_a_hostile_file(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason, expected = FILES[attack]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dog"
    path.write_bytes(content)
    refused(path, reason, expected)
    assert not (tmp_path / "canary").exists()


def test_the_unchanged_files_are_good(tmp_path: Path) -> None:
    good = [
        GOOD,
        TENSOR,
        torch_zip(CHECKPOINT, NUMBERS),
        zip_of(method=8, packed=deflated(TENSOR)),
    ]
    good.append(archive(Member(b"tensor.npy", TENSOR), Member(b"meta.json", META), comment=b"hi"))
    good.append(npy(array(order="True")))
    for content in good:
        (tmp_path / "dog").write_bytes(content)
        assert load_prompt(tmp_path / "dog").embeddings.shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_tensor_is_refused(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.ones(2, 3, dtype=dtype), path, _use_new_zipfile_serialization=zipped)
    refused(path, R.BARE_TENSOR, r"a tensor of shape \[2, 3\]; expected an \.mtjsp.*numpy\.save")


def test_a_pickle_by_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, R.PICKLE_DAMAGED, "expected torch.save's magic number")


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    for head in (TENSOR, b'{"tensor": "', b"\x80\x02", GOOD):
        path = tmp_path / "large"
        path.write_bytes(head)
        os.truncate(path, 4 * 1024**3)  # takes no space
        with pytest.raises(PromptFileError) as caught:
            load_prompt(path)
        assert caught.value.reason in (R.TOO_LARGE, R.ZIP_DAMAGED)


def test_links_lead_to_files_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dog.zip").write_bytes(GOOD)
    links = {
        "good": tmp_path / "dog.zip",
        "loop": tmp_path / "loop",
        "nowhere": tmp_path / "none",
        "folder": tmp_path,
        "endless": Path("/dev/zero"),
    }
    try:
        for name, target in links.items():
            (tmp_path / name).symlink_to(target)
    except OSError:
        pytest.skip("links cannot be made here")
    assert load_prompt(tmp_path / "good").name == "dog"
    for name in ("loop", "nowhere", "folder", "endless"):
        if name != "endless" or links[name].exists():
            with pytest.raises((PromptFileError, OSError), match=name):
                load_prompt(tmp_path / name)


def test_a_folder_where_a_file_is_expected(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="it is a folder") as caught:
        load_prompt(tmp_path)
    assert caught.value.reason == R.NOT_A_FILE


def test_names_cannot_lead_anywhere(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "a\0b", "]]x[[", "\u0315\u0316" * 50_000, "", "…", 7, None):
        (tmp_path / "dog.zip").write_bytes(
            kobold(meta=json.dumps({"name": name}, ensure_ascii=False).encode())
        )
        prompt = load_prompt(tmp_path / "dog.zip")
        assert not set(prompt.name) & set("/\\\0[]")
        prompt.save(tmp_path / "saved.safetensors")
        assert SoftPrompt.load(tmp_path / "saved.safetensors") == prompt


def test_every_reason_is_tested() -> None:
    tested = {reason for _, reason, _ in FILES.values()}
    tested |= {reason for _, reason, _ in test_attacks.PICKLES.values()}
    tested |= {reason for _, reason, _ in test_attacks.WORKING.values()}
    tested |= {reason for _, reason, _ in test_prompts_malformed.MALFORMED.values()}
    here = {R.NOT_A_FILE, R.BARE_TENSOR}
    elsewhere = {R.MISSING, R.CHANGED, R.DUPLICATE_NAME, R.ADAPTER_TYPE, R.ADAPTER_CONFIG}
    assert tested | here | elsewhere == set(R)


def test_json_by_base64_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "dog.json"
    path.write_text(json.dumps({"tensor": base64.b64encode(b"not a pickle").decode()}))
    refused(path, R.PICKLE_OPCODE, "opcode")
