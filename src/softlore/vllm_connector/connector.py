"""The connector: a request that begins with a placeholder gets the prefix's keys and values.

Source of the interface: vLLM 0.32, `KVConnectorBase_V1`. Started with

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "SoftloreConnector",
      "kv_connector_module_path": "softlore.vllm_connector.connector", "kv_role": "kv_both",
      "kv_connector_extra_config": {"prompts": "FOLDER"}}'

The scheduler's half says how many tokens of a request are a prefix; the worker's half writes their
keys and values into the blocks that the scheduler gave. From then on they are blocks like others:
vLLM's own prefix cache shares them between requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from softlore.vllm_connector.files import SUFFIX, PrefixFile, read, read_folder, side_by_side
from softlore.vllm_connector.placeholders import of_set

ANOTHER = ""  # in place of a name: the ids are not those of the prompts that were named
MOST_SETS = 256  # prompts and sets that are kept once they were read
PARAMETER = "softlore"  # of a request's kv_transfer_params: names of the prompts in company
logger = init_logger(__name__)


@dataclass
class Load:
    """Keys and values to be written: of these prompts, from a token on, into these blocks."""

    names: tuple[str, ...]
    start: int
    blocks: list[int]


@dataclass
class Loads(KVConnectorMetadata):
    """What the worker is to write before the next forward."""

    loads: list[Load] = field(default_factory=list)


class Folder:
    """The prompts in a folder, read again when it has changed."""

    def __init__(self, path: str, block_size: int) -> None:
        self.path = path
        self._block_size = block_size
        self._changed = 0
        self._files: dict[str, PrefixFile] = {}
        for file in read_folder(path):  # at the start a bad one is an error; later it is left out
            self._check(file)

    def files(self) -> dict[str, PrefixFile]:
        """By name."""
        changed = os.stat(self.path).st_mtime_ns
        if changed != self._changed:
            self._files = {file.name: file for file in self._usable()}
            self._changed = changed
        return self._files

    def named(self, names: Sequence[str]) -> list[PrefixFile]:
        """Those of these names that there are."""
        files = self.files()
        return [files[name] for name in names if name in files]

    def _usable(self) -> Iterator[PrefixFile]:
        for path in sorted(Path(self.path).glob("*" + SUFFIX)):
            try:
                file = read(path)
                self._check(file)
            except ValueError as error:
                logger.error("softlore: %s", error)
            else:
                yield file

    def _check(self, file: PrefixFile) -> None:
        if len(file.ids) % self._block_size:
            raise ValueError(
                f"prompt {file.name!r} has {len(file.ids)} tokens; expected a multiple of vLLM's "
                f"block size, {self._block_size}; train it with as many, or start vLLM with "
                "another --block-size"
            )


class SoftloreConnector(KVConnectorBase_V1):
    """Reads softlore's prefixes from the folder `prompts` of its extra configuration."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        path = self._kv_transfer_config.get_from_extra_config("prompts", None)
        if path is None:
            raise ValueError(
                'kv_connector_extra_config has no "prompts"; expected a folder of prefixes that '
                "`softlore convert --to vllm` wrote; name it"
            )
        self._block_size = int(vllm_config.cache_config.block_size)
        self._dtype = vllm_config.model_config.dtype
        self._folder = Folder(path, self._block_size)
        self._matched: dict[str, tuple[str, ...]] = {}  # request -> prompts, until it is loaded
        self._starts: dict[str, int] = {}
        self._tensors: dict[tuple[str, ...], Tensor] = {}
        self._failed: set[int] = set()
        logger.info("softlore: %d prompts in %s", len(self._folder.files()), path)

    # scheduler ---------------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        names, count = self._match(request)
        new = count - num_computed_tokens
        if not names or new <= 0 or request.num_tokens <= count:
            return 0, False
        self._matched[request.request_id] = names
        self._starts[request.request_id] = num_computed_tokens
        return new, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens == 0:
            self._forget(request.request_id)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        meta = Loads()
        for new in scheduler_output.scheduled_new_reqs:
            self._add(meta, new.req_id, new.block_ids[0])
        cached = scheduler_output.scheduled_cached_reqs
        for request, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if blocks is not None:  # one that was preempted has all its blocks anew
                self._add(meta, request, blocks[0])
        return meta

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._forget(request.request_id)
        return False, None

    def _match(self, request: Any) -> tuple[tuple[str, ...], int]:
        """The prompts that a request begins with, and their tokens in all.

        Of a request that names prompts and does not begin with them a block is taken, which the
        worker then says that it can't fill: so that it fails, and nothing is read in their place.
        """
        ids = list(request.prompt_token_ids or ())
        asked = (request.kv_transfer_params or {}).get(PARAMETER)
        if not asked:
            files = self._folder.files().values()
            begun = [file for file in files if ids and ids[: len(file.ids)] == file.ids]
            return ((begun[0].name,), len(begun[0].ids)) if begun else ((), 0)
        names = tuple(str(name) for name in asked)
        files_of_set = self._folder.named(names)
        if len(files_of_set) < len(names):
            return names, self._block_size
        placeholder = of_set({file.digest: file.ids for file in files_of_set})
        # A context of embeddings has no ids: there the request's word is taken.
        if not ids or ids[: len(placeholder)] == placeholder:
            return names, len(placeholder)
        return (ANOTHER, *names), self._block_size

    def _add(self, meta: Loads, request: str, blocks: list[int]) -> None:
        names = self._matched.pop(request, None)
        if names is not None:
            meta.loads.append(Load(names, self._starts.pop(request), list(blocks)))

    def _forget(self, request: str) -> None:
        self._matched.pop(request, None)
        self._starts.pop(request, None)

    # worker ------------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        self._failed = set()
        for load in metadata.loads:
            try:
                tensor = self._tensor(load.names)
            except (ValueError, OSError) as error:
                logger.error("softlore: %s", error)
                self._failed |= set(load.blocks)
                continue
            for name, layer in forward_context.no_compile_layers.items():
                if getattr(layer, "kv_cache", None) is not None:
                    self._write(layer, tensor[extract_layer_index(name)], load)

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def _write(self, layer: Any, pair: Tensor, load: Load) -> None:
        """Writes keys and values `[2, kv_heads, n, head_dim]` of an attention layer.

        By the backend's own kernel, the one that writes what was computed: how a block is laid out,
        packed and quantized is its own affair.
        """
        heads, cache = layer.num_kv_heads, layer.kv_cache
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        split = heads * ranks == pair.shape[1]  # else ranks share heads
        first = rank * heads if split else rank * pair.shape[1] // ranks
        own = pair[:, first : first + heads, load.start :].transpose(1, 2)  # [2, n, heads, dim]
        own = own.to(device=cache.device, dtype=self._dtype).contiguous()
        places = torch.arange(load.start, pair.shape[2])
        blocks = torch.tensor(load.blocks)[places // self._block_size]
        slots = (blocks * self._block_size + places % self._block_size).to(cache.device)
        layer.impl.do_kv_cache_update(layer, own[0], own[1], cache, slots)

    def _tensor(self, names: tuple[str, ...]) -> Tensor:
        """`[layers, 2, kv_heads, N, head_dim]` of a set, as it is now in the folder."""
        files = self._folder.named(names)
        if len(files) < len(names):
            missing = sorted(set(names) - {file.name for file in files})
            raise ValueError(
                f"a request names the prompt {missing[-1]!r}, of which {self._folder.path!r} has "
                "not this version; expected the one that the request begins with; convert it again"
            )
        key = tuple(sorted(file.digest for file in files))
        if key not in self._tensors:
            if len(self._tensors) >= MOST_SETS:
                self._tensors.pop(next(iter(self._tensors)))
            self._tensors[key] = side_by_side(files)
        return self._tensors[key]

    def wait_for_layer_load(self, layer_name: str) -> None:
        return  # all is there before the forward begins

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return  # nothing is saved

    def wait_for_save(self) -> None:
        return
