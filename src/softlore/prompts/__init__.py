"""Soft prompts, the contexts they stand in, and their files."""

from softlore.prompts.library import BadFile, Listing, PromptLibrary, default_folder
from softlore.prompts.native import PromptHeader, read_header
from softlore.prompts.pieces import Context, TokenCount
from softlore.prompts.readers import READERS, PromptReader, load_prompt
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import Kind
from softlore.prompts.soft_prompt import PromptModel, SoftPrompt

__all__ = [
    "READERS",
    "BadFile",
    "Context",
    "Kind",
    "Listing",
    "PromptHeader",
    "PromptLibrary",
    "PromptModel",
    "PromptReader",
    "Reason",
    "SoftPrompt",
    "TokenCount",
    "default_folder",
    "load_prompt",
    "read_header",
]
