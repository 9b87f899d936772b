"""Every error softlore raises on purpose, in one tree.

::

    SoftloreError                     exit 1   the root: catch this to catch them all
    ├── InputError                    exit 2   what was given cannot be used
    │   ├── LoreError                          a lorebook, an entry or a block
    │   ├── PromptError                        a soft prompt's name, shape or values
    │   │   ├── PromptFileError                a prompt file; `.reason` says in which way
    │   │   └── PromptMismatchError            a prompt made for another model
    │   ├── ModelError                         a model that is unknown or does not load
    │   │   ├── UnknownModelError              a model that a server is asked for and has not
    │   │   └── UnsupportedModelError          a model family that cannot do what was asked
    │   ├── ContextError                       the pieces of text and prompts to be read
    │   │   ├── ContextOverflowError           more tokens than the model or the budget holds
    │   │   └── UnknownPromptError             a name that no prompt at hand carries
    │   ├── StoryError                         a story's name, its turns or what is asked of them
    │   │   ├── StoryNotFoundError             a name that no story at hand carries
    │   │   └── StoryFileError                 a file that holds no story, or a damaged one
    │   └── ConfigError                        a setting, an option or a combination of them
    ├── TrainingError                 exit 1   training could not go on
    │   └── DivergedError                      the loss became NaN or infinite
    ├── ServeError                    exit 1   serving could not begin, or could not go on
    │   ├── BusyError                          as much is asked for at once as can be; ask again
    │   └── EngineError                        what writes the texts has failed
    ├── StorageError                  exit 2   the disk: full, read-only, missing, not permitted
    └── CheckError                    exit 1   a check was made and it failed

A message says what was wrong with what, what was expected, and how to mend it. The library
raises; only the command line and the server turn errors into exit codes and replies, by
`exit_code`. This module imports nothing, so every other module can import it.
"""


class SoftloreError(Exception):
    """The root of the tree. `exit_code` is what the command line ends with."""

    exit_code: int = 1


class InputError(SoftloreError, ValueError):
    """What the user gave cannot be used; they can mend it."""

    exit_code = 2


class LoreError(InputError):
    """A lorebook, an entry or a block is wrong."""


class PromptError(InputError):
    """A soft prompt's name, shape, values or metadata are wrong."""


class PromptFileError(PromptError):
    """A prompt file cannot be read.

    `reason` is a short fixed word for the way in which it is wrong: a member of
    `softlore.prompts.Reason` (a `StrEnum`), so that programs need not read the message.
    """

    def __init__(self, message: str, *, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class PromptMismatchError(PromptError):
    """A soft prompt was made for another model than the one it is used with."""


class ModelError(InputError):
    """A model is unknown, or does not load."""


class UnknownModelError(ModelError):
    """A server is asked for a model that it does not serve."""


class UnsupportedModelError(ModelError):
    """The model's family cannot do what was asked, whatever its weights."""


class ContextError(InputError):
    """The pieces of text and soft prompts the model is to read are wrong."""


class ContextOverflowError(ContextError):
    """The context holds more tokens than the model, or the budget, allows."""


class UnknownPromptError(ContextError, KeyError):
    """A prompt is named that is not at hand."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class StoryError(InputError):
    """A story's name, a turn of it, or what is asked of them is wrong."""


class StoryNotFoundError(StoryError, KeyError):
    """A story is named that is not in the folder."""

    __str__ = Exception.__str__  # KeyError's shows the message in quotes


class StoryFileError(StoryError):
    """A file holds no story, or a damaged one, or one of a newer softlore."""


class ConfigError(InputError):
    """A setting is out of range, unknown, or at odds with another."""


class TrainingError(SoftloreError):
    """Training began and could not go on."""


class DivergedError(TrainingError):
    """The loss, a gradient or the prompt became NaN or infinite."""


class ServeError(SoftloreError):
    """Serving could not begin, or could not go on."""


class BusyError(ServeError):
    """As much is asked for at once as can be written; ask again later."""


class EngineError(ServeError):
    """What writes the texts has failed: a model's forward, or another program's server."""


class StorageError(SoftloreError, OSError):
    """The disk refused: full, read-only, missing or not permitted."""

    exit_code = 2


class CheckError(SoftloreError):
    """A check was made, and it failed."""
