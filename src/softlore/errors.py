"""Exceptions that softlore raises on purpose.

::

    SoftloreError                     exit 1   root of the tree: catches all of them
    ├── InputError                    exit 2   what the user gave cannot be used
    │   ├── LoreError                          lorebook, entry or block
    │   ├── PromptError                        soft prompt: name, shape, values, metadata
    │   │   ├── PromptFileError                prompt file; `.reason` is a member of `Reason`
    │   │   └── PromptMismatchError            prompt trained for another model
    │   ├── ModelError                         model that is unknown or does not load
    │   │   ├── UnknownModelError              model that a server does not serve
    │   │   └── UnsupportedModelError          model family that lacks what is needed
    │   ├── ContextError                       text and soft prompts that the model reads
    │   │   ├── ContextOverflowError           more tokens than the model or the budget allows
    │   │   └── UnknownPromptError             name of no loaded prompt
    │   ├── StoryError                         story: name, turns, operations on them
    │   │   ├── StoryNotFoundError             name of no story in the folder
    │   │   └── StoryFileError                 story file that is damaged, or no story
    │   ├── HubError                           upload that the Hugging Face hub did not take
    │   └── ConfigError                        setting, option, or combination of them
    ├── TrainingError                 exit 1   training that cannot continue
    │   └── DivergedError                      loss that became NaN or infinite
    ├── ServeError                    exit 1   server that cannot start or continue
    │   ├── BusyError                          more requests than can run at once
    │   └── EngineError                        decoding that failed
    ├── StorageError                  exit 2   disk that is full, read-only, missing, not permitted
    └── CheckError                    exit 1   check that was run and failed

A message has three parts: what is wrong with what, what was expected, how to fix it. The library
raises; only the command line and the server turn errors into exit codes and responses, by
`exit_code`. This module imports nothing, so that every other module can import it.
"""


class SoftloreError(Exception):
    """Base class of all errors. `exit_code` is the exit code of the command line."""

    exit_code: int = 1


class InputError(SoftloreError, ValueError):
    """Something that the user gave cannot be used, and they can fix it."""

    exit_code = 2


class LoreError(InputError):
    """A lorebook, an entry or a block is invalid."""


class PromptError(InputError):
    """A soft prompt's name, shape, values or metadata are invalid."""


class PromptFileError(PromptError):
    """A prompt file cannot be read.

    `reason` is a fixed word for what is wrong with it, a member of `softlore.prompts.Reason` (a
    `StrEnum`), so that programs need not parse the message.
    """

    def __init__(self, message: str, *, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class PromptMismatchError(PromptError):
    """A soft prompt is used with another model than the one it was trained for."""


class ModelError(InputError):
    """A model is unknown or does not load."""


class UnknownModelError(ModelError):
    """A request names a model that the server does not serve."""


class UnsupportedModelError(ModelError):
    """The model's family cannot do what was requested, whatever its weights."""


class ContextError(InputError):
    """The pieces of text and soft prompts that the model is to read are invalid."""


class ContextOverflowError(ContextError):
    """The context has more tokens than the model or the budget allows."""


class UnknownPromptError(ContextError, KeyError):
    """A context names a prompt that is not loaded."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class StoryError(InputError):
    """A story's name, a turn, or an operation on a story is invalid."""


class StoryNotFoundError(StoryError, KeyError):
    """There is no story of this name in the folder."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class StoryFileError(StoryError):
    """A file holds no story, is damaged, or was written by a newer softlore."""


class HubError(InputError):
    """The Hugging Face hub refused an upload, or can't be reached."""


class ConfigError(InputError):
    """A setting is unknown, out of range, or conflicts with another."""


class TrainingError(SoftloreError):
    """Training started and cannot continue."""


class DivergedError(TrainingError):
    """The loss, a gradient or the prompt became NaN or infinite."""


class ServeError(SoftloreError):
    """The server cannot start or continue."""


class BusyError(ServeError):
    """As many requests are running as can run at once; retry later."""


class EngineError(ServeError):
    """Decoding failed: in a model's forward, or in another program's server."""


class StorageError(SoftloreError, OSError):
    """The disk is full, read-only, missing or not permitted."""

    exit_code = 2


class CheckError(SoftloreError):
    """A check was run and failed."""
