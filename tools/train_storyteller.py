"""Train storyteller, the small story model that softlore ships: the second stage.

Reads what ``tools/corpus.py`` wrote, trains a Llama-shaped model on windows of tokens, and writes
to ``--out`` a checkpoint (for resuming), ``log.jsonl``, ``loss.png`` where matplotlib is present,
and ``model/``, a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` read.

The learning rate warms up, stays constant, and decays to zero over the last ``--decay`` of
``--tokens``. The schedule counts tokens, so a run can be stopped and resumed with another
``--tokens``; a number written to the file ``tokens`` in ``--out`` changes it during the run.
SIGTERM saves a checkpoint and ends.
Windows grow from 256 to 1024 tokens. Hidden matrices train with Muon, the rest with AdamW. From
``--contrast-from`` of ``--tokens`` on, a second loss makes a passage likelier under
its own code than under others, since one token in hundreds has little effect on the first loss.

Examples:
    python tools/train_storyteller.py --data runs/corpus --out runs/storyteller --tokens 25e6
    python tools/train_storyteller.py --data runs/corpus --out runs/full --size full --tokens 400e6
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from windows import END, SHARES, Windows


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's shape, and the windows that it is trained on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    context: int = 1024  # tokens
    batch: int = 8192  # tokens a step
    micro: int = 4096  # tokens a forward pass
    lengths: tuple[int, ...] = (256, 512, 1024)  # window sizes ...
    starts: tuple[float, ...] = (0.0, 0.4, 0.75)  # ... and the share of --tokens where each starts


SIZES = {
    "tiny": Size(64, 2, 2, 1, 128, 128, 512, 512, (64, 128), (0.0, 0.75)),
    "small": Size(256, 6, 4, 2, 704, micro=2048),
    "full": Size(384, 8, 6, 2, 1024, batch=65536, micro=32768),
}


def make_model(size: Size, vocabulary: int) -> LlamaForCausalLM:
    """A fresh model; id 0 is ``<|endoftext|>``: beginning, end and padding."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_tokenizer(data: Path, context: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(data / "tokenizer.json"),
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def make_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[Any]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=args.muon_lr, weight_decay=args.weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=args.adam_lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def rate(seen: int, args: argparse.Namespace) -> float:
    """The learning rate's factor after ``seen`` tokens: warm up, stay, decay (1 - sqrt)."""
    begin = args.tokens * (1 - args.decay)
    if seen > begin:
        return 1 - math.sqrt(min(1.0, (seen - begin) / (args.tokens - begin)))
    return min(1.0, (seen + 1) / args.warmup) if args.warmup else 1.0


def window_length(seen: int, size: Size, total: int) -> int:
    """The window size after ``seen`` of ``total`` tokens."""
    return [n for n, start in zip(size.lengths, size.starts, strict=True) if seen >= start * total][
        -1
    ]


def code_loss(forward: Any, rows: Tensor) -> Tensor:
    """Attribution loss: -log p(right code | passage), nats a token.

    ``rows`` are (passages, codes, length), the right code in row 0. The posterior under equal
    priors is the softmax of the passage's log-likelihood after each code: the discriminative loss
    of GeDi (Krause et al. 2021), which adds it to the language model's own with a weight.
    """
    passages, codes, length = rows.shape
    flat = rows.flatten(0, 1)
    logits = forward(input_ids=flat, use_cache=False).logits[:, :-1].float()
    nll = functional.cross_entropy(logits.flatten(0, 1), flat[:, 1:].flatten(), reduction="none")
    scores = -nll.view(passages, codes, length - 1).sum(-1)
    return -scores.log_softmax(-1)[:, 0].mean() / (length - 1)


def accumulate(forward: Any, batch: Tensor, micro: int, autocast: Any) -> float:
    """Add the gradients of ``batch`` (rows, length); returns the mean loss, nats a token."""
    total = 0.0
    for part in batch.split(max(1, micro // batch.shape[1])):
        with autocast():
            loss = forward(input_ids=part, labels=part, use_cache=False).loss
        (loss * len(part) / len(batch)).backward()
        total += loss.item() * len(part) / len(batch)
    return total


def update(optimizers: list[Any]) -> None:
    for optimizer in optimizers:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def held_out_bits(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, autocast: Any
) -> float:
    """Bits a character on the middle of each held-out book, after its code."""
    bits = characters = 0.0
    length = min(model.config.max_position_embeddings, 512)
    for line in (data / "held-out.jsonl").read_text("utf-8").splitlines():
        book = json.loads(line)
        text = book["text"][len(book["text"]) // 2 :][: 4 * length]
        text = text[text.find("\n") + 1 :] if "\n" in text[: 2 * length] else text
        ids = tokenizer.encode(f"<|{book['code']}|>{text}")[:length]
        row = torch.tensor([ids], device=model.device)  # (1, length)
        with autocast():
            loss = model(input_ids=row, labels=row, use_cache=False).loss.item()
        bits += loss * (len(ids) - 1) / math.log(2)
        characters += len(tokenizer.decode(ids[1:]))
    return bits / characters


def write_atomically(path: Path, write: Any) -> None:
    """Write a file so that a kill at any moment leaves either the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_checkpoint(out: Path, state: dict[str, Any]) -> None:
    write_atomically(out / "checkpoint.pt", lambda file: torch.save(state, file))


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that transformers reads: bfloat16 weights, tokenizer, configs."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    # softlore reads the codes of models from here.
    copy.config.control_codes = {
        code: tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in SHARES
    }
    copy.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    copy.save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(temporary)
    # The class's name before transformers 5, which 5 knows too.
    config = temporary / "tokenizer_config.json"
    fields = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    fields.pop("backend", None)
    config.write_text(json.dumps(fields, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def plot(log: Path) -> None:
    """Draw the loss curve beside the log, where matplotlib is present."""
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        rows = [json.loads(line) for line in log.read_text().splitlines()]
        figure, left = pyplot.subplots(figsize=(7, 4))
        left.plot([r["tokens"] / 1e6 for r in rows], [r["loss"] for r in rows], lw=0.8)
        left.set(xlabel="million tokens", ylabel="training loss, nats a token")
        held = [r for r in rows if "held_out" in r]
        right = left.twinx()
        right.plot([r["tokens"] / 1e6 for r in held], [r["held_out"] for r in held], "C1.-")
        right.set_ylabel("held-out bits a character")
        figure.savefig(log.with_name("loss.png"), dpi=110, bbox_inches="tight")
        pyplot.close(figure)


class Run:
    """A training run with its model, data, optimizers, checkpoint and log."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.size = args, SIZES[args.size]
        torch.manual_seed(args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = make_tokenizer(args.data, self.size.context)
        self.model = make_model(self.size, len(self.tokenizer)).to(args.device)
        self.windows = Windows(args.data, self.tokenizer, args.seed)
        self.optimizers = make_optimizers(self.model, args)
        self.seen = self.steps = 0
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint, map_location=args.device, weights_only=True))
        use = args.precision == "bfloat16"
        kind = torch.device(args.device).type
        self.autocast = lambda: torch.autocast(kind, dtype=torch.bfloat16, enabled=use)
        self.forward = torch.compile(self.model, dynamic=False) if args.compile else self.model

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "windows": self.windows.state(),
            "seen": self.seen,
            "steps": self.steps,
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.windows.load(state["windows"])
        self.seen, self.steps = state["seen"], state["steps"]

    def replan(self) -> None:
        """Read a new length of the schedule from the file ``tokens``, if it exists."""
        plan = self.args.out / "tokens"
        if plan.exists():
            self.args.tokens = max(self.seen, int(float(plan.read_text())))

    def advance(self) -> float:
        """One step at the current learning rate and window size; returns the loss."""
        length = window_length(self.seen, self.size, self.args.tokens)
        batch = self.windows.batch(self.size.batch, length).to(self.args.device)
        factor = rate(self.seen, self.args)
        for optimizer, lr in zip(
            self.optimizers, (self.args.muon_lr, self.args.adam_lr), strict=True
        ):
            optimizer.param_groups[0]["lr"] = lr * factor
        loss = accumulate(self.forward, batch, self.size.micro, self.autocast)
        if self.seen >= self.args.contrast_from * self.args.tokens:
            rows = self.windows.contrast(self.args.passages, min(129, self.size.context))
            with self.autocast():
                codes = self.args.contrast * code_loss(self.forward, rows.to(self.args.device))
            codes.backward()
        update(self.optimizers)
        self.seen, self.steps = self.seen + batch.numel(), self.steps + 1
        return loss

    def log(self, losses: list[float], seconds: float, tokens: int, **more: float) -> None:
        row = {
            "step": self.steps,
            "tokens": self.seen,
            "loss": round(sum(losses) / len(losses), 4),
            "tokens_a_second": round(tokens / seconds),
            "rate": round(rate(self.seen, self.args), 4),
            "window": window_length(self.seen, self.size, self.args.tokens),
            **more,
        }
        print(time.strftime("%H:%M:%S"), json.dumps(row), flush=True)
        with (self.args.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self) -> None:
        """Save a checkpoint, and export the model."""
        save_checkpoint(self.args.out, self.state())
        export(self.model, self.tokenizer, self.args.out / "model")

    def fit(self) -> None:
        """Train until ``--tokens`` are seen (or ``--stop-at``), with logs and checkpoints."""
        args = self.args
        stop = threading.Event()
        before_us = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        losses: list[float] = []
        logged, saved = time.monotonic(), time.monotonic()
        before, last = self.seen, False
        while not last and self.seen < args.tokens:
            losses.append(self.advance())
            self.replan()
            now = time.monotonic()
            last = stop.is_set() or self.seen >= min(args.tokens, args.stop_at or args.tokens)
            if now - logged >= args.log_every or last:
                more = {}
                due = now - saved >= args.keep_every or last
                if due:
                    bits = held_out_bits(self.model, self.tokenizer, args.data, self.autocast)
                    more["held_out"] = round(bits, 4)
                self.log(losses, now - logged, self.seen - before, **more)
                if due:
                    self.save()
                    saved = time.monotonic()
                losses, logged, before = [], time.monotonic(), self.seen
        signal.signal(signal.SIGTERM, before_us)
        plot(args.out / "log.jsonl")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = lambda text: int(float(text))  # noqa: E731 - so that 25e6 is a number of tokens
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run; resumes it")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tokens", type=number, required=True, help="length of the schedule")
    parser.add_argument("--stop-at", type=number, help="stop earlier, after so many tokens")
    parser.add_argument("--decay", type=float, default=0.25, help="share of --tokens that decays")
    parser.add_argument("--warmup", type=number, default=400_000, help="tokens")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--contrast", type=float, default=1.0, help="weight of the codes' loss")
    parser.add_argument("--contrast-from", type=float, default=0.5, help="share of --tokens")
    parser.add_argument("--passages", type=int, default=6, help="of the codes' loss, a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own")
    parser.add_argument("--log-every", type=float, default=20, help="seconds")
    parser.add_argument("--keep-every", type=float, default=180, help="seconds between checkpoints")
    args = parser.parse_args(arguments)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def main(arguments: list[str] | None = None) -> None:
    transformers_logging.disable_progress_bar()
    run = Run(parse(arguments))
    count = sum(p.numel() for p in run.model.parameters())
    print(
        f"{count / 1e6:.2f} M parameters on {run.args.device}, from {run.seen} tokens", flush=True
    )
    run.fit()


if __name__ == "__main__":
    main()
