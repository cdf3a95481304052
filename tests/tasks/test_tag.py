"""Spans against seqeval's strict scorer, and tagging with a CRF against its definition."""

import itertools

import engines
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from seqeval import metrics as oracle
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn

from hybrid_flax.data.readers import read_splits
from hybrid_flax.data.tags import to_bio2
from hybrid_flax.ops.crf import Transitions, best_path
from hybrid_flax.tasks.base import describe
from hybrid_flax.tasks.tag import allowed_moves, make_tagging, span_counts

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def scores(counts):
    tp, predicted, actual = (float(np.sum(counts[name])) for name in ("true_positive", "predicted", "actual"))
    return tp / max(predicted, 1), tp / max(actual, 1), 2 * tp / max(predicted + actual, 1)


def strict(actual, predicted, average="micro"):
    options = {"mode": "strict", "scheme": IOB2, "zero_division": 0, "average": average}
    return [getattr(oracle, f"{name}_score")(actual, predicted, **options) for name in ("precision", "recall", "f1")]


def test_spans_are_those_of_seqeval():
    """Random tags, invalid ones too, at the live places of rows with gaps."""
    rng = np.random.default_rng(0)
    shape = (200, 12)
    actual = rng.choice(5, shape, p=[0.4, 0.2, 0.2, 0.1, 0.1]).astype(np.int32)
    predicted = np.where(rng.random(shape) < 0.3, rng.integers(0, 5, shape), actual).astype(np.int32)
    live = rng.random(shape) < 0.8
    counts = jax.jit(lambda p, a, m: span_counts(p, a, m, 2))(predicted, actual, live)
    words = [[[NAMES[tag] for tag in row[m]] for row, m in zip(tags, live) if m.any()] for tags in (actual, predicted)]
    assert scores(counts) == pytest.approx(strict(*words))
    batch = tiny.asked(jnp.asarray(actual), jnp.asarray(live, jnp.float32))
    task, emissions = make_tagging(NAMES), 9 * jax.nn.one_hot(predicted, len(NAMES))
    sums = jax.device_get(jax.jit(task.evaluate)(emissions, batch))
    found = task.measure({name: np.asarray(value, np.float64) for name, value in sums.items()})
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(strict(*words))
    by_type = strict(*words, average=None)[2]
    for place, wanted in zip((1, 0), by_type):  # seqeval sorts types by name: LOC, PER
        assert scores({name: count[place] for name, count in counts.items()})[2] == pytest.approx(wanted)


def test_moves():
    may_start, may_follow = allowed_moves(NAMES)
    assert [NAMES[i] for i in np.flatnonzero(may_start)] == ["O", "B-PER", "B-LOC"]
    assert {(NAMES[i], NAMES[j]) for i, j in np.argwhere(~may_follow)} == {
        ("O", "I-PER"), ("O", "I-LOC"), ("B-PER", "I-LOC"), ("I-PER", "I-LOC"), ("B-LOC", "I-PER"), ("I-LOC", "I-PER"),
    }  # fmt: skip


def test_a_crf_never_predicts_what_bio2_forbids():
    rng = np.random.default_rng(1)
    emissions = jnp.asarray(3 * rng.standard_normal((20, 9, 5)), jnp.float32)
    transitions = Transitions(*(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((5,), (5, 5), (5,))))
    live = jnp.asarray(rng.random((20, 9)) < 0.7)
    task, (may_start, may_follow) = make_tagging(NAMES), allowed_moves(NAMES)

    def forbidden(paths):
        """How many moves between live tags BIO2 forbids; every row begins like one after O."""
        rows = [[0, *row[m]] for row, m in zip(np.asarray(paths), np.asarray(live))]
        return sum(not (may_follow[a, b] and (a or may_start[b])) for row in rows for a, b in itertools.pairwise(row))

    assert forbidden(best_path(emissions, live, transitions)) > 20, "the best of all paths must not be among the valid"
    assert forbidden(task.predict((emissions, transitions), live)) == 0
    batch = tiny.asked(jnp.zeros((20, 9), jnp.int32), live.astype(jnp.float32))
    sums = jax.device_get(jax.jit(task.evaluate)((emissions, transitions), batch))
    found = task.measure({name: np.asarray(value, np.float64) for name, value in sums.items()})
    assert sums["actual"].sum() == 0 < sums["predicted"].sum() and found["f1"] == 0.0
    assert np.isfinite(found["loss"]) and found["loss"] > 0 and "\n" not in describe(task, found)


@pytest.mark.parametrize("crf", [False, True])
def test_plain_tags_are_scored_as_scikit_learn_does(crf):
    """Parts of speech, over two batches with gaps; with a CRF by its own path, on which every move is allowed."""
    names = ("ADP", "I-", "NOUN", "O", "VERB")
    assert all(moves.all() for moves in allowed_moves(names))
    rng = np.random.default_rng(2)
    emissions = jnp.asarray(2 * rng.standard_normal((2, 20, 9, 5)), jnp.float32)
    transitions = Transitions(*(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((5,), (5, 5), (5,))))
    labels, live = jnp.asarray(rng.integers(0, 4, (2, 20, 9)), jnp.int32), rng.random((2, 20, 9)) < 0.7
    task = make_tagging(names)
    sums, predicted = [], []
    for e, y, m in zip(emissions, labels, live):
        outputs, batch = (e, transitions) if crf else e, tiny.asked(y, jnp.asarray(m, jnp.float32))
        sums.append(jax.device_get(jax.jit(task.evaluate)(outputs, batch)))
        predicted.append(np.asarray(best_path(e, jnp.asarray(m), transitions) if crf else np.argmax(e, axis=-1)))
    total = {name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]}
    found, y, p = task.measure(total), np.asarray(labels)[live], np.stack(predicted)[live]
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(y, p))
    for how in ("macro", "micro", "weighted"):
        assert found[f"f1_{how}"] == pytest.approx(sklearn.f1_score(y, p, average=how))
    assert np.array_equal(total["confusion"], sklearn.confusion_matrix(y, p, labels=range(5)))
    assert found.keys() == {"loss", "accuracy", "f1_macro", "f1_micro", "f1_weighted"}
    assert found["loss"] > 0 and "\n" not in describe(task, found)


def test_published_scores_of_wnut17():
    """The seven systems of the shared task (Derczynski et al. 2017, table 4), to the second decimal."""
    folder = engines.data_sets("wnut17")
    (gold,) = (v for k, v in read_splits(str(folder), tagged=True).items() if k == "test")
    published = {
        "uh_ritual": 41.86, "spinningbytes.txt": 40.78, "sjtu_adapt.txt": 40.42, "arcada": 39.98,
        "flytxt": 38.35, "mic-cis.txt": 37.06, "drexel_cci": 26.30,
    }  # fmt: skip
    types = sorted({tag[2:] for record in gold for tag in record.label if tag != "O"})
    names = ("O", *(f"{mark}-{name}" for name in types for mark in "BI"))
    longest = max(len(record.label) for record in gold)
    for name, wanted in published.items():
        predicted, actual, live = np.zeros((3, len(gold), longest), np.int32)
        for b, (record, tags) in enumerate(zip(gold, _submission(folder / "submissions" / name), strict=True)):
            assert len(tags) == len(record.label)
            actual[b, : len(tags)] = [names.index(tag) for tag in record.label]
            predicted[b, : len(tags)] = [names.index(tag) for tag in tags]
            live[b, : len(tags)] = 1
        counts = span_counts(*map(jnp.asarray, (predicted, actual, live > 0)), len(types))
        assert round(100 * scores(counts)[2], 2) == wanted, name


def _submission(path):
    """The last column of every block; an I- that continues nothing begins a span, as the task's scorer has it."""
    block = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.strip():
            block.append(line.split()[-1])
        elif block:
            yield to_bio2(block)
            block = []
