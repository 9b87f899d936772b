"""Compares the directions of control vectors with those of repeng's own code on the same texts.

    pip install repeng==0.4.0 scikit-learn
    python tools/check_repeng.py smollm2

Prints the cosine of both in each layer, by method: `pca_center` of repeng is `pca` here. In the
last layer repeng takes the states behind the final norm, as transformers returns them. Where as
many pairs lie on either side, the sign is open.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from softlore import FrozenModel
from softlore.control import contrast_of_texts, train_vector

METHODS = {"pca_center": "pca", "pca_diff": "pca_diff"}
PERSONS = "Act as if you are extremely happy.", "Act as if you are extremely sad."
BEGINNINGS = (
    "I went to the", "That day the door", "She looked up and", "The house was", "He said that he",
    "When they came home", "Nothing in the room", "It was late and", "The old man",
    "All along the river", "We had been told", "My sister's letter",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a short name, a folder, a hub id or a GGUF file")
    model = FrozenModel.from_pretrained(parser.parse_args().model, dtype="float32")
    np.float_ = np.float64  # repeng 0.4 names it, NumPy 2 has it no more
    from repeng.extract import DatasetEntry, read_representations

    positive, negative = ([f"{person} {text}" for text in BEGINNINGS] for person in PERSONS)
    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pairs = [DatasetEntry(a, b) for a, b in zip(positive, negative, strict=True)]
    contrast = contrast_of_texts(model, positive, negative)
    for theirs, ours in METHODS.items():
        found = read_representations(model.hf, tokenizer, pairs, method=theirs)
        vector = train_vector(
            model, "happy", contrast, method=ours, layers=sorted(found), last_token=True
        )
        cosines = [
            float(torch.cosine_similarity(vector.directions[i], torch.tensor(found[i]), dim=0))
            for i in sorted(found)
        ]
        print(f"{theirs}: " + " ".join(f"{cosine:.3f}" for cosine in cosines))


if __name__ == "__main__":
    main()
