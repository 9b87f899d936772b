"""llama.cpp through llama-cpp-python: loaded when first needed, with its log in `logging`."""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

_log = logging.getLogger("softlore.llamacpp")
_ERROR = 4  # ggml's level; the caller raises each error, too


@functools.cache
def llama() -> Any:
    """The module of llama.cpp's C functions.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
    """
    import llama_cpp

    def log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        _log.log(
            logging.INFO if level == _ERROR else logging.DEBUG,
            text.decode("utf-8", "replace").rstrip(),
        )

    callback = llama_cpp.softlore_log = llama_cpp.llama_log_callback(log)  # C holds no reference
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp
