"""Seeds of the fuzzer, and how its inputs become prompt files, for each reader.

A reader within another (a pickle within base64 within JSON, an array within a zip with
checksums) is fuzzed by itself: its bytes are what changes, and are wrapped anew each time.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fuzz_checkpoints import checkpoint_file, checkpoints, read_checkpoint
from softlore import SoftPrompt
from softlore.lore import Lorebook, check
from softlore.lore.formats.containers import plain_picture, write_png, write_zip
from softlore.prompts import PromptFile, read_prompt
from softlore.prompts.formats import kobold, mkultra, peft
from softlore.prompts.formats.npy import to_npy
from softlore.prompts.formats.peft_config import parse_config
from softlore.story.files import parse_story
from softlore.story.turns import StoryDraft

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
ROWS = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def read_file(data: bytes) -> SoftPrompt:
    """Reads a file of any format from memory."""
    return read_prompt(PromptFile.of_bytes(data, Path("fuzz")))


def read_folder(data: bytes) -> SoftPrompt:
    """Reads a PEFT folder from memory: the configuration's length, it, and the tensor file."""
    length = int.from_bytes(data[:2], "little")
    config = parse_config(data[2 : 2 + length])
    file = PromptFile.of_bytes(data[2 + length :], Path("fuzz/tensors"))
    return peft.read_adapter_tensors(file, config)


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        seeds: makes the inputs to start from.
        wrap: makes a file of an input.
        read: reads what `wrap` made.
    """

    seeds: Callable[[], list[bytes]]
    wrap: Callable[[bytes], Any] = bytes
    read: Callable[[bytes], Any] = read_file


def read_lorebook(data: bytes) -> Lorebook:
    """Reads a lorebook of any format, checks it, and writes it as World Info."""
    book = Lorebook.from_bytes(data, "fuzz")
    check(book)
    book.to_format("sillytavern")
    return book


def read_draft(data: bytes) -> StoryDraft:
    """Reads a story of another program from memory."""
    return parse_story(data, Path("fuzz"))


def lorebooks() -> list[bytes]:
    """Lorebooks of each syntax, and of other programs."""
    entry = {"name": "Emma", "text": "Emma is a spy.", "keys": ["Emma", "/sp(y|ies)/i"]}
    foreign: list[Any] = [
        {"entries": [entry]},
        {"entries": {"0": {"key": ["gun"], "content": "A gun.", "order": 3, "position": 4}}},
        {"lorebookVersion": 6, "entries": [{"text": "A gun.", "keys": ["a & b"]}]},
        {"worldinfo": [{"key": "a, b", "content": "A gun.", "keyanti": "c"}]},
        {"kind": "memory", "entries": [{"entry": "A gun.", "keywords": ["g*"], "weight": 1}]},
        {"type": "risu", "data": [{"key": "a", "content": "@@depth 2\nA gun."}]},
        [{"keys": "gun", "value": "A gun.", "title": "Gun"}],
        [{"key": ["gun"], "content": "A gun.", "enabled": False, "insertion_order": 7}],
    ]
    yaml = b"name: a\nentries:\n- &a {name: A, text: x}\n- {<<: *a, name: B}\n"
    toml = b"name = 'a'\n[[entries]]\nname = 'A'\ntext = 'x'\n"
    return [yaml, toml, *(json.dumps(data).encode() for data in foreign)]


def cards() -> list[bytes]:
    """Characters with lorebooks, as JSON."""
    book = {"entries": [{"keys": ["gun"], "content": "A gun.", "extensions": {"depth": 2}}]}
    data = {"name": "Zoe", "description": "{{char}} is a spy.", "character_book": book}
    return [json.dumps({"spec": f"chara_card_v{n}", "data": data}).encode() for n in (2, 3)]


def pictures() -> list[bytes]:
    """Pictures with cards."""
    return [write_png(plain_picture(), {"chara": card}, "fuzz") for card in cards()]


def charx() -> list[bytes]:
    """Archives with cards, one behind a picture."""
    made = [write_zip(card, None, "fuzz") for card in cards()]
    return [*made, b"\xff\xd8\xff\xe0" + made[0]]


def stories() -> list[bytes]:
    """Saves of KoboldAI, Markdown and text."""
    save = {"prompt": "It rained.", "actions": [" It stopped."], "memory": "a", "worldinfo": []}
    markdown = b"---\nsoftlore-story: 1\nmemory: a\n---\n<!--writer-->It<!--model--> rained."
    return [json.dumps(save).encode(), markdown, b"It rained.\r\n"]


def _prompt() -> SoftPrompt:
    return SoftPrompt(
        name="dog",
        kind="embedding",
        tensor=ROWS,
        uuid="7f1c8c4a-3f4e-4c8e-9f55-000000000000",
        description="a dog",
        author="Ann",
        created="2021-06-09T15:07:05Z",
        base_model="gpt2",
    )


def _saved(write: Callable[[SoftPrompt, Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(_prompt(), Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def _tensors() -> list[torch.Tensor]:
    """Tensors of each dtype and layout that a file may have, and an unsupported one."""
    kinds = [ROWS, ROWS.half(), ROWS.bfloat16(), ROWS[None], ROWS.T, torch.zeros(9, 4)[3:7]]
    return [*kinds, torch.nn.Parameter(ROWS), ROWS.double()]


def native() -> list[bytes]:
    """The golden files, and one in the current format."""
    golden = [path.read_bytes() for path in sorted(GOLDEN.glob("*.safetensors"))]
    return [_saved(SoftPrompt.save), *(file for file in golden if len(file) <= 4096)]


def pickles() -> list[bytes]:
    """Pickled tensors."""
    return [pickle.dumps(tensor, protocol=4) for tensor in _tensors()]


def storages() -> list[bytes]:
    """The storages within those, in torch's older format."""
    return [_between(pickle.dumps(tensor, protocol=4))[1] for tensor in _tensors()[:3]]


def json_texts() -> list[bytes]:
    """JSON by mkultra, plain and within another."""
    plain = mkultra.to_json(_prompt())
    return [plain.encode(), json.dumps({"a": plain}).encode(), json.dumps(plain).encode()]


def arrays() -> list[bytes]:
    """NumPy's arrays of each dtype and order."""
    rows = ROWS.numpy()
    halves = rows.astype("<f2")
    raw = rows.view("<u4").__rshift__(16).astype("<u2").view("V2")
    kinds = [rows, halves, raw, np.asfortranarray(rows), rows.astype("<f8")]
    return [to_npy(rows), *(_npy(kind) for kind in kinds)]


def archives() -> list[bytes]:
    """Whole archives: KoboldAI's with each kind of packing, NumPy's, torch's."""
    files = [_saved(kobold.write)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression=method) as archive:
            archive.writestr("tensor.npy", to_npy(ROWS.numpy()))
            archive.writestr("meta.json", '{"name": "dog", "description": ""}')
        files.append(packed.getvalue())
    packed = io.BytesIO()
    state = np.array([{}], dtype=object)
    np.savez_compressed(packed, tensor=ROWS.numpy(), opt_state=state, step=3, loss=0.5)
    return [*files, packed.getvalue(), _torch_saved(_checkpoint(ROWS), True)]


def koboldai() -> list[bytes]:
    """The two members of KoboldAI's archive: the array's length, the array, the JSON."""
    metas = ['{"name": "dog", "author": "A", "supported": ["gpt2"], "description": ""}', "{}"]
    return [struct.pack("<H", len(a)) + a + m.encode() for a in arrays() for m in metas]


def torch_pickles() -> list[bytes]:
    """The two members of torch.save's archive: the pickle's length, the pickle, the numbers."""
    files = []
    for tensor in _tensors():
        saved = zipfile.ZipFile(io.BytesIO(_torch_saved(_checkpoint(tensor), True)))
        inner = saved.read("archive/data.pkl")
        files.append(struct.pack("<H", len(inner)) + inner + saved.read("archive/data/0"))
    return files


def torch_files() -> list[bytes]:
    """torch.save's older form."""
    return [_torch_saved(_checkpoint(tensor), False) for tensor in _tensors()]


def folders() -> list[bytes]:
    """PEFT's folders of each method, as softlore and as PEFT write them."""
    keys_values = torch.arange(24, dtype=torch.float32).reshape(2, 2, 1, 2, 3)
    prefix = SoftPrompt(name="dog", kind="prefix", tensor=keys_values, base_model="gpt2")
    files = []
    for prompt in (_prompt(), prefix):
        with tempfile.TemporaryDirectory() as folder:
            peft.write(prompt, Path(folder) / "x")
            config = (Path(folder) / "x" / peft.CONFIG).read_bytes()
            files.append((config, (Path(folder) / "x" / peft.TENSORS).read_bytes()))
    plain = safetensors.torch.save({peft.ROWS: ROWS}, {"format": "pt"})
    tasks = {
        peft.ROWS: ROWS,
        peft.TASK_COLS: torch.ones(1, 2, 1),
        peft.TASK_ROWS: ROWS[None, :1].clone(),
    }
    several = b'{"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 3}'
    files += [(files[0][0], plain), (several, safetensors.torch.save(tasks))]
    return [struct.pack("<H", len(config)) + config + tensors for config, tensors in files]


def _checkpoint(tensor: torch.Tensor) -> dict[str, Any]:
    state = {"state": {0: {"step": 3, "RMS": 0.5}}, "param_groups": [{"lr": None, "params": [0]}]}
    return {"tensor": tensor, "opt_state": state, "step": 3, "loss": 0.5}


def _torch_saved(value: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def in_json(data: bytes) -> bytes:
    """JSON as mkultra's around a pickle."""
    return b'{"metadata": {"name": "dog"}, "tensor": "%s"}' % base64.b64encode(data)


def in_pickle(data: bytes) -> bytes:
    """JSON as mkultra's around a pickled tensor around a storage."""
    return in_json(_HEAD + struct.pack("<I", len(data)) + data + _TAIL)


def in_archive(*names: str) -> Callable[[bytes], bytes]:
    """An archive of two stored members: the first one's length (2 bytes), it, and the rest."""

    def wrap(data: bytes) -> bytes:
        length = int.from_bytes(data[:2], "little")
        return stored({names[0]: data[2 : 2 + length], names[1]: data[2 + length :]})

    return wrap


def stored(members: dict[str, bytes]) -> bytes:
    """A zip archive without compression; far faster than `zipfile`, and small."""
    body, directory = b"", b""
    for name, data in members.items():
        shared = struct.pack(
            "<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0
        )
        directory += (
            b"PK\x01\x02\x14\0" + shared + bytes(10) + struct.pack("<L", len(body)) + name.encode()
        )
        body += b"PK\x03\x04" + shared + name.encode() + data
    count = len(members)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def _between(pickled: bytes) -> tuple[bytes, bytes, bytes]:
    """A pickled tensor's bytes before its storage, its storage, and those after it."""
    name = b"_load_from_bytes"
    place = pickled.index(name) + len(name) + 3  # behind the call of that function
    # Below 256 bytes the length is one byte: a storage names its address, which has a few digits
    # or many.
    size = 4 if pickled[place : place + 1] == b"B" else 1
    length = int.from_bytes(pickled[place + 1 : place + 1 + size], "little")
    # Without the frame (9 bytes from the third on), whose length would have to change.
    head = pickled[:2] + pickled[11:place] + b"B"
    place += 1 + size
    return head, pickled[place : place + length], pickled[place + length :]


_HEAD, _, _TAIL = _between(pickle.dumps(ROWS, protocol=4))

TARGETS: dict[str, Target] = {
    "native": Target(native),
    "mkultra": Target(json_texts),
    "mkultra-pickle": Target(pickles, in_json),
    "mkultra-storage": Target(storages, in_pickle),
    "kobold": Target(koboldai, in_archive("tensor.npy", "meta.json")),
    "zip": Target(archives),
    "npy": Target(arrays),
    "mtj-zip": Target(torch_pickles, in_archive("a/data.pkl", "a/data/0")),
    "mtj-legacy": Target(torch_files),
    "peft": Target(folders, read=read_folder),
    "lorebook": Target(lorebooks, read=read_lorebook),
    "card": Target(cards, read=read_lorebook),
    "picture": Target(pictures, read=read_lorebook),
    "charx": Target(charx, read=read_lorebook),
    "story": Target(stories, read=read_draft),
    "checkpoint": Target(checkpoints, checkpoint_file, read_checkpoint),
    "any": Target(lambda: [*native(), *json_texts(), *archives(), *arrays(), *torch_files()]),
}


def find_target(name: str) -> Target:
    """The target of a name; `mixed` is all of them: an input's first byte says which reads it."""
    if name != "mixed":
        return TARGETS[name]
    targets = list(TARGETS.values())

    def wrap(data: bytes) -> tuple[Target, Any]:
        target = targets[data[0] % len(targets) if data else 0]
        return target, target.wrap(data[1:])

    def seeds() -> list[bytes]:
        return [bytes([i]) + seed for i, target in enumerate(targets) for seed in target.seeds()]

    return Target(seeds, wrap, lambda wrapped: wrapped[0].read(wrapped[1]))
