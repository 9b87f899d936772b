"""What a sweep may try: how it is written, and what is refused. Optuna is not needed for that."""

import pytest

from running import save_tiny_model, softlore
from softlore.errors import ConfigError
from softlore.tune.search_space import DEFAULT, SearchSpace, options_for, parse_space


class Middle:
    """A trial that suggests the lowest value, or the first."""

    def suggest_int(self, name, low, high, *, log=False):
        return low

    def suggest_float(self, name, low, high, *, log=False):
        return low

    def suggest_categorical(self, name, choices):
        return choices[0]


@pytest.mark.parametrize(
    ("text", "swept", "value"),
    [
        ("n_tokens=4..32", SearchSpace("n_tokens", 4, 32), 4),
        ("n-tokens=4..32:log", SearchSpace("n_tokens", 4, 32, True), 4),
        ("learning_rate=0.03..1:log", SearchSpace("learning_rate", 0.03, 1.0, True), 0.03),
        ("drift_guard=0..4", SearchSpace("drift_guard", 0.0, 4.0), 0.0),
        ("kind=prefix,embedding", SearchSpace("kind", choices=("prefix", "embedding")), "prefix"),
        ("company_size=1, 4", SearchSpace("company_size", choices=(1, 4)), 1),
        ("min_loss=none,0.4", SearchSpace("min_loss", choices=(None, 0.4)), None),
        ("initial=text,none", SearchSpace("initial", choices=("text", "none")), "text"),
    ],
)
def test_what_is_written(text, swept, value):
    (found,) = parse_space([text])
    assert found == swept
    assert found.suggest(Middle()) == value
    assert type(found.suggest(Middle())) is type(value)


def test_the_default():
    names = [one.name for one in parse_space(DEFAULT)]
    assert names == ["n_tokens", "learning_rate", "drift_guard"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_tokens", "says no values"),
        ("n_tokens=", "says no values"),
        ("n_token=4..8", "did you mean 'n_tokens'?"),
        ("n_tokens=8..4", "runs the wrong way"),
        ("n_tokens=4..4", "runs the wrong way"),
        ("n_tokens=0..4", "n_tokens is 0; expected a whole number from 1"),
        ("n_tokens=4..9999", "n_tokens is 9999"),
        ("n_tokens=4..8:lin", "is not a range of n_tokens"),
        ("n_tokens=4.5..8", "has '4.5'; expected a whole number"),
        ("n_tokens=4,none", "has 'none'; expected a whole number"),
        ("drift_guard=0..4:log", "above 0 and rising"),
        ("learning_rate=nan..1", "learning_rate is nan"),
        ("kind=a..b", "is not a range of kind"),
        ("kind=prefix,suffix", "kind is 'suffix'"),
        ("seed=0,1", "seed cannot be swept"),
        ("max_active=1,2", "max_active cannot be swept"),
    ],
)
def test_what_is_refused(text, expected):
    with pytest.raises(ConfigError) as refused:
        parse_space([text])
    assert expected in str(refused.value)
    with pytest.raises(ConfigError, match="is swept twice"):
        parse_space(["n_tokens=4..8", "n_tokens=2..3"])


def test_settings_as_options():
    settings = {"n_tokens": 4, "learning_rate": 0.123456789, "min_loss": None, "kind": "prefix"}
    expected = ["--n-tokens", "4", "--learning-rate", "0.123457", "--kind", "prefix"]
    assert options_for(settings) == expected


@pytest.mark.parametrize(
    ("command", "module", "users", "extra"),
    [
        (["train", "--ray", "local"], "ray", "softlore.tune.worker_pool_ray", "ray"),
        (["sweep"], "optuna", "softlore.tune.sweep", "sweep"),
    ],
)
def test_what_is_not_installed(command, module, users, extra, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, users, raising=False)
    (tmp_path / "lore.yaml").write_text("entries: [{name: Ada, text: Ada sings.}]")
    model = save_tiny_model(tmp_path / "model")
    name, *more = command
    where = ["--model", model] + (["--out", tmp_path / "out"] if name == "train" else [])
    ended = softlore(name, tmp_path / "lore.yaml", *where, *more)
    assert ended.code == 2
    (line,) = ended.lines_after_loading
    assert f"{module} is not installed" in line
    assert f"pip install 'softlore[{extra}]'" in line
