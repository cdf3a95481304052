"""A loss curve can be drawn from any prefix of a run, and what it shows is what the rows say."""

import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from hybrid_flax.report.curves import _series, _smooth, plot_loss_curve
from hybrid_flax.tasks.base import Metric

LOSS = Metric("loss", lower_is_better=True)


def run(steps=200, every=10):
    rng = np.random.default_rng(0)
    for step in range(every, steps * every + 1, every):
        row = {"step": step, "train/loss": 1.5 + 2.5 * math.exp(-step / 150) + 0.05 * rng.normal()}
        row["train/learning_rate"] = 2.5e-3 * min(step / 100, 1.0)
        if step % 200 == 0:
            row["eval/loss"] = 1.6 + (step / 1000 - 1.4) ** 2
        yield row


NAN = math.nan
CASES = {
    "run": list(run()),
    "one row": list(run())[:1],
    "one row with eval": [{"step": 0, "train/loss": 3.0, "eval/loss": 3.1, "train/learning_rate": 0.0}],
    "no eval": [{"step": s, "train/loss": 1 / s} for s in range(1, 30)],
    "only eval": [{"step": s, "eval/loss": 1 / s} for s in range(1, 4)],
    "nan": [{"step": s, "train/loss": NAN if s % 3 else 1.0, "eval/loss": "nan", "x": None} for s in range(20)],
    "all nan": [{"step": s, "train/loss": NAN, "eval/loss": math.inf} for s in range(20)],
    "constant": [{"step": s, "train/loss": 0.0, "eval/loss": 0.0} for s in range(20)],
    "empty": [],
    "huge and negative": [{"step": s, "train/loss": (-10.0) ** s} for s in range(20)],
    "unsorted, steps twice": [{"step": s % 7, "train/loss": float(s)} for s in range(20)],
    "only learning rate": [{"step": s, "train/learning_rate": 1e-3} for s in range(3)],
}


@pytest.mark.parametrize("name", CASES)
def test_png_of_a_reasonable_size(tmp_path, name):
    path = tmp_path / "new" / "loss.png"
    plot_loss_curve(CASES[name], path, LOSS, title="lstm $x_1 100%")
    assert path.read_bytes().startswith(b"\x89PNG") and 5_000 < path.stat().st_size < 300_000
    image = imread(path)
    assert image.shape[:2] == (720, 1200) and image[..., :3].std() > 0.01


@pytest.fixture
def figures(monkeypatch):
    made = []
    init = Figure.__init__

    def recording(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "__init__", recording)
    return made


def test_what_is_drawn(tmp_path, figures):
    rows = CASES["run"]
    plot_loss_curve(rows, tmp_path / "loss.png", LOSS, title="lstm")
    losses, rate = figures[0].axes
    lines = {line.get_label(): line for line in losses.lines}
    assert losses.get_ylabel() == "loss (nats)" and losses.get_xlabel() == "step" and losses.get_title("left") == "lstm"
    assert "best eval: 1.6000 at step 1400" in lines and "train (smoothed)" in lines
    np.testing.assert_array_equal(lines["eval"].get_xdata(), range(200, 2001, 200))
    assert lines["best eval: 1.6000 at step 1400"].get_xydata().tolist() == [[1400, 1.6]]
    assert rate.get_ylabel() == "learning rate" and rate.lines[0].get_ydata().max() == 2.5e-3
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("length", [60, 200])
def test_a_spike_neither_sets_the_limits_nor_bends_the_smoothed_curve(tmp_path, figures, length):
    rows = [dict(row) for row in CASES["run"][:length]]
    rows[length // 2]["train/loss"] = 1e4
    plot_loss_curve(rows, tmp_path / "loss.png", LOSS)
    assert figures[0].axes[0].get_ylim()[1] < 6
    values = _series(rows, "train/loss")[1]
    assert _smooth(values).max() < 6


def test_smoothing_has_no_lag_and_series_are_sorted_and_finite():
    line = np.linspace(3, 1, 101)
    np.testing.assert_allclose(_smooth(line)[:-4], line[:-4])
    noisy_end = _smooth(np.array([*np.ones(100), 2.0]))
    np.testing.assert_allclose(noisy_end, 1)
    steps, values = _series([{"step": 3, "a": 1}, {"step": 1, "a": 2.5}, {"step": 2, "a": "nan"}, {"step": 4}], "a")
    assert steps.tolist() == [1, 3] and values.tolist() == [2.5, 1.0]


@pytest.mark.parametrize(
    ("metric", "legend"),
    [
        (LOSS, "best eval: 1.0000 at step 20"),
        (Metric("accuracy"), "best eval/accuracy: 0.7000 at step 30"),
        (Metric("perplexity", lower_is_better=True), "best eval/perplexity: 2.0000 at step 10"),
    ],
)
def test_the_best_evaluation_is_that_of_the_metric(metric, legend, tmp_path, figures):
    """Its ring lies on the curve of the loss."""
    figures_of = {10: (3.0, 0.5, 2.0), 20: (1.0, 0.6, 4.0), 30: (2.0, 0.7, 3.0)}
    names = ("eval/loss", "eval/accuracy", "eval/perplexity")
    rows = [{"step": step, **dict(zip(names, values))} for step, values in figures_of.items()]
    plot_loss_curve(rows, tmp_path / "loss.png", metric)
    (ring,) = [line for line in figures[0].axes[0].get_lines() if line.get_label() == legend]
    assert ring.get_ydata()[0] == figures_of[int(ring.get_xdata()[0])][0] and legend.endswith(str(ring.get_xdata()[0]))
