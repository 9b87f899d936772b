"""The model card of soft prompts on the Hugging Face hub: what they are and how to use them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from softlore.errors import ConfigError
from softlore.model.catalog import hub_name
from softlore.prompts.native import PromptHeader
from softlore.prompts.tags import tag_of

LIBRARY = "softlore"  # the card's `library_name`
_TAGS = {"embedding": "prompt-tuning", "prefix": "prefix-tuning"}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_UNSAFE = re.compile(r"[^\w./+ -]")  # in Markdown or in a shell
_KINDS = {
    "embedding": "- **embedding** (prompt tuning): rows among those of the text's tokens; the "
    "prompt works from where its tag stands.",
    "prefix": "- **prefix** (prefix tuning): keys and values for every layer at the start of the "
    "cache, wherever the tag stands.",
}
_RECALL = (
    "Recall is the mean loss of the right responses to calls about the subject, in nats a token: "
    "after nothing, after its text, and after the prompt. Lower is better."
)
_HELD_OUT = "The held-out loss is that of the training, on examples that no update used."


@dataclass(frozen=True)
class _CardRow:
    """What the card says of a prompt.

    Attributes:
        model: the name that `--model` takes, without folders; empty if unknown.
        recall, held_out: of its metrics, as they are stored.
    """

    name: str
    kind: str
    n_tokens: int
    model: str
    recall: dict[str, Any]
    held_out: Any

    @classmethod
    def of(cls, header: PromptHeader) -> _CardRow:
        fields = header.fields()
        recall = fields["metrics"].get("recall")
        return cls(
            header.name,
            header.kind,
            header.n_tokens,
            _UNSAFE.sub("_", public_model_name(fields["base_model"])),
            recall if isinstance(recall, dict) else {},
            fields["metrics"].get("held_out"),
        )


def clean_licence(licence: str) -> str:
    """An SPDX identifier as the hub has them, in lower case. Raises ConfigError."""
    text = licence.lower()
    if not _LICENCE.fullmatch(text):
        raise ConfigError(
            f"licence {licence!r:.80} is no SPDX identifier; expected one such as CC-BY-4.0, MIT "
            "or Apache-2.0; see https://spdx.org/licenses (--license)"
        )
    return text


def public_model_name(name: str) -> str:
    """A model's name without folders of a machine: a hub id or a plain name stays as it is."""
    return name if _HUB_ID.fullmatch(name) else PureWindowsPath(name).name


def make_card(headers: Sequence[PromptHeader], repo_id: str, licence: str | None = None) -> str:
    """The text of README.md: YAML front matter, then Markdown.

    It holds names, sizes and metrics of the prompts; no lore, no description and no path.

    Args:
        headers: of the prompt files, at least one.
        repo_id: of the repository that will hold them.
        licence: an SPDX identifier; without one the card names none.

    Raises ConfigError for what can be no licence, PromptFileError for damaged metadata.
    """
    rows = [_CardRow.of(header) for header in headers]
    parts = [
        f"---\n{_front_matter(rows, licence)}\n---",
        f"# {repo_id.partition('/')[2] or repo_id}",
        _introduction(rows),
        "## Prompts",
        _table(rows),
        *_explanations(rows),
        "## Use",
        _usage(rows[0], repo_id),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(rows: Sequence[_CardRow], licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    bases = list(dict.fromkeys(filter(None, (_hub_id(row.model) for row in rows))))
    data: dict[str, Any] = {
        "library_name": LIBRARY,
        "tags": ["soft-prompt", *(_TAGS[kind] for kind in _kinds(rows))],
    }
    if bases:
        data["base_model"] = bases[0] if len(bases) == 1 else bases
        data["base_model_relation"] = "adapter"
    if licence is not None:
        data["license"] = clean_licence(licence)
    return str(ModelCardData(**data).to_yaml()).strip()


def _hub_id(model: str) -> str | None:
    """The hub id of a known model or of one that is named by it; None for local names."""
    name = hub_name(model)
    return name if _HUB_ID.fullmatch(name) else None


def _kinds(rows: Sequence[_CardRow]) -> list[str]:
    return sorted({row.kind for row in rows})


def _models(rows: Sequence[_CardRow]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _introduction(rows: Sequence[_CardRow]) -> str:
    named = [f"the model {_linked(model)}" if model else "a model that its file does not name"
             for model in _models(rows)]  # fmt: skip
    what = "This is a soft prompt" if len(rows) == 1 else f"These are {len(rows)} soft prompts"
    return (
        f"{what} for {' and '.join(named)}, made with softlore. A soft prompt is a small trained "
        "tensor that makes a language model write as if it knew a subject: a character, a place, "
        "a tone. The model's weights do not change. A prompt works only with the model that it "
        "was trained for."
    )


def _linked(model: str) -> str:
    hub_id = _hub_id(model)
    return f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{model}`"


def _table(rows: Sequence[_CardRow]) -> str:
    """A Markdown table; columns that would be empty are left out."""
    columns: dict[str, list[str]] = {
        "name": [f"`{row.name}`" for row in rows],
        "kind": [row.kind for row in rows],
        "tokens": [str(row.n_tokens) for row in rows],
        "model": [row.model for row in rows] if len(_models(rows)) > 1 else [],
        "recall, nothing": [_number(row.recall.get("none")) for row in rows],
        "recall, text": [_number(row.recall.get("text")) for row in rows],
        "recall, prompt": [_number(row.recall.get("soft")) for row in rows],
        "held-out loss": [_number(row.held_out) for row in rows],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    lines = [list(shown), ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.2f}" if is_number else ""


def _explanations(rows: Sequence[_CardRow]) -> list[str]:
    texts = ["\n".join(_KINDS[kind] for kind in _kinds(rows))]
    if any(map(_number, (value for row in rows for value in row.recall.values()))):
        texts.append(_RECALL)
    if any(_number(row.held_out) for row in rows):
        texts.append(_HELD_OUT)
    return texts


def _usage(row: _CardRow, repo_id: str) -> str:
    folder = repo_id.partition("/")[2] or repo_id
    model = shlex.quote(row.model or "MODEL")
    where = "" if _hub_id(row.model) or not row.model else (
        f"`{row.model}` is the name of the model that it was trained for; give its folder or "
        "file where softlore does not find it by that name. "
    )  # fmt: skip
    return (
        "```bash\n"
        f'hf download {repo_id} --include "*.safetensors" --local-dir {folder}\n'
        f'softlore write "{tag_of(row.name)}{row.name}" --model {model} '
        f"--prompts {folder}\n"
        "```\n\n"
        f"{where}In a text, `[[soft:NAME]]` stands for the prompt of that name; a text may hold "
        "several. The files are safetensors with metadata: no code in them is run."
    )
