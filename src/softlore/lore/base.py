"""The ground of the lore models: pydantic's checks, with softlore's errors."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from softlore.errors import LoreError
from softlore.lore.complaints import complaint
from softlore.lore.plain import plain

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Meta
else:

    class _Meta(type(BaseModel)):
        """Turns pydantic's error into one LoreError when a model is made by its name.

        Standing at the class's call, it leaves nested models alone, so that the one error raised
        knows the whole way to the field.
        """

        def __call__(cls, /, *args: Any, **fields: Any) -> Any:
            if args:
                first = next(iter(cls.model_fields))
                raise LoreError(
                    f"{cls.__name__} takes its fields by name: write {cls.__name__}({first}=...)"
                )
            try:
                return super().__call__(**fields)
            except ValidationError as error:
                raise LoreError(complaint(cls.__name__, error, fields)) from None


class LoreModel(BaseModel, metaclass=_Meta):
    """A piece of lore. Making one raises LoreError if the values do not fit."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that softlore does not know. They are kept, and saved again."""
        if self.__pydantic_extra__ is None:
            self.__pydantic_extra__ = {}
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """A field left empty is as good as a field left out."""
        if not isinstance(value, dict):
            return value
        known = cls.model_fields
        return {k: inner for k, inner in value.items() if inner is not None or k not in known}

    @model_validator(mode="after")
    def _extra_is_plain(self) -> Self:
        if self.__pydantic_extra__:
            self.__pydantic_extra__ = plain(self.__pydantic_extra__)
        return self

    def data(self) -> dict[str, Any]:
        """Returns the piece as plain mappings, lists and values; defaults are left out."""
        return self.model_dump(exclude_defaults=True)

    def hash(self) -> str:
        """Returns a hash of the content: 64 hex digits, the same on every machine.

        The order of fields does not count, nor whether a default is written out; the order of
        entries, blocks and responses does.
        """
        canonical = json.dumps(self.data(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
