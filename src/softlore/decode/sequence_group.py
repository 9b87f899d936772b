"""SequenceGroup: one text of a batch, with its sequences, its sampler and its output."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from softlore.context import Tree
from softlore.decode.conditioning import Window, first_windows, slide, weighted, with_bare_model
from softlore.decode.grammar import Grammar
from softlore.decode.healing import Healing, heal
from softlore.decode.model_runner import PREFILL_TOKENS, ModelRunner, RunningSequence
from softlore.decode.output import OutputStream, Token, tokens_with_logprobs
from softlore.decode.prefix_cache import CacheUsage
from softlore.decode.request import GenerationRequest, heals, make_sampler, stop_strings
from softlore.decode.samplers import Sampler
from softlore.errors import ConfigError
from softlore.prompts.control_vector import sum_vectors

_log = logging.getLogger(__name__)


class SequenceGroup:
    """One text of a batch: a sequence, or one under each of several conditionings.

    The sequences of a group get the same new tokens, sampled from the mixture of their logits.
    `len(group)` is their number.

    Attributes:
        output: the text so far: its ids, and why it ended.
        error: what ended it, where that was an exception. It ends no other text.
        cache_usage: how much of its context was cached; None until it is started.
        sampler: what its tokens are sampled with.
        sequences: those that run; empty before they are started.
        ids: of the context's text and of the new tokens. Soft rows have none.
        logprobs: how many of the likeliest tokens to report; None: no log-probabilities.
        prompt_logprobs: the same for each token of its context.
        grammar: what the text may be; the sampler follows it, and its end ends the text.
        healing: of the seam between the context and the new text; the sampler follows it.

    Args:
        windows: what each sequence reads first.
        weights: of the sequences' log-probabilities.
        slides: whether full windows slide, or end the text.
        cache: whether later sequences may reuse what these have read.
        grammar, healing: see above.
    """

    def __init__(
        self,
        runner: ModelRunner,
        windows: Sequence[Window],
        weights: Sequence[float],
        sampler: Sampler,
        output: OutputStream,
        logprobs: int | None = None,
        slides: bool = False,
        cache: bool = True,
        grammar: Grammar | None = None,
        healing: Healing | None = None,
    ) -> None:
        runner.check([window.tree for window in windows])
        self.windows = list(windows)
        self.weights = tuple(weights)
        self.sampler = sampler
        self.output = output
        self.error: Exception | None = None
        self.cache_usage: CacheUsage | None = None
        self.sequences: list[RunningSequence] = []
        self.cache = cache
        self.grammar = grammar
        self.healing = healing
        self._model = runner.model
        self._again = list(healing.ids) if healing is not None else []  # of the context
        self.logprobs = logprobs
        self.prompt_logprobs: int | None = None
        self._slides = slides
        self._open_windows()

    @classmethod
    def from_request(cls, runner: ModelRunner, request: GenerationRequest) -> SequenceGroup:
        """The group that generates what is requested.

        Raises:
            ConfigError: a setting out of range.
            ContextError: nothing to go on from, or more than fits.
            PromptMismatchError: a prompt of another model.
        """
        model = runner.model
        stops, conditionings = stop_strings(request), weighted(request.conditioning)
        if conditionings and request.prompt_logprobs is not None:
            raise ConfigError(
                "prompt_logprobs is set beside a conditioning, before which a text is read in "
                "several ways; expected one of them; leave one out"
            )
        conditionings = with_bare_model(conditionings) if conditionings else []
        if conditionings:
            windows = first_windows(
                model, request.context, conditionings, request.check, request.reserved
            )
        else:
            windows = [Window(request.compose(model))]
        weights = [weight for _, weight in conditionings] or [1.0]
        steering = sum_vectors(model, request.vectors, request.check)
        windows = [replace(w, tree=w.tree.steered(steering)) for w in windows]
        slides = bool(conditionings)
        healing = None
        if heals(request):
            healing, tree = heal(model, request.context, windows[0].tree, keep=slides)
            windows = windows if slides else [Window(tree)]
        sampler, grammar = make_sampler(model, request, conditionings, healing)
        skipped = healing.text if healing is not None else ""
        output = OutputStream(model, stops, request.max_new_tokens, skipped)
        group = cls(
            runner, windows, weights, sampler, output, request.logprobs, slides, grammar=grammar,
            healing=healing,
        )  # fmt: skip
        group.prompt_logprobs = request.prompt_logprobs
        return group

    @classmethod
    def from_trees(
        cls,
        runner: ModelRunner,
        trees: Sequence[tuple[Tree, float]],
        sampler: Sampler,
        max_new_tokens: int,
    ) -> SequenceGroup:
        """A group that samples ids only, after trees mixed by weights; nothing ends it early."""
        windows, weights = [Window(tree) for tree, _ in trees], [weight for _, weight in trees]
        output = OutputStream(None, (), max_new_tokens)
        return cls(runner, windows, weights, sampler, output, cache=False)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def is_read(self) -> bool:
        """Whether its contexts are prefilled, so that its next token can be sampled."""
        return bool(self.sequences) and all(s.logits is not None for s in self.sequences)

    @property
    def is_full(self) -> bool:
        """Whether a window has reached the end of its room."""
        return self._room == 0

    @property
    def must_slide(self) -> bool:
        return self.is_full and self._slides and not self.output.finish

    def start(self, runner: ModelRunner) -> None:
        """Starts a sequence for each window.

        After an error, the tokens generated so far are read again, but the last, which a step runs.
        """
        for window in self.windows[len(self.sequences) :]:
            tree, read = window.tree, self._new[:-1]
            reported = None if self._new else self.prompt_logprobs
            if read:
                tree = tree.then(read, tree.nodes[-1].sees)
            self.sequences.append(runner.start(tree, reported))
        self.cache_usage = self.cache_usage or self.sequences[0].cache_usage

    def begin(self) -> None:
        """Passes on the tokens of the context, once it is read."""
        if not self._new:
            self.output.begin(self.sequences[0].prompt)

    def stop(self, runner: ModelRunner, cache: bool = True) -> None:
        """Ends its sequences, if any run; after an error nothing of them is cached.

        `cache`: False caches nothing of them either way.
        """
        sequences, self.sequences = self.sequences, []
        for sequence in reversed(sequences):
            try:
                runner.remove(sequence, cache and self.cache and self.error is None)
            except Exception as error:  # noqa: BLE001 - memory for the cache, say
                _log.warning("a text that has ended was not cached", exc_info=error)

    def run_alone(self, runner: ModelRunner) -> Tensor:
        """Runs its sequences from the beginning: their next logits `[sequences, vocab]`."""
        self.start(runner)
        while not self.is_read:
            runner.prefill(self.sequences, PREFILL_TOKENS)
        return runner.step(self.sequences, [self.ids[-1]] * len(self))

    def append(self, token: int, logits: Tensor | None) -> Iterator[Token]:
        """Adds a sampled token: its text, and the rest at the end.

        `logits`: `[vocab]`, that it was sampled from, where log-probabilities are requested.
        """
        if self.grammar is not None and self.grammar.failed:
            self.output.finish = "grammar"
            yield from self.output.flush()
            return
        self.ids.append(token)
        self._new.append(token)
        if self._room is not None:
            self._room -= 1
        if self._again and token == self._again.pop(0):
            self.output.skip(token)
            return
        self._again = []
        if logits is None or self.logprobs is None:
            yield self.output.append(Token("", token))
        else:
            [reported] = tokens_with_logprobs(logits[None], [token], self.logprobs)
            yield self.output.append(reported)
        if self.grammar is not None and self.grammar.complete:
            self.output.complete()
        if self.output.finish or (self.is_full and not self._slides):
            yield from self.output.flush()

    def slide(self) -> None:
        """Continues in the next windows, which must be prefilled."""
        self.windows = slide(self._model, self.windows, self._new)
        self._open_windows()

    def _open_windows(self) -> None:
        tree = self.windows[0].tree
        self.ids = [i for node in tree.nodes for i in node.ids]
        self._new: list[int] = []  # generated in these windows
        limit = self._model.context_length
        end = max(window.end for window in self.windows)
        # Tokens that can be sampled; the last one is never run, so it may stand one past the end.
        self._room = None if limit is None else limit + 1 - end
