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
    # A pickle: parsed, never loaded
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
