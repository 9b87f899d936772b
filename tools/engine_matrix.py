"""Writes the matrix of engines in docs/engines.md: engine × kind × feature.

python tools/engine_matrix.py            # rewrites the table between its two markers
python tools/engine_matrix.py --check    # exit code 1 when the table is not current

Every cell names the test that shows it, or says why the thing is missing. A name that is no test
any more is an error, so that the table can't promise what nothing checks.
"""

from __future__ import annotations

import re

from blocks import ROOT, keep

PAGE = ROOT / "docs" / "engines.md"
LOCAL, VLLM, LLAMA = "tests/test_batch.py", "tools/check_vllm.py", "tests/engines/test_llamacpp.py"
ENGINE, REMOTE = "tests/test_engine.py", "tests/test_engine_vllm.py"
LATE = "tests/engines/test_llamacpp_late.py"
STATE = "tests/test_gguf_state.py"
VECTORS = "tests/test_control_vectors.py"
LLAMA_VECTORS = "tests/engines/test_llamacpp_vectors.py"
ENGINES = ("local", "vllm", "llamacpp", "slot file for llama-server")
# Feature -> a cell an engine: (file, function that shows it[, what to say]), or why it is missing.
Cell = tuple[str, ...] | str
MATRIX: dict[str, tuple[Cell, Cell, Cell, Cell]] = {
    "embedding kind": (
        (LOCAL, "test_joining_and_leaving_changes_no_text"),
        (VLLM, "check"),
        (LLAMA, "test_prompts_err_no_more_than_plain_text_does"),
        "no: rows have no place in it",
    ),
    "prefix kind": (
        (LOCAL, "test_joining_and_leaving_changes_no_text"),
        (VLLM, "check_engine"),
        (LLAMA, "test_prompts_err_no_more_than_plain_text_does"),
        (LLAMA, "test_llama_server_restores_a_slot_file_and_writes_the_same"),
    ),
    "several prefixes at once": (
        (LOCAL, "test_joining_and_leaving_changes_no_text"),
        (VLLM, "check_engine", "yes, with rotary positions and no sliding layers"),
        (LLAMA, "test_prompts_err_no_more_than_plain_text_does"),
        "no: train the set as one prompt",
    ),
    "late prefixes, seen from where they stand": (
        ("tests/test_late_stories.py", "test_turns_equal_those_without_a_cache"),
        (
            REMOTE,
            "test_late_prefixes_are_seen_from_the_start_and_the_log_says_so_once",
            "no: seen from the start ([why](#late-prefixes-on-vllm))",
        ),
        (LATE, "test_each_token_sees_what_stands_before_it"),
        "no: it begins the slot",
    ),
    "lore that wakes or sleeps leaves the text cached": (
        (
            "tests/test_late_stories.py",
            "test_waking_sleeping_and_swapping_read_the_last_turn_and_the_new_text",
        ),
        "no",
        (LATE, "test_waking_swapping_and_sleeping_read_only_the_new_text"),
        "no",
    ),
    "both kinds in one context": (
        (LOCAL, "test_joining_and_leaving_changes_no_text"),
        (VLLM, "check_engine"),
        (LLAMA, "test_greedy_texts_are_softlores_own"),
        "no",
    ),
    "many texts at once": (
        (ENGINE, "test_texts_are_what_they_would_be_alone"),
        (VLLM, "check_engine"),
        (LLAMA, "test_texts_at_once_are_each_what_they_are_alone"),
        "a slot each",
    ),
    "streaming": (
        (ENGINE, "test_tokens_come_one_after_the_other"),
        (REMOTE, "test_what_is_written_there_equals_what_is_written_here"),
        (LLAMA, "test_texts_at_once_are_each_what_they_are_alone"),
        "its own",
    ),
    "a continued text reads only what is new": (
        (ENGINE, "test_a_story_goes_on_from_what_was_read"),
        (VLLM, "check_speed", "yes, by blocks"),
        (LLAMA, "test_a_text_that_goes_on_reads_only_what_is_new"),
        "its own",
    ),
    "samplers": (
        (LOCAL, "test_joining_and_leaving_changes_no_text", "all"),
        (REMOTE, "test_samplers_go_under_its_names", "those that vLLM has"),
        (LLAMA, "test_codes_are_known_and_mixed", "all: softlore's own choose"),
        "its own",
    ),
    "control vectors": (
        (VECTORS, "test_each_text_of_a_batch_has_its_own"),
        (REMOTE, "test_it_says_what_it_cannot_do", "no"),
        (LLAMA_VECTORS, "test_each_text_of_a_batch_has_its_own", "yes, but for layer 0"),
        (LLAMA_VECTORS, "test_write_and_llama_server_take_the_same_vector", "its own"),
    ),
    "control codes with a strength": (
        (LOCAL, "test_a_window_slides_under_its_head_beside_others"),
        (REMOTE, "test_it_says_what_it_cannot_do", "no: one code, of strength 1"),
        (LLAMA, "test_codes_are_known_and_mixed"),
        "no",
    ),
    "`no_copy`": (
        ("tests/test_no_copy.py", ""),
        (REMOTE, "test_it_says_what_it_cannot_do", "no"),
        (LOCAL, "test_joining_and_leaving_changes_no_text", "yes, by the batch of `local`"),
        "no",
    ),
    "quantized caches": (
        "no",
        "no: never tried",
        (LLAMA, "test_a_cache_of_any_type_holds_prefixes"),
        (STATE, "test_every_block_is_found_and_written_over"),
    ),
    "log-probabilities": (
        (LOCAL, "test_logprobs_are_those_of_the_text_alone"),
        (REMOTE, "test_what_is_written_there_equals_what_is_written_here"),
        (LOCAL, "test_logprobs_are_those_of_the_text_alone", "yes, by the batch of `local`"),
        "its own",
    ),
    "the studio trains": (
        ("tests/test_studio_training.py", ""),
        ("tests/test_studio_training.py", "", "yes, on this machine's copy"),
        (
            LLAMA,
            "test_the_studio_writes_with_it_and_trains_on_its_weights",
            "yes, on the file's weights",
        ),
        "no",
    ),
}


def table() -> str:
    lines = ["| | " + " | ".join(f"`{one}`" if " " not in one else one for one in ENGINES) + " |"]
    lines.append("|---" * (len(ENGINES) + 1) + "|")
    for feature, cells in MATRIX.items():
        lines.append(f"| {feature} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    file, name, *said = cell
    text = (ROOT / file).read_text(encoding="utf-8")
    if name and not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE):
        raise LookupError(
            f"{file} has no {name}; name what shows it now, or say that it is missing"
        )
    shown = file.rsplit("/", 1)[-1].removesuffix(".py")
    return f"{said[0] if said else 'yes'} (`{shown}`)"


if __name__ == "__main__":
    keep(PAGE, "matrix", table, __doc__)
