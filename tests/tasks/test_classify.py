"""Metrics of classification and regression against scikit-learn and numpy, added up over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as oracle

from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.regress import make_regression


def summed(task, outputs, batches):
    total = {}
    for out, batch in zip(outputs, batches):
        sums = jax.jit(task.evaluate)(out, jax.tree.map(jnp.asarray, batch))
        total = {name: total.get(name, 0.0) + np.asarray(value, np.float64) for name, value in sums.items()}
    return task.metrics(total)


def test_one_class():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 40, 4)).astype(np.float32)
    logits[..., 3] = -10.0  # a class that neither occurs nor is predicted
    labels = rng.integers(0, 3, (2, 40)).astype(np.int32)
    weights = np.ones((2, 40), np.float32)
    weights[1, 30:] = 0.0  # rows of padding
    batches = [{"labels": y, "weights": w} for y, w in zip(labels, weights)]
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
    logits = rng.standard_normal((1, 50, 3)).astype(np.float32)
    labels = (rng.random((1, 50, 3)) < 0.4).astype(np.float32)
    weights = np.ones((1, 50), np.float32)
    weights[0, 45:] = 0.0
    task = make_classification(multi_label=True)
    found = summed(task, jnp.asarray(logits), [{"labels": labels[0], "weights": weights[0]}])
    y, p = labels[0, :45], (logits[0, :45] > 0).astype(int)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p))
    for how in ("macro", "micro", "weighted"):
        assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(y, p, average=how))
    p_yes = 1 / (1 + np.exp(-logits[0, :45].astype(np.float64)))
    nll = -np.sum(y * np.log(p_yes) + (1 - y) * np.log(1 - p_yes)) / 45
    assert found["loss"] == pytest.approx(nll, rel=1e-5)
    assert "\n" not in task.describe(found)


def test_regression():
    rng = np.random.default_rng(2)
    outputs = rng.standard_normal((2, 30, 1)).astype(np.float32)
    labels = (0.5 * outputs[..., 0] + rng.standard_normal((2, 30))).astype(np.float32)
    weights = np.ones((2, 30), np.float32)
    weights[1, 20:] = 0.0
    task = make_regression()
    found = summed(task, jnp.asarray(outputs), [{"labels": y, "weights": w} for y, w in zip(labels, weights)])
    x, y = outputs[..., 0][weights > 0], labels[weights > 0]
    assert found["mse"] == found["loss"] == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
    assert found["r"] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-4)
    assert found["sign"] == pytest.approx(np.mean((x > 0) == (y > 0)))
    assert "\n" not in task.describe(found)


def test_confusion_and_predictions():
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.standard_normal((30, 4)), jnp.float32)
    labels, weights = jnp.asarray(rng.integers(0, 4, 30), jnp.int32), jnp.ones(30)
    task, live = make_classification(), jnp.ones((30, 2), bool)
    predicted = np.asarray(task.predict(logits, live))
    confusion = task.evaluate(logits, {"labels": labels, "weights": weights})["confusion"]
    assert np.array_equal(confusion, oracle.confusion_matrix(labels, predicted))
    assert np.array_equal(make_classification(multi_label=True).predict(logits, live), logits > 0)
    assert np.array_equal(make_regression().predict(logits, live), logits[:, 0])
