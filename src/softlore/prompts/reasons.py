"""Why a prompt file is rejected: `Reason`, and the functions that raise PromptFileError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NoReturn

from softlore.errors import PromptError, PromptFileError


class Reason(StrEnum):
    """Why a file was rejected; values are stable, and are what JSON reports contain."""

    # The file
    MISSING = "missing"
    NOT_A_FILE = "not-a-file"
    OTHER_FORMAT = "other-format"
    TOO_SHORT = "too-short"
    TOO_LARGE = "too-large"
    CHANGED = "changed-while-read"
    # The header
    HEADER_TOO_LARGE = "header-too-large"
    HEADER_CUT = "header-cut"
    HEADER_START = "header-start"
    HEADER_NOT_UTF8 = "header-not-utf8"
    HEADER_NOT_JSON = "header-not-json"
    TOO_DEEP = "too-deep"
    DUPLICATE_KEY = "duplicate-key"
    # The tensor's entry
    NO_TENSOR = "no-tensor"
    OTHER_TENSORS = "other-tensors"
    TENSOR_ENTRY = "tensor-entry"
    DTYPE = "dtype"
    SHAPE = "shape"
    OFFSETS = "offsets"
    DATA_LENGTH = "data-length"
    # The metadata
    NO_METADATA = "no-metadata"
    METADATA_TYPE = "metadata-type"
    NOT_SOFTLORE = "not-softlore"
    VERSION = "version"
    NEWER_VERSION = "newer-version"
    METADATA_MISSING = "metadata-missing"
    METADATA_VALUE = "metadata-value"
    # The values
    NOT_FINITE = "not-finite"
    # Files of other programs
    BARE_TENSOR = "bare-tensor"
    NOT_UTF8 = "not-utf8"
    NOT_JSON = "not-json"
    SEVERAL_PROMPTS = "several-prompts"
    METADATA_TOO_LARGE = "metadata-too-large"
    BASE64 = "base64"
    # A zip archive
    ZIP_DAMAGED = "zip-damaged"
    ZIP_NAME = "zip-name"
    ZIP_MEMBERS = "zip-members"
    ZIP_OVERLAP = "zip-overlap"
    ZIP_ENCRYPTED = "zip-encrypted"
    ZIP_METHOD = "zip-method"
    ZIP_BOMB = "zip-bomb"
    ZIP_CHECKSUM = "zip-checksum"
    # A NumPy array
    NPY_HEADER = "npy-header"
    # A pickle, which is parsed and never loaded
    PICKLE_OPCODE = "pickle-opcode"
    PICKLE_GLOBAL = "pickle-global"
    PICKLE_CALL = "pickle-call"
    PICKLE_DAMAGED = "pickle-damaged"
    PICKLE_TOO_LARGE = "pickle-too-large"
    # What torch.save wrote
    TORCH_STORAGE = "torch-storage"
    TORCH_STRIDES = "torch-strides"
    # A PEFT folder
    ADAPTER_TYPE = "adapter-type"
    ADAPTER_CONFIG = "adapter-config"
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
