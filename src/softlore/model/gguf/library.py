"""llama.cpp through llama-cpp-python: loaded when it is needed, and told to log as Python does."""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

_log = logging.getLogger("softlore.llamacpp")
_ERROR = 4  # ggml's level; each error is raised by whoever called, too


@functools.cache
def llama() -> Any:
    """The module of llama.cpp's C functions.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
    """
    import llama_cpp

    def tell(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        _log.log(
            logging.INFO if level == _ERROR else logging.DEBUG,
            text.decode("utf-8", "replace").rstrip(),
        )

    kept = llama_cpp.softlore_log = llama_cpp.llama_log_callback(tell)  # C holds no reference
    llama_cpp.llama_log_set(kept, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp
