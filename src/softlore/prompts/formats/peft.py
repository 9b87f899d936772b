"""Adapter folders of Hugging Face's PEFT that hold a soft prompt, read and written.

A folder has `adapter_config.json` and `adapter_model.safetensors`. PEFT saves finished rows,
whatever they were computed from, as the tensor `prompt_embeddings`: `[n_tokens, width]` for
prompt tuning and p-tuning, and `[n_tokens, 2 · layers · kv_heads · head_dim]` for prefix tuning
and cartridges, keys and values by turns, layer by layer. What softlore knows of a prompt besides
stands in the safetensors metadata under `softlore`, where PEFT does not look.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from softlore.disk import atomic_folder, write_atomically
from softlore.errors import ConfigError, PromptFileError
from softlore.prompts import native
from softlore.prompts.formats.imported import import_name
from softlore.prompts.formats.peft_config import NAME, AdapterConfig, config_of, parse_config
from softlore.prompts.header import TENSOR, RawHeader, TensorEntry, check_metadata, read_raw_header
from softlore.prompts.opening import blaming, read_all, reading
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import check_shape
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.prompts.strict_json import parse_json
from softlore.prompts.tensors import check_finite, read_tensors, write_tensor

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROWS, TASK_COLS, TASK_ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
OURS = "softlore"  # the key of our own metadata
_MAX_CONFIG_BYTES = 256 * 1024


def takes(path: Path, head: bytes) -> bool:
    """Whether it is a folder with an adapter's configuration or tensors in it."""
    return not head and any(os.path.lexists(path / name) for name in (CONFIG, TENSORS))


def read_adapter(path: str | os.PathLike[str], task: int | None = None) -> SoftPrompt:
    """Reads a PEFT adapter folder that holds a soft prompt; nothing in it is ever run or fetched.

    Args:
        task: which prompt of a multitask adapter, from 0; needed where it holds several.

    Raises PromptFileError, StorageError, and ConfigError for a task that is not there.
    """
    folder = Path(path)
    with reading(folder / CONFIG) as (file, size):
        config = parse_config(read_all(file, size, _MAX_CONFIG_BYTES, "a PEFT configuration"))
    _check_not_pickled(folder)
    with reading(folder / TENSORS) as (file, size):
        return parse_tensors(file, size, config, folder, task)


def parse_tensors(
    file: BinaryIO, size: int, config: AdapterConfig, folder: Path, task: int | None = None
) -> SoftPrompt:
    """Reads an open tensor file of `size` bytes that belongs to `config`.

    Raises PromptFileError and ConfigError.
    """
    multitask = config.method == "MULTITASK_PROMPT_TUNING"
    names = (ROWS, TASK_COLS, TASK_ROWS) if multitask else (ROWS,)
    raw = read_raw_header(file, size, names)
    shape = config.shape_of(raw.tensors[ROWS].shape)
    with blaming(Reason.SHAPE):
        check_shape(config.kind, shape)
    if multitask:
        task = _choose_task(_count_tasks(raw), task)
    elif task is not None:
        raise ConfigError(
            f"task is {task}, but {str(folder)!r} holds one prompt and no tasks; expected none; "
            "leave it out (--task)"
        )
    tensors = read_tensors(file, raw)
    tensor = tensors[ROWS]
    if multitask:
        tensor = tensor * (tensors[TASK_COLS][task] @ tensors[TASK_ROWS][task])
        check_finite(f"{ROWS} of task {task}", tensor)
    elif config.kind == "prefix":
        tensor = _unfold(tensor, shape)
    with blaming(Reason.METADATA_VALUE):
        return SoftPrompt(kind=config.kind, tensor=tensor, **_fields(raw, shape, config, folder))


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes an adapter folder that PEFT loads: prompt tuning, or prefix tuning for a prefix.

    It is written whole or not at all. Raises PromptError for metadata too long for a header,
    StorageError where the disk refuses or where the folder holds anything else.
    """
    config = json.dumps(config_of(prompt), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    ours = json.dumps(native.metadata_of(prompt), ensure_ascii=False, sort_keys=True)
    flat = prompt.tensor
    if prompt.kind == "prefix":
        flat = flat.permute(3, 0, 1, 2, 4).reshape(len(prompt), -1)
    with atomic_folder(path) as folder:
        write_tensor(folder / TENSORS, flat, {"format": "pt", OURS: ours}, ROWS)
        write_atomically(folder / CONFIG, config.encode())


def _unfold(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[n, 2 · layers · kv_heads · head_dim]` → `[layers, 2, kv_heads, n, head_dim]`."""
    layers, two, kv_heads, n, head_dim = shape
    return flat.view(n, layers, two, kv_heads, head_dim).permute(1, 2, 3, 0, 4)


def _check_not_pickled(folder: Path) -> None:
    if os.path.lexists(folder / PICKLE) and not os.path.lexists(folder / TENSORS):
        raise PromptFileError(
            f"the PEFT folder {str(folder)!r} holds {PICKLE}, a pickle, which could run code; "
            f"expected {TENSORS}; if you trust it, load it with PEFT and save it anew: "
            "PeftModel.from_pretrained(model, folder).save_pretrained(folder)",
            reason=Reason.OTHER_FORMAT,
        )


def _count_tasks(raw: RawHeader) -> int:
    """How many prompts a multitask adapter holds, once its three shapes fit one another."""
    rows, cols, task_rows = (raw.tensors[name].shape for name in (ROWS, TASK_COLS, TASK_ROWS))
    tasks, rank = (cols[0], cols[2]) if len(cols) == 3 else (0, 0)
    if (
        not tasks
        or not rank
        or (cols, task_rows) != ((tasks, rows[0], rank), (tasks, rank, rows[1]))
    ):
        raise PromptFileError(
            f"the tensors {TASK_COLS!r} and {TASK_ROWS!r} have shapes {list(cols)!s:.80} and "
            f"{list(task_rows)!s:.80}; expected [tasks, {rows[0]}, rank] and [tasks, rank, "
            f"{rows[1]}]; the folder is not as PEFT saved it: get it again",
            reason=Reason.SHAPE,
        )
    return tasks


def _choose_task(tasks: int, task: int | None) -> int:
    """The task to take: the one that was named, or the only one."""
    listed = ", ".join(map(str, range(min(tasks, 16)))) + (f" … {tasks - 1}" if tasks > 16 else "")
    if task is None and tasks > 1:
        raise PromptFileError(
            f"the multitask adapter holds the prompts of {tasks} tasks: {listed}; expected to be "
            "told which; name one with load_prompt(…, task=0) (--task 0)",
            reason=Reason.SEVERAL_PROMPTS,
        )
    if task is not None and not 0 <= task < tasks:
        raise ConfigError(
            f"task is {task}, but the multitask adapter holds the tasks {listed}; expected one of "
            "these; name one (--task)"
        )
    return task or 0


def _fields(
    raw: RawHeader, shape: tuple[int, ...], config: AdapterConfig, folder: Path
) -> dict[str, Any]:
    """The prompt's metadata fields: those that softlore left here, or the little PEFT says."""
    ours = (raw.metadata or {}).get(OURS)
    if ours is None:
        name = import_name(folder.resolve().name)
        return {
            "name": name,
            "created": "",
            "library_version": "",
            "base_model": config.base_model,
            "training": {"method": "import", "format": NAME, "peft_type": config.method},
        }
    metadata = parse_json(ours, f"metadata {OURS!r}", 1, Reason.METADATA_VALUE)
    check_metadata(metadata)
    entry = TensorEntry("F32", shape, 0, raw.data_bytes)
    header = native.prompt_header(folder, RawHeader(b"", {TENSOR: entry}, raw.data_bytes, metadata))
    if header.kind != config.kind:
        raise PromptFileError(
            f"metadata {OURS!r} speaks of the {header.kind} kind, the configuration of "
            f"{config.method}, which is the {config.kind} kind; expected them to agree; get the "
            "folder again",
            reason=Reason.METADATA_VALUE,
        )
    return header.fields()
