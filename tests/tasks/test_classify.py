"""Metrics of classification and regression against scikit-learn and numpy, added up over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sklearn import metrics as oracle

from hybrid_flax.tasks.base import describe
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.regress import make_regression


def summed(task, outputs, batches):
    total = {}
    for out, batch in zip(outputs, batches):
        sums = jax.jit(task.evaluate)(out, jax.tree.map(jnp.asarray, batch))
        total = {name: total.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
    return task.measure(total)


def test_one_class():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 40, 4)).astype(np.float32)
    logits[..., 3] = -10.0  # a class that neither occurs nor is predicted
    labels = rng.integers(0, 3, (2, 40)).astype(np.int32)
    weights = np.ones((2, 40), np.float32)
    weights[1, 30:] = 0.0  # rows of padding
    batches = [tiny.asked(y, w) for y, w in zip(labels, weights)]
    found = summed(make_classification(), jnp.asarray(logits), batches)
    live = weights > 0
    y, p = labels[live], np.argmax(logits[live], axis=-1)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p))
    for how in ("macro", "micro", "weighted"):
        assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(y, p, average=how))
    log_p = jax.nn.log_softmax(logits[live])
    assert found["loss"] == pytest.approx(float(-np.mean(np.asarray(log_p)[np.arange(len(y)), y])), rel=1e-5)


def test_many_classes():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((1, 50, 4)).astype(np.float32)
    labels = (rng.random((1, 50, 4)) < 0.4).astype(np.float32)
    logits[..., 3], labels[..., 3] = -10.0, 0.0  # a class that neither occurs nor is predicted
    weights = np.ones((1, 50), np.float32)
    weights[0, 45:] = 0.0
    task = make_classification(multi_label=True)
    found = summed(task, jnp.asarray(logits), [tiny.asked(labels[0], weights[0])])
    y, p = labels[0, :45], (logits[0, :45] > 0).astype(int)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p))
    for how in ("macro", "micro", "weighted"):
        assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(y, p, average=how, zero_division=0.0))
    p_yes = 1 / (1 + np.exp(-logits[0, :45].astype(np.float64)))
    nll = -np.sum(y * np.log(p_yes) + (1 - y) * np.log(1 - p_yes)) / 45
    assert found["loss"] == pytest.approx(nll, rel=1e-5)
    assert "\n" not in describe(task, found)


def test_regression():
    rng = np.random.default_rng(2)
    outputs = rng.standard_normal((2, 30, 1)).astype(np.float32)
    labels = (0.5 * outputs[..., 0] + rng.standard_normal((2, 30))).astype(np.float32)
    weights = np.ones((2, 30), np.float32)
    weights[1, 20:] = 0.0
    task = make_regression()
    found = summed(task, jnp.asarray(outputs), [tiny.asked(y, w) for y, w in zip(labels, weights)])
    x, y = outputs[..., 0][weights > 0], labels[weights > 0]
    assert found["mse"] == found["loss"] == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
    assert found["r"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-4)
    assert found["sign"] == pytest.approx(np.mean((x > 0) == (y > 0)))
    assert "\n" not in describe(task, found)


@pytest.mark.parametrize(
    ("label_mean", "label_spread", "mean", "spread"),
    [(2000, 1, 2000, 1), (2000, 1, 0, 0.1), (-3e4, 1, 5e4, 2), (0, 1e-9, 0, 1e-8), (0, 1e12, 1e12, 1e11), (1, 1, 0, 1)],
)
def test_correlation_wherever_the_numbers_lie(label_mean, label_spread, mean, spread):
    """In float32, in batches of which some have other means than the rest; against numpy in float64."""
    rng = np.random.default_rng(4)
    x, noise = rng.standard_normal((2, 5, 40))
    x += np.arange(5)[:, None]
    outputs = (mean + spread * x).astype(np.float32)[..., None]
    labels = (label_mean + label_spread * (0.7 * x + noise)).astype(np.float32)
    weights = (rng.random((5, 40)) < 0.8).astype(np.float32)
    batches = [tiny.asked(y, w) for y, w in zip(labels, weights)]
    found = summed(make_regression(), jnp.asarray(outputs), batches)["r"]
    pairs = outputs[..., 0][weights > 0].astype(np.float64), labels[weights > 0].astype(np.float64)
    assert found == pytest.approx(np.corrcoef(*pairs)[0, 1], rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1 / 3, 2000.1])
def test_no_correlation_with_what_does_not_vary(value):
    weights, labels = np.ones(50, np.float32), np.arange(50, dtype=np.float32)
    batches = [tiny.asked(labels, weights)] * 3
    assert summed(make_regression(), jnp.full((3, 50, 1), value, jnp.float32), batches)["r"] == 0.0


def test_confusion_and_predictions():
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.standard_normal((30, 4)), jnp.float32)
    labels, weights = jnp.asarray(rng.integers(0, 4, 30), jnp.int32), jnp.ones(30)
    task, live = make_classification(), jnp.ones((30, 2), bool)
    predicted = np.asarray(task.predict(logits, live))
    confusion = task.evaluate(logits, tiny.asked(labels, weights))["confusion"]
    assert np.array_equal(confusion, oracle.confusion_matrix(labels, predicted))
    assert np.array_equal(make_classification(multi_label=True).predict(logits, live), logits > 0)
    assert np.array_equal(make_regression().predict(logits, live), logits[:, 0])
