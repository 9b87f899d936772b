"""The number of tokens of a context, by what they are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens of a context.

    Attributes:
        text: tokens of the text, without any that the model adds (such as a BOS).
        embedding: rows of the embedding prompts; a prompt that occurs twice counts twice.
        prefix: tokens of the prefix prompts, each counted once.
    """

    text: int
    embedding: int
    prefix: int

    @property
    def context(self) -> int:
        """Tokens for which `logits` has a row: text and embedding prompts."""
        return self.text + self.embedding

    @property
    def total(self) -> int:
        """All tokens in the cache: text, embedding rows and prefixes."""
        return self.text + self.embedding + self.prefix
