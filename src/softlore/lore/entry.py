"""Entry: one subject of a lorebook. Block: one call with its responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from softlore.lore.names import NAME_RULE, name_problem, normalize_name
from softlore.lore.plain import plain
from softlore.lore.validation import LoreModel, describe
from softlore.settings.arguments import MAX_STRENGTH

SelectiveLogic = Literal["and_any", "not_all", "not_any", "and_all"]
Position = Literal[
    "before_char", "after_char", "note_top", "note_bottom", "at_depth", "examples_top",
    "examples_bottom", "outlet",
]  # fmt: skip
Role = Literal["system", "user", "assistant"]
Use = Literal["both", "text", "soft"]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write something, or remove it")
    return text


def _legal_name(name: str) -> str:
    name = normalize_name(name)
    if problem := name_problem(name):
        raise ValueError(f"{name!r:.160} {problem}; a name is {NAME_RULE}; choose another")
    return name


def _listed(value: Any) -> Any:
    """Puts a single text into a list."""
    return [value] if isinstance(value, str) else value


def _not_empty(responses: list[str]) -> list[str]:
    if not responses:
        raise ValueError("is empty; a block needs at least one response; add one")
    return responses


def _numbered(choices: Any) -> BeforeValidator:
    """Also accepts a choice's number, in the order of `choices`, as SillyTavern writes it."""
    words = get_args(choices)

    def convert(value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return words[value] if is_number and 0 <= value < len(words) else value

    return BeforeValidator(convert)


def _valid_origin(origin: dict[str, Any]) -> dict[str, Any]:
    texts = [origin.get("format"), origin.get("name")]
    if not all(isinstance(text, str) for text in texts) or "data" not in origin:
        raise ValueError(
            "must have the texts `format` and `name`, and `data`; remove it, or import the file "
            "again"
        )
    return origin


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Name = Annotated[str, AfterValidator(_legal_name)]
Text = Annotated[str, AfterValidator(_not_blank)]
Texts = Annotated[list[Text], BeforeValidator(_listed), WithJsonSchema(_TEXTS_SCHEMA)]
PlainFields = Annotated[dict[str, Any], AfterValidator(plain)]
Origin = Annotated[PlainFields, AfterValidator(_valid_origin)]
Natural = Annotated[int, Field(ge=0)]
Strength = Annotated[
    float, Field(strict=True, ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)
]


class Block(LoreModel):
    """A call, and the responses that may follow it. The loss is on responses only.

    Also accepted where a block is expected: `(call, [responses])`, `{call, response}`, and one
    text in place of a list of one.
    """

    model_config = ConfigDict(extra="forbid")

    call: Text
    """How the text begins, such as `Emma wears`. It is used as written: by softlore's convention it
    does not end in a space."""

    responses: Annotated[Texts, AfterValidator(_not_empty)]
    """How the text may continue, such as ` a crisp black pantsuit`. Each is used as written, joined
    to the call with nothing between: by softlore's convention it begins with a space."""

    @model_validator(mode="before")
    @classmethod
    def _from_other_forms(cls, value: Any) -> Any:
        if isinstance(value, Block):
            return value
        if isinstance(value, list | tuple) and len(value) == 2:
            return {"call": value[0], "responses": value[1]}
        if not isinstance(value, dict):
            raise ValueError(
                "must be fields (`call` and `responses`) or a pair [call, [responses]], "
                f"but is {describe(value)}; change it"
            )
        if "response" in value and "responses" in value:
            raise ValueError("has both `response` and `responses`; keep one")
        return {"responses" if k == "response" else k: inner for k, inner in value.items()}


class Entry(LoreModel):
    """One subject of a lorebook: a character, a place, an object, a tone.

    It has a `text`, `blocks`, or both, and is trained on what it has. The fields from `enabled` on
    say when a story activates it; they have the meaning and defaults of SillyTavern's World
    Info.
    """

    name: Name
    """What the entry is called, and its soft prompt: `[[soft:NAME]]` in text. Letters, digits,
    spaces and any of `-_.'`."""

    keys: Texts = Field(default_factory=list)
    """Words that activate the entry when they are in the story. `/.../flags` is a regular
    expression."""

    text: str = ""
    """What the model should know, in plain words. It is distilled into the soft prompt, and is the
    text of a hard prompt. Empty lines around it are dropped."""

    blocks: list[Block] = Field(default_factory=list)
    """Calls with their responses, to train on."""

    held_out: list[Block] = Field(default_factory=list)
    """Paraphrased calls with the right responses, for evaluation only; never trained on."""

    vectors: Annotated[dict[Name, Strength], Field(max_length=16)] = Field(default_factory=dict)
    """Control vectors that steer the story while the entry is active, by name, with a strength
    each: 1 is the vector as it was trained."""

    use: Use = "both"
    """In which form it may enter a story's context: as its `text`, as its `soft` prompt, or
    `both`."""

    enabled: bool = True
    """Whether the entry may be used at all."""

    constant: bool = False
    """Whether it is always active, whatever the story says."""

    secondary_keys: Texts = Field(default_factory=list)
    """Further words, looked for once one of `keys` is found; see `selective_logic`."""

    selective: bool = True
    """Whether `secondary_keys` count."""

    selective_logic: Annotated[SelectiveLogic, _numbered(SelectiveLogic)] = "and_any"
    """What is required of the secondary keys: `and_any` one of them is found, `and_all` all are,
    `not_any` none is, `not_all` not all are."""

    order: int = 100
    """Insertion order among entries: ascending, so that the highest is nearest to the story. When
    the budget is short, the highest enter first."""

    position: Annotated[Position, _numbered(Position)] = "before_char"
    """Where in the context: before or after the character (`before_char`, `after_char`), above or
    below the author's note (`note_top`, `note_bottom`), among the last messages (`at_depth`),
    around the examples (`examples_top`, `examples_bottom`), or only where it is named
    (`outlet`)."""

    depth: Natural = 4
    """With `at_depth`: how many messages before the end of the story."""

    role: Annotated[Role, _numbered(Role)] = "system"
    """With `at_depth`: who says it."""

    scan_depth: Natural | None = None
    """How many of the last messages are searched for keys. Null: the program's setting."""

    case_sensitive: bool | None = None
    """Whether keys must match in upper and lower case. Null: the program's setting."""

    match_whole_words: bool | None = None
    """Whether a key must be a word by itself. Null: the program's setting."""

    probability: Annotated[float, Field(ge=0, le=100)] = 100
    """How often the entry becomes active when it is triggered, in percent."""

    ignore_budget: bool = False
    """Whether it is active even when the budget for lore is spent."""

    exclude_recursion: bool = False
    """Whether only the story can trigger it, not other entries' text."""

    prevent_recursion: bool = False
    """Whether its own text triggers no other entry."""

    delay_until_recursion: Natural = 0
    """If above 0, only other entries' text triggers it, and only from that recursion level on."""

    group: str = ""
    """Of the entries of a group that are triggered at once, only one becomes active."""

    group_override: bool = False
    """Whether the group's entry of highest `order` is used, in place of one drawn by weight."""

    group_weight: Natural = 100
    """The entry's weight when one of a group is drawn."""

    sticky: Natural = 0
    """How many messages it stays active once it was triggered."""

    cooldown: Natural = 0
    """How many messages it cannot be triggered again after it was active."""

    delay: Natural = 0
    """How many messages the story must have before it can be triggered."""

    origin: Origin | None = None
    """Where the entry came from, if it was imported: the name of the `format`, and `data`, the
    original entry. It goes back into the file on export, with what was changed since."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        self.text = self.text.strip("\r\n")
        if not self.text.strip() and not self.blocks:
            raise ValueError(
                "has neither text nor blocks, so there is nothing to train on; give it a `text`, "
                "or `blocks` of a call and its responses"
            )
        return self
