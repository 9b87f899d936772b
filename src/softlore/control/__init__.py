"""Control codes: tokens and learned prompts that name a genre or a tone, and whose a text is."""

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
