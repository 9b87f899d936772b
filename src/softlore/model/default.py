"""Which model is used where none is named: `SOFTLORE_MODEL`, the config file, the storyteller."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from softlore.disk import storage_error, write_atomically
from softlore.errors import ConfigError, ModelError
from softlore.model.catalog import DEFAULT_MODEL

MODEL_VARIABLE, CONFIG_VARIABLE = "SOFTLORE_MODEL", "SOFTLORE_CONFIG"
GIVEN, INCLUDED = "given", "softlore's default"


@dataclass(frozen=True)
class ModelChoice:
    """A model's name, and what named it.

    Attributes:
        source: `"given"`, `"SOFTLORE_MODEL"`, the path of the config file, or
            `"softlore's default"`.
    """

    name: str
    source: str

    @property
    def set_by(self) -> str:
        """What named it, for display."""
        if self.source == MODEL_VARIABLE:
            return f"set by {MODEL_VARIABLE}"
        return self.source if self.source in (GIVEN, INCLUDED) else f"set in {self.source}"

    def explain(self, error: ModelError) -> ModelError:
        """The error, with what named the model, if the user did not name it just now."""
        if self.source == MODEL_VARIABLE:
            return ModelError(f"{MODEL_VARIABLE} is set, and its {error}; or unset the variable")
        if self.source in (GIVEN, INCLUDED):
            return error
        return ModelError(
            f"the default of {self.source!r} can't be used: {error}; or choose another with "
            "`softlore models use NAME`, or `softlore models use --clear`"
        )


def choose_model(*named: str | None) -> ModelChoice:
    """The first model that is named, or the default one.

    Args:
        named: names in order of precedence, such as that of `--model`, then the lorebook's.

    Returns:
        the first of: `named`, `$SOFTLORE_MODEL`, the config file's, the storyteller.

    Raises:
        ConfigError: the config file can't be read.
    """
    for name in named:
        if name is not None:
            return ModelChoice(name, GIVEN)
    if name := os.environ.get(MODEL_VARIABLE):
        return ModelChoice(name, MODEL_VARIABLE)
    path = config_path()
    if name := _read(path).get("model"):
        return ModelChoice(name, str(path))
    return ModelChoice(DEFAULT_MODEL, INCLUDED)


def config_path() -> Path:
    """The config file, which need not exist.

    `$SOFTLORE_CONFIG` if set, else `config.json` in the user's config folder
    (`~/.config/softlore` on Linux).
    """
    if path := os.environ.get(CONFIG_VARIABLE):
        return Path(path).expanduser()
    return Path(platformdirs.user_config_dir("softlore", appauthor=False)) / "config.json"


def set_default_model(name: str | None) -> Path:
    """Writes the default model into the config file; None takes it out. Returns the file.

    Raises:
        ConfigError: there is a config file that can't be read. StorageError: it can't be written.
    """
    path = config_path()
    config = _read(path)
    config.pop("model", None)
    if name is not None:
        config["model"] = name
    if config or path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", path.parent, error) from error
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode("utf-8", "surrogateescape"))
    return path


def _read(path: Path) -> dict[str, Any]:
    """The config file's fields; none if there is no file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _config_error(path, str(getattr(error, "strerror", None) or error)) from error
    if not isinstance(config, dict):
        raise _config_error(path, "it holds no JSON object")
    if not isinstance(config.get("model", ""), str):
        raise _config_error(path, f"its model is {config['model']!r:.60}")
    return config


def _config_error(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the config file {str(path)!r} can't be read ({why}); expected JSON such as "
        '{"model": "smollm2"}; fix or delete it'
    )
