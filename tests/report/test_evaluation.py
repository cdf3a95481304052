"""The rows that `eval` prints are those of scikit-learn and seqeval."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from seqeval.metrics.v1 import precision_recall_fscore_support as of_spans
from seqeval.scheme import IOB2
from sklearn import metrics as oracle
from sklearn.metrics import confusion_matrix
from sklearn.metrics import precision_recall_fscore_support as of_classes

from hybrid_flax.predict import predict
from hybrid_flax.report.disagreement import most_disputed
from hybrid_flax.report.evaluation import evaluate_run, print_classes
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.tag import make_tagging
from hybrid_flax.training.loop import train

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


@pytest.mark.parametrize(
    "task",
    [pytest.param("classify", marks=pytest.mark.slow), "multilabel", pytest.param("tag", marks=pytest.mark.slow)],
)
def test_a_run_on_labels_that_its_training_has_not(task, tmp_path, capsys):
    """They count as missed, at the end of a run and when it is evaluated again: as scikit-learn says of its answers."""
    labels = {"classify": "xyz", "multilabel": ["x", "xy", "xz"], "tag": ["XY", "YX", "ZX"]}[task]
    rows = [("a b" if task != "tag" else ["a", "b"], y if task == "classify" else list(y)) for y in labels]
    for split, count in (("train", 2), ("dev", 2), ("test", 3)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows[:count] * 4]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = tiny.tiny_config(
        tmp_path,
        **{"task__name": task, "data__mode": "padded", "data__tokenizer": "word", "eval__every": 6},
        **{"model__pattern": "tanh", "eval__metric": "f1_macro"},
    )
    run, results = train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    rare = "Z" if task == "tag" else "z"
    count = "4 tokens in 4" if task == "tag" else "4"
    assert f"test: {count} of 12 rows have a label that no training example has ('{rare}'): they count" in printed
    assert "valid: " not in printed.partition("\n")[0]
    found = evaluate_run(tmp_path / "run", "test", None)["windows"]
    assert found == pytest.approx(results["test"]) and rare in capsys.readouterr().out
    texts = [" ".join(text) if isinstance(text, list) else text for text, _ in rows * 4]
    answers, truth = [one.label for one in predict(run, texts)], [label for _, label in rows * 4]
    if task == "multilabel":
        names = ["x", "y", "z"]
        answers, truth = ([[name in row for name in names] for row in given] for given in (answers, truth))
    elif task == "tag":
        answers, truth = ([tag for row in given for tag in row] for given in (answers, truth))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, answers)) and found["accuracy"] < 1
    for how in ("macro", "micro", "weighted"):
        wanted = oracle.f1_score(truth, answers, average=how, zero_division=0.0)
        assert found[f"f1_{how}"] == pytest.approx(wanted)
    shown = most_disputed({"one": tmp_path / "run"}, 3)
    assert len(shown) == 3 and any(rare in example.truth for example in shown)
