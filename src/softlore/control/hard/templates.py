"""Templates of hard prompts: Jinja in its sandbox, with a limited set of filters and output size.

A template may come from an untrusted file: it can use only the variables that it is given, and
raises an error once its output is longer than a million characters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import Any

from softlore.errors import ConfigError
from softlore.lore.sentences import sentences

MAX_CHARACTERS = 1_000_000  # characters of a rendered template
_FILTERS = (
    "capitalize default d first int join last length list lower reject rejectattr replace reverse "
    "round select selectattr map sort string sum title trim unique upper"
).split()


class Template:
    """A parsed template."""

    def __init__(self, source: str, name: str = "template") -> None:
        """Parses a template.

        Args:
            name: for error messages.

        Raises:
            ConfigError: invalid Jinja, or Jinja is not installed.
        """
        self.name = name
        environment = _environment()
        from jinja2 import TemplateError

        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, OverflowError) as error:
            line = getattr(error, "lineno", None)
            at = f" (line {line})" if line else ""
            raise ConfigError(
                f"{name} is not a valid template: {_first_line(error)}{at}; expected Jinja, such "
                "as '{{ entry.text }}'; fix it"
            ) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Renders the template with some variables.

        Raises:
            ConfigError: an unknown variable, a forbidden operation, or more than `MAX_CHARACTERS`
                characters.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(dict(variables)):
                size += len(part)
                if size > MAX_CHARACTERS:
                    raise OverflowError(f"it makes more than {MAX_CHARACTERS:,} characters")
                parts.append(part)
        except Exception as error:
            known = ", ".join(sorted(variables)) or "none"
            raise ConfigError(
                f"{self.name} can't be rendered: {_first_line(error)}; expected a template over "
                f"the variables ({known}); fix it"
            ) from error
        return "".join(parts)


@cache
def _environment() -> Any:
    if not importlib.util.find_spec("jinja2"):
        raise ConfigError(
            "templates need jinja2, not installed here; expected the extra `report`; "
            "run: pip install 'softlore[report]'"
        )
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Forbids Python's own attributes, and operators that make a long text at once."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(side, int | float) for side in (left, right))
            if operator == "**" or not numbers:
                raise OverflowError(f"the operator {operator!r} is for numbers only, and ** never")
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            # Methods such as "x".center(10**9) or format can make texts of any length.
            return not callable(value) and super().is_safe_attribute(obj, attr, value)

    sandbox = Sandbox(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    sandbox.filters = {name: sandbox.filters[name] for name in _FILTERS} | {"sentences": sentences}
    sandbox.globals = {}
    return sandbox


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
