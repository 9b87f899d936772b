"""Soft prompts, contexts of text and soft prompts, and prompt files."""

from softlore.prompts.control_vector import ControlVector
from softlore.prompts.fields import Kind, is_name
from softlore.prompts.formats.registry import (
    FORMATS,
    WRITABLE,
    PromptFormat,
    load_prompt,
    read_prompt,
    write_prompt,
)
from softlore.prompts.library import BadFile, Listing, PromptLibrary, default_folder, slug_of
from softlore.prompts.native import PromptHeader, read_header
from softlore.prompts.opening import PromptFile
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import Context, PromptSource, SoftPrompt
from softlore.prompts.token_count import TokenCount

__all__ = [
    "FORMATS",
    "WRITABLE",
    "BadFile",
    "Context",
    "ControlVector",
    "Kind",
    "Listing",
    "PromptFile",
    "PromptFormat",
    "PromptHeader",
    "PromptLibrary",
    "PromptSource",
    "Reason",
    "SoftPrompt",
    "TokenCount",
    "default_folder",
    "is_name",
    "load_prompt",
    "read_header",
    "read_prompt",
    "slug_of",
    "write_prompt",
]
