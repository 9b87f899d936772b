"""The running batch: sequences join and leave between steps, each with its own settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.decode.conditioning import mix_logits
from softlore.decode.model_runner import PREFILL_TOKENS, CacheMemory, ModelRunner
from softlore.decode.output import Token
from softlore.decode.request import GenerationRequest
from softlore.decode.samplers import sample_each
from softlore.decode.sequence_group import SequenceGroup

MAX_FAILED_STEPS = 3  # one after another, after which a text ends though it runs alone
_log = logging.getLogger(__name__)


class RunningBatch:
    """Generates several texts side by side with one model (continuous batching).

    A step generates at most one token in each text, and reads a part of the contexts of texts that
    have joined, so that they do not hold up the others:

        add ──▶ reading ──(context run, first token)──▶ generating ──▶ finished, removed
                   ▲                                        │
                   └──────────(window full: slide)──────────┘

    Every text is what `write` would generate alone with the same seed, up to rounding. What one
    raises, in a sampler, say, is its `error` and ends it alone. A forward of several that fails is
    run again for each by itself, so that those go on that can.

    Attributes:
        runner: what runs the sequences.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._reading: list[SequenceGroup] = []
        self._generating: list[SequenceGroup] = []
        self._failed_steps = 0  # one after another

    def __len__(self) -> int:
        """How many texts have not finished."""
        return len(self._reading) + len(self._generating)

    def memory_usage(self) -> CacheMemory:
        """Keys and values of the running sequences, and of those cached for later ones."""
        return self.runner.memory_usage()

    def add(self, request: GenerationRequest | SequenceGroup) -> SequenceGroup:
        """Adds a text, which is generated from the next step on.

        Raises:
            ConfigError, ContextError, PromptMismatchError: as `SequenceGroup.from_request`.
        """
        if isinstance(request, GenerationRequest):
            request = SequenceGroup.from_request(self.runner, request)
        self._reading.append(request)
        return request

    def remove(self, group: SequenceGroup) -> None:
        """Removes a text at once. Does nothing if it has finished."""
        for groups in (self._reading, self._generating):
            if group in groups:
                groups.remove(group)
        group.stop(self.runner)

    @torch.no_grad()
    def step(self) -> list[tuple[SequenceGroup, Token]]:
        """Generates a token in every text that is prefilled, and prefills a part of the others.

        Texts whose `output.finish` or `error` is set have been removed.
        """
        tokens = []
        if self._generating:
            tokens += self._sample(*self._run())
        if read := self._prefill():
            logits = [s.logits for group in read for s in group.sequences if s.logits is not None]
            tokens += self._sample(read, torch.stack(logits))
        return tokens

    def _prefill(self) -> list[SequenceGroup]:
        """Runs a part of the contexts, those that joined first at first; returns the completed."""
        started, unread = [], 0
        for group in list(self._reading):
            try:
                group.start(self.runner)
            except Exception as error:  # noqa: BLE001 - it must end no other text
                self._fail(group, error)
                continue
            started.append(group)
            unread += sum(sequence.unread for sequence in group.sequences)
            if unread >= PREFILL_TOKENS:
                break
        try:
            self.runner.prefill([s for group in started for s in group.sequences], PREFILL_TOKENS)
        except Exception as error:  # noqa: BLE001 - of one of them, or of all
            self._prefill_each(started, error)
        done = [group for group in started if group.is_read]
        self._reading = [group for group in self._reading if group not in done]
        self._generating += done
        for group in done:
            group.begin()
            if group.output.finish:
                self.remove(group)
        return [group for group in done if not group.output.finish]

    def _prefill_each(self, groups: Sequence[SequenceGroup], error: Exception) -> None:
        """After a prefill that failed: begins anew with each context by itself."""
        for group in groups:
            if len(groups) > 1:
                try:
                    group.stop(self.runner, cache=False)
                    group.start(self.runner)
                    self.runner.prefill(group.sequences, PREFILL_TOKENS)
                    continue
                except Exception as its_own:  # noqa: BLE001 - as above
                    error = its_own
            self._fail(group, error)

    def _run(self) -> tuple[list[SequenceGroup], Tensor]:
        """The texts that are generating, and their sequences' logits `[sequences, vocab]`."""
        groups = list(self._generating)
        sequences = [sequence for group in groups for sequence in group.sequences]
        last = [group.ids[-1] for group in groups for _ in group.sequences]
        try:
            logits = self.runner.step(sequences, last)
            self._failed_steps = 0
        except Exception as error:  # noqa: BLE001 - of one of them, or of all
            return self._rebuild(error)
        return groups, logits

    def _rebuild(self, error: Exception) -> tuple[list[SequenceGroup], Tensor]:
        """After a step that failed: runs each text by itself, from its beginning.

        All that was computed is dropped, as its state is unknown. Where steps fail again and again
        though each text runs by itself, the newest ends: they may be too many for the memory.
        """
        _log.warning("a step failed; its texts are run one by one", exc_info=error)
        self._failed_steps += 1
        if len(self) == 1 or self._failed_steps > MAX_FAILED_STEPS:
            self._fail(self._generating[-1], error)
        for group in [*self._generating, *self._reading]:
            group.sequences = []
        self.runner.clear()
        alone = []
        for group in list(self._generating):
            try:
                alone.append((group, group.run_alone(self.runner)))
            except Exception as its_own:  # noqa: BLE001 - it must end no other text
                self._fail(group, its_own)
        logits = torch.cat([part for _, part in alone]) if alone else torch.empty(0, 0)
        return [group for group, _ in alone], logits

    def _fail(self, group: SequenceGroup, error: Exception) -> None:
        """Ends a text by an error."""
        group.error = error
        self.remove(group)

    def _sample(
        self, groups: Sequence[SequenceGroup], logits: Tensor
    ) -> list[tuple[SequenceGroup, Token]]:
        """Samples a token for each group from their sequences' logits `[sequences, vocab]`."""
        mixed = _mix(groups, logits)
        samplers, ids = [group.sampler for group in groups], [group.ids for group in groups]
        sampled = sample_each(samplers, mixed, ids)
        tokens = []
        for row, (group, new) in enumerate(zip(groups, sampled, strict=True)):
            try:
                if isinstance(new, Exception):
                    raise new
                wanted = mixed[row] if group.logprobs is not None else None
                tokens += [(group, token) for token in group.append(new, wanted)]
            except Exception as error:  # noqa: BLE001 - it must end no other text
                group.error = error
        for group in reversed(groups):  # the last rows first: no other row has to move
            if group.output.finish or group.must_slide or group.error is not None:
                self.remove(group)
        for group in groups:
            if group.must_slide and group.error is None:
                try:
                    group.slide()
                    self._reading.append(group)
                except Exception as error:  # noqa: BLE001 - as above
                    group.error = error
        return tokens


def _mix(groups: Sequence[SequenceGroup], logits: Tensor) -> Tensor:
    """What each group's token is sampled from: `[groups, vocab]` of `[sequences, vocab]`."""
    if len(logits) == len(groups):
        return logits
    weights, grammar = groups[0].weights, groups[0].grammar
    alike = all(group.weights == weights and group.grammar is None for group in groups)
    if alike or len(groups) == 1:
        each = torch.tensor(weights, device=logits.device)
        allowed = None if grammar is None else grammar.allowed(logits.shape[1])
        allowed = None if allowed is None else allowed.to(logits.device)
        return mix_logits(logits.unflatten(0, (-1, len(weights))), each, allowed)
    parts = zip(groups, logits.split([len(group) for group in groups]), strict=True)
    return torch.cat([_mix([group], part) for group, part in parts])
