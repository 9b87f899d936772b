"""Where a model's weights lie: on which device or devices, in which dtype, quantized or not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from softlore.errors import ModelError
from softlore.model.processor import ProcessorSpeed, processor_speed
from softlore.model.shapes import parameter_count, read_config
from softlore.model.verify import first_line

AUTO = "auto"  # the device: all GPUs, and the processor's memory and the disk for what is left
AUTO_MAP: Any = "auto"  # what accelerate is given for it: its own choice
QUANTIZATIONS = ("nf4", "int8")
SMALL = 50_000_000  # parameters; smaller models stay in float32 on a processor
HALF_ON_MPS = 1_000_000_000  # parameters; larger models are in float16 on Apple's GPUs


@dataclass(frozen=True)
class Placement:
    """How a model is loaded.

    Attributes:
        device: of what goes into the model; with `split`, of its first layers.
        split: the weights are divided among devices by accelerate.
    """

    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None
    split: bool = False

    @classmethod
    def choose(
        cls,
        name: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
    ) -> Placement:
        """The placement that was asked for; what was not is chosen for the model and machine.

        Args:
            name: the model, as transformers takes it; it is only read for a dtype on a processor.

        Raises:
            ModelError: no such device or dtype, or a quantization that can't be had.
        """
        split = device == AUTO
        where = choose_device(None if split else device)
        chosen = default_dtype(name, where) if dtype is None else parse_dtype(dtype)
        if quantize is not None:
            check_quantization(quantize, where)
        if split:
            require_package("accelerate", f"device {AUTO!r}", "large")
        return cls(where, chosen, quantize, split)

    def options(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.quantize is not None:
            options["quantization_config"] = quantization_config(self.quantize, self.dtype)
            options["device_map"] = {"": str(self.device)}
        if self.split:
            options["device_map"] = AUTO_MAP
        return options

    def refuse_options(self, what: str) -> None:
        """Raises ModelError if the weights, being `what`, can't be quantized or divided."""
        if self.split or self.quantize is not None:
            asked = f"quantize={self.quantize!r}" if self.quantize else f"device {AUTO!r}"
            raise ModelError(
                f"{asked} does not go with {what}, whose weights are unpacked one by one; expected "
                "a folder or a hub id; name one, or leave it out"
            )

    def move(self, hf: Any) -> Any:
        """The model that was loaded with `options`, on its device."""
        if self.split or self.quantize is not None:
            return keep_gradients(hf)
        return hf.to(self.device)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for; else a GPU of NVIDIA, AMD or Apple, else the processor.

    Raises:
        ModelError: it can't be used.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {str(device)!r} can't be used ({first_line(error)}); expected cpu, cuda, "
            "auto or another device that torch supports here; leave it out to have one chosen"
        ) from error


def default_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a model that was given none.

    bfloat16 on a GPU; on Apple's, float32 or for large models float16; on a processor float32, or
    bfloat16 where the processor is good at it and the model is not `SMALL`.
    """
    if device.type not in ("cpu", "mps"):
        return torch.bfloat16
    size = parameter_count(name)
    if device.type == "mps":
        return torch.float16 if size is not None and size > HALF_ON_MPS else torch.float32
    if size is None or size < SMALL:
        return torch.float32
    return torch.bfloat16 if speed_for(name).prefers_bfloat16 else torch.float32


def speed_for(name: str) -> ProcessorSpeed:
    """This processor's speed on products of a model's shapes."""
    config = read_config(name)
    width = int(getattr(config, "hidden_size", 0) or 1024)
    return processor_speed(width, int(getattr(config, "intermediate_size", 0) or 4 * width))


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating-point dtype by name. Raises ModelError for another."""
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ModelError(
            f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16; give one of them"
        )
    return resolved


# quantization ------------------------------------------------------------------------------------


def check_quantization(quantize: str, device: torch.device) -> None:
    """Raises ModelError for a quantization that is unknown, or can't be had on a device."""
    if quantize not in QUANTIZATIONS:
        raise ModelError(
            f"unknown quantization {quantize!r}; expected one of {', '.join(QUANTIZATIONS)}; "
            "choose one, or leave it out"
        )
    if device.type == "mps":
        raise ModelError(
            f"{quantize} was never tried with gradients on {device.type}; expected cuda or cpu; "
            "leave quantize (--quantize) out, or choose a device (--device cpu)"
        )
    for package in ("bitsandbytes", "accelerate"):
        require_package(package, f"quantize={quantize!r}", "large")


def require_package(package: str, what: str, extra: str) -> None:
    """Raises ModelError if a package of an extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"{what} needs {package}, which is not installed; expected the packages of softlore's "
            f"extra `{extra}`; run: pip install 'softlore[{extra}]'"
        )


def quantization_config(quantize: str, dtype: torch.dtype) -> Any:
    """The `quantization_config` of transformers; embeddings and output layer stay as they are."""
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def main_device(hf: Any) -> torch.device:
    """The device that a model's inputs belong on; of a divided model, that of its embeddings."""
    embedding = hf.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    hook = getattr(embedding, "_hf_hook", None)  # accelerate's: the weights lie elsewhere
    where = getattr(hook, "execution_device", None) or "cpu"
    return torch.device("cuda", where) if isinstance(where, int) else torch.device(where)


def is_split(hf: Any) -> bool:
    """Whether accelerate has divided a model among several devices, or the disk."""
    return len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1


def keep_gradients(hf: Any) -> Any:
    """Keeps 4-bit layers from packing their weights for inference, which drops all gradients.

    bitsandbytes does so on processors with bfloat16, in the first pass without a gradient.
    """
    for module in hf.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return hf
