"""Messages of a chat, as clients of OpenAI's API send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from softlore.serve.tools import ToolCalls


class TextPart(BaseModel):
    """A part of a message; the model reads text only."""

    type: Literal["text"] = "text"
    text: str


class ChatMessage(BaseModel):
    """A message of a chat; its content is text, or a list of text parts.

    A message of the assistant's may have called tools; one of a tool's is the result of a call.
    """

    role: Annotated[str, Field(min_length=1)]
    content: str | list[str | TextPart] | None = None
    tool_calls: ToolCalls = []
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def calls(self) -> ToolCalls:
        return self.tool_calls

    @property
    def text(self) -> str:
        """Its text, with the tools that it calls as text, too."""
        return "\n".join(filter(None, [self._said, *(call.text for call in self.tool_calls)]))

    @property
    def _said(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    def for_template(self, template: str) -> dict[str, Any]:
        """The message as a template takes it; calls are text where it does not look for them."""
        if "tool_calls" in template and self.tool_calls:
            calls = [call.model_dump() for call in self.tool_calls]
            return {"role": self.role, "content": self._said, "tool_calls": calls}
        tool = {"tool_call_id": self.tool_call_id, "name": self.name} if self.role == "tool" else {}
        given = {name: value for name, value in tool.items() if value is not None}
        return {"role": self.role, "content": self.text, **given}
