"""The ways in which a prompt file can be wrong: what `PromptFileError.reason` holds."""

from enum import StrEnum


class Reason(StrEnum):
    """One member a way; the value is stable, and is what JSON reports carry."""

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
    # A folder of prompts
    DUPLICATE_NAME = "duplicate-name"
