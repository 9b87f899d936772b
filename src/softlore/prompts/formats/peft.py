"""Adapter folders of Hugging Face's PEFT that hold a soft prompt, read and written.

A folder has `adapter_config.json` and `adapter_model.safetensors`. PEFT saves final rows, whatever
they were computed from, as the tensor `prompt_embeddings`: `[n_tokens, width]` for prompt tuning
and p-tuning, and `[n_tokens, 2 · layers · kv_heads · head_dim]` for prefix tuning and cartridges:
keys, then values, layer by layer. softlore's own metadata is stored in the safetensors metadata
under the key `softlore`, which PEFT ignores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from softlore.disk import atomic_folder, write_atomically
from softlore.errors import ConfigError
from softlore.prompts import native
from softlore.prompts.fields import check_shape
from softlore.prompts.formats.peft_config import NAME, AdapterConfig, config_of, parse_config
from softlore.prompts.formats.rows import import_name
from softlore.prompts.opening import PromptFile, open_prompt, parse_json
from softlore.prompts.reasons import Reason, as_file_error, refuse
from softlore.prompts.safetensors_file import (
    TENSOR,
    SafetensorsHeader,
    TensorEntry,
    check_finite,
    check_metadata,
    read_safetensors_header,
    read_tensors,
    write_tensor,
)
from softlore.prompts.soft_prompt import SoftPrompt

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROWS, TASK_COLS, TASK_ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
OWN_KEY = "softlore"  # of softlore's metadata
_MAX_CONFIG_BYTES = 256 * 1024


def matches(file: PromptFile) -> bool:
    """Whether it is a folder with an adapter's configuration or tensors in it."""
    return file.is_folder and is_adapter(file.path)


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter's configuration or tensors."""
    return any(os.path.lexists(folder / name) for name in (CONFIG, TENSORS))


def read(file: PromptFile) -> SoftPrompt:
    """Reads a PEFT adapter folder that holds a soft prompt; nothing is run or downloaded.

    `file.task` says which prompt of a multitask adapter; needed where it holds several.

    Raises PromptFileError, StorageError, and ConfigError for a task that does not exist.
    """
    folder = file.path
    with open_prompt(folder / CONFIG) as opened:
        config = parse_config(opened.read_all(_MAX_CONFIG_BYTES, "a PEFT configuration"))
    _check_not_pickled(folder)
    with open_prompt(folder / TENSORS) as opened:
        return read_adapter_tensors(opened, config, file.task)


def read_adapter_tensors(
    file: PromptFile, config: AdapterConfig, task: int | None = None
) -> SoftPrompt:
    """Reads an open tensor file that belongs to `config`. Raises PromptFileError, ConfigError."""
    folder = file.path.parent
    multitask = config.method == "MULTITASK_PROMPT_TUNING"
    names = (ROWS, TASK_COLS, TASK_ROWS) if multitask else (ROWS,)
    header = read_safetensors_header(file, names)
    shape = config.shape_of(header.tensors[ROWS].shape)
    with as_file_error(Reason.SHAPE):
        check_shape(config.kind, shape)
    if multitask:
        task = _choose_task(_count_tasks(header), task)
    elif task is not None:
        raise ConfigError(
            f"task is {task}, but {str(folder)!r} holds one prompt and no tasks; expected none; "
            "leave it out (--task)"
        )
    tensors = read_tensors(file.stream, header)
    tensor = tensors[ROWS]
    if multitask:
        tensor = tensor * (tensors[TASK_COLS][task] @ tensors[TASK_ROWS][task])
        check_finite(f"{ROWS} of task {task}", tensor)
    elif config.kind == "prefix":
        tensor = _unfold(tensor, shape)
    with as_file_error(Reason.METADATA_VALUE):
        return SoftPrompt(kind=config.kind, tensor=tensor, **_fields(header, shape, config, folder))


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes an adapter folder that PEFT loads: prompt tuning, or prefix tuning for a prefix.

    The folder is written atomically. Raises PromptError for metadata too long for a header,
    StorageError where the disk refuses or where the folder holds anything else.
    """
    config = json.dumps(config_of(prompt), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    metadata = json.dumps(prompt.metadata, ensure_ascii=False, sort_keys=True)
    flat = prompt.tensor
    if prompt.kind == "prefix":
        flat = flat.permute(3, 0, 1, 2, 4).reshape(len(prompt), -1)
    with atomic_folder(path) as folder:
        write_tensor(folder / TENSORS, flat, {"format": "pt", OWN_KEY: metadata}, ROWS)
        write_atomically(folder / CONFIG, config.encode())


def _unfold(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[n, 2 · layers · kv_heads · head_dim]` → `[layers, 2, kv_heads, n, head_dim]`."""
    layers, two, kv_heads, n, head_dim = shape
    return flat.view(n, layers, two, kv_heads, head_dim).permute(1, 2, 3, 0, 4)


def _check_not_pickled(folder: Path) -> None:
    if os.path.lexists(folder / PICKLE) and not os.path.lexists(folder / TENSORS):
        refuse(
            Reason.OTHER_FORMAT,
            f"the PEFT folder {str(folder)!r} holds {PICKLE}, a pickle, which could run code; "
            f"expected {TENSORS}; if you trust it, load it with PEFT and save it again: "
            "PeftModel.from_pretrained(model, folder).save_pretrained(folder)",
        )


def _count_tasks(header: SafetensorsHeader) -> int:
    """The number of prompts of a multitask adapter, once its three shapes fit each other."""
    rows, cols, task_rows = (header.tensors[name].shape for name in (ROWS, TASK_COLS, TASK_ROWS))
    tasks, rank = (cols[0], cols[2]) if len(cols) == 3 else (0, 0)
    if (
        not tasks
        or not rank
        or (cols, task_rows) != ((tasks, rows[0], rank), (tasks, rank, rows[1]))
    ):
        refuse(
            Reason.SHAPE,
            f"the tensors {TASK_COLS!r} and {TASK_ROWS!r} have shapes {list(cols)!s:.80} and "
            f"{list(task_rows)!s:.80}; expected [tasks, {rows[0]}, rank] and [tasks, rank, "
            f"{rows[1]}]; the folder is not as PEFT saved it: get it again",
        )
    return tasks


def _choose_task(tasks: int, task: int | None) -> int:
    """The task that was named, or the only one."""
    listed = ", ".join(map(str, range(min(tasks, 16)))) + (f" … {tasks - 1}" if tasks > 16 else "")
    if task is None and tasks > 1:
        refuse(
            Reason.SEVERAL_PROMPTS,
            f"the multitask adapter holds the prompts of {tasks} tasks: {listed}; expected "
            "the number of one; name it with load_prompt(…, task=0) (--task 0)",
        )
    if task is not None and not 0 <= task < tasks:
        raise ConfigError(
            f"task is {task}, but the multitask adapter holds the tasks {listed}; expected one of "
            "these; name one (--task)"
        )
    return task or 0


def _fields(
    stored: SafetensorsHeader, shape: tuple[int, ...], config: AdapterConfig, folder: Path
) -> dict[str, Any]:
    """The prompt's metadata: the fields that softlore stored, or the little that PEFT says."""
    text = (stored.metadata or {}).get(OWN_KEY)
    if text is None:
        return {
            "name": import_name(folder.resolve().name),
            "created": "",
            "library_version": "",
            "base_model": config.base_model,
            "training": {"method": "import", "format": NAME, "peft_type": config.method},
        }
    metadata = parse_json(text, f"metadata {OWN_KEY!r}", 1, Reason.METADATA_VALUE)
    check_metadata(metadata)
    entry, size = TensorEntry("F32", shape, 0, stored.data_bytes), stored.data_bytes
    header = native.check_header(folder, SafetensorsHeader(b"", {TENSOR: entry}, size, metadata))
    if header.kind != config.kind:
        refuse(
            Reason.METADATA_VALUE,
            f"metadata {OWN_KEY!r} names the {header.kind} kind, the configuration "
            f"{config.method}, which is the {config.kind} kind; expected them to agree; get the "
            "folder again",
        )
    return header.fields()
