"""Frozen parameters: they do not move by a bit, the others move as they would."""

import fnmatch

import jax
import numpy as np
import pytest
import tiny
from sampling import sampled
from tiny import Crash, at_step, crash

from hybrid_flax import cli
from hybrid_flax.errors import ConfigError
from hybrid_flax.models.places import by_place, replace_places
from hybrid_flax.runs import load_run
from hybrid_flax.training.frozen import find_frozen
from hybrid_flax.training.loop import train
from hybrid_flax.training.optimizer import OPTIMIZERS
from hybrid_flax.training.parallel import make_parallel
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state, make_train_step

DEEP = {"model__pattern": "gru,swa", "model__depth": 9, "model__mlp": "relu2", "optim__weight_decay": 0.3}
DEEP |= {"optim__table_decay": 0.3, "optim__ema_decay": 0.9, "optim__learning_rate": 0.1}
PATTERNS = "backbone.layer_2.*,embed.*,*.mlp.up.kernel,*norm.scale"


def step_to(config, count, first=None):
    """The state after `count` steps, from the values of `first` by place."""
    setup = make_setup(config)
    step = make_parallel("jit").wrap(make_train_step(setup.model, setup.task, setup.traits, None))
    setup = setup._replace(parallel=make_parallel("jit"))
    state, carry = fresh_position(setup, config)
    if first is not None:
        state = init_train_state(replace_places(state.params, first), setup.hparams, setup.traits, jax.random.key(0))
    for index in range(count):
        state, carry, _ = step(state, carry, setup.batches.batch(index))
    return setup, state


def is_frozen(place):
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in PATTERNS.split(","))


def moved(config, count=3):
    """{place: whether it differs from its first value}, of the parameters and of their running mean."""
    setup, after = step_to(config, count)
    before = by_place(step_to(config, 0)[1].params)
    for tree in (after.params, after.ema):
        yield {place: not np.array_equal(leaf, before[place]) for place, leaf in by_place(tree).items()}


@pytest.mark.parametrize("optimizer", sampled(OPTIMIZERS, ["adamw", "muon"]))
@pytest.mark.parametrize("scan_layers", sampled([True, False], [True]))
def test_a_frozen_leaf_does_not_move_by_a_bit(optimizer, scan_layers, text):
    changes = DEEP | {"optim__name": optimizer, "model__scan_layers": scan_layers, "optim__accumulate": 2}
    config = tiny.tiny_config(text, **changes, model__freeze=PATTERNS)
    for moves in moved(config):
        assert {place for place, moves in moves.items() if not moves} == {place for place in moves if is_frozen(place)}
        assert any("layer_2" in place for place in moves) and not moves["embed.embedding"]


def test_a_stack_of_scanned_layers_is_trained_as_they_are_alone(text):
    """From the same values, some of its layers frozen; clipping goes by the norm of the others."""
    changes = DEEP | {"optim__clip_norm": 0.1, "optim__learning_rate": 1e-3, "model__freeze": PATTERNS}
    scanned, alone = (tiny.tiny_config(text, **changes, model__scan_layers=scan) for scan in (True, False))
    first = {place: np.array(leaf) for place, leaf in by_place(step_to(scanned, 0)[1].params).items()}
    one, other = (step_to(config, 2, first)[1] for config in (scanned, alone))
    np.testing.assert_allclose(one.sums["grad_norm"], other.sums["grad_norm"], rtol=1e-5)
    after = by_place(other.params)
    for place, leaf in by_place(one.params).items():
        np.testing.assert_allclose(leaf, after[place], rtol=1e-4, atol=1e-5)


def test_frozen_parameters_cost_no_optimizer_state(text):
    def size(**changes):
        state = step_to(tiny.tiny_config(text, **DEEP | changes), 0)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)), state

    whole, state = size()
    less, _ = size(model__freeze="embed.*,*.mlp.*")
    leaves = by_place(state.params).items()
    frozen = sum(leaf.size for place, leaf in leaves if place.startswith("embed.") or ".mlp." in place)
    assert whole - less == 2 * frozen


def test_the_others_are_trained_by_their_own_gradient(text):
    """One step of plain SGD: they move as without freezing, where nothing is clipped."""
    changes = {"optim__name": "sgd", "optim__clip_norm": float("inf"), "optim__momentum": 0.0}
    plain, frozen = (
        by_place(step_to(tiny.tiny_config(text, **DEEP | changes, model__freeze=patterns), 1)[1].params)
        for patterns in ("", PATTERNS)
    )
    for place, leaf in plain.items():
        if not is_frozen(place):
            np.testing.assert_allclose(frozen[place], leaf, rtol=1e-5, atol=1e-7)


def test_a_run_with_frozen_parameters_is_resumed(text, tmp_path, monkeypatch, capsys):
    changes = DEEP | {"train__steps": 6, "train__checkpoint_every": 2, "model__freeze": PATTERNS, "optim__name": "muon"}
    config = tiny.tiny_config(text, **changes)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(Crash):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    one, other = (load_run(tmp_path / name).params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    before = by_place(step_to(config, 0)[1].params)
    same = {place for place, leaf in by_place(one).items() if np.array_equal(leaf, before[place])}
    assert same == {place for place in before if is_frozen(place)}
    experiment = tiny.write_experiment(tmp_path, text, **changes)
    capsys.readouterr()
    assert cli.main(["plan", f"--config={experiment}"]) == 0
    frozen = sum(before[place].size for place in same)
    total = sum(leaf.size for leaf in before.values())
    assert f"frozen parameters     {frozen:,} of {total:,}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_on_the_maps_of_several_devices(kind, text, tmp_path):
    config = tiny.tiny_config(text, **DEEP | {"train__steps": 2, "train__parallel": kind}, model__freeze=PATTERNS)
    before = by_place(step_to(config, 0)[1].params)
    after = by_place(train(config, tmp_path)[0].params)
    assert {p for p in before if np.array_equal(before[p], after[p])} == {p for p in before if is_frozen(p)}


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("embd.*", r"'embd\.\*' matches no parameter; nearest: embed\.embedding"),
        ("embed.*,", "'' matches no parameter"),
        ("*", "nothing is left to train"),
        ("backbone.repeats.*", r"matches no parameter; nearest: backbone\."),
    ],
)
def test_patterns_that_fit_nothing(patterns, words, text):
    with pytest.raises(ConfigError, match=words) as error:
        make_setup(tiny.tiny_config(text, model__freeze=patterns))
    assert "\n" not in str(error.value)


def test_no_pattern_freezes_nothing():
    assert find_frozen("", {"embed": {"embedding": np.zeros(2)}}) == ()
