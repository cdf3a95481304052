"""The pictures of a comparison: intervals, learning curves, cost against quality; one figure a task."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.compare.results import Column, Comparison
from hybrid_flax.compare.statistics import LEVEL, mean_interval, reference_row
from hybrid_flax.report.page import INK, letters, new_figure, save_figure
from hybrid_flax.tasks.base import Metric
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.writers import read_jsonl

__all__ = ["Drawing", "draw_costs", "draw_curves", "draw_intervals", "metric_label", "write_pngs"]

# Okabe & Ito 2008, told apart by the colour-blind, less what is too pale on white; then the same with other marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a7f87")
_MARKS = "os^Dv<>P"


class Drawing(NamedTuple):
    """A matplotlib figure, and what it shows in words."""

    figure: Any
    alt: str


def draw_intervals(comparison: Comparison, column: Column) -> Drawing:
    """Test metric of every row: its mean with the interval, the seeds as small dots, a line at the reference."""
    rows = [row.name for row in comparison.rows if comparison.entry(row.name, column.task).test]
    figure, axes = new_figure(4.6, 0.9 + 0.3 * max(len(rows), 1))
    styles, scale = _styles(comparison), _scale(column)
    for place, row in enumerate(rows):
        values = scale * np.array(comparison.entry(row, column.task).test)
        mean, half = mean_interval(values.tolist())
        style = {name: styles[row][name] for name in ("color", "marker")}
        axes.errorbar(mean, place, xerr=0.0 if math.isnan(half) else half, capsize=3.5, markersize=6, **style)
        axes.plot(values, np.full(len(values), place + 0.26), "o", color=style["color"], markersize=2.6, alpha=0.6)
    reference = reference_row(comparison, column.task)
    if reference in rows:
        middle = scale * np.mean(comparison.entry(reference, column.task).test)
        axes.axvline(middle, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [letters(f"{row} †" if row == reference else row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel=_label(column))
    axes.set_title(letters(column.task), loc="left", color=INK, fontsize=10.5, fontweight="bold")
    alt = f"{column.task}: mean test {column.metric.name} of {len(rows)} rows with {LEVEL:.0%} intervals"
    return Drawing(figure, f"{alt}; the table has them")


def draw_curves(comparison: Comparison, column: Column, workdir: Path) -> Drawing:
    """Validation metric over the steps: the mean over seeds, between the least and the greatest of them."""
    figure, axes = new_figure(4.6, 3.2)
    styles, scale = _styles(comparison), _scale(column)
    for row, style in styles.items():
        folders = [workdir / folder for folder in comparison.entry(row, column.task).folders]
        steps, low, mean, high = _validation_curve(folders, f"eval/{column.metric.name}")
        if not len(steps):
            continue
        mark = style | ({"markersize": 3.5} if len(steps) < 30 else {"marker": ""})
        axes.plot(steps, scale * mean, linewidth=1.5, label=letters(row), **mark)
        axes.fill_between(steps, scale * low, scale * high, color=style["color"], alpha=0.14, linewidth=0)
    axes.set(xlabel="step", ylabel=_label(column, "validation"))
    axes.set_title(letters(column.task), loc="left", color=INK, fontsize=10.5, fontweight="bold")
    _legend(figure, axes)
    return Drawing(
        figure, f"{column.task}: validation {column.metric.name} of every row over {column.steps} training steps"
    )


def draw_costs(comparison: Comparison, column: Column) -> Drawing:
    """Test metric against the time that training a token takes, or its FLOPs where no time was measured."""
    figure, axes = new_figure(4.6, 3.2)
    styles, scale = _styles(comparison), _scale(column)
    entries = [entry for entry in comparison.entries if entry.task == column.task and entry.test]
    timed = bool(entries) and all(entry.cost.tokens_per_sec for entry in entries)
    for entry in entries:
        rate = entry.cost.tokens_per_sec
        cost = 1e6 / rate if timed and rate else entry.cost.flops_per_token
        mean, half = mean_interval([scale * value for value in entry.test])
        style = {name: styles[entry.row][name] for name in ("color", "marker")}
        axes.errorbar(cost, mean, yerr=0.0 if math.isnan(half) else half, capsize=3, linestyle="none", **style)
        axes.plot([], [], linestyle="none", label=letters(entry.row), **style)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    label = "microseconds of training a token" if timed else "forward FLOPs a token"
    axes.set(xlabel=label, ylabel=_label(column))
    axes.set_title(letters(column.task), loc="left", color=INK, fontsize=10.5, fontweight="bold")
    _legend(figure, axes)
    return Drawing(figure, f"{column.task}: test {column.metric.name} of every row against {label}")


def write_pngs(drawings: Mapping[str, Drawing], folder: Path) -> None:
    """Write every drawing as a PNG under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
        save_figure(drawing.figure, folder / f"{name}.png", facecolor="white")
        drawing.figure.set_layout_engine("none")  # it is laid out now, and to do so again takes as long as to draw


def metric_label(metric: Metric, split: str) -> str:
    """A metric with its unit, and an arrow to where it is better."""
    unit = "%" if metric.share else metric.unit
    return f"{split} {metric.name}{f' ({unit})' if unit else ''} {'↓' if metric.lower_is_better else '↑'}"


def _validation_curve(folders: Sequence[Path], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(steps, least, mean, greatest) of a metric over the runs that were evaluated at a step."""
    values: dict[int, list[float]] = {}
    for folder in folders:
        for row in read_jsonl(RunFolder(folder).metrics):
            if row.get(metric) is not None and math.isfinite(float(row[metric])):
                values.setdefault(int(row["step"]), []).append(float(row[metric]))
    steps = np.array(sorted(values), int)
    found = [values[step] for step in steps]
    low, mean, high = (np.array([of(value) for value in found], float) for of in (np.min, np.mean, np.max))
    return steps, low, mean, high


def _styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """How every row is drawn: one mechanism alone with dashes, a fusion with a whole line."""
    return {
        row.name: {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKS[(number + number // len(_COLOURS)) % len(_MARKS)],
            "linestyle": (0, (4, 2)) if row.single else "solid",
        }
        for number, row in enumerate(comparison.rows)
    }


def _scale(column: Column) -> float:
    """100 for metrics that people read as per cent."""
    return 100.0 if column.metric.share else 1.0


def _label(column: Column, split: str = "test") -> str:
    return metric_label(column.metric, split)


def _legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
        for words in legend.get_texts():
            words.set_color(INK)


def _plain_ticks(axis):
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value / 1e6:g}M"))
    axis.set_minor_locator(LogLocator(subs=()))
