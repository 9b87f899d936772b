"""Training: what is learned, when it stops, who stands with whom, and what is refused."""

import itertools
import json
import math
import random
from functools import lru_cache, partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlore import Entry, FrozenModel, SoftPrompt, WorldInfoTrainer
from softlore.context import ROOT, Node, Tree
from softlore.decode import sample_passages
from softlore.errors import ConfigError, DivergedError, InputError, LoreError, TrainingError
from softlore.lore import Lorebook
from softlore.lore.study import OPENERS
from softlore.model.tiny import byte_tokenizer, tiny_hf, tiny_model
from softlore.tune import (
    Checkpointing,
    Company,
    Execution,
    TrainingBatch,
    TrainingConfig,
    distributed,
    run,
)
from softlore.tune.checkpoint import load_checkpoint
from softlore.tune.examples import pairs_of
from softlore.tune.finished_prompt import entry_hash
from softlore.tune.initial import initial_value
from softlore.tune.lorebook_training import plan_book
from softlore.tune.losses import loss_term
from softlore.tune.muon import Muon
from softlore.tune.optimizer import resolved
from softlore.tune.passages import run_teacher
from softlore.tune.topics import bare_tree, lore_tree
from softlore.tune.training_data import draw_filler, draw_groups
from softlore.tune.trunk import TrainingData

KINDS = pytest.mark.parametrize("kind", ["prefix", "embedding"])
DOG = [("Description of dog:", [" Dog is a good boy", " Dog loves pets"])]
NAMES = ("Ada", "Bo", "Cid", "Dee", "Eve")


@lru_cache
def model_of(family="llama", bos=False):
    return tiny_model(family, bos=bos)


def small(blocks=None, model=None, **settings):
    """A trainer whose updates take milliseconds."""
    usual = {"n_tokens": 4, "max_steps": 30, "max_spacing": 8, "passage_tokens": 8}
    usual |= {"distil_passages": 8}
    return WorldInfoTrainer(model or model_of(), blocks, **(usual | settings))


def entries(count=3):
    return [Entry(name=n, blocks=[(f"{n} wears", [f" a hat, size {n}"])]) for n in NAMES[:count]]


def soft_of(trunk):
    """The soft prompts of a trunk."""
    rows = [node.content for node in trunk.nodes if isinstance(node.content, torch.Tensor)]
    return trunk.prefixes or rows


def divergence(model, prompt, before, passages):
    """Mean KL(model after `before` ‖ model with the prompt) on passages, nats a token."""
    if prompt.kind == "prefix":
        trunk, soft = Tree([], [prompt.tensor.clone().requires_grad_()]), ROOT
    else:
        trunk, soft = Tree([Node(prompt.tensor.clone().requires_grad_())]), 0
    batch = TrainingBatch()
    taught = run_teacher(model, before, passages)
    batch.add(trunk, [(p.branch(soft), loss_term(p, ("it",), "guard")) for p in taught])
    return run(model, batch)[("it",), "guard"]


# what is learned ---------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_loss_falls(family, kind):
    settings = {"n_tokens": 12, "max_spacing": 0, "max_steps": 50, "drift_guard": 0.2}
    training = small(DOG, model_of(family), kind=kind, **settings)
    prompt = training.train()
    history = training.trainables["prompt"].history
    assert history["response"][-1] < 0.9 * history["response"][0]
    assert len(history["response"]) == len(history["guard"]) == 50
    assert history["distil"] == []
    assert prompt.metrics["last_response"] == pytest.approx(history.recent("response"), abs=1e-6)
    assert model_of(family).check_prompt(prompt) is None


@KINDS
def test_how_long_the_prompt_is(kind):
    model = model_of()
    for n_tokens in (1, 7):
        prompt = small(DOG, kind=kind, n_tokens=n_tokens, max_steps=1).train()
        assert isinstance(prompt, SoftPrompt)
        assert len(prompt) == n_tokens
        assert prompt.kind == kind
        assert prompt.training["n_tokens"] == n_tokens
    shape = (4, 2, model.kv_heads, 7, model.head_dim) if kind == "prefix" else (7, model.width)
    assert tuple(prompt.tensor.shape) == shape


@KINDS
def test_the_drift_guard_lowers_drift(kind):
    model = model_of()
    passages = sample_passages(model, bare_tree(model), OPENERS, 16, 16, seed=77)
    drifts = {0: 0.0, 3.0: 0.0}
    settings = {"kind": kind, "max_steps": 60, "initial": "responses"}
    for weight, seed in itertools.product(drifts, range(2)):
        training = small(DOG, drift_guard=weight, seed=seed, **settings)
        drifts[weight] += divergence(model, training.train(), bare_tree(model), passages)
        history = training.trainables["prompt"].history
        assert bool(history["guard"]) == (weight > 0)
        if weight:  # it learns all the same; at random it is log(264) = 5.6
            assert history.recent("response") < 5.6
    assert drifts[3.0] < 0.7 * drifts[0]


@KINDS
def test_a_text_is_distilled(kind):
    """With text only, the prompt comes to say what the model says that has read the text."""
    model = model_of()
    entry = Entry(name="dog", text="Dog is a good boy. Dog loves pets.")
    settings = {"kind": kind, "max_steps": 60, "distil_passages": 24, "drift_guard": 0.1}
    training = small(entries=[entry], style="none", **settings)
    training.prepare()
    at_first = training.prompts()["dog"]
    prompt = training.train()["dog"]
    history = training.trainables["dog"].history
    assert history["response"] == history["guard"] == []  # the teacher says how far to bend
    assert sum(history["distil"][-5:]) < 0.9 * sum(history["distil"][:5])

    before = lore_tree(model, entry.text)
    unseen = sample_passages(model, before, ["Dog", "The dog"], 12, 12, seed=5)
    assert divergence(model, prompt, before, unseen) < divergence(model, at_first, before, unseen)


def test_text_and_blocks_are_both_used():
    entry = Entry(name="dog", text="Dog is a good boy.", blocks=DOG)
    training = small(entries=[entry], max_steps=3)
    training.train()
    history = training.trainables["dog"].history
    assert len(history["response"]) == len(history["distil"]) == len(history["guard"]) == 3

    training = small(entries=[entry], max_steps=3, distil_weight=0)
    training.train()
    assert training.trainables["dog"].history["distil"] == []


def test_a_text_that_is_not_to_be_distilled_leaves_nothing_to_learn():
    with pytest.raises(LoreError, match=r"'dog' has no blocks, .* \(distil_weight is 0\)"):
        small(entries=[Entry(name="dog", text="Good.")], distil_weight=0).train()


@KINDS
def test_a_corpus_is_learned_whole(kind):
    corpus = "It was a dark and stormy night; the rain fell in torrents. " * 5
    training = small(corpus=corpus, kind=kind, name="storm", max_steps=40, drift_guard=0.2)
    prompt = training.train()
    assert prompt.name == "storm"
    history = training.trainables["storm"].history
    assert sum(history["response"][-5:]) < 0.95 * sum(history["response"][:5])
    assert history["distil"] == []
    examples = training.data.examples["storm"]
    assert sum(len(pair.ids) for pair in examples.pairs) == len(corpus)
    assert {pair.response_start for pair in examples.pairs} == {1}


def test_a_corpus_of_one_token_is_refused():
    with pytest.raises(LoreError, match="the corpus of 'prompt' has 1 tokens; expected at least"):
        small(corpus="a").train()


@KINDS
def test_responses_of_a_few_paragraphs(kind):
    model = FrozenModel(tiny_hf("llama", max_position_embeddings=1024), byte_tokenizer(), "long")
    story = " She walked to the harbour, and the rain came down on her red coat." * 5
    assert len(model.encode(story)) >= 300
    training = small([("Marta", [story, story[::-1]])], model, kind=kind, max_steps=6)
    training.train()
    history = training.trainables["prompt"].history
    assert history["response"][-1] < history["response"][0]


def test_a_response_longer_than_the_context_is_refused():
    blocks = [("Marta walked", [" on" * 100])]
    with pytest.raises(LoreError) as caught:
        small(entries=[Entry(name="Marta", blocks=blocks)]).train()
    assert "entry 'Marta' has a call and response of 312 tokens" in str(caught.value)
    assert "expected at most 224 ('tiny-llama' reads 256, the prompt takes 32)" in str(caught.value)


def test_a_conditioning_longer_than_the_context_is_refused():
    with pytest.raises(LoreError, match=r"'Marta' has a text of 300 tokens; expected at most 248"):
        small(conditionings={"Marta": "on " * 99 + "and"}).train()


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        ([("", [" a"])], "`call` is empty; write something, or remove it"),
        ([("   ", [" a"])], "`call` is empty; write something, or remove it"),
        ([("Emma", [""])], "response 1: it is empty; write something, or remove it"),
        ([("Emma", [])], "`responses` is empty; a block needs at least one response"),
        ([], "has neither text nor blocks, so there is nothing to train on"),
    ],
)
def test_empty_lore_is_refused(blocks, complaint):
    with pytest.raises(LoreError, match=complaint):
        small(blocks)


def test_a_response_goes_on_from_its_call():
    """Some tokenizers put a space before every text; none stands between call and response."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True, use_regex=False)
    model = FrozenModel(tiny_hf("llama"), tokenizer, "spacing")
    assert model.decode(model.encode("Em")) == " Em"
    for response in ("ma", " wears red"):
        (pair,) = pairs_of(model, "Em", [response])
        assert model.decode(pair.ids[: pair.response_start]) == " Em"
        assert model.decode(pair.ids[pair.response_start :]) == response


# chat --------------------------------------------------------------------------------------------

TURNS = (
    "{{ bos_token if first else '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_model(template, bos=False):
    tokenizer = byte_tokenizer(bos)
    tokenizer.chat_template = template
    return FrozenModel(tiny_hf("llama"), tokenizer, "chatty")


def test_chat_wraps_call_and_response():
    model = chat_model(TURNS)
    (pair,) = pairs_of(model, "Who is Emma?", [" A witch."], chat=True)
    assert model.decode(pair.ids[: pair.response_start]) == "<user>Who is Emma?</s>\n<assistant>"
    assert model.decode(pair.ids[pair.response_start :]) == " A witch.</s>"
    (plain,) = pairs_of(model, "Who is Emma?", [" A witch."])
    assert model.decode(plain.ids) == "Who is Emma? A witch."
    assert model.decode(plain.ids[plain.response_start :]) == " A witch."
    history = small([("Who?", [" I."])], model, chat=True, max_steps=2)
    assert history.train().training["chat"] is True


def test_chat_as_templates_differ():
    trims = chat_model(TURNS.replace("m.content", "m.content | trim"))
    (pair,) = pairs_of(trims, "Who?", [" A witch."], chat=True)
    assert trims.decode(pair.ids[pair.response_start :]) == "A witch.</s>"

    begins = chat_model(TURNS.replace("if first else ''", ""), bos=True)
    (pair,) = pairs_of(begins, "Who?", [" I."], chat=True)
    assert begins.bos == [0]
    assert pair.ids[0] != 0  # every trunk has it already
    assert begins.decode(pair.ids[: pair.response_start]) == "<user>Who?</s>\n<assistant>"

    thinks = chat_model(TURNS.replace("<assistant>", "<assistant><think>"))
    (pair,) = pairs_of(thinks, "Who?", [" I."], chat=True)
    assert thinks.decode(pair.ids[pair.response_start :]) == " I.<|endoftext|>"


def test_chat_without_a_template_is_refused():
    with pytest.raises(ConfigError, match=r"'tiny-llama' has no chat template; .* leave chat"):
        small(DOG, chat=True).train()


def test_a_template_that_refuses_a_chat_is_an_error_with_a_reason():
    refuses = chat_model("{{ raise_exception('the system speaks first') }}")
    with pytest.raises(InputError, match=r"chat template refuses .*the system speaks first"):
        small(DOG, refuses, chat=True).train()


# where it starts ---------------------------------------------------------------------------------


@KINDS
def test_initial_values(kind):
    model = model_of()
    entry = Entry(name="dog", text="Dog barks.", blocks=[("Dog", [" runs", " eats"])])

    def at_first(initial, n_tokens=4, entry=entry):
        config = TrainingConfig(kind=kind, n_tokens=n_tokens, initial=initial)
        return initial_value(model, entry, config)

    def value(text, n_tokens):
        ids = model.encode(text)
        if kind == "prefix":
            return model.keys_values(ids, n_tokens)
        return model.embed_ids([ids[i * len(ids) // n_tokens] for i in range(n_tokens)])

    for initial, n_tokens, read in (
        ("text", 10, "Dog barks."),
        ("text", 5, "Dog barks."),
        ("text", 12, "Dog barks.Do"),  # a shorter one is repeated
        ("responses", 10, " runs eats"),
        ("responses", 5, " uset"),
        ("auto", 10, " runs eats"),
        ("wolf", 4, "wolf"),
    ):
        torch.testing.assert_close(at_first(initial, n_tokens), value(read, n_tokens))
    only_text = Entry(name="dog", text="Dog barks.")
    torch.testing.assert_close(at_first("auto", 10, only_text), value("Dog barks.", 10))


def test_a_prefix_longer_than_what_is_read_of_a_corpus():
    entry = Entry(name="storm", text="The storm. " * 150)
    config = TrainingConfig(n_tokens=1100)
    assert initial_value(model_of("bloom"), entry, config).shape[3] == 1100


def test_initial_from_the_vocabulary():
    model = model_of()
    config = TrainingConfig(kind="embedding", n_tokens=200, initial="vocabulary")
    rows = model.embed_ids(range(model.vocab_size))
    draws = {}
    for name in ("dog", "cat"):
        value = initial_value(model, Entry(name=name, blocks=DOG), config)
        draws[name] = [int((rows == row).all(-1).nonzero()) for row in value]
        assert not model.special_ids.intersection(draws[name])
        assert max(draws[name]) < len(model.tokenizer) < model.vocab_size  # 7 were never trained
    assert draws["dog"] != draws["cat"]


@KINDS
def test_initial_from_a_prompt(kind):
    first = small(DOG, kind=kind, max_steps=5).train()
    training = small(DOG, kind=kind, initial=first, max_steps=1)
    training.prepare()
    torch.testing.assert_close(training.prompts()["prompt"].tensor, first.tensor)
    assert training.train().training["initial"] == f"prompt {first.uuid}"
    with pytest.raises(ConfigError, match=r"with 4 tokens; expected .* with 5; train that kind"):
        small(DOG, kind=kind, initial=first, n_tokens=5).train()


def test_initial_from_nothing():
    entry = Entry(name="dog", blocks=DOG)
    config = TrainingConfig(n_tokens=2, initial="")
    with_bos = model_of(bos=True)
    expected = with_bos.keys_values(with_bos.bos * 2)
    torch.testing.assert_close(initial_value(with_bos, entry, config), expected)
    with pytest.raises(ConfigError, match="has no text to start from, and 'tiny-llama' has no BOS"):
        initial_value(model_of(), entry, config)


# optimizers, schedules, settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["muon", "adam", "Adafactor", "SGD", "adamw", "rmsprop", "adagrad"]
)
def test_optimizers_by_name(name):
    training = small(
        DOG, optimizer=name, learning_rate=0.02, max_steps=15, drift_guard=0, max_spacing=0
    )
    prompt = training.train()
    losses = training.trainables["prompt"].history["response"]
    assert sum(losses[-5:]) < sum(losses[:5])
    optimizer = training.trainables["prompt"].optimizer
    assert type(optimizer).__name__.lower() == name.lower()
    assert prompt.training["optimizer"] == name


@pytest.mark.parametrize(("rows", "columns"), [(4, 16), (16, 4), (1, 8)])
def test_muon_is_that_of_torch_for_each_matrix(rows, columns):
    """torch's takes single matrices only, and iterates in bfloat16."""
    start = torch.randn(3, 2, rows, columns, generator=torch.Generator().manual_seed(0))
    ours = torch.nn.Parameter(start.clone())
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in start.flatten(0, 1)]
    mine = Muon([ours], lr=0.1, momentum=0.8, size=0.2)
    peer = torch.optim.Muon(
        theirs, lr=0.1, weight_decay=0, momentum=0.8, ns_steps=6, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        ours.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(1 + seed))
        for matrix, gradient in zip(theirs, ours.grad.flatten(0, 1), strict=True):
            matrix.grad = gradient.clone()
        mine.step()
        peer.step()
    moved = ours.detach() - start
    expected = torch.stack(list(theirs)).detach().view_as(start) - start
    assert float((moved - expected).norm()) < 0.03 * float(expected.norm())


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 0.27 / 30**0.25),
        ({"optimizer": "adam"}, 0.37 / 30**0.5),
        ({"optimizer": torch.optim.SGD}, 0.37 / 30**0.5),
        ({"kind": "embedding"}, 1.0),
        ({"learning_rate": 0.3}, 0.3),
    ],
)
def test_the_rate_follows_the_depth_of_the_model(settings, rate):
    assert resolved(TrainingConfig(**settings), 30, True).learning_rate == pytest.approx(rate)


def test_muon_stands_still_where_there_is_no_gradient():
    parameter = torch.nn.Parameter(torch.ones(2, 3, 4))
    parameter.grad = torch.zeros_like(parameter)
    Muon([parameter]).step()
    assert torch.equal(parameter.detach(), torch.ones(2, 3, 4))


def test_optimizer_and_schedule_by_factory():
    made = []

    def slow(parameters, lr):
        made.append(torch.optim.SGD(parameters, lr=lr / 2, momentum=0.9))
        return made[-1]

    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    training = small(DOG, optimizer=slow, schedule=schedule, learning_rate=0.5, max_steps=5)
    prompt = training.train()
    assert training.trainables["prompt"].optimizer is made[0]
    assert made[0].param_groups[0]["lr"] == pytest.approx(0.25 * 0.1**2)
    assert prompt.training["optimizer"] == "slow"
    assert prompt.training["schedule"] == "StepLR"


def rates_of(schedule, max_steps=50):
    rates = []
    training = small(DOG, schedule=schedule, learning_rate=0.4, max_steps=max_steps)
    training.prepare()
    trainable = training.trainables["prompt"]
    for _ in range(max_steps):
        rates.append(trainable.optimizer.param_groups[0]["lr"])
        trainable.optimizer.step()
        trainable.scheduler.step()
    return rates


def test_schedules_by_name():
    linear, cosine, constant = map(rates_of, ("linear", "cosine", "constant"))
    assert constant == pytest.approx([0.4] * 50)
    for falling in (linear, cosine):
        assert falling[0] == pytest.approx(0.4, rel=0.05)
        assert falling[-1] < 0.02
        assert all(a > b for a, b in pairwise(falling))
    assert linear[25] == pytest.approx(0.2)
    assert rates_of("constant", 200)[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])  # warm-up


@pytest.mark.parametrize("name", ["adamm", "LBFGS", "SparseAdam", "Optimizer", "lr_scheduler"])
def test_unknown_optimizers_are_refused(name):
    with pytest.raises(ConfigError, match=rf"optimizer '{name}' .* expected one of .*adafactor"):
        small(DOG, optimizer=name).train()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"n_tokens": 0}, "n_tokens is 0; expected a whole number from 1 to 2047"),
        ({"n_tokens": 2.5}, "n_tokens is 2.5; expected a whole number"),
        ({"n_tokens": "8"}, "n_tokens is '8'; expected a whole number"),
        ({"n_tokens": True}, "n_tokens is True; expected a whole number"),
        ({"n_tokens": 256}, r"n_tokens is 256; expected fewer than the 256 tokens that"),
        ({"n_tokens": 255}, r"n_tokens is 255; expected fewer than the 256 tokens that"),
        ({"max_spacing": -1}, "max_spacing is -1; expected a whole number from 0"),
        ({"drift_guard": math.nan}, "drift_guard is nan; expected a number from 0"),
        ({"min_loss": 0}, "min_loss is 0; expected a number above 0, or none at all"),
        ({"learning_rate": math.inf}, "learning_rate is inf; expected a number above 0"),
        ({"patience": 1.5}, "patience is 1.5; expected a whole number above 0"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"kind": "lora"}, "kind is 'lora'; expected one of prefix, embedding"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; expected one of cosine, linear"),
        ({"chat": "yes"}, "chat is 'yes'; expected one of False, True"),
        ({"story": 3}, "story is 3; expected text"),
        ({"optimizer": 3}, "optimizer is 3; expected a name or a factory"),
        ({"initial": None}, "initial is None; expected text or a SoftPrompt"),
        ({"n_token": 3}, "no setting 'n_token'; .* did you mean 'n_tokens'?"),
    ],
)
def test_settings_are_checked(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        small(DOG, **settings)


@pytest.mark.parametrize("seconds", [-1, 0, math.nan, math.inf])
def test_a_budget_is_checked(seconds):
    with pytest.raises(ConfigError, match=r"time_budget is .*; expected seconds above 0"):
        Execution(time_budget=seconds)


@pytest.mark.parametrize("given", [{}, {"corpus": "a b"}, {"entries": entries(1)}])
def test_one_kind_of_lore_is_given(given):
    blocks = DOG if given else None
    with pytest.raises(ConfigError, match="expected one of blocks, entries"):
        small(blocks, **given)
    with pytest.raises(LoreError, match="no entries to train; expected at least one"):
        small(entries=[])
    for unfit in (5, [5]):
        with pytest.raises(ConfigError, match=r"expected (entries of a lorebook|a list)"):
            small(entries=unfit)
    with pytest.raises(ConfigError, match="'adamm' is not in torch"):
        small(DOG, optimizer="adamm").train()


def test_settings_of_a_lorebook_are_checked(tmp_path):
    from softlore.prompts import PromptLibrary

    book = Lorebook(name="b", training={"n_token": 3}, entries=entries(1))
    with pytest.raises(ConfigError, match="did you mean 'n_tokens'"):
        plan_book(model_of(), book, PromptLibrary(tmp_path))


# when it stops -----------------------------------------------------------------------------------


def test_each_entry_stops_by_itself():
    """`min_loss` by one, all updates by the other; both are written down."""
    alone = {"company_size": 1, "max_steps": 25, "max_spacing": 0, "schedule": "constant"}
    alone |= {"learning_rate": 0.05}
    tried = small(entries=entries(2), **alone)
    tried.train()
    lowest = {}
    for name, trainable in tried.trainables.items():
        losses = trainable.history["response"]
        lowest[name] = min(sum(losses[i : i + 5]) / 5 for i in range(len(losses) - 4))
    quick, slow = sorted(lowest, key=lowest.get)
    target = 0.1 * lowest[quick] + 0.9 * lowest[slow]
    training = small(entries=entries(2), min_loss=target, **alone)
    prompts = training.train()
    assert prompts[quick].training["stopped"] == "min_loss"
    assert prompts[quick].training["steps"] < 25
    assert prompts[quick].metrics["last_response"] <= target
    assert prompts[slow].training["stopped"] == "max_steps"
    assert prompts[slow].training["steps"] == 25
    assert len(training.trainables[quick].history["response"]) == prompts[quick].training["steps"]


def test_the_guard_does_not_count_for_min_loss():
    training = small(DOG, min_loss=5.0, max_steps=60, drift_guard=5.0, max_spacing=0)
    training.train()
    trainable = training.trainables["prompt"]
    assert trainable.stopped == "min_loss"
    assert trainable.history.recent("response") <= 5.0
    assert trainable.history.recent("response") + 5 * trainable.history.recent("guard") > 5.0


def test_no_progress_stops_an_entry():
    prompt = small(DOG, learning_rate=1e-7, patience=6, max_steps=100, max_spacing=0).train()
    assert prompt.training["stopped"] == "patience"
    assert 6 < prompt.training["steps"] < 40


def test_a_callback_can_stop_it():
    seen = []

    def watch(progress):
        seen.append((progress.step, round(progress.done, 3), progress.waiting))
        return progress.step == 3

    prompts = small(entries=entries(2), on_step=watch, max_steps=10).train()
    assert seen == [(1, 0.1, 0), (2, 0.2, 0), (3, 0.3, 0)]
    assert [p.training["stopped"] for p in prompts.values()] == [None, None]
    assert [p.training["steps"] for p in prompts.values()] == [3, 3]


def test_an_estimate_and_a_budget():
    training = small(DOG, max_steps=100_000, execution=Execution(time_budget=1.0))
    training.prepare()
    ahead = training.estimate()
    assert (ahead.updates, ahead.seconds) == (100_000, None)  # nothing is timed before the first
    assert ahead.prompt_bytes == 4 * training.trainables["prompt"].parameter.numel()
    assert training.trainables["prompt"].steps == 0
    training.update()
    assert training.estimate().updates < 10_000
    assert training.estimate().seconds < 60
    assert training.train().training["stopped"] == "time_budget"
    assert training.estimate().seconds == training.estimate().updates == 0


# what is drawn -----------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 12), st.integers(0, 4), st.integers(1, 6))
def test_every_learner_stands_in_one_group(seed, learning, resting, most):
    trainables = [f"l{i}" for i in range(learning)]
    others = [f"r{i}" for i in range(resting)]
    groups = draw_groups(random.Random(seed), trainables, others, most)
    assert sorted(n for group in groups for n in group if n in trainables) == sorted(trainables)
    for group in groups:
        assert 1 <= len(group) <= most
        assert len(set(group)) == len(group)
        assert set(group) <= {*trainables, *others}
        assert not set(group).isdisjoint(trainables)
    assert groups == draw_groups(random.Random(seed), trainables, others, most)


def test_company_varies_in_number_and_order():
    draw = random.Random(0)
    drawn = [draw_groups(draw, ["a", "b", "c"], ["old"], 3) for _ in range(300)]
    groups = [tuple(group) for one in drawn for group in one]
    assert {len(group) for group in groups} == {1, 2, 3}
    assert {g for g in groups if set(g) == {"a", "b"}} == {("a", "b"), ("b", "a")}
    assert {g.index("old") for g in groups if "old" in g and len(g) == 3} == {0, 1, 2}
    assert sum("old" in group for group in groups) > 60


@given(seeds, st.integers(0, 90), st.sampled_from([None, -5, 0, 3, 500]), st.booleans())
def test_filler(seed, max_spacing, room, from_story):
    """As long as asked at most, within the room, and never a special token."""
    model = model_of(bos=True)
    config = TrainingConfig(max_spacing=max_spacing, filler="story" if from_story else "random")
    data = TrainingData({}, [], [[1, 2, 3], [4, 5, 6, 7]])
    filler = draw_filler(model, config, data, room, random.Random(seed))
    assert len(filler) <= (max_spacing if room is None else max(0, min(max_spacing, room)))
    assert model.special_ids.isdisjoint(filler)
    assert not filler or max(filler) < len(model.tokenizer)
    if from_story:
        assert set(filler) <= set(range(1, 8))


def test_filler_is_drawn_anew_each_step():
    config = TrainingConfig(max_spacing=20, filler="random")
    draw = random.Random(0)
    nothing = TrainingData({}, [], [])
    drawn = [draw_filler(model_of(), config, nothing, None, draw) for _ in range(400)]
    assert {len(filler) for filler in drawn} == set(range(21))  # both bounds too
    assert small(DOG, max_spacing=0, filler="random", max_steps=2).train()


@pytest.mark.parametrize("filler", ["story", "random"])
@pytest.mark.parametrize("story", [None, "Far away a bell rang. " * 9])
def test_filler_and_guard_of_ones_own_story(filler, story):
    training = small(DOG, story=story, filler=filler, max_steps=2, passage_tokens=8)
    prompt = training.train()
    assert prompt.training["story"] is (story is not None)  # the story itself is not given away
    if story is not None:
        for ids in training.data.filler:
            assert model_of().decode(ids) in story


@KINDS
def test_a_bos_stands_once(kind):
    """Before embedding rows, and as the first text token after prefixes; never in a branch."""
    model = model_of(bos=True)
    training = small(entries=entries(3), model=model, kind=kind, company_size=3)
    training.prepare()
    for step in range(20):
        training.step = step
        for tree in training.draw().trees:
            nodes = tree.trunk.nodes
            if kind == "prefix":  # read already, with nothing before it
                assert len(nodes[0]) == 1
                assert nodes[0].sees == ()
            else:
                assert nodes[0].content == model.bos
            assert nodes[0].parent == ROOT
            texts = [n.content for n in nodes[1:] if isinstance(n.content, list)]
            texts += [branch.ids for branch in tree.branches]
            assert all(model.bos[0] not in ids for ids in texts)
            assert all(branch.parent != ROOT for branch in tree.branches)
    training.step = 0
    assert len(training.train()) == 3


@KINDS
def test_company_and_filler_keep_to_the_context(kind):
    """Long prompts and responses: fewer stand together, so that none reaches past the end."""
    lore = [Entry(name=n, blocks=[(f"{n} said", [" word" * 25])]) for n in NAMES]
    training = small(entries=lore, kind=kind, n_tokens=60, max_spacing=500, company_size=4)
    training.prepare()
    sizes = set()
    for step in range(30):
        training.step = step
        for tree in training.draw().trees:
            trunk = tree.trunk
            longest = max(len(branch.ids) for branch in tree.branches)
            assert trunk.start + sum(map(len, trunk.nodes)) + longest <= 256
            sizes.add(len(soft_of(trunk)))
    assert sizes == ({1, 2, 3, 4} if kind == "prefix" else {1, 2})


def test_a_prompt_that_leaves_little_room():
    entry = Entry(name="dog", text="Good.", blocks=[("Dog", [" ran"])])
    small(entries=[entry], n_tokens=236, passage_tokens=48, max_spacing=64, max_steps=2).train()
    small(corpus="Dog ran home. " * 9, n_tokens=250, max_steps=2).train()


# company -----------------------------------------------------------------------------------------


@KINDS
def test_entries_are_trained_together(kind):
    training = small(entries=entries(3), kind=kind, max_steps=20)
    prompts = training.train()
    assert list(prompts) == ["Ada", "Bo", "Cid"]
    for name, prompt in prompts.items():
        assert prompt.name == name
        assert prompt.training["in_company"] == [n for n in ("Ada", "Bo", "Cid") if n != name]
        assert prompt.training["alone"] is False
        losses = training.trainables[name].history["response"]
        assert losses[-1] < losses[0]
    assert len({prompt.uuid for prompt in prompts.values()}) == 3
    hashes = [prompt.data_hash for prompt in prompts.values()]
    assert hashes == [entry_hash(entry) for entry in entries(3)]


def test_one_alone_says_so():
    for training in (
        small(DOG, max_steps=1),
        small(entries=entries(1), max_steps=1),
        small(entries=entries(2), company_size=1, max_steps=1),
    ):
        training.train()
        for prompt in training.prompts().values():
            assert prompt.training["alone"] is True
            assert prompt.training["in_company"] == []


@KINDS
def test_an_entry_added_later_leaves_the_others_as_they_are(kind):
    first = small(entries=entries(2), kind=kind, max_steps=5).train()
    before = {name: prompt.tensor.clone() for name, prompt in first.items()}
    training = small(
        entries=entries(3)[2:],
        company=Company(first, entries(2)),
        kind=kind,
        company_size=3,
        max_steps=12,
    )
    together = set()
    training.prepare()
    for step in range(12):
        training.step = step
        for tree in training.draw().trees:
            owners = {t.owners[0] for t in training.draw().terms if t.loss == "response"}
            together |= {name for name in owners if name != "Cid"}
            assert sum(tensor.requires_grad for tensor in soft_of(tree.trunk)) == 1
    assert together == {"Ada", "Bo"}
    training.step = 0
    made = training.train()
    assert list(made) == ["Cid"]
    assert made["Cid"].training["in_company"] == ["Ada", "Bo"]
    assert made["Cid"].training["alone"] is False
    for name, prompt in first.items():
        assert torch.equal(prompt.tensor, before[name])


def test_company_that_does_not_fit():
    prefix = small(DOG, name="Ada", max_steps=1).train()
    with pytest.raises(LoreError, match="'Ada' stands for two prompts; expected each once"):
        small(entries=entries(2), company=Company({"Ada": prefix}))
    with pytest.raises(LoreError, match="'Ada' stands for two prompts"):
        small(entries=[*entries(1), *entries(1)])
    with pytest.raises(
        ConfigError, match="'Ada' of the company is of kind 'prefix'; expected 'embedding'"
    ):
        small(DOG, kind="embedding", company=Company({"Ada": prefix}))
    with pytest.raises(ValueError, match="prompt 'Ada' was made for another model"):
        small(DOG, tiny_model("llama", seed=1), company=Company({"Ada": prefix}))


def test_entries_take_turns_where_an_update_does_not_train_all():
    made, waiting = [], []

    def watch(progress):
        made.append({name: one.steps for name, one in progress.trainables.items()})
        waiting.append(progress.waiting)

    training = small(entries=entries(5), max_active=2, max_steps=3, on_step=watch)
    prompts = training.train()
    assert sorted(prompts) == sorted(NAMES)
    assert [p.training["steps"] for p in prompts.values()] == [3] * 5
    assert len(made) == 8  # of two entries at most: fifteen in all
    for steps in made:  # none is ahead of another by more than an update
        far = [*steps.values(), *[0] * (5 - len(steps))]
        assert max(far) - min(far) <= 1
    assert waiting[:3] == [1, 0, 0]
    assert training.estimate().updates == 0


def test_turns_bring_other_entries_together_in_each_round():
    def turns(seed):
        met = []
        names = [f"E{i}" for i in range(12)]
        lore = [Entry(name=name, blocks=[(f"{name} is", [" it"])]) for name in names]
        training = small(entries=lore, max_active=4, max_steps=3, seed=seed)
        training.prepare()
        while training.unfinished():
            met.append(frozenset(training._learning()))
            training.update()
        return met

    met = turns(1)
    assert len(met) == 9
    assert len(set(met)) > 6
    assert met == turns(1) != turns(2)


def test_finished_entries_keep_the_others_company():
    training = small(entries=entries(3), max_active=1, max_steps=2, company_size=3)
    training.prepare()
    seen = set()
    while training.unfinished():
        for tree in training.draw().trees:
            seen.add(len(tree.trunk.prefixes))
        training.update()
    assert max(seen) > 1


# draws and failures ------------------------------------------------------------------------------


@KINDS
def test_the_same_seed_gives_the_same_bits(kind):
    lore = [*entries(2), Entry(name="Zoe", text="Zoe is a witch.")]

    def trained(seed):
        return small(entries=lore, kind=kind, seed=seed, max_steps=6, filler="random").train()

    first, again, other = trained(3), trained(3), trained(4)
    for name, prompt in first.items():
        assert torch.equal(prompt.tensor, again[name].tensor)
        assert prompt.uuid == again[name].uuid
        assert not torch.equal(prompt.tensor, other[name].tensor)


def test_a_loss_that_is_not_a_number_keeps_the_last_good_state(monkeypatch, tmp_path):
    """No entry makes the update in which one diverged, and what is kept is finite."""
    real, calls = distributed.run_in_parts, []
    path = tmp_path / "a.checkpoint"
    training = small(entries=entries(2), checkpointing=Checkpointing(path), max_steps=20)
    training.prepare()

    def sometimes(model, batch, plan):
        losses = real(model, batch, plan)
        calls.append(losses)
        return losses | {(("Bo",), "response"): math.nan} if len(calls) == 5 else losses

    monkeypatch.setattr(distributed, "run_in_parts", sometimes)
    with pytest.raises(DivergedError) as caught:
        training.train()
    assert isinstance(caught.value, TrainingError)
    assert "entry 'Bo' met a loss or gradient that is not a number at update 5" in str(caught.value)
    assert "last good state is kept; lower learning_rate" in str(caught.value)
    assert [one.steps for one in training.trainables.values()] == [4, 4]
    assert training.step == 4
    prompts = training.prompts()  # refuses what is not finite
    assert all(prompt.training["stopped"] is None for prompt in prompts.values())
    tensors, facts = load_checkpoint(path)
    assert facts["step"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@KINDS
@pytest.mark.parametrize("rate", [1e6, 1e38])
def test_a_learning_rate_that_explodes(kind, rate, tmp_path):
    """Whether or not something finite comes of it, what is kept is finite."""
    path = tmp_path / "a.checkpoint"
    guard = 10000 if rate == 1e38 else 0  # the next step is beyond the largest number
    settings = {"optimizer": "sgd", "schedule": "constant", "drift_guard": guard, "max_steps": 40}
    training = small(
        DOG, kind=kind, learning_rate=rate, checkpointing=Checkpointing(path), **settings
    )
    caught = None
    try:
        training.train()
    except DivergedError as error:
        caught = error
    assert bool(torch.isfinite(training.prompts()["prompt"].tensor).all())
    assert all(bool(torch.isfinite(t).all()) for t in load_checkpoint(path)[0].values())
    if (kind, rate) == ("prefix", 1e38):
        assert "lower learning_rate" in str(caught)


def test_what_a_prompt_says_of_its_training():
    prompt = small(DOG, max_steps=2, min_loss=0.1).train()
    assert json.loads(json.dumps(prompt.training)) == prompt.training
    assert prompt.training["steps"] == 2
    assert prompt.training["max_steps"] == 2
    assert prompt.training["min_loss"] == 0.1
    assert set(prompt.metrics) == {"last_response", "last_guard", "held_out"}
    assert prompt.base_model == "tiny-llama"
