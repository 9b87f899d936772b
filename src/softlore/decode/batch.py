"""A running batch: texts join and leave between steps, each with its own prompts and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softlore.context import splice
from softlore.context.splice import check_length
from softlore.decode.kept import Kept, Read
from softlore.decode.memory import Reading, Slot, slots_of
from softlore.decode.mixing import dosed, mix, with_bare
from softlore.decode.samplers import choose_each
from softlore.decode.sliding import Headed, fitting, slid, windows
from softlore.decode.telling import Telling, Token, observed
from softlore.decode.wish import Wish, chooser_of, stops_of
from softlore.model import FrozenModel, Past, Slots

READ = 512  # tokens that are read at most in a step, so that texts that are written go on


class Text:
    """A text of a batch.

    Attributes:
        telling: what has come of it: text, ids, finish.
        reading: how much of its context was known, and how much was read; None until it is begun.
    """

    def __init__(self, model: FrozenModel, wish: Wish) -> None:
        stops, heads = stops_of(wish), dosed(wish.head)
        self.telling = Telling(model, stops, wish.max_new_tokens)
        self.reading: Reading | None = None
        self.chooser = chooser_of(model, wish, heads)
        heads = with_bare(heads) if heads else []
        self._weights = [weight for _, weight in heads]
        self._logprobs = wish.logprobs
        self._slides = bool(heads)
        found = windows(model, wish.context, heads, wish.check)
        if self._slides:
            found = fitting(model, found)
        self.rows = [_Row(self, window) for window in found]
        check_length(model, max(row.end for row in self.rows))
        self._left = self._room(model)

    def mixed(self, logits: Tensor) -> Tensor:
        """What its next token is chosen from, `[vocab]`, given logits `[rows, vocab]`."""
        if len(self.rows) == 1:
            return logits[0]
        return mix(logits, torch.tensor(self._weights, device=logits.device))

    def tell(self, logits: Tensor, chosen: int) -> Iterator[Token]:
        """The token that was chosen from logits `[vocab]`, with its text; the rest if it ends."""
        for row in self.rows:
            row.chosen(chosen)
        if self._left is not None:
            self._left -= 1
        yield self.telling.tell(observed(logits, chosen, self._logprobs))
        if self.telling.finish or (self._full and not self._slides):
            yield from self.telling.rest()

    @property
    def turns_over(self) -> bool:
        """Whether its windows are full and must slide."""
        return self._full and self._slides and not self.telling.finish

    def slide(self, model: FrozenModel) -> None:
        """Takes the next windows, which must be read."""
        following = slid(model, [row.window for row in self.rows], [r.written for r in self.rows])
        self.rows = [_Row(self, window) for window in following]
        self._left = self._room(model)

    @property
    def _full(self) -> bool:
        return self._left == 0

    def _room(self, model: FrozenModel) -> int | None:
        """Tokens that can be chosen in these windows; the last one is never read."""
        if model.context_length is None:
            return None
        return model.context_length + 1 - max(row.end for row in self.rows)


class Batch:
    """Texts written side by side over one model. A step tells each of them a token at most.

    Every text is what `write` would make of it alone with the same seed, up to rounding. What is
    to be read is read a part at a step, so that the others are not kept waiting.

    Args:
        kept: what was read of texts that have ended, for those that begin like them.
    """

    def __init__(self, model: FrozenModel, kept: Kept | None = None) -> None:
        self.model = model
        self.kept = kept
        self._slots = Slots()
        self._rows: list[_Row] = []  # those that are written, by their places in the slots
        self._reading: list[Text] = []

    def __len__(self) -> int:
        """Texts that are read or written."""
        return len(self._reading) + len({id(row.text) for row in self._rows})

    @property
    def bytes(self) -> int:
        """What keys and values of the running texts take."""
        return self._slots.bytes

    @property
    def tokens(self) -> int:
        """Keys and values of the running texts."""
        return sum(self._slots.lengths)

    def join(self, wish: Wish) -> Text:
        """Takes a text in; it is told from the next step on.

        Raises:
            ConfigError, ContextError, PromptMismatchError: as `write` does.
        """
        return self.enter(Text(self.model, wish))

    def enter(self, text: Text) -> Text:
        """Takes in a text that was made outside, and not joined before."""
        self._reading.append(text)
        return text

    def leave(self, text: Text) -> None:
        """Lets a text go, at once; harmless if it has gone."""
        self._reading = [one for one in self._reading if one is not text]
        self._drop(text)

    @torch.no_grad()
    def step(self) -> list[tuple[Text, Token]]:
        """One token in each text that was read, and a part of what is to be read.

        Texts whose `telling.finish` is set have left.
        """
        told = self._write()
        if read := self._read():
            texts = [text for text, _ in read]
            told += self._choose(texts, torch.cat([last for _, last in read]))
        return told

    # inside ------------------------------------------------------------------------------------

    def _write(self) -> list[tuple[Text, Token]]:
        if not self._rows:
            return []
        hidden = self._slots.run(self.model, [row.ids[-1] for row in self._rows])
        for row in self._rows:
            row.slots.append(row.ids[-1])
        texts = list({id(row.text): row.text for row in self._rows}.values())
        places = [row.place for text in texts for row in text.rows]
        return self._choose(texts, hidden[places])

    def _choose(self, texts: Sequence[Text], hidden: Tensor) -> list[tuple[Text, Token]]:
        """Tokens of texts from the last hidden states of their rows, `[rows, hidden]`."""
        told: list[tuple[Text, Token]] = []
        by_text = self.model.logits(hidden).split([len(text.rows) for text in texts])
        logits = torch.stack([text.mixed(own) for text, own in zip(texts, by_text, strict=True)])
        ids = [text.rows[0].ids for text in texts]
        tokens = choose_each([text.chooser for text in texts], logits, ids).tolist()
        for text, own, token in zip(texts, logits, tokens, strict=True):
            told += [(text, one) for one in text.tell(own, token)]
            if text.telling.finish or text.turns_over:
                self._drop(text)
            if text.turns_over:
                text.slide(self.model)
                self._reading.append(text)
        return told

    def _read(self) -> list[tuple[Text, Tensor]]:
        """Reads on, the first that joined first; gives those that are done, `[rows, hidden]`."""
        left, done = READ, []
        for text in list(self._reading):
            for row in text.rows:
                if row.last is None and left > 0:
                    left -= row.read_on(self.model, left, self.kept)
            if any(row.last is None for row in text.rows):
                break
            self._reading.remove(text)
            lasts = torch.cat([row.last for row in text.rows if row.last is not None])
            for row in text.rows:
                row.enter(self._slots)
                self._rows.append(row)
            done.append((text, lasts))
        return done

    def _drop(self, text: Text) -> None:
        for row in text.rows:
            if row.place < 0:
                continue
            if self.kept is not None:
                past = self._slots.past(row.place)
                self.kept.keep(Read(row.slots, row.window.tree.prefixes, past))
            free = self._slots.drop(row.place)
            moved = self._rows.pop(free)
            if moved is not row:
                self._rows[row.place], moved.place = moved, row.place
            row.place = -1


class _Row:
    """One sequence of a text: its context, or its context under one of several heads."""

    def __init__(self, text: Text, window: Headed) -> None:
        self.text = text
        self.window = window
        self.slots: list[Slot] = slots_of(window.tree)  # what its keys and values are of
        self.ids = [slot for slot in self.slots if isinstance(slot, int)]  # soft rows have none
        self.written: list[int] = []
        self.end = window.tree.start + len(self.slots)  # the position of the first new token
        self.place = -1
        self.last: Tensor | None = None  # the last hidden state `[1, hidden]`, once it is read
        self._past: Past | None = None
        self._read: int | None = None

    def chosen(self, token: int) -> None:
        self.ids.append(token)
        self.written.append(token)

    def read_on(self, model: FrozenModel, most: int, kept: Kept | None) -> int:
        """Reads a part of the context; returns how many tokens."""
        if self._read is None:
            self._begin(kept)
        assert self._read is not None
        part = self.window.tree.part(self._read, self._read + most)
        count = part.length
        spliced = splice(model, [part], self._past)
        hidden, keys_values = model.hidden(
            spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
        )
        self._past = spliced.after(keys_values or [])
        self._read += count
        if self._read == len(self.slots):
            self.last = hidden[:, count - 1]
        return count

    def enter(self, slots: Slots) -> None:
        """Moves what was read to where it is written on from."""
        assert self._past is not None
        self.place = slots.put(self._past, self.end)
        self._past = None

    def _begin(self, kept: Kept | None) -> None:
        self._past, reading = None, Reading(0, len(self.slots), "nothing was read before")
        if kept is not None:
            self._past, reading = kept.nearest(self.window.tree)
        self._read = reading.reused
        self.text.reading = self.text.reading or reading
