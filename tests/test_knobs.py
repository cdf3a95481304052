"""The table of knobs: what is said of each, and its range."""

import math
from itertools import product

import pytest

from hybrid_flax.config import base_config, config_diff, config_hash, flatten, validate, with_new_knobs
from hybrid_flax.errors import ConfigError
from hybrid_flax.knobs import KNOBS, check_range
from hybrid_flax.mixers.registry import mixer_options

MIXERS_OF_0_1 = {
    *("alibi", "attn", "blockrec", "chunked", "conv", "deltanet", "gdn", "gla", "gru", "hgrn", "hgrn2", "indrnn"),
    *("linattn", "lru", "lstm", "lstmp", "mgu", "mingru", "minlstm", "mlstm", "qrnn", "relu", "retnet", "rglru"),
    *("rwkv7", "s5", "s6", "sha", "sink", "slstm", "sru", "ssd", "swa", "tanh", "tanhdot", "xl"),
}
BOUNDS = ("at_least", "above", "below", "at_most")
RANGED = {key: knob for key, knob in KNOBS.items() if any(getattr(knob, bound) is not None for bound in BOUNDS)}


def outside(knob):
    """Values just outside every bound of a knob, of its type."""
    whole = isinstance(knob.default, int)
    if knob.at_least is not None:
        yield knob.at_least - 1 if whole else math.nextafter(knob.at_least, -math.inf)
    if knob.above is not None:
        yield knob.above
    if knob.below is not None:
        yield knob.below
    if knob.at_most not in (None, math.inf):
        yield knob.at_most + 1 if whole else math.nextafter(knob.at_most, math.inf)
    if knob.at_most is None and knob.below is None:
        yield 10**12 if whole else math.inf
    if not whole:
        yield math.nan


def test_the_knobs_are_the_config():
    flat = flatten(base_config())
    assert {key for key in flat if not key.startswith(("mixers.", "loggers."))} == set(KNOBS)
    assert all(flat[key] == knob.default for key, knob in KNOBS.items())


@pytest.mark.parametrize("key", KNOBS)
def test_every_knob_says_what_it_does_and_where_it_may_stand(key):
    knob = KNOBS[key]
    assert knob.about.strip() and "\n" not in knob.about
    check_range(key, knob.default)
    number = isinstance(knob.default, int | float) and not isinstance(knob.default, bool)
    assert number == (key in RANGED), "a number has a range, and nothing else has one"
    assert number or not knob.unit


@pytest.mark.parametrize(("key", "value"), [pair for key in RANGED for pair in product([key], outside(RANGED[key]))])
def test_what_is_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"^{key}=.* must be ") as error:
        check_range(key, value)
    assert "\n" not in str(error.value) and RANGED[key].unit in str(error.value)


@pytest.mark.parametrize("key", RANGED)
def test_closed_bounds_are_within_the_range(key):
    for bound in (RANGED[key].at_least, RANGED[key].at_most):
        assert bound is None or check_range(key, bound) is None


def test_the_range_is_asked_when_a_config_is_validated():
    config = base_config()
    config.schedule.decay_rate = 0.0
    with pytest.raises(ConfigError, match=r"^schedule\.decay_rate=0\.0 must be above 0"):
        validate(config)


def test_later_knobs_change_no_hash(monkeypatch):
    """Folders of runs and trials are named by hashes: those of version 0.1 are found again."""
    builtin = {name: options for name, options in mixer_options().items() if name in MIXERS_OF_0_1}
    config = base_config().to_dict() | {"mixers": {name: base_config().to_dict()["mixers"][name] for name in builtin}}
    assert config_hash(config) == "dc10d6ba"
    config["eval"]["final_batches"] = 1
    assert config_hash(config) != "dc10d6ba"


def test_options_of_fusions_change_no_hash():
    config = base_config()
    without = config.to_dict()
    del without["mixers"]["sharnn"]
    assert config_hash(config) == config_hash(without)
    config.mixers.sharnn.window = 32
    assert config_hash(config) != config_hash(without)


@pytest.mark.parametrize(("key", "value"), [("eval.final_batches", 0), ("mixers.sharnn.window", 256)])
def test_what_an_earlier_version_saved_is_no_other_config(key, value):
    given = flatten(base_config())
    saved = {name: old for name, old in given.items() if name != key}
    assert config_diff(with_new_knobs(saved, given), given) == []
    changed = given | {key: 2}
    assert config_diff(with_new_knobs(saved, changed), changed) == [f"{key}: {value} -> 2"]
