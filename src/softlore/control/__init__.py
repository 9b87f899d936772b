"""Control codes, which name a genre or tone, attribution by them, and control vectors."""

from softlore.control.attribution import Attribution, attribute, posterior
from softlore.control.codes import Code, codes_of, find_codes
from softlore.control.vectors import (
    Contrast,
    contrast_of_contexts,
    contrast_of_texts,
    train_vector,
)

__all__ = [
    "Attribution",
    "Code",
    "Contrast",
    "attribute",
    "codes_of",
    "contrast_of_contexts",
    "contrast_of_texts",
    "find_codes",
    "posterior",
    "train_vector",
]
