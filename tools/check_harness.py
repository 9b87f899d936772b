"""Scores of EleutherAI's lm-evaluation-harness through the server, beside those of transformers.

    python -m venv VENV && VENV/bin/pip install 'lm_eval[api,hf]==0.4.13'
    python tools/check_harness.py --harness VENV --data shared/data/fairytaleqa

Two tasks are made of FairytaleQA (CSV files of stories and of questions): a multiple choice, each
answer scored by its likelihood, and the perplexity of whole stories, longer than the context. The
harness runs them as `local-completions` on `softlore serve` and as `hf` on the same folder. Exit
code 1 when a score, or the log-likelihood of any sample, differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from softlore import storyteller

CONTEXT = 1024  # of the storyteller
TASKS = ("softlore_choice", "softlore_perplexity")
READY = re.compile(r"studio +(http://\S+)")
CHOICE = """
task: softlore_choice
output_type: multiple_choice
doc_to_text: "{{text}}\\n\\n{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
PERPLEXITY = """
task: softlore_perplexity
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--harness", type=Path, required=True, help="an environment with lm_eval")
    parser.add_argument("--data", type=Path, required=True, help="the folder of FairytaleQA")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--tolerance", type=float, default=0.01, help="in nats, of a sample")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, args.data, args.questions, args.stories)
        served = run_on_server(args.harness, folder)
        # Both divide long texts into windows of CONTEXT - 1 tokens after one of the text before.
        model = f"pretrained={storyteller.path()},dtype=float32,max_length={CONTEXT - 1}"
        direct = run_harness(args.harness, folder, "direct", "hf", model, "--device", "cpu")
    return compare(served, direct, args.tolerance)


def write_tasks(folder: Path, data: Path, n_questions: int, n_stories: int) -> None:
    """Writes the samples and declarations of both tasks."""
    stories = {path.name.removesuffix("-story.csv"): _rows(path)
               for path in sorted(data.glob("section-stories/*-story.csv"))}  # fmt: skip
    asked = []
    for name, sections in stories.items():
        texts = {section["section"]: section["text"] for section in sections}
        asked += [
            {
                "text": texts[row["cor_section"]],
                "question": row["question"],
                "answer": row["answer1"],
            }
            for row in _rows(data / "questions" / f"{name}-questions.csv")
            if row["cor_section"] in texts
        ]
    rng = random.Random(0)
    samples = rng.sample(asked, n_questions)
    for sample in samples:
        others = sorted({row["answer"] for row in asked} - {sample["answer"]})
        choices = [sample["answer"], *rng.sample(others, 3)]
        rng.shuffle(choices)
        sample |= {"choices": choices, "label": choices.index(sample["answer"])}
    whole = [{"text": "\n".join(section["text"] for section in sections)}
             for sections in list(stories.values())[:n_stories]]  # fmt: skip
    for task, declared, rows in zip(TASKS, (CHOICE, PERPLEXITY), (samples, whole), strict=True):
        file = folder / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{task}.yaml").write_text(declared + COMMON.replace("DATA", str(file)))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_on_server(harness: Path, folder: Path) -> dict[str, Any]:
    """Serves the storyteller, and runs the tasks on it."""
    folders = [f"--{name}={folder / name}" for name in ("prompts", "stories", "lorebooks")]
    command = [sys.executable, "-m", "softlore", "serve", "--port", "0", *folders]
    with (folder / "server.log").open("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while (found := READY.search((folder / "server.log").read_text())) is None:
                if server.poll() is not None:
                    raise SystemExit((folder / "server.log").read_text())
                time.sleep(0.2)
            model = (
                f"model=storyteller,base_url={found[1]}/v1/completions,num_concurrent=4,"
                f"tokenizer_backend=huggingface,tokenizer={storyteller.path()},"
                f"max_length={CONTEXT + 1}"  # the harness keeps a place for the new token
            )
            return run_harness(harness, folder, "served", "local-completions", model)
        finally:
            server.terminate()
            server.wait()


def run_harness(
    harness: Path, folder: Path, name: str, kind: str, model: str, *options: str
) -> dict[str, Any]:
    """The results of lm_eval on both tasks, with `samples`, the likelihoods of each sample."""
    out = folder / name
    command = [harness / "bin" / "lm_eval", "run", "--model", kind, "--model_args", model,
               "--tasks", ",".join(TASKS), "--include_path", folder, "--output_path", out,
               "--log_samples", *options]  # fmt: skip
    env = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    [report] = out.rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    print(f"{kind}: {time.monotonic() - start:.0f} s")
    samples = {}
    for task in TASKS:
        [file] = out.rglob(f"samples_{task}_*.jsonl")
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[task] = [float(value) for row in rows for value in _numbers(row["resps"])]
    return {"results": results, "samples": samples}


def _numbers(value: Any) -> list[float]:
    """The log-likelihoods in a sample's responses, however they are nested."""
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    try:
        return [] if isinstance(value, bool) else [float(value)]
    except ValueError:  # "True": whether greedy decoding gives the answer
        return []


def compare(served: dict[str, Any], direct: dict[str, Any], tolerance: float) -> int:
    """Prints both, and returns 1 where they differ."""
    worst = 0.0
    for task in TASKS:
        for metric, value in direct["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                print(
                    f"{task:20} {metric:20} {served['results'][task][metric]:12.6f} {value:12.6f}"
                )
        pairs = list(zip(served["samples"][task], direct["samples"][task], strict=True))
        apart = max(abs(a - b) for a, b in pairs)
        worst = max(worst, apart)
        print(f"{task:20} {len(pairs)} log-likelihoods, at most {apart:.6f} nats apart")
    return int(worst > tolerance)


if __name__ == "__main__":
    sys.exit(main())
