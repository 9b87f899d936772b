"""Soft lore in chats: the newest message, and what introduces a reply, see a late prefix."""

import pytest

from softlore import SoftPrompt
from softlore.context.chat import render_chat
from softlore.model.tiny import tiny_model
from softlore.prompts import Context
from softlore.serve.chat import ChatMessage
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer

MODEL = tiny_model()
LATE = SoftPrompt.from_text("Marta wears red.", MODEL, "Marta", "prefix", 4)
LATE = LATE.replace(training={**LATE.training, "placement": "late"})
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = "What does Marta wear on a day as cold as this one, when all the town is at the fair?"


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("where", ["always", "system", "first", "last"])
def test_a_late_prefix_is_seen_by_the_newest_message_and_the_reply(template, where, monkeypatch):
    monkeypatch.setattr(MODEL.tokenizer, "chat_template", template)
    tags = {where: LATE.tag}
    chat = render_chat(
        MODEL,
        [
            ChatMessage(role="system", content=tags.get("system", "") + "Be kind."),
            ChatMessage(role="user", content=tags.get("first", "") + "Hello."),
            ChatMessage(role="assistant", content="Good day."),
            ChatMessage(role="user", content=tags.get("last", "") + QUESTION),
        ],
    )
    prompts = {"Marta": LATE}
    plan = ContextComposer(MODEL, (), prompts).plan(
        StorySettings(),
        [Context.parse(turn, prompts) for turn in chat.turns],
        20,
        always=[LATE] if where == "always" else [],
        memory=Context.parse(chat.memory, prompts),
        whole_turns=True,
    )
    pieces = plan.context.pieces
    place = pieces.index(LATE)
    seen = "".join(piece for piece in pieces[place:] if isinstance(piece, str))
    assert QUESTION in seen
    assert "Good day." not in seen
    assert seen.rstrip().lower().endswith(("assistant:", "<|assistant|>"))
    assert plan.tree.nodes[-1].sees
