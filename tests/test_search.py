"""Hard-prompt search: the updates are those of the papers, and what is reported is true of text."""

import contextlib
import json
import math
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import fmean

import pytest
import torch
from torch.nn.functional import normalize

from api_server import make_state, served
from running import save_tiny_model, softlore
from softlore import SoftPrompt, logits
from softlore.control.search import METHODS, Scorer, Searcher, find_writer, nearest_ids
from softlore.control.search.methods import (
    autoprompt_step,
    gcg_step,
    pez_optimizer,
    pez_step,
    top_swaps,
)
from softlore.control.search.reflect import fitted, front, shorten, tasks_won
from softlore.control.search.state import SearchOptions, SearchState
from softlore.decode.chat_server import ChatServer
from softlore.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    LoreError,
    StorageError,
)
from softlore.lore import Block
from softlore.lore.sentences import sentences
from softlore.measure import recall
from softlore.model.tiny import tiny_model

BLOCKS = [
    Block(call="Ada wears", responses=[" a hat", " red boots"]),
    Block(call="She", responses=[" ran"]),
]
HELD_OUT = [Block(call="Ada has on", responses=[" a hat"])]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def scorer(model):
    return Scorer(model, BLOCKS)


def ids_of(scorer, text):
    ids = scorer.model.encode(text)
    assert scorer.legal(ids)
    return ids


def state_of(ids, **options):
    return SearchState(list(ids), SearchOptions(len(ids), **options))


# the scoring core --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("bos", [False, True])
def test_a_score_is_the_recall_of_the_text(family, bos):
    model = tiny_model(family, bos=bos)
    scorer = Scorer(model, BLOCKS)
    texts = ["a hat", "red red", "zzzzzzz", "x"]
    found = scorer.losses([ids_of(scorer, text) for text in texts])
    assert found == pytest.approx([recall(model, t + "\n", BLOCKS) for t in texts], rel=1e-4)
    assert scorer.passes == 4


def test_candidates_in_small_batches_score_alike(scorer, monkeypatch):
    candidates = [ids_of(scorer, text) for text in ("a hat", "b cat", "c dog", "d")]
    together = scorer.losses(candidates)
    monkeypatch.setattr("softlore.control.search.scoring.TOKENS_AT_ONCE", 40)
    assert scorer.losses(candidates) == pytest.approx(together, rel=1e-5)


def test_fluency_is_the_texts_own_loss(model):
    plain, fluent = Scorer(model, BLOCKS), Scorer(model, BLOCKS, fluency=0.5)
    ids = ids_of(plain, "a red hat")
    logp = logits(model, "a red hat").log_softmax(-1)
    own = -float(logp[range(len(ids) - 1), ids[1:]].mean())
    assert fluent.own_loss(ids) == pytest.approx(own, rel=1e-4)
    assert fluent.losses([ids])[0] == pytest.approx(plain.losses([ids])[0] + 0.5 * own, rel=1e-4)


def test_the_gradient_is_that_of_the_loss(scorer):
    """Against finite differences along random directions, in the rows that tokens stand for."""
    ids = ids_of(scorer, "a hut")
    value, gradient = scorer.gradient(ids)
    assert value == pytest.approx(scorer.losses([ids])[0], rel=1e-4)
    own, draw = scorer.table, torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(gradient.shape, generator=draw)
        found = []
        for sign in (1, -1):
            moved = own.clone()
            for place, i in enumerate(ids):  # every id once, so that its row is its own
                moved[i] = own[i] + sign * 1e-3 * direction[place]
            scorer.table = moved
            found.append(scorer.gradient(ids)[0])
        scorer.table = own
        slope = (found[0] - found[1]) / 2e-3
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.02, abs=2e-3)


def test_only_what_survives_its_tokenizer_is_legal(scorer):
    model = scorer.model
    assert scorer.legal(model.encode("a hat"))
    assert not scorer.legal(model.encode("a\nhat"))  # it would be two lines
    assert not scorer.legal([model.encode("é")[0]])  # half a character
    assert not scorer.allowed[0]  # <|endoftext|>
    assert int(scorer.allowed.sum()) == 256


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(LoreError, match="no blocks"):
        Scorer(model, [])
    with pytest.raises(ContextOverflowError, match="search a shorter prompt"):
        Scorer(model, BLOCKS).losses([[70] * 250])


# the updates, as the papers have them -------------------------------------------------------------


def test_gcg_takes_the_best_of_single_swaps_from_the_top_k(scorer):
    ids = ids_of(scorer, "abc def")
    gradient = scorer.one_hot_gradient(ids)
    _, at_rows = scorer.gradient(ids)
    expected = at_rows @ scorer.table.T  # the gradient at a one-hot vector, by the chain rule
    assert torch.allclose(gradient[:, 1:257], expected[:, 1:257], atol=1e-5)
    top = top_swaps(gradient, 256)
    for place, tokens in enumerate(top):
        order = expected[place].masked_fill(~scorer.allowed, torch.inf).argsort().tolist()
        assert tokens == order[: len(tokens)]
    state = state_of(ids)
    scored = gcg_step(scorer, state, random.Random(0))
    for candidate, loss in scored:
        changed = [i for i, (a, b) in enumerate(zip(ids, candidate, strict=True)) if a != b]
        assert len(changed) <= 1
        assert all(candidate[i] in top[i] for i in changed)
        text = scorer.text(candidate)
        assert loss == pytest.approx(recall(scorer.model, text + "\n", BLOCKS), rel=1e-4)
    assert state.ids == min(scored, key=lambda one: one[1])[0]


def test_autoprompt_swaps_one_place_and_never_gets_worse(scorer):
    state = state_of(ids_of(scorer, "abc def"))
    last = scorer.losses([state.ids])[0]
    for seed in range(4):
        before = list(state.ids)
        place = random.Random(seed).randrange(len(before))
        top = top_swaps(scorer.one_hot_gradient(before), 10)[place]
        scored = autoprompt_step(scorer, state, random.Random(seed))
        assert scored[0][0] == before
        assert [ids[place] for ids, _ in scored[1:]] == [
            t for t in top if scorer.legal([*before[:place], t, *before[place + 1 :]])
        ]
        now = scorer.losses([state.ids])[0]
        assert now <= last + 1e-6
        last = now


def test_pez_moves_rows_by_the_gradient_at_their_nearest_tokens(scorer):
    ids = ids_of(scorer, "abc def")
    state = state_of(ids)
    rows = scorer.table[ids].clone()
    optimizer = pez_optimizer(rows)
    for _ in range(5):
        likeness = normalize(rows.detach(), dim=1) @ normalize(scorer.table, dim=1).T
        nearest = likeness.masked_fill(~scorer.allowed, -torch.inf).argmax(1).tolist()
        rows.grad = scorer.gradient(nearest)[1]
        optimizer.step()
        pez_step(scorer, state, random.Random(0))
        assert torch.equal(state.rows.detach(), rows.detach())
    assert state.ids == nearest_ids(scorer, rows.detach())


def test_gcg_swaps_several_and_goes_on_from_the_best_of_its_buffer(scorer):
    state = state_of(ids_of(scorer, "abc def"), swaps=3, buffer=2)
    seen = {}
    for seed in range(3):
        before = state.pool[0][0] if state.pool else list(state.ids)
        for candidate, loss in gcg_step(scorer, state, random.Random(seed)):
            assert sum(a != b for a, b in zip(before, candidate, strict=True)) <= 3
            seen[tuple(candidate)] = loss
        best = sorted(seen.items(), key=lambda one: one[1])[:2]
        assert [(tuple(ids), losses[0]) for ids, losses in state.pool] == best


# reflection and the beam -------------------------------------------------------------------------


class Scribe:
    """A writer that answers from a list, and keeps what it was asked."""

    name = "scribe"

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def write(self, instruction, count, max_tokens, seed):
        self.asked.append(instruction)
        return [self.answers[i % len(self.answers)] for i in range(count)], 0


def test_a_front_holds_what_does_best_on_some_task():
    pool = [([1], [1.0, 9.0]), ([2], [5.0, 2.0]), ([3], [2.0, 2.5]), ([4], [2.0, 9.0])]
    assert tasks_won(pool) == [1, 1, 0, 0]
    assert [ids for ids, _ in front(pool)] == [[3], [2], [1]]  # the third is best in all


def test_reflection_asks_for_what_is_not_said_and_takes_what_does_better(scorer):
    told = "Ada wears a hat, red boots"
    scribe = Scribe(f'"{told}"\n\nThat is all.', "nothing")
    state = state_of(ids_of(scorer, "She ran"), writer=scribe)
    state = SearchState(state.ids, SearchOptions(40, writer=scribe))
    scored = METHODS["reflect"](scorer, state, random.Random(0))
    assert "She ran" in scribe.asked[0]
    assert "- Ada wears red boots" in scribe.asked[0]
    assert scorer.model.encode(told) in [ids for ids, _ in scored]
    assert all(len(ids) <= 40 for ids, _ in scored)
    for ids, loss in scored:
        told = recall(scorer.model, scorer.text(ids) + "\n", BLOCKS)
        assert loss == pytest.approx(told, rel=1e-4)
    best = min(loss for _, loss in scored)
    assert fmean(state.pool[0][1]) <= best + 1e-6


def test_a_text_is_fitted_by_leaving_out_sentences(scorer):
    draw = random.Random(0)
    parts = ["Ada wears a hat.", "She ran.", "It rained."]
    ids = fitted(scorer, parts, 27, draw)
    assert 0 < len(ids) <= 27
    assert set(sentences(scorer.text(ids))) <= set(parts)
    assert scorer.text(fitted(scorer, ["Ada wears a hat"], 10, draw)) == "Ada wears"
    assert fitted(scorer, ["Abcdefghijklmnop"], 10, draw) == []
    assert fitted(scorer, [" "], 10, draw) == []


def test_a_beam_is_readable(model):
    scorer = Scorer(model, BLOCKS)
    found = []
    searcher = Searcher(
        scorer, "beam", 6, passes=400, perplexity=200,
        on_step=lambda one: found.extend(one.state.pool),
    )  # fmt: skip
    searcher.search()
    assert {len(ids) for ids, _ in found} >= {1, 2, 3}
    assert all(scorer.own_loss(ids) <= math.log(200) + 1e-4 for ids, _ in found)
    assert all(len(ids) <= 6 for ids, _ in found)


def test_words_that_do_nothing_are_left_out(model):
    scorer = Scorer(model, BLOCKS)
    ids = ids_of(scorer, "a hat and then some of the other red boots")
    before = scorer.choosing_loss(ids)
    short = shorten(scorer, ids, 0.05)
    assert len(short) < len(ids)
    assert scorer.choosing_loss(short) <= before + 0.05
    assert set(scorer.text(short).split()) <= set(scorer.text(ids).split())
    assert shorten(scorer, ids_of(scorer, "hat"), 9.0) == ids_of(scorer, "hat")


def test_a_step_with_nothing_new_ends_a_search_too(scorer):
    found = Searcher(scorer, "reflect", 3, passes=30, initial="She", writer=Scribe("She")).search()
    assert found.passes == 30


def test_a_beam_begins_with_nothing_and_keeps_to_its_bound(model):
    scorer = Scorer(model, BLOCKS)
    with pytest.raises(ConfigError, match="begins with nothing"):
        Searcher(scorer, "beam", 4, initial="a hat", passes=9)
    found = Searcher(scorer, "beam", 4, perplexity=1.01, passes=200).search()
    assert len(found.ids) == 1  # which has no perplexity yet


def test_reflection_starts_within_its_length(scorer):
    long = SoftPrompt.from_text("a hat " * 9, scorer.model, name="long", kind="embedding")
    assert len(Searcher(scorer, "reflect", 8, initial=long, passes=1).state.ids) == 8
    blank = SoftPrompt.from_text("    ", scorer.model, name="blank", kind="embedding")
    assert Searcher(scorer, "reflect", 24, initial=blank, passes=40).search().text.strip()


def test_a_server_rewrites(scorer, tmp_path):
    """A real server of our own, by its OpenAI API."""
    with served(make_state(tmp_path)) as url:
        writer = find_writer(f"{url}/v1")
        answers, tokens = writer.write("Say something.", 2, 5, seed=3)
        assert len(answers) == 2
        assert all(answers)
        assert tokens == 0  # of no model here
        again, _ = writer.write("Say something.", 2, 5, seed=3)
        assert again == answers
        state = SearchState(ids_of(scorer, "She ran"), SearchOptions(20, writer=writer))
        assert METHODS["reflect"](scorer, state, random.Random(0))
        with pytest.raises(EngineError, match="did not answer /models"):
            find_writer(f"{url}/nowhere")
    with pytest.raises(EngineError, match="did not answer /chat/completions"):
        writer.write("Say something.", 1, 5, seed=3)
    with pytest.raises(EngineError, match="did not answer"):
        find_writer("http://[bad/v1")


def test_what_a_server_is_told_and_tells_is_not_trusted(monkeypatch):
    monkeypatch.setenv("SOFTLORE_API_KEY", "sk-secret\n")
    with pytest.raises(EngineError) as refused:
        ChatServer("http://ada:hunter2@127.0.0.1:9/v1")
    assert "secret" not in str(refused.value)
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("SOFTLORE_API_KEY", "sk-sécret\n1")
    with pytest.raises(ConfigError, match="holds characters that no header can") as refused:
        ChatServer("http://127.0.0.1:9/v1")
    assert "cret" not in str(refused.value).replace("SOFTLORE", "")
    monkeypatch.delenv("SOFTLORE_API_KEY")
    for content, why in ((b"[" * 200_000, "recursion"), (b" " * 2**23, "more than"), (b"x", "")):
        with (
            answering(content) as url,
            pytest.raises(EngineError, match="did not answer") as refused,
        ):
            ChatServer(f"{url}/v1")
        assert why in str(refused.value)
    with answering(b'{"data": []}') as url, pytest.raises(EngineError, match="lists no model"):
        ChatServer(f"{url}/v1")
    with answering(b"{}") as url, pytest.raises(EngineError, match="answered without choices"):
        ChatServer(f"{url}/v1", "a").ask("Who?")


@contextlib.contextmanager
def answering(content):
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *told):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# searches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gcg", "autoprompt"])
def test_a_search_beats_random_prompts(scorer, method):
    least = Searcher(scorer, "random", 6, passes=100).search().loss
    found = Searcher(scorer, method, 6, passes=scorer.passes + 1500, seed=1).search()
    assert found.loss < least
    assert found.loss == pytest.approx(recall(scorer.model, found.text + "\n", BLOCKS))
    assert scorer.model.encode(found.text) == found.ids
    assert len(found.ids) == 6


def test_the_best_is_chosen_by_held_out_blocks(model):
    scorer = Scorer(model, BLOCKS, HELD_OUT)
    found = Searcher(scorer, "gcg", 5, passes=400).search()
    assert found.chosen_by == pytest.approx(recall(model, found.text + "\n", HELD_OUT), rel=1e-4)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_search_that_was_stopped_goes_on_to_the_same_end(model, tmp_path, method):
    def run(path, stop_at=None):
        def stop(searcher):
            return stop_at is not None and searcher.state.step >= stop_at

        scorer = Scorer(model, BLOCKS)
        searcher = Searcher(scorer, method, 5, passes=300, checkpoint=path, on_step=stop)
        return searcher.search()

    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "parts", stop_at=2)
    assert stopped.steps == 2
    again = run(tmp_path / "parts")
    assert (again.ids, again.loss, again.steps, again.passes) == (
        whole.ids, whole.loss, whole.steps, whole.passes,
    )  # fmt: skip


def test_the_checkpoint_of_another_search_is_refused(model, tmp_path):
    path = tmp_path / "kept"
    Searcher(Scorer(model, BLOCKS), "gcg", 5, passes=100, checkpoint=path).search()
    with pytest.raises(ConfigError, match="of another search"):
        Searcher(Scorer(model, BLOCKS), "pez", 5, passes=100, checkpoint=path)
    with pytest.raises(ConfigError, match="of another search"):
        Searcher(Scorer(model, BLOCKS), "gcg", 5, passes=100, initial="hats.", checkpoint=path)
    path.write_bytes(b"broken")
    with pytest.raises(StorageError, match=r"can't be read.*to start over, delete it"):
        Searcher(Scorer(model, BLOCKS), "gcg", 5, passes=100, checkpoint=path)


def test_a_soft_prompt_is_made_discrete(scorer):
    soft = SoftPrompt.from_text("a red hat", scorer.model, name="hat", kind="embedding")
    noisy = soft.replace(tensor=soft.embeddings + 0.01 * torch.randn_like(soft.embeddings))
    searcher = Searcher(scorer, "random", len(soft), initial=noisy, passes=1)
    assert searcher.result().text == "a red hat"
    prefix = SoftPrompt.from_text("a hat", scorer.model, name="hat", kind="prefix")
    with pytest.raises(ConfigError, match="expected 'embedding'"):
        Searcher(scorer, "gcg", 5, initial=prefix)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "gc"}, "no search method 'gc'"),
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"passes": 0}, "passes is 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused(scorer, settings, said):
    with pytest.raises(ConfigError, match=said):
        Searcher(scorer, **settings)


@pytest.mark.parametrize("fluency", [float("nan"), float("inf"), -1.0])
def test_a_fluency_that_is_none(model, fluency):
    with pytest.raises(ConfigError, match="fluency is"):
        Scorer(model, BLOCKS, fluency=fluency)


def test_a_start_has_its_own_length(scorer):
    soft = SoftPrompt.from_text("a red hat", scorer.model, name="hat", kind="embedding")
    assert len(Searcher(scorer, initial=soft, passes=1).state.ids) == len(soft)
    assert len(Searcher(scorer, initial=soft, n_tokens=12, passes=1).state.ids) == 12
    assert len(Searcher(scorer, initial="a hat", passes=1).state.ids) == 5
    assert len(Searcher(scorer, passes=1).state.ids) == 16


def test_ctrl_c_keeps_the_progress(model, tmp_path):
    def stop(searcher):
        if searcher.state.step == 2:
            raise KeyboardInterrupt

    def searcher(on_step=None, name="kept"):
        return Searcher(
            Scorer(model, BLOCKS), "gcg", 5, passes=300, checkpoint=tmp_path / name, on_step=on_step
        )

    with pytest.raises(KeyboardInterrupt):
        searcher(stop).search()
    assert searcher().state.step == 2
    again, whole = searcher().search(), searcher(name="whole").search()
    assert (again.ids, again.steps) == (whole.ids, whole.steps)


# the command -------------------------------------------------------------------------------------


LORE = """
name: town
entries:
  - name: Ada
    text: Ada wears a red hat.
    blocks: [{call: Ada wears, responses: [" a hat"]}]
    held_out: [{call: Ada has on, responses: [" a hat"]}]
  - {name: Bo, text: Bo keeps a shop.}
"""


def test_search_command(tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE)
    model = save_tiny_model(tmp_path / "model")
    common = ["hard", "search", tmp_path / "lore.yaml", "--model", model, "--tokens", "4"]
    ended = softlore(*common, "--passes", "200", "--method", "autoprompt", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert set(report) == {"Ada"}  # Bo has no blocks to search on
    assert len(report["Ada"]["ids"]) == 4
    assert report["Ada"]["bare"] > 0
    for arguments, said in (
        (["--entry", "Bo"], "no blocks"),
        (["--entry", "Cy"], "has no entry 'Cy'"),
        (["--initial", tmp_path / "none.safetensors"], "none.safetensors"),
        (["--seconds", "0"], "0.0 is not in the range"),
    ):
        refused = softlore(*common, *arguments)
        assert refused.code == 2, refused.out
        assert said in refused.err
        assert len(refused.lines_after_loading) == 1


def test_search_command_by_reflection(tmp_path):
    (tmp_path / "lore.yaml").write_text(
        LORE.replace(
            "Bo keeps a shop.}",
            """Bo keeps a shop.
    blocks: [{call: Bo keeps, responses: [" a shop"]}]}""".replace("\n   ", ","),
        )
    )
    (tmp_path / "start.txt").write_text("Bo has a shop.")
    model = save_tiny_model(tmp_path / "model")
    common = ["hard", "search", tmp_path / "lore.yaml", "--model", model, "--json", "-"]
    reflect = [*common, "--method", "reflect", "--passes", "60", "--tokens", "24"]
    ended = softlore(*reflect)
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert set(report) == {"Ada", "Bo"}
    assert all(0 < len(found["ids"]) <= 24 for found in report.values())
    ended = softlore(*reflect, "--together", "--initial", tmp_path / "start.txt", "--shorten", "1")
    assert ended.code == 0, ended.err
    (found,) = json.loads(ended.out).values()
    assert 0 < len(found["ids"]) <= 24
    ended = softlore(*common, "--method", "gcg", "--writer", "smollm2")
    assert ended.code == 2
    assert "--writer is of the method reflect" in ended.err


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    (tmp_path / "lore.yaml").write_text(LORE)
    model = save_tiny_model(tmp_path / "model")

    def stop(searcher):
        raise KeyboardInterrupt

    monkeypatch.setattr(Searcher, "step", stop)
    command = ["hard", "search", tmp_path / "lore.yaml", "--model", model, "--tokens", "4"]
    stopped = softlore(*command, "--checkpoints", tmp_path / "kept")
    assert (stopped.code, len(stopped.lines_after_loading)) == (130, 1)
    assert "progress is saved: the same command continues" in stopped.err
    assert (tmp_path / "kept" / "Ada.search").exists()
    assert "nothing is saved without --checkpoints" in softlore(*command).err
