"""Labels that no training example has count as missed: against scikit-learn and seqeval, which know nothing of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from seqeval import metrics as of_spans
from seqeval.scheme import IOB2
from sklearn import metrics as oracle

from hybrid_flax.data.tags import to_bio2
from hybrid_flax.ops.crf import Transitions, log_likelihood
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.tag import allowed_moves, make_tagging

RNG = np.random.default_rng(7)
HOW = ("macro", "micro", "weighted")


def measured(task, outputs, targets, weights):
    batch = tiny.asked(jnp.asarray(targets), jnp.asarray(weights, jnp.float32))
    sums = jax.device_get(jax.jit(task.evaluate)(outputs, batch))
    return task.measure({name: np.asarray(value, np.float64) for name, value in sums.items()})


def transitions(size):
    return Transitions(*(jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((size,), (size, size), (size,))))


def test_classes():
    """Four of them can be predicted; of the three others one does not occur."""
    logits = jnp.asarray(RNG.standard_normal((60, 4)), jnp.float32)
    labels, weights = RNG.choice([0, 1, 2, 3, 4, 6], 60).astype(np.int32), np.repeat([1.0, 0.0], [50, 10])
    found = measured(make_classification(num_unseen=3), logits, labels, weights)
    y, p = labels[:50], np.argmax(logits[:50], axis=-1)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p))
    for how in HOW:
        assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(y, p, average=how, zero_division=0.0))
    known = y < 4
    nll = -np.asarray(jax.nn.log_softmax(logits[:50]))[known, y[known]]
    assert found["loss"] == pytest.approx(nll.mean(), rel=1e-5)


def test_several_classes():
    logits = jnp.asarray(RNG.standard_normal((60, 4)), jnp.float32)
    labels = (RNG.random((60, 6)) < [0.5, 0.5, 0.5, 0.5, 0.2, 0.1]).astype(np.float32)
    labels[0] = [*(np.asarray(logits[0]) > 0), 1, 0]  # right but for what could not be known
    found = measured(make_classification(True, 2), logits, labels, np.ones(60))
    p = np.concatenate([np.asarray(logits) > 0, np.zeros((60, 2))], axis=1)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(labels, p))
    for how in HOW:
        assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(labels, p, average=how, zero_division=0.0))
    rows = ~labels[:, 4:].any(axis=1)
    p_yes = 1 / (1 + np.exp(-np.asarray(logits[rows], np.float64)))
    y = labels[rows, :4]
    nll = -np.sum(y * np.log(p_yes) + (1 - y) * np.log(1 - p_yes), axis=1)
    assert found["loss"] == pytest.approx(nll.mean(), rel=1e-5)


@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize("spans", [False, True])
def test_tags(spans, crf):
    """Rows with gaps, in which tags of two kinds that no model can predict stand among the others."""
    names = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") if spans else ("ADP", "DET", "NOUN", "O", "VERB")
    unseen = ("B-DAY", "I-DAY", "B-GOD", "I-GOD") if spans else ("ADV", "X")
    every = names + unseen
    labels, live = RNG.integers(0, len(every), (30, 9)).astype(np.int32), RNG.random((30, 9)) < 0.8
    if spans:
        for row, mask in zip(labels, live):
            row[mask] = [every.index(tag) for tag in to_bio2([every[tag] for tag in row[mask]])]
    near = np.where((labels < 5) & (RNG.random(labels.shape) < 0.7), labels, RNG.integers(0, 5, labels.shape))
    emissions = 3 * jax.nn.one_hot(near, 5) + jnp.asarray(RNG.standard_normal((30, 9, 5)), jnp.float32)
    scores = transitions(5)
    task = make_tagging(names, unseen)
    outputs = (emissions, scores) if crf else emissions
    found = measured(task, outputs, labels, live)
    predicted = np.asarray(task.predict(outputs, jnp.asarray(live)))
    y, p = labels[live], predicted[live]
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p)) and set(y) > {0, 5, 6}
    if spans:
        words = [
            [[every[tag] for tag in row[m]] for row, m in zip(tags, live) if m.any()] for tags in (labels, predicted)
        ]
        for name in ("precision", "recall", "f1"):
            score = getattr(of_spans, f"{name}_score")
            assert found[name] == pytest.approx(score(*words, mode="strict", scheme=IOB2, zero_division=0))
        assert 0.1 < found["f1"] < 0.9
    else:
        for how in HOW:
            assert found[f"f1_{how}"] == pytest.approx(oracle.f1_score(y, p, average=how, zero_division=0.0))
    known = live & (labels < 5)
    if not crf:
        wanted = -np.asarray(jax.nn.log_softmax(emissions))[known, labels[known]].mean()
    else:
        may_start, may_follow = allowed_moves(names)
        likelihood = log_likelihood(
            emissions,
            jnp.where(known, labels, 0),
            jnp.asarray(known),
            Transitions(
                jnp.where(may_start, scores.start, -1e9), jnp.where(may_follow, scores.between, -1e9), scores.end
            ),
        )
        wanted = -float(likelihood.sum()) / known.sum()
        assert wanted < 100.0, "no move that BIO2 forbids is scored"
    assert found["loss"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_nothing_but_unseen_labels(multi_label):
    labels = np.eye(5, dtype=np.float32)[[3, 4]] if multi_label else np.array([3, 4], np.int32)
    found = measured(make_classification(multi_label, 2), jnp.zeros((2, 3)), labels, np.ones(2))
    assert found == {name: 0.0 for name in found}
