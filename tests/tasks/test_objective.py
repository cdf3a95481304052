"""Losses by name: against their definition, on targets that training has and on those that it has not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax import register_loss
from hybrid_flax.config import apply_overrides, base_config
from hybrid_flax.errors import ConfigError
from hybrid_flax.registration import LOSSES
from hybrid_flax.tasks.objective import with_loss
from hybrid_flax.tasks.registry import check_task, make_task

LABELS = ("a", "b", "c")


def made(task, loss, *overrides, unseen=()):
    config = apply_overrides(base_config(), [f"task.name={task}", f"loss.name={loss}", *overrides])
    if task != "lm":
        config.data.mode = "padded"
    check_task(config)
    return make_task(config, () if task in ("lm", "answer", "regress") else LABELS, unseen)


def random_batch(rng, shape, num_targets):
    targets = rng.integers(num_targets, size=shape).astype(np.int32)
    return tiny.asked(jnp.asarray(targets), jnp.asarray(rng.integers(2, size=shape).astype(np.float32)))


def test_squared_error_is_that_of_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    batch = random_batch(rng, (2, 5), 7)
    sums = made("lm", "squared_error").loss(jnp.asarray(logits), batch)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    wanted = ((p - np.eye(7)[batch.targets]) ** 2).sum(-1)
    assert float(sums["loss"]) == pytest.approx(float((wanted * batch.weights).sum()), rel=1e-6)
    assert sums["count"] == batch.weights.sum()


@pytest.mark.parametrize("task", ["answer", "classify", "tag"])
def test_a_loss_of_classes(task):
    """Targets that training has not have no weight."""
    register_loss("gap", lambda *, power=2.0: lambda logits, targets: _gap(logits, targets) ** power, tasks=(task,))
    rng = np.random.default_rng(1)
    shape = (6,) if task == "classify" else (3, 4)
    logits = jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)
    batch = random_batch(rng, shape, 5 if task != "answer" else 3)
    task = made(task, "gap", "losses.gap.power=3.0")
    known = np.asarray(batch.targets) < 3
    weights = np.asarray(batch.weights) * known
    chosen = np.take_along_axis(np.asarray(logits), np.where(known, batch.targets, 0)[..., None], -1)[..., 0]
    gap = np.asarray(logits).max(-1) - chosen
    assert task.loss(logits, batch)["loss"] == pytest.approx((gap**3 * weights).sum(), rel=1e-5)
    assert task.loss(logits, batch)["count"] == weights.sum()


def test_losses_of_several_labels_and_of_numbers():
    register_loss("apart", lambda: lambda outputs, targets: jnp.abs(outputs - targets), tasks=("multilabel",))
    rng = np.random.default_rng(2)
    outputs = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    targets = rng.integers(2, size=(6, 5)).astype(np.float32)
    batch = tiny.asked(jnp.asarray(targets), jnp.ones(6))
    seen = ~targets[:, 3:].any(1)
    wanted = np.abs(np.asarray(outputs) - targets[:, :3]).sum(1)[seen].sum()
    task = made("multilabel", "apart", unseen=("d", "e"))
    assert float(task.loss(outputs, batch)["loss"]) == pytest.approx(float(wanted), rel=1e-6)

    register_loss("absolute", lambda: lambda outputs, targets: jnp.abs(outputs[:, 0] - targets), tasks="regress")
    batch = tiny.asked(jnp.asarray(rng.normal(size=6), jnp.float32), jnp.asarray(rng.random(6), jnp.float32))
    wanted = (np.abs(np.asarray(outputs)[:, 0] - batch.targets) * batch.weights).sum()
    sums = made("regress", "absolute").loss(outputs[:, :1], batch)
    assert float(sums["loss"]) == pytest.approx(float(wanted), rel=1e-6)


def test_metrics_stay_and_equal_arguments_give_the_same_task():
    own, plain = made("lm", "squared_error"), made("lm", "cross_entropy")
    assert own is made("lm", "squared_error") and own is not plain
    assert (own.evaluate, own.measure, own.metrics) == (plain.evaluate, plain.measure, plain.metrics)


def test_what_a_loss_gives_is_checked():
    register_loss("mean", lambda: lambda logits, targets: jnp.mean(logits))
    register_loss("wrong", lambda: lambda logits, targets: jnp.dot(logits, logits))
    logits = jnp.zeros((2, 3, 4))
    batch = tiny.asked(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3)))
    with pytest.raises(ConfigError, match=r"loss mean gives \(\), not one for each of the targets \(2, 3\)"):
        jax.eval_shape(made("lm", "mean").loss, logits, batch)
    with pytest.raises(ConfigError, match=r"^wrong \(.*\) fails: TypeError: .*test_objective.py, line \d+"):
        jax.eval_shape(made("lm", "wrong").loss, logits, batch)


@pytest.mark.parametrize(
    ("task", "loss", "wanted"),
    [
        ("lm", "apart", "'apart' goes with task.name=tag, and task.name=lm has a loss of its own: leave it at cross_"),
        ("tag", "squared_error", "'squared_error' goes with task.name=lm, and task.name=tag has a loss of its own"),
        ("lm", "squared_eror", "'squared_eror' is none of .*; nearest: squared_error"),
    ],
)
def test_losses_go_with_tasks(task, loss, wanted):
    register_loss("apart", lambda: lambda outputs, targets: jnp.abs(outputs - targets), tasks=("tag",))
    with pytest.raises(ConfigError, match=wanted):
        made(task, loss)


def test_a_crf_has_a_loss_of_its_own():
    register_loss("gap", lambda: _gap, tasks=("tag",))
    with pytest.raises(ConfigError, match=r"loss.name='gap': a CRF has a loss of its own: set task.crf=false"):
        made("tag", "gap", "task.crf=true")
    with pytest.raises(ConfigError, match="a CRF has a loss of its own"):
        with_loss(made("tag", "gap"), LOSSES.choose("gap"), "tags").loss((jnp.zeros((1, 2, 3)), None), None)


def _gap(logits, targets):
    return jnp.max(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
