"""The connector: a request that begins with a placeholder gets the prefix's keys and values.

Source of the interface: vLLM 0.32, `KVConnectorBase_V1`. Started with

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "SoftloreConnector",
      "kv_connector_module_path": "softlore.vllm_connector.connector", "kv_role": "kv_both",
      "kv_connector_extra_config": {"prompts": "FOLDER"}}'

The scheduler's half reports how many tokens of a request are a prefix; the worker's half writes
their keys and values into the blocks that the scheduler allocated. From then on they are blocks
like others: vLLM's own prefix cache shares them between requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

from softlore.vllm_connector.files import PrefixFolder
from softlore.vllm_connector.placeholders import of_set
from softlore.vllm_connector.prepared import PreparedPrefixes, SetKey, set_key, slot_mapping

PARAMETER = "softlore"  # of a request's kv_transfer_params: names of its prompts
logger = init_logger(__name__)


@dataclass
class PrefixLoad:
    """Keys and values to write: of these prompts, from token `start` on, into these blocks.

    Attributes:
        key: () where the request names a prompt that does not exist, or does not begin with the
            prompts that it names: the worker then reports that the blocks cannot be filled.
    """

    names: tuple[str, ...]
    key: SetKey
    start: int
    blocks: list[int] = field(default_factory=list)


@dataclass
class PrefixLoads(KVConnectorMetadata):
    """What the worker writes before the next forward."""

    loads: list[PrefixLoad] = field(default_factory=list)


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
        self._folder = PrefixFolder(path, self._block_size)
        self._matched: dict[str, PrefixLoad] = {}  # by request, until its blocks are allocated
        self._prepared: PreparedPrefixes | None = None
        self._failed: set[int] = set()
        logger.info("softlore: %d prompts in %s", len(self._folder.files()), path)

    # scheduler ---------------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        names, key, count = self._match(request)
        new = count - num_computed_tokens
        if not names or new <= 0 or request.num_tokens <= count:
            return 0, False
        self._matched[request.request_id] = PrefixLoad(names, key, num_computed_tokens)
        return new, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens == 0:
            self._matched.pop(request.request_id, None)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        meta = PrefixLoads()
        for new in scheduler_output.scheduled_new_reqs:
            self._add(meta, new.req_id, new.block_ids[0])
        cached = scheduler_output.scheduled_cached_reqs
        for request, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if blocks is not None:  # a request that was preempted has new blocks
                self._add(meta, request, blocks[0])
        return meta

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._matched.pop(request.request_id, None)
        return False, None

    def _match(self, request: Any) -> tuple[tuple[str, ...], SetKey, int]:
        """The prompts that a request begins with: their names, key and number of tokens.

        A request that names prompts and does not begin with them is matched with one block, which
        the worker then reports as not filled: the request fails and reads no other context.
        """
        ids = request.prompt_token_ids or ()
        requested = (request.kv_transfer_params or {}).get(PARAMETER)
        if not requested:
            file = self._folder.starting(ids)
            return ((file.name,), (file.digest,), len(file.ids)) if file else ((), (), 0)
        names = tuple(str(name) for name in requested)
        files = self._folder.named(names)
        placeholder = of_set({file.digest: file.ids for file in files}) if files else []
        # A context of embeddings has no ids to compare.
        if {*names} <= {*self._folder.files()} and (
            not ids or list(ids[: len(placeholder)]) == placeholder
        ):
            return names, set_key(files), len(placeholder)
        return names, (), self._block_size

    def _add(self, meta: PrefixLoads, request: str, blocks: list[int]) -> None:
        load = self._matched.pop(request, None)
        if load is not None:
            load.blocks = list(blocks)
            meta.loads.append(load)

    # worker ------------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PrefixLoads)
        self._failed = set()
        if not metadata.loads:
            return
        named = forward_context.no_compile_layers.items()
        layers = {n: layer for n, layer in named if getattr(layer, "kv_cache", None) is not None}
        tensors, slots = [], []
        for load in metadata.loads:
            try:
                tensor = self._tensor(load, layers)
            except (ValueError, OSError) as error:
                logger.error("softlore: %s", error)
                self._failed |= set(load.blocks[load.start // self._block_size :])
                continue
            tensors.append(tensor[:, :, load.start :])
            slots.append(slot_mapping(load.blocks, load.start, tensor.shape[2], self._block_size))
        if tensors:
            self._write(layers, torch.cat(tensors, dim=2), torch.cat(slots))

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def _write(self, layers: dict[str, Any], key_values: Tensor, slots: Tensor) -> None:
        """Writes keys and values `[layers, 2, n, heads, head_dim]`, one kernel a layer.

        By the attention backend's own kernel, which knows how a block is laid out and quantized.
        """
        device = next(iter(layers.values())).kv_cache.device
        key_values, slots = key_values.to(device), slots.to(device)  # one copy for all layers
        for name, layer in layers.items():
            keys, values = key_values[extract_layer_index(name)]
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, slots)

    def _tensor(self, load: PrefixLoad, layers: dict[str, Any]) -> Tensor:
        """`[layers, 2, N, heads, head_dim]` of a set. Raises ValueError, OSError."""
        if self._prepared is None:
            layer = next(iter(layers.values()))
            self._prepared = PreparedPrefixes(
                1 + max(map(extract_layer_index, layers)),
                layer.num_kv_heads,
                layer.head_size,
                self._dtype,
                get_tensor_model_parallel_rank(),
                get_tensor_model_parallel_world_size(),
            )
        if (cached := self._prepared.get(load.key)) is not None:
            return cached
        files = self._folder.named(load.names)
        if not load.key or set_key(files) != load.key:
            raise ValueError(
                f"a request names {', '.join(map(repr, load.names))}, of which "
                f"{self._folder.path!r} does not hold all in the version that the request begins "
                "with; expected them there; convert them again"
            )
        return self._prepared.prepare(files)

    def wait_for_layer_load(self, layer_name: str) -> None:
        return  # all is written before the forward begins

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return  # nothing is saved

    def wait_for_save(self) -> None:
        return
