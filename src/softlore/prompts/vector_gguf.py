"""Control vectors as GGUF files, as llama.cpp's `--control-vector` and repeng have them.

    general.architecture       "controlvector"
    controlvector.model_hint   the model's architecture, as llama.cpp names it; may be empty
    controlvector.layer_count  of the directions
    direction.N                float32 [width], added to the output of layer N, counted from 0

llama.cpp adds nothing to layer 0, and takes a file that has a direction for it as invalid. Source:
llama.cpp's `common_control_vector_load` and `llama_adapter_cvec`, repeng's `export_gguf`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from softlore.disk import write_atomically
from softlore.errors import ConfigError, ModelError, PromptError
from softlore.model.gguf.header import GGUFTensor, Header, read_header
from softlore.prompts.control_vector import MAX_LAYERS, MAX_WIDTH, ControlVector
from softlore.prompts.reasons import Reason, as_file_error, refuse

ARCHITECTURE = "controlvector"
HINT = "controlvector.model_hint"
COUNT = "controlvector.layer_count"
FLOAT32 = 0  # ggml's number of the type
_DIRECTION = re.compile(r"direction\.(\d{1,4})")


def load_vector_gguf(path: str | os.PathLike[str], layers: int | None = None) -> ControlVector:
    """Reads a control vector of llama.cpp or repeng.

    Args:
        layers: of the model; by default one more than the highest that the file has. (The file does
            not say how many layers follow.)

    Raises:
        PromptFileError: it is no such file, or is damaged.
    """
    try:
        header = read_header(path)
    except ModelError as error:
        refuse(Reason.OTHER_FORMAT, str(error))
    if header.architecture != ARCHITECTURE:
        refuse(
            Reason.OTHER_FORMAT,
            f"the GGUF file {str(path)!r} holds {header.architecture!r:.40}; expected "
            f"{ARCHITECTURE!r}; give a control vector (a model is loaded with --model)",
        )
    directions = {_layer(tensor): tensor for tensor in header.tensors}
    width = _common_width(header)
    total = max(layers or 0, max(directions) + 1)
    with as_file_error(Reason.SHAPE):
        if layers is not None and total > layers:
            raise PromptError(
                f"the GGUF file {str(path)!r} has a direction for layer {total - 1}; expected at "
                f"most {layers - 1}, the last of the model; it was made for another model"
            )
        rows = torch.zeros(total, width)
        for layer, tensor in directions.items():
            rows[layer] = _read(header, tensor)
        return ControlVector(
            _name_of(header.path),
            rows,
            training={"format": "gguf", "model_hint": header.text(HINT)},
            created="",
        )


def vector_to_gguf(vector: ControlVector, path: str | os.PathLike[str], hint: str = "") -> None:
    """Writes a vector for llama.cpp, atomically.

    Args:
        hint: the model's architecture, as llama.cpp names it.

    Raises:
        PromptError: the vector changes layer 0, or nothing. ConfigError: the package `gguf` is not
            installed. StorageError: the disk refuses.
    """
    if vector.layers[:1] in ([0], []):
        raise PromptError(
            f"control vector {vector.name!r} changes the layers {vector.layers}; expected layers "
            "from 1 on, as llama.cpp does not change layer 0; train it for others"
        )
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "gguf is not installed; expected it, to write GGUF files; run: "
            "pip install 'softlore[gguf]'"
        ) from error

    partial_path = Path(f"{os.fspath(path)}.part")
    try:
        writer = gguf.GGUFWriter(partial_path, ARCHITECTURE)
        writer.add_string(HINT, hint)
        writer.add_uint32(COUNT, len(vector.layers))
        for layer in vector.layers:
            writer.add_tensor(f"direction.{layer}", vector.directions[layer].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(path, partial_path.read_bytes())
    finally:
        partial_path.unlink(missing_ok=True)


def _layer(tensor: GGUFTensor) -> int:
    match = _DIRECTION.fullmatch(tensor.name)
    if match is None or int(match[1]) >= MAX_LAYERS:
        refuse(
            Reason.OTHER_TENSORS,
            f"the file has a tensor {tensor.name!r:.60}; expected direction.0 to "
            f"direction.{MAX_LAYERS - 1}; get it again, or from another program",
        )
    return int(match[1])


def _common_width(header: Header) -> int:
    shapes = {tensor.shape for tensor in header.tensors}
    kinds = {tensor.kind for tensor in header.tensors}
    width = next(iter(shapes))[0] if len(shapes) == 1 and len(next(iter(shapes))) == 1 else 0
    if kinds != {FLOAT32} or not 1 <= width <= MAX_WIDTH:
        refuse(
            Reason.SHAPE,
            f"its directions have the shapes {sorted(shapes)!s:.80} and ggml's types "
            f"{sorted(kinds)}; expected one width for all, in float32 ({FLOAT32}); get it again",
        )
    return int(width)


def _read(header: Header, tensor: GGUFTensor) -> torch.Tensor:
    size = 4 * tensor.elements
    with header.path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(size)
    if len(data) != size:
        refuse(
            Reason.DATA_LENGTH,
            f"the file ends within {tensor.name!r}; expected {size:,} bytes of it; get it again",
        )
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def _name_of(path: Path) -> str:
    """The file's name as a prompt may have it."""
    name = re.sub(r"[^\w .'-]+", " ", path.stem).strip(" .'-_")
    return name or "vector"
