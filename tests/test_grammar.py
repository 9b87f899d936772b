"""Texts that follow a grammar: a GBNF or Lark grammar, a JSON schema, a regular expression."""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from dataclasses import replace

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softlore.cli import commands
from softlore.decode import GenerationRequest, RunningBatch, generate, runner_for, write
from softlore.decode.gbnf import gbnf_to_lark
from softlore.decode.grammar import Grammar, GrammarCompiler
from softlore.errors import ConfigError, UnsupportedModelError
from softlore.model.tiny import tiny_model
from softlore.serve.engines.vllm import VLLMEngine

MODEL = tiny_model("llama", bos=True)
COMPILER = MODEL.once(GrammarCompiler)
EVERYTHING = r"(?s:.)*"


def accepts(text: str, **grammar: str) -> bool:
    """Whether a grammar takes a text, byte by byte, and lets it end there."""
    ((name, value),) = grammar.items()
    found = COMPILER.compile(name, value)
    for i in MODEL.encode(text, inside=True):
        allowed = found.allowed(MODEL.vocab_size)
        if allowed is None or not allowed[i]:
            return False
        found.advance(i)
    allowed = found.allowed(MODEL.vocab_size)
    return found.complete or (allowed is not None and any(allowed[i] for i in MODEL.eos_ids))


# What is written ----------------------------------------------------------------------------------

SAMPLERS = [
    {},
    {"temperature": 0},
    {"temperature": 5.0, "top_k": 0},
    {"top_k": 1},
    {"top_p": 0.1, "min_p": 0.5},
    {"typical": 0.2, "top_k": 0},
    {"tfs": 0.3, "top_a": 0.9},
    {"top_n_sigma": 0.1, "temperature": 2.0},
    {"dynatemp_range": 0.7, "smoothing": 0.5},
    {"repetition_penalty": 5.0, "repetition_range": 8, "repetition_slope": 3.0},
    {"presence_penalty": 50.0, "frequency_penalty": 50.0},
    {"no_repeat_ngram": 1},
    {"dry_multiplier": 50.0, "dry_allowed_length": 1},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    {"mirostat": 1},
    {"mirostat": 2, "mirostat_tau": 0.1},
    {"penalized": 50.0},
    {"banned_strings": ["a", "1", "{", '"'], "banned": tuple(range(1, 200))},
    {"logit_bias": dict.fromkeys(range(50), 100.0)},
    {"order": ("temperature", "top_k"), "top_k": 3},
]

_names = st.text("abcdef", min_size=1, max_size=5)
_leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, n: {"type": "integer", "minimum": low, "maximum": low + n},
              st.integers(-99, 99), st.integers(0, 99)),
    st.builds(lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m},
              st.integers(0, 4), st.integers(0, 8)),
    st.builds(lambda words: {"enum": words}, st.lists(_names, min_size=1, max_size=4)),
    st.just({"type": "string", "pattern": "^[a-f]{2}-[0-9]{1,3}$"}),
    st.just({"const": {"a": [1, "é"]}}),
)  # fmt: skip


def _object(properties: dict[str, object], keep: int) -> dict[str, object]:
    required = list(properties)[:keep]
    return {"type": "object", "properties": properties, "required": required,
            "additionalProperties": False}  # fmt: skip


SCHEMAS = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(_names, inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda one, n: {"type": "array", "items": one, "maxItems": n},
                  inner, st.integers(0, 3)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(schema=SCHEMAS, sampler=st.sampled_from(SAMPLERS), seed=st.integers(0, 9))
def test_json_of_any_schema_and_sampler_is_valid(schema, sampler, seed):
    try:
        stream = write(MODEL, "x", 220, seed=seed, json_schema=schema, **sampler).drained()
    except ConfigError:  # a schema that nothing fits, or that the library lacks
        return
    if stream.finish == "end":
        jsonschema.validate(json.loads(stream.text), schema)
    else:  # it was cut off by its length
        assert stream.finish in ("length", "context")
        assert len(stream.ids) > 200


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_every_sampler_keeps_to_a_regular_expression(sampler):
    stream = write(MODEL, "Once", 60, seed=3, regex=r"[a-e]{4,6}!\n(yes|no)", **sampler).drained()
    assert re.fullmatch(r"[a-e]{4,6}!\n(yes|no)", stream.text)
    assert stream.finish == "end"


def test_a_grammar_that_allows_everything_changes_nothing():
    # Ids that a text cannot have: without bytes, bytes that make no character, and special ones.
    tokens = MODEL.token_bytes(range(MODEL.vocab_size))
    banned = {*MODEL.special_ids, *(i for i, t in enumerate(tokens) if not t or not t.isascii())}
    for seed, sampler in enumerate(({}, {"top_k": 0}, {"mirostat": 2}, {"temperature": 0})):
        asked = {"seed": seed, "banned": tuple(banned), "max_new_tokens": 40, **sampler}
        free = write(MODEL, "Once", **asked).drained()
        bound = write(MODEL, "Once", **asked, regex=EVERYTHING).drained()
        assert bound.ids == free.ids
        assert bound.finish == free.finish == "length"


def test_rows_of_a_batch_follow_their_own_grammars_and_equal_their_solo_runs():
    asked = [
        {"regex": "[ab]{3,9}"}, {"regex": "[ab]{3,9}"}, {}, {"choice": ["Mirela", "Bram", "Ede"]},
        {"json_schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}},
        {"grammar": 'root ::= "(" root? ")"', "temperature": 0.9},
    ]  # fmt: skip
    requests = [
        GenerationRequest("Once", 30, seed=seed, sampling=sampling)
        for seed, sampling in enumerate(asked)
    ]
    batch = RunningBatch(runner_for(MODEL, len(requests)))
    groups = [batch.add(request) for request in requests]
    while len(batch):
        batch.step()
    for request, group in zip(requests, groups, strict=True):
        alone = write(MODEL, "Once", 30, seed=request.seed, **request.sampling).drained()
        assert group.output.text == alone.text
        assert group.output.finish == alone.finish


def test_stop_strings_streaming_lengths_and_a_banned_end():
    stream = write(MODEL, "Once", 60, seed=1, regex="[a-z]{50}", stop=["g"]).drained()
    assert stream.finish == "stop"
    assert "g" not in stream.text
    pieces = list(generate(MODEL, "Once", 40, seed=2, stream=True, choice=["éèê日本", "straße"]))
    assert "".join(pieces) in ("éèê日本", "straße")
    # The last token that the grammar allows may be the last of the length: the text is whole.
    assert write(MODEL, "Once", 3, regex="abc").drained().finish == "end"
    assert write(MODEL, "Once", 2, regex="abc").drained().finish == "length"
    # No end of the model's is needed where nothing may follow.
    ended = write(MODEL, "Once", 9, regex="a{3}", banned=tuple(MODEL.eos_ids)).drained()
    assert (ended.text, ended.finish) == ("aaa", "end")


@pytest.mark.parametrize("seed", range(20))
def test_conditionings_of_a_text_follow_one_grammar(seed):
    """Also where all that it allows is implausible beside the rest."""
    conditioning = [("Sad. ", 1.5), ("Gay. ", -0.5)]
    text = generate(MODEL, "Once", 20, conditioning=conditioning, regex="[xyz]{5}", seed=seed)
    assert re.fullmatch("[xyz]{5}", text)


def test_whitespace_in_json_ends():
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    text = generate(MODEL, "x", 250, json_schema=schema, logit_bias={MODEL.encode(" ")[0]: 90.0})
    assert len(json.loads(text)) == 2


# GBNF ---------------------------------------------------------------------------------------------

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "ye", "yesno"]),
        ('root ::= [a-z]+ "s"', ["cats", "sss"], ["cat", "s"]),
        (r'root ::= "\u00e9" [\u00e0-\u00ff]+', ["éàç"], ["é", "éa"]),
        (r'root ::= "\x41\"\\" [\]\x5B] [-+^]', ['A"\\][-'[:4] + "-", 'A"\\[^'], ['A"\\]b']),
        ("root ::= . .", ["\n\n", "é日"], ["a", "abc"]),
        ("root ::= [^\\n]{2,3}", ["ab", "ab."], ["a\n", "abcd"]),
        ('root ::= start start\nstart ::= "a"', ["aa"], ["a"]),
        ('root ::= a-b aB\na-b ::= "x"\naB ::= "y"', ["xy"], ["xx"]),
        ('root ::= ("a" |) "b" # a comment\n  | "c"', ["b", "ab", "c"], ["a"]),
        ('root ::= "a/b" [/"] x{2}\nx ::= "ü"?', ["a/b/", 'a/b"üü'], ["a/b"]),
        ('root ::= "(" root ")" | "."', [".", "((.))"], ["((.)"]),
        ('root ::= list\nlist ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\u2028]+ "\\n"',
         ["- a\n- b\n"], ["- a", "a\n"]),
        ('root ::= "a\nb"', ["a\nb"], ["a"]),
        (JSON, ['{"a": [1.5e3, "x\\u0041", null], "b":{}}'], ["[1]", '{"a" 1}', '{"a":tru}']),
        ("start: /[0-9]/ WORD\nWORD: /x+/", ["1xx"], ["x"]),
    ],
)  # fmt: skip
def test_grammars_take_what_llama_cpp_takes(grammar, taken, refused):
    for text in taken:
        assert accepts(text, grammar=grammar), text
    for text in refused:
        assert not accepts(text, grammar=grammar), text


@settings(max_examples=60, deadline=None)
@given(st.text('abr:=|()[]{}"\\-x0^,#\n?*+. ', max_size=40))
def test_any_text_as_a_grammar_is_used_or_refused_in_words(text):
    try:
        lark = gbnf_to_lark("root ::= " + text)
    except ConfigError as error:
        lark = str(error)
    assert lark.startswith("start: ") or re.fullmatch("grammar .+; expected .+; fix it", lark)


# What is refused ----------------------------------------------------------------------------------

CHAIN = "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(3000)) + '\nr3000 ::= "a"'
DOUBLING = "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40))


@pytest.mark.parametrize(
    "wrong",
    [
        {"grammar": "root ::= x"},
        {"grammar": "stem ::= [a]"},
        {"grammar": 'root ::= "a'},
        {"grammar": 'root ::= "a" "\\q"'},
        {"grammar": "root ::= []"},
        {"grammar": 'root ::= "a"\nroot ::= "b"'},
        {"grammar": "no grammar at all"},
        {"grammar": "start: /a/ b"},
        {"grammar": 5},
        {"grammar": DOUBLING + "\nr40 ::= [a-z]+"},
        {"grammar": "root ::= " + "(" * 20000 + "[a]" + ")" * 20000},
        {"grammar": "root ::= root? " + "(" * 20000 + "[a]" + ")" * 20000},
        {"regex": "("},
        {"regex": "a(?=b)"},
        {"regex": "x" * 100_000},
        {"regex": "\ud800"},
        {"json_schema": "{"},
        {"json_schema": 5},
        {"json_schema": False},
        {"json_schema": {"type": "strin"}},
        {"json_schema": {"not": {"type": "string"}}},
        {"json_schema": {"$ref": "http://127.0.0.1:9/schema"}},
        {"json_schema": {"type": "string", "default": float}},
        {"json_schema": '{"a":' * 30000},
        {"choice": [""]},
        {"choice": 5},
        {"regex": "a", "choice": ["b"]},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_what_cannot_be_used_is_refused_in_three_parts(wrong):
    with pytest.raises(ConfigError, match=r"(?s).+; expected .+; .+") as caught:
        generate(MODEL, "Once", 4, **wrong)
    assert len(str(caught.value)) < 1200
    assert generate(MODEL, "Once", 4, regex="ab") == "ab"


def test_a_grammar_that_ends_or_holds_up_the_compiler_is_refused(monkeypatch):
    monkeypatch.setattr("softlore.decode.grammar_check.WALL_SECONDS", 0.0)
    compiler = GrammarCompiler(MODEL)
    with pytest.raises(ConfigError, match="more than"):
        compiler.compile("regex", "abc")
    monkeypatch.undo()
    assert isinstance(compiler.compile("regex", "abc"), Grammar)
    (check,) = [compiler._check]
    check._process.kill()  # as a stack that overflows does
    with pytest.raises(ConfigError, match="more than"):
        compiler.compile("regex", "abcd")
    assert isinstance(compiler.compile("regex", "abcd"), Grammar)


def test_compiled_grammars_are_kept_and_bounded(monkeypatch):
    compiler = GrammarCompiler(MODEL)
    asked = []
    monkeypatch.setattr(compiler._check, "error", lambda grammar: asked.append(grammar) or "")
    monkeypatch.setattr("softlore.decode.grammar.MAX_CACHED", 3)
    for number in (1, 1, 2, 1, 3, 4, 1, 2):
        compiler.compile("regex", f"a{{{number}}}")
    assert len(asked) == 5  # 1, 2, 3, 4, and 2 again
    assert len(compiler._compiled) == 3


def test_models_of_words_and_a_missing_library_are_refused_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'softlore\[grammar\]'"):
        GrammarCompiler(MODEL)
    monkeypatch.undo()
    words = tiny_model("llama")
    monkeypatch.setattr(words, "family", replace(words.family, word_tokens=True))
    with pytest.raises(UnsupportedModelError, match="words"):
        generate(words, "Once", 3, regex="a")


def test_vllm_is_sent_its_own_parameters():
    engine = VLLMEngine(MODEL, "http://127.0.0.1:9")
    for sampling, sent in (
        ({"json_schema": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"regex": "a|b"}, {"regex": "a|b"}),
        ({"choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({}, None),
    ):
        body, _ = engine.prepare(GenerationRequest("Once", 4, sampling=sampling))
        assert body.get("structured_outputs") == sent


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (["--json-schema", "FILE"], r'\{\s*"name"\s*:\s*"(Bram|Mirela)"\s*\}'),
        (["--grammar", "FILE"], "(ab)+!"),
        (["--regex", "[a-c]{3}"], "[a-c]{3}"),
        (["--sampler", "choice=yes", "--sampler", "choice=no"], "yes|no"),
    ],
)
def test_the_command_line_takes_grammars(options, written, tmp_path):
    schema = {"type": "object", "properties": {"name": {"enum": ["Bram", "Mirela"]}},
              "required": ["name"], "additionalProperties": False}  # fmt: skip
    text = 'root ::= "ab"{1,9} "!"' if "--grammar" in options else json.dumps(schema)
    (tmp_path / "FILE").write_text(text, encoding="utf-8")
    options = [str(tmp_path / "FILE") if option == "FILE" else option for option in options]
    asked = ["write", "Once", "--model", "storyteller", "--tokens", "60", "--seed", "1", *options]
    result = CliRunner().invoke(commands, asked)
    assert result.exit_code == 0, result.output
    assert re.search(f"Once({written})\\s*$", result.output)


def test_the_command_line_refuses_a_file_that_cannot_be_read(tmp_path):
    result = CliRunner().invoke(commands, ["write", "Once", "--grammar", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "expected a text file" in result.output


def test_a_model_has_one_compiler_which_goes_with_it():
    model = tiny_model("gpt2")
    compiler = model.once(GrammarCompiler)
    assert model.once(GrammarCompiler) is compiler
    assert tiny_model("gpt2").once(GrammarCompiler) is not compiler
    gone = weakref.ref(compiler)
    del compiler, model
    gc.collect()
    assert gone() is None
