"""Samplers: each by its formula, their order, seeds, bans, and the options that set them."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from softlore import FrozenModel, generate
from softlore.cli.options import sampler_settings
from softlore.cli.write import command
from softlore.decode import Sampler, SamplingParams
from softlore.decode.samplers import (
    STEPS,
    BannedLogitsProcessor,
    BannedStringsLogitsProcessor,
    CountLogitsProcessor,
    DRYLogitsProcessor,
    DynamicTemperatureLogitsProcessor,
    MirostatLogitsProcessor,
    RangedRepetitionLogitsProcessor,
    SmoothingLogitsProcessor,
    SparingLogitsProcessor,
    TailFreeLogitsProcessor,
    TopALogitsProcessor,
    TopNSigmaLogitsProcessor,
    XTCLogitsProcessor,
    build_steps,
    kobold_order,
    sample_each,
)
from softlore.errors import ConfigError
from softlore.model.tiny import tiny_hf, tiny_model
from test_control import ctrl  # noqa: F401
from test_decode import spacing_tokenizer

MODEL = tiny_model("llama")
NONE = torch.zeros(1, 0, dtype=torch.long)
OFF = {"temperature": 1.0, "top_k": 0}
INF = math.inf

seeds = st.integers(0, 10**6)


def logits(seed, size=30, gone=0, rows=1):
    """Random logits in float64, some of them cut off before."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    for row in scores:
        row[torch.randperm(size, generator=generator)[:gone]] = -INF
    return scores


def chances(row):
    weights = [math.exp(x - max(row)) for x in row]
    return [weight / sum(weights) for weight in weights]


def kept(scores):
    return {i for i, x in enumerate(scores[0].tolist()) if x > -INF}


def ids(*text):
    return torch.tensor([list(text)], dtype=torch.long)


@pytest.fixture(scope="module")
def storyteller():
    return FrozenModel.from_pretrained("storyteller")


# by the formula ----------------------------------------------------------------------------------


@given(seeds, st.floats(0, 1), st.integers(0, 27))
@settings(max_examples=60)
def test_tail_free(seed, z, gone):
    x = logits(seed, gone=gone)
    p = sorted(chances(x[0].tolist()), reverse=True)
    order = x[0].argsort(descending=True).tolist()
    first = [p[i + 1] - p[i] for i in range(29)]
    second = [abs(first[i + 1] - first[i]) for i in range(28)]
    expected, total = {order[0]}, 0.0
    for i, bend in enumerate(second):
        total += bend / sum(second)
        assume(abs(total - z) > 1e-9)
        if total > z:
            break
        expected.add(order[i + 1])
    assert kept(TailFreeLogitsProcessor(z)(NONE, x)) == expected & kept(x)


@given(seeds, st.floats(0, 1), st.integers(0, 29))
@settings(max_examples=40)
def test_top_a(seed, a, gone):
    x = logits(seed, gone=gone)
    p = chances(x[0].tolist())
    expected = {i for i in kept(x) if p[i] >= a * max(p) ** 2}
    assert kept(TopALogitsProcessor(a)(NONE, x)) == expected


@given(seeds, st.floats(0, 4), st.integers(0, 29), st.floats(0.2, 3))
@settings(max_examples=40)
def test_top_n_sigma_at_every_temperature(seed, n, gone, temperature):
    x = logits(seed, gone=gone)
    left = [x for x in x[0].tolist() if x > -INF]
    mean = sum(left) / len(left)
    sigma = math.sqrt(sum((x - mean) ** 2 for x in left) / len(left))
    expected = {i for i in kept(x) if x[0, i] >= max(left) - n * sigma - 1e-12}
    assert kept(TopNSigmaLogitsProcessor(n)(NONE, x)) == expected
    assert kept(TopNSigmaLogitsProcessor(n)(NONE, x / temperature)) == expected


@given(seeds, st.floats(0.01, 1), st.integers(0, 29))
@settings(max_examples=40)
def test_exclude_top_choices(seed, threshold, gone):
    x = logits(seed, gone=gone)
    p = chances(x[0].tolist())
    top = sorted((i for i in kept(x) if p[i] >= threshold), key=lambda i: p[i])
    assert kept(XTCLogitsProcessor(1.0, threshold)(NONE, x)) == kept(x) - set(top[1:])
    assert torch.equal(XTCLogitsProcessor(0.0, threshold)(NONE, x), x)


def test_exclude_top_choices_as_often_as_asked():
    x = torch.tensor([[2.0, 1.9, 1.8, -9.0]]).expand(4000, -1)
    after = XTCLogitsProcessor(0.3, 0.2, torch.Generator().manual_seed(0))(NONE, x)
    cut = after[:, 0].isneginf()
    assert abs(float(cut.float().mean()) - 0.3) < 0.03
    assert torch.equal(after[cut].isneginf(), torch.tensor([True, True, False, False]).expand(
        int(cut.sum()), -1))  # fmt: skip


@given(seeds, st.floats(0, 2), st.floats(0.1, 3), st.integers(0, 29))
@settings(max_examples=40)
def test_dynamic_temperature(seed, reach, exponent, gone):
    x = logits(seed, gone=gone)
    low, high = max(0.0001, 1 - reach), 1 + reach
    p = [p for p in chances(x[0].tolist()) if p > 0]
    entropy = -sum(p * math.log(p) for p in p)
    share = entropy / math.log(30 - gone) if gone < 29 else 0.0
    temperature = low + (high - low) * share**exponent
    after = DynamicTemperatureLogitsProcessor(low, high, exponent)(NONE, x)
    assert torch.allclose(after, x / temperature)


@given(seeds, st.floats(0.01, 5), st.integers(0, 29))
@settings(max_examples=20)
def test_smoothing(seed, factor, gone):
    x = logits(seed, gone=gone)
    best = float(x.max())
    expected = [best - factor * (one - best) ** 2 for one in x[0].tolist()]
    after = SmoothingLogitsProcessor(factor)(NONE, x)
    assert after[0].tolist() == pytest.approx(expected)


@given(seeds, st.lists(st.integers(0, 29), max_size=25), st.integers(1, 30), st.floats(0, 9))
@settings(max_examples=60)
def test_repetition_with_range_and_slope(seed, text, last, slope):
    x = logits(seed)
    expected = x[0].tolist()
    for token in set(text[-last:]):
        place = max(i for i, one in enumerate(text) if one == token)
        i = last - (len(text) - place)  # from the oldest that the range could hold
        at = 2 * i / (last - 1) - 1 if last > 1 else 1.0
        y = slope * at / (1 - abs(at) + abs(at) * slope) if slope else 1.0
        penalty = 1 + (1.4 - 1) * (y + 1) / 2
        expected[token] *= penalty if expected[token] < 0 else 1 / penalty
    after = RangedRepetitionLogitsProcessor(1.4, last, slope)(ids(*text), x)
    assert after[0].tolist() == pytest.approx(expected, rel=1e-5)


@given(seeds, st.lists(st.integers(0, 29), max_size=25), st.floats(0.5, 3))
@settings(max_examples=30)
def test_repetition_over_the_whole_text_is_transformers(seed, text, penalty):
    x = logits(seed).float()
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids(*text), x.clone())
    assert torch.allclose(RangedRepetitionLogitsProcessor(penalty, 99)(ids(*text), x), theirs)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids(*text[-7:]), x.clone())
    assert torch.allclose(RangedRepetitionLogitsProcessor(penalty, 7)(ids(*text), x), theirs)


def test_slope_and_range_by_example():
    """KoboldAI's curve: no penalty on the oldest of a full range, all of it on the newest."""
    x = torch.ones(1, 6)
    after = RangedRepetitionLogitsProcessor(3.0, 3, 1.0)(ids(5, 0, 1, 2), x)
    assert after[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1, 1, 1])
    after = RangedRepetitionLogitsProcessor(3.0, 3, 1.0)(ids(2, 1, 2), x)  # the newest counts
    assert after[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1, 1, 1])


@given(seeds, st.lists(st.integers(0, 29), max_size=40), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=30)
def test_presence_and_frequency(seed, text, presence, frequency):
    x, counts = logits(seed), Counter(text)
    expected = [
        one - frequency * counts[i] - presence * (counts[i] > 0)
        for i, one in enumerate(x[0].tolist())
    ]
    after = CountLogitsProcessor(presence, frequency)(ids(*text), x)
    assert after[0].tolist() == pytest.approx(expected)


def dry_by_hand(text, size, multiplier, base, allowed, breakers, last):
    """For each next token the longest repetition it would go on with, by trying all of them."""
    text = text[-last:] if last else text
    penalties = [0.0] * size
    for token in set(range(size)) - set(breakers):
        best = 0
        for n in range(1, min(50, len(text)) + 1):
            end = text[-n:]
            if set(end) & set(breakers):
                break
            if any(text[i : i + n + 1] == [*end, token] for i in range(len(text) - n)):
                best = n
        if best >= allowed:
            penalties[token] = multiplier * base ** (best - allowed)
    return penalties


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(1, 4),
    st.sets(st.integers(0, 3), max_size=1),
    st.integers(0, 40),
)
@settings(max_examples=150)
def test_dry(text, allowed, breakers, last):
    x = logits(1, size=5)
    expected = dry_by_hand(text, 5, 0.8, 1.5, allowed, breakers, last)
    after = DRYLogitsProcessor(0.8, 1.5, allowed, breakers, last)(ids(*text), x)
    assert (x - after)[0].tolist() == pytest.approx(expected)


def test_dry_knows_no_infinity():
    after = DRYLogitsProcessor(100.0, 100.0)(ids(*[1] * 99), torch.zeros(1, 3))
    assert after[0].tolist() == pytest.approx([0, -1e30, 0])


# mirostat ----------------------------------------------------------------------------------------


def zipf_kept(p, mu):
    """How many the first version keeps, as its authors' program has it."""
    falls = [(math.log((i + 2) / (i + 1)), math.log(p[i] / p[i + 1])) for i in range(100)]
    s = sum(t * b for t, b in falls) / sum(t * t for t, _ in falls)
    epsilon = s - 1
    return round((epsilon * 2**mu / (1 - len(p) ** -epsilon)) ** (1 / s)) + 1


@given(seeds, st.floats(0.5, 6), st.sampled_from([0.6, 0.9, 1.1, 1.6]))
@settings(max_examples=40)
def test_mirostat_1_keeps_what_its_authors_do(seed, tau, s):
    x = -s * torch.arange(1, 401).double().log() + 0.02 * logits(seed, 400)
    p = sorted(chances(x[0].tolist()), reverse=True)
    after = MirostatLogitsProcessor(1, tau, 0.1)(NONE, x)
    assert len(kept(after)) == min(400, zipf_kept(p, 2 * tau))


@given(seeds, st.floats(0.1, 6))
@settings(max_examples=40)
def test_mirostat_2_drops_what_surprises_more_than_mu(seed, tau):
    x = logits(seed)
    p = chances(x[0].tolist())
    expected = {i for i in range(30) if -math.log2(p[i]) <= 2 * tau} | {p.index(max(p))}
    assert kept(MirostatLogitsProcessor(2, tau, 0.1)(NONE, x)) == expected


def test_mirostat_learns_from_what_was_chosen_a_row():
    x = logits(3, rows=2)
    steering = MirostatLogitsProcessor(2, 3.0, 0.5)
    steering(torch.zeros(2, 0, dtype=torch.long), x)
    chosen = [4, 7]
    steering(torch.tensor(chosen)[:, None], x)
    for row, token in enumerate(chosen):
        surprise = -math.log2(chances(x[row].tolist())[token])
        assert float(steering.mu[row]) == pytest.approx(6.0 - 0.5 * (surprise - 3.0))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [3.5, 5.0, 6.5])
def test_mirostat_steers_the_surprise_to_tau(version, tau):
    law = -1.05 * torch.arange(1, 4001).double().log()[None]
    sampling = SamplingParams(**OFF, mirostat=version, mirostat_tau=tau, mirostat_eta=0.2)
    chooser, text, surprise = Sampler(sampling, seed=1), [], -law.log_softmax(-1)[0] / math.log(2)
    for _ in range(800):
        text.append(int(chooser(law, [text])))
    told = surprise[text][100:]
    assert abs(float(told.mean()) - tau) < 0.15
    free = float((surprise * law[0].softmax(0)).sum())
    assert abs(free - tau) > 0.8  # what it would be by itself


# what is left ------------------------------------------------------------------------------------

CUTS = {
    "top_k": 1, "top_p": 1e-9, "min_p": 1.0, "typical": 1e-9, "tfs": 0.0, "top_a": 1.0,
    "top_n_sigma": 1e-6, "xtc_probability": 1.0, "smoothing": 100.0, "dynatemp_range": 1.0,
    "mirostat": 2, "mirostat_tau": 0.0, "presence_penalty": 100.0, "dry_multiplier": 100.0,
    "dry_breakers": (), "no_repeat_ngram": 1, "banned": (0, 1, 2, 3, 4), "xtc_threshold": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("mirostat", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_something_is_always_left(mirostat, size):
    """All at their strongest, over one to five tokens, some cut off, some alike."""
    for x in (torch.zeros(1, size), torch.tensor([[0.0] + [-INF] * (size - 1)]), logits(1, size)):
        strongest = CUTS | {"mirostat": mirostat, "banned": tuple(range(size))}
        chooser, text = Sampler(SamplingParams(**strongest), seed=0), [0]
        for _ in range(6):
            text.append(int(chooser(x, [text])))
        alone = [name for name in STEPS if name != "mirostat"]
        for name in alone:
            fields = {n: v for n, v in strongest.items() if n.startswith(name.split("_")[0])}
            for step in build_steps(SamplingParams(**(OFF | fields))):
                after = step.processor(ids(*text), x)
                assert not after.isnan().any()
                assert after.isfinite().any()


@pytest.mark.parametrize(
    "processor",
    [TailFreeLogitsProcessor(0.5), TopALogitsProcessor(0.5), TopNSigmaLogitsProcessor(1.0),
     XTCLogitsProcessor(1.0, 0.1), MirostatLogitsProcessor(1, 3.0, 0.1)],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_a_single_survivor_survives(processor):
    x = torch.full((1, 9), -INF)
    x[0, 4] = 1.5
    assert torch.equal(processor(NONE, x), x)


def test_a_ban_of_everything_is_none():
    x = torch.tensor([[1.0, 2.0, -INF], [1.0, 2.0, 3.0]])
    after = SparingLogitsProcessor(BannedLogitsProcessor([0, 1]))(NONE, x)
    assert after.tolist() == [[1.0, 2.0, -INF], [-INF, -INF, 3.0]]
    once = SparingLogitsProcessor(NoRepeatNGramLogitsProcessor(1))
    assert once(ids(0, 1), x[:1]).tolist() == x[:1].tolist()


# order -------------------------------------------------------------------------------------------


def test_steps_act_in_the_order_asked_for():
    everything = SamplingParams(
        **{n: v for n, v in CUTS.items() if not n.startswith("mirostat")},
        logit_bias={1: 2.0}, banned_strings=("a",), penalized=1.2, repetition_penalty=1.1,
    )  # fmt: skip
    names = [step.name for step in build_steps(everything, MODEL)]
    assert names == [name for name in STEPS if name != "mirostat"]
    turned = everything.changed(order=("top_p", "temperature", "top_k"))
    places = list(turned.ordered_steps)
    assert [name for name in places if name in turned.order] == ["top_p", "temperature", "top_k"]
    assert [places.index(n) for n in STEPS if n not in turned.order] == [
        i for i, n in enumerate(STEPS) if n not in turned.order
    ]
    assert [step.name for step in build_steps(turned, MODEL)] == [
        n for n in places if n != "mirostat"
    ]


def test_order_makes_a_difference():
    x = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    def left(*order):
        sampling = SamplingParams(temperature=3.0, top_k=0, top_p=0.7, order=order)
        return kept(LogitsProcessorList([s.processor for s in build_steps(sampling)])(NONE, x))

    assert left() == left("temperature", "top_p") == {0, 1, 2}
    assert left("top_p", "temperature") == {0, 1}


def test_kobold_orders():
    own = SamplingParams(order=kobold_order([6, 0, 1, 3, 4, 2, 5]))
    numbered = [name for name in own.ordered_steps if name in own.order]
    assert numbered == [
        "repetition_penalty", "top_k", "top_a", "tfs", "typical", "top_p", "min_p",
        "temperature", "smoothing", "top_n_sigma",
    ]  # fmt: skip
    assert own.ordered_steps[-2:] == ("xtc", "mirostat")
    assert kobold_order([]) == ()
    assert kobold_order([5, 0]) == ("temperature", "smoothing", "top_n_sigma", "top_k")
    for wrong in ([7], [-1], [1, 1], ["0"], [1.0]):
        with pytest.raises(ConfigError, match="expected numbers from 0 to 6"):
            kobold_order(wrong)


# settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"typical": 0}, "typical is 0; expected a number from 1e-09 to 1"),
        ({"tfs": 1.5}, "tfs is 1.5"),
        ({"top_a": -1}, "top_a is -1"),
        ({"top_n_sigma": math.nan}, "top_n_sigma is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"repetition_range": 1.5}, "repetition_range is 1.5; expected a whole number"),
        ({"dry_allowed_length": 0}, "dry_allowed_length is 0; expected a whole number from 1"),
        ({"dry_base": 0.5}, "dry_base is 0.5"),
        ({"mirostat": 3}, "mirostat is 3; expected a whole number from 0 to 2"),
        ({"xtc_probability": 2}, "xtc_probability is 2"),
        ({"presence_penalty": INF}, "presence_penalty is inf"),
        ({"banned": (1, -1)}, "banned is"),
        ({"banned": 5}, "banned is 5; expected token ids"),
        ({"banned": ("a",)}, "banned is"),
        ({"banned_strings": ("a", "")}, "banned_strings is"),
        ({"banned_strings": 3}, "banned_strings is 3; expected strings"),
        ({"dry_breakers": (1,)}, "dry_breakers is"),
        ({"logit_bias": {-1: 2}}, "logit_bias is"),
        ({"logit_bias": {1: "x"}}, "logit_bias is"),
        ({"logit_bias": {1: INF}}, "logit_bias is"),
        ({"logit_bias": {"x": 1}}, "logit_bias is"),
        ({"logit_bias": 3}, "logit_bias is 3; expected token ids"),
        ({"order": ("top_k", "topp")}, "order names 'topp'; .* did you mean 'top_p'"),
        ({"order": ("top_k", "top_k")}, "order is .*at most once"),
    ],
    ids=str,
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        SamplingParams(**wrong)


def test_settings_are_hashable_whatever_they_were_given_as():
    given = SamplingParams(
        banned=[3, 1], banned_strings="so", logit_bias={"7": 1, 2: -5}, order=["top_p", "top_k"]
    )
    assert given == SamplingParams(
        banned=(3, 1), banned_strings=("so",), logit_bias=((2, -5.0), (7, 1.0)),
        order=("top_p", "top_k"),
    )  # fmt: skip
    assert len({given, given.changed(), SamplingParams()}) == 2


def test_what_needs_a_model_says_so():
    for needy in ({"banned_strings": ("x",)}, {"dry_multiplier": 0.8}):
        with pytest.raises(ConfigError, match="there is no model to tokenize it"):
            Sampler(SamplingParams(**needy))
        Sampler(SamplingParams(**needy), model=MODEL)
    Sampler(SamplingParams(dry_multiplier=0.8, dry_breakers=()))
    for over in ({"banned": (5, 264)}, {"logit_bias": {264: 1.0}}):
        with pytest.raises(ConfigError, match="the id 264, which 'tiny-llama' does not have"):
            Sampler(SamplingParams(**over), model=MODEL)


def test_the_defaults_do_what_they_did():
    names = [step.name for step in build_steps(SamplingParams(top_p=0.9, min_p=0.1))]
    assert names == ["temperature", "top_k", "top_p", "min_p"]
    assert [step.name for step in build_steps(SamplingParams())] == ["temperature", "top_k"]
    assert build_steps(SamplingParams(temperature=0)) == []


# choosing ----------------------------------------------------------------------------------------

MANY = {
    "everything": {
        "temperature": 1.3, "top_k": 100, "typical": 0.97, "tfs": 0.99, "top_a": 0.01,
        "top_n_sigma": 3.0, "dynatemp_range": 0.5, "smoothing": 0.1, "repetition_penalty": 1.1,
        "repetition_range": 20, "repetition_slope": 0.7, "presence_penalty": 0.3,
        "frequency_penalty": 0.2, "no_repeat_ngram": 3, "dry_multiplier": 0.8,
        "xtc_probability": 0.5, "banned_strings": ("ab", "é"), "logit_bias": {70: 2.0},
    },
    "mirostat": {"mirostat": 2, "mirostat_tau": 3.0, "penalized": 1.1},
    "plain": {},
    "hot": {"temperature": 2.0, "top_k": 0, "xtc_probability": 0.2, "xtc_threshold": 0.02},
}  # fmt: skip


@pytest.mark.parametrize("name", MANY)
def test_seeds_repeat_whatever_is_drawn(name):
    told = [generate(MODEL, "The dog", 25, seed=seed, **MANY[name]) for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]


def run(choose, texts, steps=25):
    """Texts after some steps, with logits that depend on the step and the row's first id."""
    texts = [list(text) for text in texts]
    for step in range(steps):
        x = torch.cat([logits(97 * step + text[0], MODEL.vocab_size).float() for text in texts])
        for text, token in zip(texts, map(int, choose(x, texts)), strict=True):
            text.append(token)
    return texts


def test_rows_with_a_chooser_each_are_as_they_are_alone():
    settings = [one for one in MANY.values() for _ in range(2)]  # some alike, some not
    texts = [[i + 1, *range(3 * i)] for i in range(len(settings))]

    def choosers():
        return [Sampler(SamplingParams(**one), seed, MODEL) for seed, one in enumerate(settings)]

    together = run(partial(sample_each, choosers()), texts)
    for choose, text, expected in zip(choosers(), texts, together, strict=True):
        assert run(choose, [text]) == [expected]


def test_one_chooser_for_rows_looks_at_each_rows_own_text():
    penalties = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3}
    greedy = SamplingParams(temperature=0, dry_multiplier=1.0, banned_strings=("a",), **penalties)
    texts = [[1, 2, 3], [4], [5, 6]]
    together = run(Sampler(greedy, model=MODEL), texts)
    for text, expected in zip(texts, together, strict=True):
        assert run(Sampler(greedy, model=MODEL), [text]) == [expected]


def test_the_prompt_is_not_new_text():
    x = torch.tensor([[1.0, 0.9, -5.0]])
    for penalty in ("presence_penalty", "frequency_penalty"):
        chooser = Sampler(SamplingParams(temperature=0, **{penalty: 0.3}))
        assert [int(chooser(x, [[0, 0, 0]])) for _ in range(2)] == [0, 1]
        # the window may have slid, so that what was written is no longer in the text
        assert int(chooser(x.expand(1, 3) - torch.tensor([0.0, 5.0, 0.0]), [[2]])) == 0


def test_a_text_that_was_changed_is_read_anew():
    chooser = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0))
    x = torch.tensor([[1.0, 0.9, 0.8, 0.1]])
    text = [0]
    assert int(chooser(x, [text])) == 1
    text.append(1)
    assert int(chooser(x, [text])) == 2
    text[:] = [2, 3]
    assert int(chooser(x, [text])) == 0
    assert int(chooser(x, [(0, 1, 2)])) == 0
    assert int(chooser(x, [[]])) == 0
    assert int(chooser(x, [range(2)])) == 2


def test_a_bias_of_one_id():
    x = torch.zeros(1, MODEL.vocab_size)
    assert (
        int(Sampler(SamplingParams(temperature=0, logit_bias={"7": 1}), model=MODEL)(x, [[]])) == 7
    )


# loops -------------------------------------------------------------------------------------------


def loops(**sampling):
    """A writer that says the last five tokens again and again, unless it is kept from it."""
    chooser = Sampler(SamplingParams(temperature=0, dry_breakers=(), **sampling))
    text = [1, 2, 3, 4, 5]
    for _ in range(40):
        x = torch.zeros(1, 9)
        x[0, 6:] = torch.tensor([0.3, 0.2, 0.1])
        x[0, text[-5]] = 4.0
        text.append(int(chooser(x, [text])))
    return text


def test_dry_stops_a_loop():
    assert loops() == [1, 2, 3, 4, 5] * 9
    text = loops(dry_multiplier=0.8)
    runs = Counter(tuple(text[i : i + 10]) for i in range(len(text) - 9))
    assert max(runs.values()) == 1
    assert loops(dry_multiplier=0.8, dry_allowed_length=60) == [1, 2, 3, 4, 5] * 9


def test_dry_stops_a_model_that_loops(storyteller):
    def most(**sampling):
        text = generate(storyteller, "The old house", 80, temperature=0, **sampling).split()
        return max(Counter(tuple(text[i : i + 5]) for i in range(len(text) - 4)).values())

    assert most() > 3
    assert most(dry_multiplier=0.8) < 3


def test_breakers_break_where_they_stand_in_a_token():
    colon, space = MODEL.encode(": ")
    sampling = SamplingParams(dry_multiplier=1.0, dry_breakers=(":", " a"))
    dry = build_steps(sampling, MODEL)[0].processor
    assert {colon, *MODEL.encode("a")} <= dry.breakers
    assert space not in dry.breakers


# banned strings ----------------------------------------------------------------------------------


def told(model, text):
    return model.decode(text, inside=True).replace("\ufffd", "").casefold()


def expected_bans(model, strings, text, tokens):
    return {
        i
        for i in tokens
        if any(one.casefold() in told(model, [*text, i]) for one in strings)
    }  # fmt: skip


def assert_bans(model, strings, text, tokens):
    """Exactly the tokens that complete a string are banned, when none is complete before."""
    ban = BannedStringsLogitsProcessor(strings, model.vocabulary)
    x = torch.zeros(1, model.vocab_size)
    banned = {i for i in tokens if ban(torch.tensor([text], dtype=torch.long), x)[0, i] < 0}
    assert banned == expected_bans(model, strings, text, tokens)


CHARACTERS = st.sampled_from("abBé€ßÉ🐕 ")
STRINGS = st.lists(st.text(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=4)


@given(STRINGS, st.lists(st.sampled_from([*"abßé€🐕B".encode(), 0xF0, 0xC3, 0xE2]), max_size=12))
@settings(max_examples=80)
def test_bans_of_bytes(strings, written):
    table = {one: i for i, one in enumerate(MODEL.vocabulary._bytes)}
    symbols = [table[bytes([byte])] for byte in written]
    assume(not any(one.casefold() in told(MODEL, symbols) for one in strings))
    assert_bans(MODEL, strings, symbols, range(1, 257))


def test_bans_across_tokens(storyteller):
    strings = ["suddenly", "the king", "漢", "ING OF", "\n\n"]
    text = storyteller.encode("Once the old kin")
    every = range(storyteller.vocab_size)
    assert_bans(storyteller, strings, text, every)
    begun = storyteller.encode("漢")[:-1]
    assert begun
    assert_bans(storyteller, strings, text + begun, every)
    assert_bans(storyteller, strings, storyteller.encode("and sudd"), every)
    assert_bans(storyteller, ["end", "text"], [], every[1:])
    ends = torch.zeros(1, storyteller.vocab_size)
    ban = BannedStringsLogitsProcessor(["end", "text"], storyteller.vocabulary)
    assert ban(NONE, ends)[0, next(iter(storyteller.eos_ids))] == 0  # it writes nothing


@pytest.mark.parametrize("old", [False, True], ids=["metaspace", "prepend"])
def test_bans_where_spaces_are_in_the_tokens(old):
    hf = tiny_hf("llama")
    hf.resize_token_embeddings(400, mean_resizing=False)
    model = FrozenModel(hf, spacing_tokenizer(old))
    strings = [" a d", "the", "€", "g!"]
    for text in ("down came", " came a", "A dog", " t", ""):
        written = model.encode(text, inside=True)
        assert_bans(model, strings, written, range(3, len(model.tokenizer)))


def test_bans_where_tokens_are_words(ctrl):  # noqa: F811
    every = range(1, len(ctrl.tokenizer))
    the, old, house = (ctrl.encode(word)[0] for word in ("the", "old", "house"))
    for strings, text in [(["old house"], [the, old]), (["e o"], [the]), (["house"], [])]:
        assert_bans(ctrl, strings, text, every)
    letters = [ctrl.tokenizer.convert_tokens_to_ids(f"{letter}@@") for letter in "the"]
    assert_bans(ctrl, ["theold"], letters, every)
    assert house


def test_banned_strings_are_never_written():
    strings = ("e", "AB", "o. ", "é", "\n")
    liked = {MODEL.encode(one)[0]: 15.0 for one in "eaAbBo. \n"}
    free = ""
    for seed in range(3):
        asked = {"temperature": 1.5, "top_k": 0, "seed": seed, "logit_bias": liked}
        free += generate(MODEL, "The dog", 60, **asked).casefold()
        text = generate(MODEL, "The dog", 60, banned_strings=strings, **asked).casefold()
        assert len(text) > 30
        assert not any(one.casefold() in text for one in strings)
    assert all(one in free for one in ("e", "ab", "\n"))


def test_what_stands_in_the_prompt_does_not_complete_a_string():
    prompt, rest = MODEL.encode("ab"), MODEL.encode("c")[0]
    x = torch.zeros(1, MODEL.vocab_size)
    x[0, rest] = 1.0
    chooser = Sampler(SamplingParams(temperature=0, banned_strings=("abc",)), model=MODEL)
    assert int(chooser(x, [prompt])) == rest
    chooser = Sampler(SamplingParams(temperature=0, banned_strings=("C",)), model=MODEL)
    assert int(chooser(x, [prompt])) != rest


# on the command line -----------------------------------------------------------------------------


def test_a_sampler_given_twice_is_refused():
    given = ["a", "--top-k", "3", "--sampler", "top_k=4"]
    with pytest.raises(ConfigError, match="top_k is given twice; expected --top-k or --sampler"):
        CliRunner().invoke(command, given, catch_exceptions=False)


def test_samplers_from_the_command_line():
    found = sampler_settings(
        ["dry_multiplier=0.8", "mirostat=2", "banned_strings=so, so", "banned_strings=a=b",
         "dry_breakers=\\n", "logit_bias=5:-1.5,6:2", "logit-bias=7:1", "order=top_k, min_p",
         "banned=1,2"]
    )  # fmt: skip
    assert found == {
        "dry_multiplier": 0.8, "mirostat": 2, "banned_strings": ("so, so", "a=b"),
        "dry_breakers": ("\n",), "logit_bias": ((5, -1.5), (6, 2.0), (7, 1.0)),
        "order": ("top_k", "min_p"), "banned": (1, 2),
    }  # fmt: skip
    SamplingParams(**found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dry_multipler=1", "no sampler 'dry_multipler'; .* did you mean 'dry_multiplier'"),
        ("=1", "no sampler ''"),
        ("mirostat=1.5", "--sampler mirostat is '1.5'; expected a value such as mirostat=0"),
        ("xtc_probability", "xtc_probability is ''"),
        ("logit_bias=5", "such as logit_bias=42:-5"),
        ("banned=a", "such as banned=5,17"),
    ],
)
def test_samplers_that_are_none(given, message):
    with pytest.raises(ConfigError, match=message):
        sampler_settings([given])


def test_a_sampler_that_is_none_is_told_everywhere():
    with pytest.raises(ConfigError, match=r"no sampler 'top_kk'; .* did you mean 'top_k'"):
        generate(MODEL, "a", 1, top_kk=3)
    with pytest.raises(ConfigError, match="no sampler 'foo'; expected one of temperature"):
        SamplingParams.of({"foo": 1})
    assert SamplingParams.of({"top_k": 3}) == SamplingParams(top_k=3)


def test_write_with_samplers():
    asked = ["The old", "--tokens", "12", "--seed", "1"]
    banned = ["--sampler", "banned_strings=e", "--sampler", "xtc_probability=0.5"]
    ended = CliRunner().invoke(command, [*asked, "--typical", "0.9", *banned])
    assert ended.exit_code == 0
    assert "e" not in ended.output.removeprefix("The old").casefold()
