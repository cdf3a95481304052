"""The pictures of a ranking: the metric against each parameter, trials side by side, learning curves, importance."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.jobs.queue import Standing
from hybrid_flax.report.drawings import Drawing, metric_label
from hybrid_flax.report.page import INK, PAPER, letters, new_figure
from hybrid_flax.sweep.importance import is_log, is_numeric
from hybrid_flax.sweep.tables import best_of, short_names
from hybrid_flax.tasks.base import Metric
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.writers import read_jsonl

__all__ = [
    "MOST",
    "Ranking",
    "draw_curves",
    "draw_importances",
    "draw_parallel",
    "draw_parameter",
    "has_value",
    "short",
]

BEST, DONE, PRUNED, FAILED = "#d55e00", "#0072b2", "#8b929a", "#b3261e"
UNSET = "not set"  # of a parameter that goes with a value of another one
MOST = 200  # lines of a picture, those of the best trials
_OPTIONS = 30  # rows of a picture
_REACH = 4.0  # of an axis, in distances from the best trial to the third quartile


class Ranking(NamedTuple):
    """What is drawn: the trials, the best first.

    keys: of the parameters that vary. metric: of the validation split, by which trials are judged.
    """

    standings: Sequence[Standing]
    keys: Sequence[str]
    metric: Metric

    @property
    def best(self) -> Standing | None:
        """The best finished trial."""
        return best_of(self.standings, self.metric)

    @property
    def scale(self) -> float:
        """100 for metrics that people read as per cent."""
        return 100.0 if self.metric.share else 1.0


def has_value(one: Standing) -> bool:
    """Whether a trial has a metric that is a number."""
    return one.value is not None and math.isfinite(one.value)


def short(text: Any, length: int) -> str:
    """The text, cut in its middle where it is longer."""
    text = f"{text:.6g}" if isinstance(text, float) else str(text)
    return text if len(text) <= length else f"{text[: (length - 1) // 2]}…{text[-(length // 2) :]}"


def draw_parameter(ranking: Ranking, key: str) -> Drawing:
    """The metric against one parameter: dots over an axis of numbers, else a row of dots and a box for every option."""
    values = [one.values[key] for one in ranking.standings if key in one.values]
    draw = _draw_numbers if is_numeric(values) else _draw_options
    figure = draw(ranking, key)
    return Drawing(figure, f"{ranking.metric.name} of the trials against {key}; the table of trials has them")


def draw_parallel(ranking: Ranking) -> Drawing:
    """A line for every trial through an axis for every parameter that varies, to the metric, whose better end is up."""
    lines = [one for one in ranking.standings if has_value(one) and one.state != "failed"][:MOST]
    names = [*short_names(ranking.keys), metric_label(ranking.metric, "validation")]
    figure, axes = new_figure(max(8.0, 1.35 * len(names)), 4.0)
    axes.set_axis_off()
    down = ranking.metric.lower_is_better
    low, high = _trial_limits(ranking)
    places = [_places(lines, key) for key in ranking.keys]
    for x, (name, (_, ticks)) in enumerate(zip(names, [*places, (None, ())])):
        axes.plot([x, x], [0, 1], color=INK, linewidth=0.9, zorder=3)
        axes.text(
            x, 1.07, letters(short(name, 30)), ha="center", va="bottom", color=INK, fontsize=8.5, fontweight="bold"
        )
        for y, label in ticks:
            _label_tick(axes, x, y, label)
    for value in _round_values(ranking.scale * low, ranking.scale * high):
        y = (value / ranking.scale - low) / (high - low)
        _label_tick(axes, len(names) - 1, 1 - y if down else y, f"{value:.6g}")
    worst_first = list(enumerate(lines))[::-1]
    for number, one in worst_first:
        height = min(max((one.value - low) / (high - low), 0.0), 1.0)
        height = 1 - height if down else height
        route = [*(place[one.number] for place, _ in places), height]
        is_best = one is ranking.best
        colour = BEST if is_best else PRUNED if one.state != "done" else DONE
        alpha = 1.0 if is_best else 0.35 if one.state != "done" else 0.85 - 0.6 * number / len(lines)
        style = {"linewidth": 2.4 if is_best else 1.1, "zorder": 4 if is_best else 2}
        axes.add_patch(_ribbon(route, edgecolor=colour, alpha=alpha, **style))
    axes.set(xlim=(-0.45, len(names) - 0.5), ylim=(-0.2 if _any_unset(ranking) else -0.06, 1.15))
    return Drawing(
        figure, f"{len(lines)} trials as lines through {len(ranking.keys)} parameters to {ranking.metric.name}"
    )


def draw_curves(ranking: Ranking, workdir: Path) -> Drawing | None:
    """The validation metric over the steps of every trial, at most the 200 best; None where none was evaluated."""
    curves = [(one, *_curve(ranking, workdir / one.run)) for one in ranking.standings[:MOST]]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None
    figure, axes = new_figure(8.0, 3.8)
    labelled = set()
    for one, steps, values in reversed(curves):
        is_best = one is ranking.best
        state = "best" if is_best else one.state if one.state in ("pruned", "failed", "done") else "not ended"
        colour = {"best": BEST, "done": DONE, "failed": FAILED}.get(state, PRUNED)
        style: dict[str, Any] = {"linewidth": 2.4 if is_best else 1.0}
        style |= {"alpha": 1.0 if is_best else 0.55 if state == "done" else 0.5}
        style |= {"linestyle": "solid" if state in ("best", "done") else (0, (3, 2)), "zorder": 4 if is_best else 2}
        style |= {"marker": "o" if len(steps) < 12 else "", "markersize": 4.5 if is_best else 2.2}
        name = f"best: trial {one.number}" if is_best else state
        axes.plot(steps, values, color=colour, label=None if name in labelled else name, **style)
        labelled.add(name)
        if state in ("pruned", "failed"):
            axes.plot(steps[-1:], values[-1:], "x" if state == "failed" else ".", color=colour, markersize=5)
    low, high = _limits(np.concatenate([values for _, _, values in curves]), ranking.metric.lower_is_better)
    _set_limits(axes.set_ylim, low, high)
    axes.set(xlabel="step", ylabel=metric_label(ranking.metric, "validation"))
    _legend(axes)
    return Drawing(figure, f"validation {ranking.metric.name} of {len(curves)} trials over their steps")


def draw_importances(importances: Mapping[str, float]) -> Drawing:
    """The share of every parameter as a bar, the largest on top."""
    figure, axes = new_figure(8.0, 0.7 + 0.36 * len(importances))
    shares = [100 * share for share in importances.values()]
    axes.barh(range(len(shares)), shares, color=DONE, height=0.62)
    for place, share in enumerate(shares):
        axes.text(share + 1, place, f"{share:.0f} %", va="center", color=INK, fontsize=8.5)
    axes.set_yticks(range(len(shares)), [letters(short(name, 32)) for name in short_names(list(importances))])
    axes.set(ylim=(len(shares) - 0.5, -0.5), xlim=(0, max(shares) * 1.12 + 1), xlabel="share (%)")
    axes.grid(axis="y", visible=False)
    words = ", ".join(f"{key} {share:.0f} %" for key, share in zip(importances, shares))
    return Drawing(figure, f"importance of the parameters: {words}")


def _draw_numbers(ranking, key):
    figure, axes = new_figure(4.6, 3.0)
    standings = [one for one in ranking.standings if key in one.values]
    log = is_log([one.values[key] for one in standings])
    if log:
        axes.set_xscale("log")
    low, high = _trial_limits(ranking)
    for marks, chosen in _by_marks(standings, ranking, low, high, "^" if ranking.metric.lower_is_better else "v"):
        x = [one.values[key] for one in chosen]
        y = [_shown(ranking, one, low, high) for one in chosen]
        axes.plot(x, y, linestyle="none", clip_on=False, **marks)
    ticks = _few_ticks([one.values[key] for one in standings], log)
    if ticks:
        axes.set_xticks(ticks, [short(float(tick), 9) for tick in ticks])
        axes.set_xticks([], minor=True)
    _set_limits(axes.set_ylim, ranking.scale * low, ranking.scale * high)
    axes.set(ylabel=metric_label(ranking.metric, "validation"))
    axes.set_title(letters(short(key, 48)), loc="left", color=INK, fontsize=10.5, fontweight="bold")
    return figure


def _draw_options(ranking, key):
    groups: dict[str, list[Standing]] = {}
    for one in ranking.standings:  # the best first, so the options come by their best trial
        groups.setdefault(str(one.values.get(key, UNSET)), []).append(one)
    shown = list(groups.items())[:_OPTIONS]
    figure, axes = new_figure(4.6, max(2.2, 0.9 + 0.34 * len(shown)))
    low, high = _trial_limits(ranking)
    for place, (_, standings) in enumerate(shown):
        finished = [ranking.scale * one.value for one in standings if one.state == "done" and has_value(one)]
        if len(finished) > 3:
            first, middle, third = np.quantile(finished, (0.25, 0.5, 0.75))
            axes.barh(place, third - first, left=first, height=0.5, color=DONE, alpha=0.16, linewidth=0)
            axes.plot([middle, middle], [place - 0.25, place + 0.25], color=DONE, linewidth=1.4)
        for marks, chosen in _by_marks(standings, ranking, low, high, ">" if ranking.metric.lower_is_better else "<"):
            x = [_shown(ranking, one, low, high) for one in chosen]
            y = [place + 0.3 * (one.number * 0.618 % 1 - 0.5) for one in chosen]
            axes.plot(x, y, linestyle="none", clip_on=False, **marks)
    axes.set_yticks(range(len(shown)), [letters(short(option, 26)) for option, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    _set_limits(axes.set_xlim, ranking.scale * low, ranking.scale * high)
    axes.set(xlabel=metric_label(ranking.metric, "validation"))
    more = f" (the best {_OPTIONS} of {len(groups)} options)" if len(groups) > _OPTIONS else ""
    axes.set_title(letters(short(key, 48)) + more, loc="left", color=INK, fontsize=10.5, fontweight="bold")
    return figure


def _by_marks(standings, ranking, low, high, triangle):
    """(style, standings) of the dots, the most important last; a triangle stands for what lies beyond the axis."""
    open_, full = {"color": PRUNED, "markersize": 3.6, "fillstyle": "none"}, {"color": DONE, "alpha": 0.7}
    styles = {
        "failed": {"marker": "x", "color": FAILED, "markersize": 5},
        "not done, beyond": open_ | {"marker": triangle},
        "not done": open_ | {"marker": "o"},
        "done, beyond": full | {"marker": triangle, "markersize": 5},
        "done": full | {"marker": "o", "markersize": 4.6, "markeredgewidth": 0},
        "best": {"marker": "*", "color": BEST, "markersize": 11, "zorder": 4},
    }
    groups: dict[str, list[Standing]] = {name: [] for name in styles}
    for one in standings:
        if one.state == "failed" or one is ranking.best:
            groups["best" if one is ranking.best else "failed"].append(one)
        elif one.value is not None:
            inside = has_value(one) and low <= one.value <= high
            groups[("done" if one.state == "done" else "not done") + ("" if inside else ", beyond")].append(one)
    return [(styles[name], group) for name, group in groups.items() if group]


def _shown(ranking, one, low, high):
    """Where a trial stands on the axis of the metric: at its worse end where it has none, or one beyond it."""
    worst = high if ranking.metric.lower_is_better else low
    value = one.value if has_value(one) and one.state != "failed" else worst
    return ranking.scale * min(max(value, low), high)


def _trial_limits(ranking):
    """Of the metric of trials: those that are finished, where there are some."""
    found = [one for one in ranking.standings if has_value(one)]
    done = [one for one in found if one.state == "done"]
    return _limits([one.value for one in (done if len(done) > 2 else found)], ranking.metric.lower_is_better)


def _limits(values, down):
    """(low, high) of an axis: from the best value to the worst that is not far out, so that one hides no other."""
    signed = np.sort(np.asarray(values, float) * (1 if down else -1))
    signed = signed[np.isfinite(signed)]
    best = signed[0]
    reach = _REACH * (np.quantile(signed, 0.75) - best)
    worst = signed[signed <= best + reach][-1] if reach > 0 else signed[-1]
    if worst == best:
        worst, best = worst + 0.05 * (abs(worst) or 1.0), best - 0.05 * (abs(best) or 1.0)
    return (float(best), float(worst)) if down else (float(-worst), float(-best))


def _set_limits(set_limits, low, high):
    margin = 0.06 * (high - low)
    set_limits(low - margin, high + margin)


def _few_ticks(values, log):
    """The values themselves where they are few and apart, else none."""
    distinct = np.unique(np.asarray(values, float))
    places = np.log10(distinct) if log else distinct
    if len(distinct) > 8 or np.diff(places).min() < 0.09 * (places[-1] - places[0]):
        return []
    return distinct.tolist()


def _round_values(low, high):
    """Some round numbers from low to high."""
    from matplotlib.ticker import MaxNLocator

    return [float(value) for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high]


def _places(standings, key):
    """({number of a trial: its place on the axis of a parameter, 0 to 1}, [(place, label)])."""
    held = {one.number: one.values[key] for one in standings if key in one.values}
    unset = {one.number: -0.14 for one in standings if key not in one.values}
    ticks = [(-0.14, UNSET)] if unset else []
    if not is_numeric(list(held.values())):
        options = list(dict.fromkeys(map(str, held.values())))[::-1]
        place = {option: (n + 0.5) / len(options) for n, option in enumerate(options)}
        labels = [(at, short(option, 20)) for option, at in place.items()] if len(options) <= 12 else []
        return unset | {number: place[str(value)] for number, value in held.items()}, ticks + labels
    log = is_log(list(held.values()))
    map_ = np.log10 if log else np.asarray
    low, high = map_(min(held.values())), map_(max(held.values()))
    marks = _few_ticks(list(held.values()), log)
    if not marks:
        decades = 10.0 ** np.arange(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1) if log else ()
        marks = decades if len(decades) > 1 else _round_values(min(held.values()), max(held.values()))
    labels = [(float((map_(value) - low) / (high - low)), f"{value:g}") for value in marks]
    return unset | {n: float((map_(value) - low) / (high - low)) for n, value in held.items()}, ticks + labels


def _any_unset(ranking):
    return any(key not in one.values for key in ranking.keys for one in ranking.standings if has_value(one))


def _label_tick(axes, x, y, label):
    box = {"boxstyle": "round,pad=0.12", "facecolor": PAPER, "alpha": 0.8, "linewidth": 0}
    axes.plot([x - 0.015, x + 0.015], [y, y], color=INK, linewidth=0.9, zorder=3)
    axes.text(x - 0.03, y, letters(label), ha="right", va="center", color=INK, fontsize=7.5, zorder=5, bbox=box)


def _ribbon(heights, **style):
    """A smooth line through (0, heights[0]), (1, heights[1]), ..., level where it crosses an axis."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    points: list[tuple[float, float]] = [(0, heights[0])]
    codes = [Line.MOVETO]
    for x, (before, after) in enumerate(itertools.pairwise(heights)):
        points += [(x + 0.45, before), (x + 0.55, after), (x + 1, after)]
        codes += [Line.CURVE4] * 3
    return PathPatch(Line(points, codes), facecolor="none", **style)


def _curve(ranking, folder):
    """(steps, values) of a trial's metric, scaled, finite values only."""
    name = f"eval/{ranking.metric.name}"
    points = [(row["step"], row[name]) for row in read_jsonl(RunFolder(folder).metrics) if row.get(name) is not None]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return np.array([step for step, _ in points], int), ranking.scale * np.array([value for _, value in points], float)


def _legend(axes):
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8)
    for words in legend.get_texts():
        words.set_color(INK)
