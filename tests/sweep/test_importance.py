"""Importance: what was planted is found, whatever the direction; what cannot be said is said so."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
from metrics import ACCURACY, LOSS

from hybrid_flax.jobs.queue import Standing
from hybrid_flax.sweep.importance import is_log, is_numeric, parameter_importances

KEYS = ["optim.learning_rate", "model.pattern", "train.dropout", "seed"]


def records_of(count, rng, judge):
    """Trials whose metric is judge(values)."""
    made = []
    for number in range(count):
        values = {
            "optim.learning_rate": float(10 ** rng.uniform(-4, -1)),
            "model.pattern": str(rng.choice(["lstm", "gru", "attn"])),
            "train.dropout": float(rng.uniform()),
            "seed": int(rng.integers(5)),
        }
        made.append(Standing(number, f"run{number}", values, "done", 9, float(judge(values)), ""))
    return made


JUDGES = {
    "optim.learning_rate": lambda values: abs(np.log10(values["optim.learning_rate"]) + 2),
    "model.pattern": lambda values: ["lstm", "gru", "attn"].index(values["model.pattern"]),
    "train.dropout": lambda values: values["train.dropout"],
}


@pytest.mark.parametrize("planted", JUDGES)
def test_the_planted_parameter_comes_first(planted):
    rng = np.random.default_rng(len(planted))
    records = records_of(80, rng, lambda values: JUDGES[planted](values) + 0.01 * rng.normal())
    found = parameter_importances(records, KEYS, LOSS)
    shares = list(found.values())
    assert next(iter(found)) == planted and shares[0] > 2 * shares[1]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 1) < 1e-9 and set(found) == set(KEYS)
    turned = [record._replace(value=-record.value) for record in records]
    assert parameter_importances(turned, KEYS, ACCURACY) == found
    others = [record._replace(number=99, state=state) for state, record in zip(("pruned", "failed", "waiting"), turned)]
    assert parameter_importances(records + others, KEYS, LOSS) == found


def test_a_parameter_that_some_trials_set():
    """It counts where it is set; one that a single trial sets counts nothing, and neither does one that is constant."""
    rng = np.random.default_rng(1)
    records = records_of(60, rng, lambda values: 0.0)
    for number, record in enumerate(records):
        if record.values["model.pattern"] == "attn":
            record.values["window"] = int(rng.choice([16, 64]))
        record.values["depth"] = 2
        if number == 0:
            record.values["rare"] = 1.5
        records[number] = record._replace(value=abs(64 - record.values.get("window", 40)) + rng.uniform())
    found = parameter_importances(records, [*KEYS, "window", "depth", "rare"], LOSS)
    assert next(iter(found)) == "window" and found["window"] > 0.3
    assert found["depth"] == found["rare"] == 0.0


def test_what_cannot_be_said():
    rng = np.random.default_rng(2)
    records = records_of(6, rng, lambda values: values["seed"])
    with pytest.raises(ValueError, match="at least 4 finished trials, and there are 3"):
        parameter_importances(records[:3], KEYS, LOSS)
    with pytest.raises(ValueError, match="there are 0"):
        parameter_importances([record._replace(value=float("nan")) for record in records], KEYS, LOSS)
    with pytest.raises(ValueError, match="equally good"):
        parameter_importances([record._replace(value=1.0) for record in records], KEYS, LOSS)
    with pytest.raises(ValueError, match="no parameter differs"):
        parameter_importances([record._replace(values={"seed": 0}) for record in records], ["seed"], LOSS)


def test_kinds_of_values():
    assert is_numeric([1, 2.5]) and not is_numeric([1, 1.0]) and not is_numeric([True, False])
    assert not is_numeric([1, "2"]) and not is_numeric([1.0, float("inf")]) and not is_numeric([])
    assert is_log([16, 128]) and not is_log([16, 127]) and not is_log([0, 1]) and not is_log([-8, -1])


def test_scikit_learn_is_not_needed():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from hybrid_flax.sweep.importance import *; from hybrid_flax.jobs.queue import Standing\n"
        "from hybrid_flax.tasks.base import Metric\n"
        "records = [Standing(n, str(n), {'a': n, 'b': n % 3}, 'done', 1, float(n), '') for n in range(9)]\n"
        "print(next(iter(parameter_importances(records, ['a', 'b'], Metric('loss', lower_is_better=True)))))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True).stdout == "a\n"
