"""Control codes: tokens and soft prompts that name a genre or tone, and attribution by them."""

from softlore.control.attribution import Attribution, attribute, posterior
from softlore.control.codes import Code, codes_of, find_codes

__all__ = [
    "Attribution",
    "Code",
    "attribute",
    "codes_of",
    "find_codes",
    "posterior",
]
