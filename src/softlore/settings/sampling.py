"""Settings of the samplers, and the order in which they act on the logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, field_validator, model_validator

from softlore.errors import ConfigError
from softlore.settings.lenient import integer
from softlore.settings.sampler_values import (
    STRINGS,
    Biases,
    Breakers,
    Choice,
    Grammar,
    Ids,
    Schema,
    Strings,
    check_strings,
    split,
)
from softlore.settings.table import Settings, Textual, closest, setting

MIN_TEMPERATURE = 1e-4  # below it logits would overflow, and the draw is certain
MIN_COPY = 4  # tokens of a run of a training response, as prompts have them hashed
MAX_RANGE = 2**20  # tokens that a sampler looks back

# The steps from logits to the distribution that is drawn from, in their default order.
STEPS = (
    "logit_bias", "banned", "penalized", "repetition_penalty", "presence_frequency",
    "no_repeat_ngram", "dry", "banned_strings", "top_n_sigma", "temperature", "smoothing",
    "top_k", "top_p", "min_p", "typical", "tfs", "top_a", "xtc", "mirostat",
)  # fmt: skip

# Settings of which one decides what the text may be at all, before all steps.
GRAMMARS = ("grammar", "json_schema", "regex", "choice")

# KoboldAI's sampler numbers; what koboldcpp does within one of them stays together.
_KOBOLD = (
    ("top_k",),
    ("top_a",),
    ("top_p", "min_p"),
    ("tfs",),
    ("typical",),
    ("temperature", "smoothing", "top_n_sigma"),
    ("repetition_penalty",),
)

# llama.cpp's names of samplers, where they are not those of steps.
_LLAMACPP = {
    "penalties": ("repetition_penalty", "presence_frequency"),
    "typ_p": ("typical",),
    "temperature": ("temperature", "smoothing"),
}


def kobold_order(numbers: Iterable[int]) -> tuple[str, ...]:
    """KoboldAI's `sampler_order` as names of steps: `[6, 0, 1, 3, 4, 2, 5]` is koboldcpp's default.

    0 top-k, 1 top-a, 2 top-p (and min-p), 3 tail-free, 4 typical, 5 temperature (with smoothing
    and top-n-sigma), 6 repetition penalty.

    Raises:
        ConfigError: a number that is none of these, or comes twice.
    """
    given = list(numbers)
    known = all(isinstance(n, int) and 0 <= n < len(_KOBOLD) for n in given)
    if not known or len(set(given)) < len(given):
        raise ConfigError(
            f"sampler order {given!r} can't be used; expected numbers from 0 to "
            f"{len(_KOBOLD) - 1}, each at most once; fix the list"
        )
    return tuple(name for n in given for name in _KOBOLD[n])


def _order(value: Any) -> tuple[str, ...]:
    steps = check_strings(value)
    for step in steps:
        if step not in STEPS:
            fix = closest(step, STEPS) or "fix the name, or leave it out"
            raise ConfigError(f"order names {step!r}; expected names of {', '.join(STEPS)}; {fix}")
    if len(set(steps)) < len(steps):
        raise ConfigError(f"order is {value!r}; expected each name at most once; leave one out")
    return steps


def _client_order(value: Any) -> tuple[str, ...]:
    listed = value[:100] if isinstance(value, list) else []
    if any(isinstance(item, str) and not item.isdecimal() for item in listed):
        named = [step for item in listed for step in _LLAMACPP.get(str(item), (str(item),))]
        return tuple(dict.fromkeys(step for step in named if step in STEPS))
    numbers = [integer(item) for item in listed]
    known = [n for n in numbers if n is not None and 0 <= n < len(_KOBOLD)]
    return kobold_order(dict.fromkeys(known))


# fmt: off
Order = Annotated[tuple[str, ...], BeforeValidator(_order),
                  Textual(lambda text: tuple(split(text)), "top_k,temperature", _client_order,
                          adds_up=False)]
# fmt: on


class SamplingParams(Settings):
    """How the next token is chosen. The processors in `decode.samplers` have formulas and sources.

    To add a sampler: its processor in `decode/samplers/`, its settings and its step's name in
    `STEPS` here, and its step in `decode/samplers/steps.py`.
    """

    noun: ClassVar[str] = "sampler"

    # fmt: off
    temperature: float = setting(0.8, "Divides the logits; 0 is greedy, higher is more random.",
        ge=0, le=100, slider=(0, 2, 0.05))
    top_k: int = setting(40, "Keep this many of the likeliest tokens; 0 keeps all.",
        ge=0, le=10**9, slider=(0, 200, 1))
    top_p: float = setting(1.0, "Keep the likeliest tokens up to this sum of probabilities.",
        ge=1e-9, le=1, client_range=(0, 1), slider=(0.05, 1, 0.01))
    min_p: float = setting(0.0, "Drop tokens below this share of the likeliest's probability.",
        ge=0, le=1, slider=(0, 0.5, 0.01))
    typical: float = setting(1.0, "Keep the tokens nearest to the expected surprise up to this sum "
        "of probabilities.", ge=1e-9, le=1, client_range=(1e-9, 1), aliases=("typical_p",),
        slider=(0.05, 1, 0.01))
    tfs: float = setting(1.0, "Tail-free sampling's z; 1 is off.", ge=0, le=1,
        client_range=(1e-9, 1), aliases=("tfs_z",))
    top_a: float = setting(0.0, "Drop tokens below this times the square of the likeliest's "
        "probability.", ge=0, le=1)
    top_n_sigma: float = setting(0.0, "Drop tokens more than this many standard deviations below "
        "the greatest logit; 0 is off.", ge=0, le=100, aliases=("nsigma",))
    dynatemp_range: float = setting(0.0, "Let the temperature move this far up and down with the "
        "entropy; 0 is off.", ge=0, le=100)
    dynatemp_exponent: float = setting(1.0, "Of the moving temperature: 1 is linear in the "
        "entropy, above 1 keeps it low for longer.", ge=0, le=100, client_range=(0.01, 100))
    smoothing: float = setting(0.0, "Factor of quadratic smoothing; 0 is off.", ge=0, le=100,
        aliases=("smoothing_factor",))
    smoothing_curve: float = setting(1.0, "Of smoothing: above 1 unlikely tokens lose more, by a "
        "cubic curve.", ge=1, le=10, client_range=(1, 10))
    repetition_penalty: float = setting(1.0, "Above 1 makes tokens that are in the text already "
        "less likely.", ge=1e-3, le=100, client_range=(0.01, 100),
        aliases=("rep_pen", "repeat_penalty"), slider=(1, 2, 0.01))
    repetition_range: int = setting(0, "Of the repetition penalty: look at this many of the last "
        "tokens; 0 is the whole text.", ge=0, le=MAX_RANGE, unit="tokens",
        aliases=("rep_pen_range", "repetition_penalty_range", "repeat_last_n"))
    repetition_slope: float = setting(0.0, "How steeply the repetition penalty falls to 1 with "
        "distance, within its range (KoboldAI's); 0 is not at all.", ge=0, le=100,
        aliases=("rep_pen_slope",))
    presence_penalty: float = setting(0.0, "Subtracted from the logit of a token that is in the "
        "new text.", ge=-100, le=100)
    frequency_penalty: float = setting(0.0, "Subtracted from the logit of a token once for each "
        "time it is in the new text.", ge=-100, le=100)
    no_repeat_ngram: int = setting(0, "Let no run of this many tokens come twice; 0 is off.",
        ge=0, le=MAX_RANGE, aliases=("no_repeat_ngram_size",))
    dry_multiplier: float = setting(0.0, "DRY: the penalty on continuing a repetition; 0 is off.",
        ge=0, le=100, slider=(0, 2, 0.05))
    dry_base: float = setting(1.75, "DRY: factor of the penalty for every repeated token.",
        ge=1, le=100, client_range=(1, 100))
    dry_allowed_length: int = setting(2, "DRY: length of a repetition that has the first penalty.",
        ge=1, le=MAX_RANGE, unit="tokens")
    dry_breakers: Breakers = setting(("\n", ":", '"', "*"), "DRY: strings that end a repetition.",
        aliases=("dry_sequence_breakers",), expected=STRINGS)
    dry_range: int = setting(0, "DRY: look at this many of the last tokens; 0 is the whole text.",
        ge=0, le=MAX_RANGE, unit="tokens", aliases=("dry_penalty_last_n",))
    xtc_probability: float = setting(0.0, "XTC: how often the top choices are excluded.",
        ge=0, le=1, slider=(0, 1, 0.05))
    xtc_threshold: float = setting(0.1, "XTC: a token of at least this probability is a top "
        "choice.", ge=0, le=1)
    mirostat: int = setting(0, "Version of Mirostat, 1 or 2, in place of all that cuts tokens off; "
        "0 is off.", ge=0, le=2, client_range=(0, 2), aliases=("mirostat_mode",))
    mirostat_tau: float = setting(5.0, "Mirostat: the surprise that it steers towards.",
        ge=0, le=100, unit="bits a token")
    mirostat_eta: float = setting(0.1, "Mirostat: how fast it adapts.", ge=0, le=100)
    penalized: float = setting(1.0, "CTRL's penalty: above 1 divides the logits of tokens in the "
        "text; its authors use 1.2 with a low temperature.", ge=1e-3, le=100, slider=(1, 2, 0.01))
    no_copy: int = setting(0, "Steer off what would repeat this many tokens of the prompts' "
        "training responses word for word; 0 is off.", ge=0, le=MAX_RANGE, unit="tokens",
        option="--no-copy", client_range=(MIN_COPY, MAX_RANGE),
        expected=f"0 for none, or {MIN_COPY} tokens or more")
    heal: bool = setting(False, "Heal the seam after the text: its last tokens may be replaced by "
        "a longer one, so that a word it ends within is completed; words known to be whole are "
        "left whole. Stories and `softlore write` do so by default.", option="--heal")
    banned: Ids = setting((), "Token ids that are never written.",
        aliases=("custom_token_bans",), expected="token ids, whole numbers from 0")
    banned_strings: Strings = setting((), "Strings that are never written, in any case.",
        aliases=("banned_tokens",), expected=STRINGS)
    logit_bias: Biases = setting((), "Added to the logits of token ids.",
        expected="token ids and what to add to the logit of each, such as {42: -5}")
    order: Order = setting((), "Names of steps in the order in which they act. They take the "
        "places that they have by default among them; the others keep theirs.",
        aliases=("sampler_order", "samplers"), expected="names of steps")
    grammar: Grammar = setting("", "The text follows this grammar: GBNF, as llama.cpp has it, or "
        "llguidance's Lark.", aliases=("guided_grammar", "grammar_string"), option="--grammar",
        file=True, expected="a grammar, as text")
    json_schema: Schema = setting("", "The text is JSON that is valid under this schema.",
        aliases=("guided_json",), option="--json-schema", file=True,
        expected="a JSON schema, an object or its text")
    regex: Grammar = setting("", "All of the text matches this regular expression.",
        aliases=("guided_regex",), option="--regex", expected="a regular expression, as text")
    choice: Choice = setting((), "The text is one of these strings.",
        aliases=("guided_choice",), expected=STRINGS)
    # fmt: on

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """The name and the value of the setting that says what the text may be; None: anything."""
        named = ((name, getattr(self, name)) for name in GRAMMARS)
        return next(((name, value) for name, value in named if value), None)

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        if len(named := [name for name in GRAMMARS if getattr(self, name)]) > 1:
            raise ConfigError(
                f"{' and '.join(named)} are given; expected one of {', '.join(GRAMMARS)}, as a "
                "text follows one of them; leave the others out"
            )
        return self

    @field_validator("no_copy")
    @classmethod
    def _no_short_copy(cls, length: int) -> int:
        if 0 < length < MIN_COPY:
            raise ValueError
        return length

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def ordered_steps(self) -> tuple[str, ...]:
        """All of `STEPS` in the order in which they are applied."""
        named = iter(self.order)
        return tuple(next(named) if step in self.order else step for step in STEPS)
