"""Values that are not finite: the run stops, says where, and leaves a good checkpoint."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.data import sources
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.runs import load_run
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.training.diagnose import TrainingFailed, explain_failure
from hybrid_flax.training.loop import train
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state, make_train_step

EXPLODES = {
    "optim__name": "sgd",
    "optim__learning_rate": 1e25,
    "optim__clip_norm": float("inf"),
    "schedule__name": "constant",
    "optim__ema_decay": 0.9,
    "train__checkpoint_every": 1,
    "train__steps": 20,
}


def assert_finite(tree):
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_exploding_learning_rate(text, tmp_path, capsys):
    experiment = tiny.write_experiment(tmp_path, text, **EXPLODES)
    workdir = tmp_path / "run"
    for _ in range(2):
        assert cli.main([f"--config={experiment}", f"--workdir={workdir}"]) == 3
        err = capsys.readouterr().err
        assert err.startswith("error: step ") and err.count("\n") == 1
        found = re.search(r"step (\d+): train/loss is not finite, first in layer 0 \(cascade:lstm\+swa\)", err)
        assert found, err
        run = load_run(workdir)
        assert run.step < int(found[1])
        assert_finite(run.params)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["windows", "stream"])
def test_the_step_and_the_last_good_checkpoint(mode, text, tmp_path, monkeypatch):
    """A weight of infinity in the batch of the sixth update: five updates are kept."""
    config = tiny.tiny_config(text, data__mode=mode, train__steps=12, train__log_every=4, train__dropout=0.1)
    poison(monkeypatch, 5)
    with pytest.raises(TrainingFailed, match=r"^step 6: train/loss is not finite, first in the loss itself"):
        train(config, tmp_path)
    assert load_run(tmp_path).step == 3
    assert_finite(load_run(tmp_path).params)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1 and '"step": 4' in rows[0]


def poison(monkeypatch, step):
    original = sources.make_batches

    def make_batches(*args, **kwargs):
        batches = original(*args, **kwargs)

        def batch(index, rows=slice(None)):
            arrays = batches.batch(index, rows)
            return arrays._replace(weights=arrays.weights * np.float32("inf")) if index == step else arrays

        return batches._replace(batch=batch)

    monkeypatch.setattr(sources, "make_batches", make_batches)


def test_nothing_moves_from_the_failed_step_on(text):
    config = tiny.tiny_config(text, data__mode="stream", optim__ema_decay=0.9)
    setup = make_setup(config)
    step = jax.jit(make_train_step(setup.model, setup.task, setup.traits, None))

    state, carry = fresh_position(setup, config)
    state, carry, _ = step(state, carry, setup.batches.batch(0))
    bad = setup.batches.batch(1)
    bad = bad._replace(weights=bad.weights * np.float32("nan"))
    after, carry_after, _ = step(state, carry, bad)
    later, carry_later, _ = step(after, carry_after, setup.batches.batch(2))
    for other, other_carry in ((after, carry_after), (later, carry_later)):
        assert int(other.failed_step) == 1 and int(other.step) == 1
        for field in ("params", "opt_state", "ema", "sums"):
            jax.tree.map(np.testing.assert_array_equal, getattr(other, field), getattr(state, field))
        jax.tree.map(np.testing.assert_array_equal, other_carry, carry)


@pytest.mark.slow
@pytest.mark.parametrize(("bad_layer", "remat"), [(0, True), (5, False), (8, True), ("head", False)])
def test_the_first_layer_is_named(bad_layer, remat, text):
    """Four scanned repeats of two layers and one left over; an infinity in one of them."""
    model = make_model(
        vocab_size=9, width=8, depth=9, pattern="conv,tanhdot", remat=remat, mlp="relu2", mlp_ratio=1.0, tied=False
    )
    params = jax.tree.map(np.array, jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)))
    if bad_layer == "head":
        params["head"]["kernel"][0, 0] = np.inf
    elif bad_layer == 8:
        params["backbone"]["rest"]["layer_0"]["mlp_norm"]["scale"][:] = np.inf
    else:
        repeat, place = divmod(bad_layer, 2)
        params["backbone"]["repeats"][f"layer_{place}"]["mlp_norm"]["scale"][repeat] = np.inf
    setup = make_setup(tiny.tiny_config(text, train__dropout=0.1))
    state = init_train_state(params, setup.hparams, setup.traits, jax.random.key(1))
    batch = setup.batches.batch(0)
    batch = batch._replace(tokens=batch.tokens % 9, targets=batch.targets % 9)
    message = explain_failure(
        model, make_language_modelling(), state, (), jax.tree.map(jnp.asarray, batch), setup.traits.noise
    )
    wanted = "in the head" if bad_layer == "head" else f"in layer {bad_layer} ({model.design.layers[bad_layer]})"
    assert message.startswith("step 1: train/loss is not finite") and wanted in message
