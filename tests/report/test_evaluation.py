"""The rows that `eval` prints are those of scikit-learn and seqeval."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from seqeval.metrics.v1 import precision_recall_fscore_support as of_spans
from seqeval.scheme import IOB2
from sklearn.metrics import confusion_matrix
from sklearn.metrics import precision_recall_fscore_support as of_classes

from hybrid_flax.report.evaluation import print_classes
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.tag import make_tagging

RNG = np.random.default_rng(0)


def printed(capsys, sums, names):
    """{first cell: the other cells} of the table, its header too."""
    print_classes(sums, names)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


@pytest.mark.parametrize("num_classes", [3, 13])
def test_classes(num_classes, capsys):
    """With what each was taken for, where that fits on a screen."""
    names = tuple(f"c{number}" for number in range(num_classes))
    logits, labels = RNG.standard_normal((200, num_classes)), RNG.integers(0, num_classes - 1, 200)
    batch = tiny.asked(jnp.asarray(labels, jnp.int32), jnp.ones(200))
    sums = make_classification().evaluate(jnp.asarray(logits, jnp.float32), batch)
    found = printed(capsys, {name: np.asarray(value, np.float64) for name, value in sums.items()}, names)
    predicted, everyone = np.argmax(logits, axis=-1), range(num_classes)
    wanted = of_classes(labels, predicted, labels=everyone, zero_division=0)
    matrix = confusion_matrix(labels, predicted, labels=everyone) if num_classes <= 12 else np.zeros((num_classes, 0))
    for place, name in enumerate(names):
        scores = [f"{100 * share[place]:.2f}" for share in wanted[:3]]
        assert found[name] == [str(wanted[3][place]), *scores, *map(str, matrix[place])]
    assert "examples" in found["class"]


def test_spans(capsys):
    names = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    labels = RNG.integers(0, 5, (40, 9)).astype(np.int32)
    predicted = np.where(RNG.random((40, 9)) < 0.3, RNG.integers(0, 5, (40, 9)), labels)
    batch = tiny.asked(jnp.asarray(labels), jnp.ones((40, 9)))
    sums = make_tagging(names).evaluate(jnp.asarray(np.eye(5)[predicted], jnp.float32), batch)
    found = printed(capsys, {name: np.asarray(value, np.float64) for name, value in sums.items()}, names)
    words = [[[names[tag] for tag in row] for row in tags] for tags in (labels, predicted)]
    wanted = of_spans(*words, mode="strict", scheme=IOB2, average=None)
    for place, name in enumerate(("LOC", "PER")):
        assert found[name] == [str(wanted[3][place]), *(f"{100 * share[place]:.2f}" for share in wanted[:3])]
    assert "spans" in found["type"] and found.keys() == {"type", "LOC", "PER"}
