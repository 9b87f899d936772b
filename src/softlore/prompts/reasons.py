"""Reason: why a prompt file is rejected; functions that raise PromptFileError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NoReturn

from softlore.errors import PromptError, PromptFileError


class Reason(StrEnum):
    """Why a file was rejected; values are stable, and are what JSON reports contain."""

    # The file
    MISSING, NOT_A_FILE, OTHER_FORMAT = "missing", "not-a-file", "other-format"
    TOO_SHORT, TOO_LARGE, CHANGED = "too-short", "too-large", "changed-while-read"
    # The header
    HEADER_TOO_LARGE, HEADER_CUT, HEADER_START = "header-too-large", "header-cut", "header-start"
    HEADER_NOT_UTF8, HEADER_NOT_JSON, TOO_DEEP = "header-not-utf8", "header-not-json", "too-deep"
    DUPLICATE_KEY = "duplicate-key"
    # The tensor's entry
    NO_TENSOR, OTHER_TENSORS, TENSOR_ENTRY = "no-tensor", "other-tensors", "tensor-entry"
    DTYPE, SHAPE, OFFSETS, DATA_LENGTH = "dtype", "shape", "offsets", "data-length"
    # The metadata
    NO_METADATA, METADATA_TYPE, NOT_SOFTLORE = "no-metadata", "metadata-type", "not-softlore"
    VERSION, NEWER_VERSION, METADATA_MISSING = "version", "newer-version", "metadata-missing"
    METADATA_VALUE = "metadata-value"
    # The values
    NOT_FINITE = "not-finite"
    # Files of other programs
    BARE_TENSOR, NOT_UTF8, NOT_JSON = "bare-tensor", "not-utf8", "not-json"
    SEVERAL_PROMPTS, METADATA_TOO_LARGE = "several-prompts", "metadata-too-large"
    BASE64 = "base64"
    # A zip archive
    ZIP_DAMAGED, ZIP_NAME, ZIP_MEMBERS = "zip-damaged", "zip-name", "zip-members"
    ZIP_OVERLAP, ZIP_ENCRYPTED, ZIP_METHOD = "zip-overlap", "zip-encrypted", "zip-method"
    ZIP_BOMB, ZIP_CHECKSUM = "zip-bomb", "zip-checksum"
    # A NumPy array
    NPY_HEADER = "npy-header"
    # A pickle, which is parsed and never loaded
    PICKLE_OPCODE, PICKLE_GLOBAL, PICKLE_CALL = "pickle-opcode", "pickle-global", "pickle-call"
    PICKLE_DAMAGED, PICKLE_TOO_LARGE = "pickle-damaged", "pickle-too-large"
    # What torch.save wrote
    TORCH_STORAGE, TORCH_STRIDES = "torch-storage", "torch-strides"
    # A PEFT folder
    ADAPTER_TYPE, ADAPTER_CONFIG = "adapter-type", "adapter-config"
    # A folder of prompts
    DUPLICATE_NAME = "duplicate-name"


def refuse(reason: Reason, message: str) -> NoReturn:
    """Raises PromptFileError."""
    raise PromptFileError(message, reason=reason) from None


@contextlib.contextmanager
def as_file_error(reason: Reason) -> Iterator[None]:
    """Turns a PromptError about a value into a PromptFileError about the file that holds it."""
    try:
        yield
    except PromptError as error:
        known = error.reason if isinstance(error, PromptFileError) else reason
        raise PromptFileError(str(error), reason=known) from None
