"""A sweep as one page that a person enjoys reading, and its pictures as files."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hybrid_flax.compare.statistics import LEVEL, mean_interval
from hybrid_flax.config import ConfigError
from hybrid_flax.report import page
from hybrid_flax.report.drawings import Drawing, write_pngs
from hybrid_flax.report.page import Cell, Page
from hybrid_flax.report.reproduce import reproduce_command
from hybrid_flax.report.sweep_drawings import (
    MOST,
    Sweep,
    draw_curves,
    draw_importances,
    draw_parallel,
    draw_parameter,
    has_value,
    short,
)
from hybrid_flax.report.sweep_plan import space_text
from hybrid_flax.sweep.importance import is_number, is_numeric, parameter_importances
from hybrid_flax.sweep.run import Plan
from hybrid_flax.sweep.search import Record
from hybrid_flax.sweep.trials import describe
from hybrid_flax.sweep.view import best_first, short_names, varying
from hybrid_flax.tasks.base import lower_is_better
from hybrid_flax.train.folder import RunFolder

__all__ = ["sweep_page", "write_sweep_report"]

_OPTIONS = 12  # of a parameter that are listed one by one
_LETTERS = 60  # of a value in a table
_FOLD = "data.fold"
_REPEATS = ("seed", _FOLD)  # what repeats a setting and is none itself


def write_sweep_report(plan: Plan, records: Sequence[Record], workdir: str | os.PathLike) -> Path:
    """Write sweep.html and plots/*.png in the folder of a sweep; returns the path of the page.

    Reads the metrics of the trials and the config of the best; what cannot be read is said on the page in its place.
    """
    workdir = Path(workdir)
    drawings = _draw(_sweep(plan, records), workdir)
    plots = workdir / "plots"
    for path in plots.glob("*.png"):  # of an earlier sweep in this folder
        path.unlink(missing_ok=True)
    write_pngs({name: drawn for name, drawn in drawings.items() if isinstance(drawn, Drawing)}, plots)
    path = workdir / "sweep.html"
    sweep_page(plan, records, workdir, drawings).write(path)
    return path


def sweep_page(plan: Plan, records: Sequence[Record], workdir: Path, drawings: Mapping[str, Drawing | str]) -> Page:
    """The page; `drawings` are those of `write_sweep_report`: a sentence stands for one that cannot be drawn."""
    sweep = _sweep(plan, records)

    def picture(name, note=""):
        drawn = drawings[name]
        if isinstance(drawn, str):
            return page.text(drawn)
        return page.figure(drawn.figure, drawn.alt) + (page.text(note, "note") if note else "")

    made = Page(f"Sweep of {plan.experiment}", _lead(plan, sweep))
    made = made.section("Best trial", *_best(sweep, workdir))
    made = made.section("What was swept", _swept(plan, sweep))
    if sweep.keys and any(map(has_value, records)):
        pictures = page.grid(*(picture(f"parameter-{key}") for key in sweep.keys))
        made = made.section("Each parameter", pictures, page.text(_marks_note(), "note"))
        made = made.section("Which parameters matter", picture("importance", _importance_note()))
        made = made.section("Trials side by side", picture("parallel", _parallel_note()))
    made = made.section("Learning curves", picture("curves", _curves_note(sweep)))
    repeats = _over_repeats(sweep, workdir)
    if repeats:
        made = made.section("Over seeds and folds", *repeats)
    made = made.section("All trials", _trials(sweep))
    failures = list(_failures(sweep))
    return made.section("Trials that failed", *failures) if failures else made


def _sweep(plan, records):
    metric = plan.base.eval.metric
    return Sweep(best_first(records, metric), varying(records), metric, plan.base.task.name)


def _draw(sweep, workdir):
    """Every drawing by its name, or a sentence that says why there is none."""
    drawings: dict[str, Drawing | str] = {}
    evaluated = sum(has_value(record) and record.state != "failed" for record in sweep.records)
    if any(map(has_value, sweep.records)):
        for key in sweep.keys:
            drawings[f"parameter-{key}"] = draw_parameter(sweep, key)
        try:
            shares = parameter_importances(sweep.records, sweep.keys, sweep.metric)
            drawings["importance"] = draw_importances(shares)
        except ValueError as error:
            drawings["importance"] = f"Left out: {error}."
        few = f"Left out: it takes two parameters that vary and two trials, here are {len(sweep.keys)} and {evaluated}."
        drawings["parallel"] = draw_parallel(sweep) if len(sweep.keys) > 1 and evaluated > 1 else few
    drawings["curves"] = draw_curves(sweep, workdir) or "Left out: no metrics of a trial lie in this folder."
    return drawings


def _lead(plan, sweep):
    states = Counter(record.state for record in sweep.records)
    wanted = max(plan.num_trials, len(sweep.records))
    ended = f"{states['done']} of {wanted} trials are done"
    others = [f"{states[state]} {state}" for state in ("pruned", "failed") if states[state]]
    left = wanted - sum(states[state] for state in ("done", "pruned", "failed"))
    more = f" {left} are still to be trained: what stands here is not the end." if left else ""
    better = "lower" if lower_is_better(sweep.metric) else "higher"
    method = {"grid": "A grid", "random": "A random search", "tpe": "A TPE search"}[plan.method]
    steps = "as many steps as it sets" if "train.steps" in sweep.keys else f"{plan.base.train.steps:,} steps"
    return (
        f"{method}: {', '.join([ended, *others])}. A trial trains for {steps} at most, and is judged by its "
        f"{sweep.metric} on the validation split ({better} is better).{more}"
    )


def _best(sweep, workdir) -> Iterator[str]:
    best = sweep.best
    if best is None:
        yield page.text("No trial is finished yet." if sweep.records else "There is no trial yet.")
        return
    unit = _unit(sweep)
    yield page.text(f"Trial {best.number} has the best validation {sweep.metric}, {_metric(sweep, best.value)}{unit}:")
    yield page.chips([(key, short(value, 3 * _LETTERS), None) for key, value in best.values.items()])
    done = [record for record in sweep.records if record.state == "done" and has_value(record)]
    if len(done) > 1:
        behind = abs(done[1].value - best.value)
        worst = done[-1]
        points = " points" if unit else ""
        yield page.text(
            f"The next one, trial {done[1].number}, is {_metric(sweep, behind)}{points} behind; the worst that was "
            f"finished, trial {worst.number}, has {_metric(sweep, worst.value)}{unit}."
        )
    try:
        yield page.text("To train it again:")
        yield page.preformatted(reproduce_command(workdir / best.run).text)
    except ConfigError as error:
        yield page.text(f"There is no command for that: {error}")
    yield page.text("For a figure of data that took no part in the choice, which this one is not:")
    command = ["python", "launch.py", "eval", f"--workdir={workdir / best.run}", "--split=test"]
    yield page.preformatted(shlex.join(command))


def _swept(plan, sweep):
    best = sweep.best
    rows: list[list[str | Cell]] = []
    for key in dict.fromkeys([*(plan.space or {}), *(key for record in sweep.records for key in record.values)]):
        held = [record.values[key] for record in sweep.records if key in record.values]
        chosen = best.values.get(key) if best else None
        tried = len(set(map(repr, held)))
        space = space_text(plan.space[key]) if plan.space and key in plan.space else _listed(held)
        rows.append(
            [
                Cell(key, kind="code"),
                short(space, 2 * _LETTERS),
                Cell(str(tried), tried),
                Cell(short(chosen, _LETTERS) if best and key in best.values else "-", kind="best"),
            ]
        )
    if not rows:
        return page.text("Nothing: the config was trained as it is.")
    return page.table(["parameter", "values", "different ones tried", "of the best trial"], rows)


def _listed(values):
    """The values that were tried, in their order, where they are few, else from where to where."""
    options = list({repr(value): value for value in values}.values())
    if is_numeric(options):
        options = sorted(options)
        if len(options) > _OPTIONS:
            return f"{short(options[0], 12)} to {short(options[-1], 12)}"
    words = " | ".join(short(option, _LETTERS) for option in options[:_OPTIONS])
    return words + (f" and {len(options) - _OPTIONS} more" if len(options) > _OPTIONS else "")


def _over_repeats(sweep, workdir):
    """The settings by their mean over seeds and folds, where any was trained with more than one."""
    groups: dict[str, list[Record]] = {}
    for record in sweep.records:
        if any(key in record.values for key in _REPEATS) and record.state == "done" and has_value(record):
            rest = {key: value for key, value in record.values.items() if key in sweep.keys and key not in _REPEATS}
            groups.setdefault(describe(rest) if rest else "all", []).append(record)
    if not any(len(records) > 1 for records in groups.values()):
        return []
    crossed = _FOLD in sweep.keys
    rows = []
    for setting, records in groups.items():
        values = [record.value for record in records if record.value is not None]
        cells = [Cell(short(setting, 2 * _LETTERS), kind="code"), Cell(str(len(values)), len(values))]
        cells += [_mean_cell(sweep, values)]
        cells += [Cell(_metric(sweep, value), value) for value in (min(values), max(values))]
        if crossed:
            cells += [_mean_cell(sweep, _test_values(sweep, records, workdir))]
        rows.append((sum(values) / len(values), cells))
    rows.sort(key=lambda row: row[0], reverse=not lower_is_better(sweep.metric))
    unit = _unit(sweep)
    heads = ["setting", "runs", f"validation {sweep.metric}{unit}", "least", "greatest"]
    note = f"Mean ± half of the {LEVEL:.0%} interval over the runs (Student's t); a single good run is no good setting."
    if crossed:
        heads.append(f"test {sweep.metric}{unit}")
        note += " The test figure is the mean over the folds, each by the model that has not seen it."
    return [page.table(heads, [cells for _, cells in rows]), page.text(note, "note")]


def _mean_cell(sweep, values):
    if not values:
        return Cell("-")
    mean, half = mean_interval(values)
    return Cell(_metric(sweep, mean) + (f" ± {sweep.scale * half:.2g}" if len(values) > 1 else ""), mean)


def _test_values(sweep, records, workdir):
    """The metric on the test split, of the runs whose folders lie here."""
    folders = [RunFolder(workdir / record.run) for record in records]
    results = [folder.read_results() for folder in folders if folder.results.exists()]
    return [result["test"][sweep.metric] for result in results if "test" in result]


def _trials(sweep):
    rows = []
    for record in sweep.records:
        kind = "best" if record is sweep.best else ""
        value = math.nan if record.value is None else record.value
        cells = [
            Cell(str(record.number), record.number, kind),
            Cell(record.state, kind=_STATES.get(record.state, kind)),
        ]
        cells += [Cell(_metric(sweep, value), value, kind), Cell(f"{record.step:,}", record.step)]
        for key in sweep.keys:
            held = record.values.get(key, "")
            numeric = is_number(held)
            cells.append(Cell(short(held, _LETTERS), float(held) if numeric else None, "" if numeric else "code"))
        rows.append([*cells, Cell(record.run, kind="code")])
    heads = ["trial", "state", f"{sweep.metric}{_unit(sweep)}", "step", *short_names(sweep.keys), "folder"]
    return page.table(heads, rows, "Press the head of a column to sort by it.")


_STATES = {"failed": "bad"}


def _failures(sweep) -> Iterator[str]:
    failed = [record for record in sweep.records if record.state == "failed"]
    for reason, count in Counter(record.reason for record in failed).most_common():
        held = [record for record in failed if record.reason == reason]
        yield page.text(f"{count} trial{'s' * (count > 1)}: {reason}")
        lines = [f"trial {record.number}, step {record.step}: {describe(record.values)}" for record in held]
        yield (
            page.preformatted("\n".join(lines))
            if count <= 4
            else page.folded("which", page.preformatted("\n".join(lines)))
        )
    if failed:
        yield page.text(
            "Their output is in output.log of their folders. Started again, the sweep tries them again.", "note"
        )


def _marks_note():
    return (
        "A filled dot is a finished trial, ★ the best; an open grey dot one that was pruned or has not ended, at its "
        "last evaluation; ✕ one that failed; a triangle at the edge lies beyond it. Boxes: the middle half of the "
        "finished trials and their median. Trials that do not set a parameter are left out of its picture, or are an "
        "option of their own."
    )


def _importance_note():
    return (
        "PED-ANOVA (Watanabe, Bansal & Hutter 2023): how much the values of a parameter among the better half of the "
        "finished trials differ from those among all of them. It ranks what made trials good here, within the values "
        "that were tried; from few trials it is a hint, and pruned ones are not counted."
    )


def _parallel_note():
    return "The best trial is orange, the bluer the better; grey ones did not get to their end. Up is better."


def _curves_note(sweep):
    shown = f" The {MOST} best of {len(sweep.records)} trials." if len(sweep.records) > MOST else ""
    return f"Dashed and grey: pruned or not ended; red: failed.{shown}"


def _unit(sweep):
    return " %" if sweep.scale == 100.0 else ""


def _metric(sweep, value):
    """As people read it: 71.32 per cent for shares, else five digits."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{100 * value:.2f}" if sweep.scale == 100.0 else f"{value:#.5g}"
