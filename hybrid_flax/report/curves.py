"""Loss curves of one run as a PNG."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_flax.report.page import letters
from hybrid_flax.tasks.base import Metric

TRAIN, EVAL, RATE = "#3b6fb6", "#d1495b", "#8a8f98"
FEW = 8  # points of train loss below which nothing is smoothed


def plot_loss_curve(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, metric: Metric, *, title: str = ""
) -> None:
    """Draws train loss (raw and smoothed), eval loss with the point of the best evaluation, and the learning rate.

    `rows` are logging rows with `step` and any of `train/loss`, `eval/loss` (nats) and `train/learning_rate`, in any
    order; what is missing or not finite is left out. metric: what the best evaluation is best in. Writes a PNG to
    `path`, whose folder is made. Touches no global state of matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train, evaluation, rate = (_series(rows, f) for f in ("train/loss", "eval/loss", "train/learning_rate"))

    if rate[0].size:
        _draw_rate(axes.twinx(), *rate)
        axes.set_zorder(1)  # the losses lie above the learning rate
        axes.patch.set_visible(False)
    if train[0].size:
        _draw_train(axes, *train)
    if evaluation[0].size:
        _draw_eval(axes, *evaluation, metric, _series(rows, f"eval/{metric.name}"))
    if not train[0].size and not evaluation[0].size:
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", va="center", color=RATE)

    axes.set(xlabel="step", ylabel="loss (nats)")
    if title:
        axes.set_title(letters(title), loc="left", fontsize=11)
    _set_limits(axes, train, evaluation, rate)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    if train[0].size or evaluation[0].size:
        axes.legend(*_all_handles(figure), frameon=False, loc="upper right", fontsize=9)

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(path)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric, by step, finite values only."""
    points = sorted((int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None)
    points = [point for point in points if math.isfinite(point[1])]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, int), np.array(values, float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running median, then mean, over about a twentieth of the run, so that one spike leaves no trace."""
    half = max(values.size // 40, 1)
    for average in (np.median, np.mean):
        # At the steep start the window shrinks to stay centred; at the flat end it may be lopsided.
        windows = [(max(i - half, 0), min(i + half, 2 * i) + 1) for i in range(values.size)]
        values = np.array([average(values[start:stop]) for start, stop in windows])
    return values


def _draw_train(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    if values.size < FEW:
        axes.plot(steps, values, color=TRAIN, linewidth=1.6, marker="o", markersize=3.5, label="train")
        return
    axes.plot(steps, values, color=TRAIN, linewidth=0.7, alpha=0.4)
    axes.plot(steps, _smooth(values), color=TRAIN, linewidth=1.8, label="train (smoothed)")


def _draw_eval(axes: Any, steps: np.ndarray, values: np.ndarray, metric: Metric, judged: tuple) -> None:
    axes.plot(steps, values, color=EVAL, linewidth=1.0, marker="o", markersize=4.5, label="eval")
    judged_steps, judged_values = judged
    if not judged_steps.size:
        return
    best = int(np.argmin(judged_values) if metric.lower_is_better else np.argmax(judged_values))
    # Named in the legend, where the text can cover no curve.
    name = "eval" if metric.name == "loss" else f"eval/{metric.name}"
    label = f"best {name}: {judged_values[best]:.4f} at step {judged_steps[best]}"
    ring = {"marker": "o", "markersize": 11, "markeredgewidth": 1.5, "fillstyle": "none", "linestyle": "none"}
    at = steps == judged_steps[best]
    axes.plot(steps[at], values[at], color=EVAL, label=label, **ring)


def _draw_rate(axes: Any, steps: np.ndarray, values: np.ndarray) -> None:
    axes.plot(steps, values, color=RATE, linewidth=1.0, alpha=0.6, linestyle="--", label="learning rate")
    if steps.size == 1:
        axes.plot(steps, values, color=RATE, marker="o", markersize=3, alpha=0.6)
    axes.set_ylabel("learning rate", color=RATE, fontsize=9)
    axes.set_ylim(0, 1.1 * values.max() if values.max() > 0 else 1)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.tick_params(colors=RATE, labelsize=8)
    axes.yaxis.offsetText.set_color(RATE)
    axes.spines[:].set_visible(False)


def _set_limits(axes: Any, *series: tuple[np.ndarray, np.ndarray]) -> None:
    """Limits around what matters: a spike of raw train loss may leave the figure, smoothed and eval loss may not."""
    steps = np.concatenate([s for s, _ in series])
    if steps.size and steps.min() < steps.max():
        margin = 0.02 * (steps.max() - steps.min())
        axes.set_xlim(steps.min() - margin, steps.max() + margin)
    elif steps.size:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    (_, train), (_, evaluation), _ = series
    inner = [evaluation]
    if train.size:
        inner += [_smooth(train) if train.size >= FEW else train, np.quantile(train, [0.01, 0.99], method="nearest")]
    values = np.concatenate(inner)
    if values.size:
        low, high = values.min(), values.max()
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)


def _all_handles(figure: Any) -> tuple[list[Any], list[str]]:
    pairs = [pair for axes in reversed(figure.axes) for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    pairs.sort(key=lambda pair: pair[1] == "learning rate")
    return [handle for handle, _ in pairs], [label for _, label in pairs]
