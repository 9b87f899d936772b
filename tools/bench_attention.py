"""Times a training update with softlore's attention beside torch's, on a processor.

    python tools/bench_attention.py                       # SmolLM2-135M's shape, three lengths
    python tools/bench_attention.py --branches 12 --filler 0 512 --dtype float32

An update is forward and backward of a packed tree: a soft prefix and filler that was read before,
and branches that see both and not each other. Weights are random, so nothing is downloaded. The
ways alternate in one process; the median seconds of the processor, their ratio, and how far the
gradients are apart are printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softlore import FrozenModel
from softlore.context import Branch, Node, Tree, TreeBatch, backward, read_trunks
from softlore.model.attention import NAME, can_record
from softlore.model.tiny import byte_tokenizer

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 300,  # the bytes' tokenizer: what is timed is the layers
    "max_position_embeddings": 8192,
}
SOFT, TOKENS = 16, 24  # of the prefix, and of each branch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--filler", type=int, nargs="*", default=[0, 700, 2000], help="tokens")
    parser.add_argument("--branches", type=int, default=47)
    parser.add_argument("--repeats", type=int, default=3, help="updates timed, after a first one")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).to(getattr(torch, options.dtype))
    model = FrozenModel(hf, byte_tokenizer(), "random")
    assert can_record(hf)
    print(f"{'filler':>6}{'torch, s':>10}{'softlore, s':>13}{'ratio':>8}{'gradients apart':>17}")
    for length in options.filler:
        compare(model, length, options.branches, options.repeats)


def compare(model: FrozenModel, length: int, branches: int, repeats: int) -> None:
    """Prints a row: an update with both ways behind filler of a length."""
    draw = random.Random(0)
    ids = [draw.randrange(3, 250) for _ in range(length + SOFT)]
    prompt = model.keys_values(ids[:SOFT]).requires_grad_()
    filler = [Node(ids[SOFT:], sees=())] if length else []
    with torch.no_grad():
        (read,) = read_trunks(model, [Tree(filler, at=SOFT)])
    trunk = replace(read, prefixes=[prompt])
    texts = [[draw.randrange(3, 250) for _ in range(TOKENS)] for _ in range(branches)]
    batch = [TreeBatch(trunk, [Branch(text, trunk.end, 4, -1) for text in texts])]

    def update(way: str) -> tuple[float, torch.Tensor]:
        model.hf.set_attn_implementation(way)
        prompt.grad = None
        start = time.process_time()
        backward(model, batch, lambda hidden, _: model.logits(hidden).log_softmax(-1)[:, 5].sum())
        assert prompt.grad is not None
        return time.process_time() - start, prompt.grad.clone()

    ways = ("sdpa", NAME)
    runs = [[update(way) for way in ways] for _ in range(repeats + 1)]
    theirs, ours = (statistics.median(run[i][0] for run in runs[1:]) for i in range(2))
    reference, gradient = (run[1].float() for run in runs[0])
    apart = float((gradient - reference).norm() / reference.norm())
    print(
        f"{length:>6}{theirs:>10.2f}{ours:>13.2f}{theirs / ours:>7.1f}×{apart:>17.4f}", flush=True
    )


if __name__ == "__main__":
    main()
