"""A sweep as one page that a person enjoys reading, and its pictures as files."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hybrid_flax.compare.statistics import LEVEL, mean_interval
from hybrid_flax.errors import ConfigError
from hybrid_flax.flags import command
from hybrid_flax.jobs.queue import Standing
from hybrid_flax.jobs.trial import values_text
from hybrid_flax.report import page
from hybrid_flax.report.drawings import Drawing, write_pngs
from hybrid_flax.report.page import Field, Page
from hybrid_flax.report.reproduce import reproduce_command
from hybrid_flax.report.sweep_drawings import (
    MOST,
    Ranking,
    draw_curves,
    draw_importances,
    draw_parallel,
    draw_parameter,
    has_value,
    short,
)
from hybrid_flax.report.sweep_plan import space_text
from hybrid_flax.sweep.definition import Sweep
from hybrid_flax.sweep.importance import is_number, is_numeric, parameter_importances
from hybrid_flax.sweep.tables import best_first, by_repeats, short_names, varying
from hybrid_flax.training.folder import RunFolder

__all__ = ["sweep_page", "write_sweep_report"]

_OPTIONS = 12  # of a parameter that are listed one by one
_LETTERS = 60  # of a value in a table
_FOLD = "data.fold"


def write_sweep_report(sweep: Sweep, standings: Sequence[Standing], workdir: str | os.PathLike) -> Path:
    """Write sweep.html and plots/*.png in the folder of a sweep; returns the path of the page.

    Reads the metrics of the trials and the config of the best; what cannot be read is said on the page in its place.
    """
    workdir = Path(workdir)
    drawings = _draw(_ranking(sweep, standings), workdir)
    plots = workdir / "plots"
    for path in plots.glob("*.png"):  # of an earlier sweep in this folder
        path.unlink(missing_ok=True)
    write_pngs({name: drawn for name, drawn in drawings.items() if isinstance(drawn, Drawing)}, plots)
    path = workdir / "sweep.html"
    sweep_page(sweep, standings, workdir, drawings).write(path)
    return path


def sweep_page(
    sweep: Sweep, standings: Sequence[Standing], workdir: Path, drawings: Mapping[str, Drawing | str]
) -> Page:
    """The page; `drawings` are those of `write_sweep_report`: a sentence stands for one that cannot be drawn."""
    ranking = _ranking(sweep, standings)

    def picture(name, note=""):
        drawn = drawings[name]
        if isinstance(drawn, str):
            return page.text(drawn)
        return page.figure(drawn.figure, drawn.alt) + (page.text(note, "note") if note else "")

    made = Page(f"Sweep of {sweep.experiment}", _lead(sweep, ranking))
    made = made.section("Best trial", *_best(sweep, ranking, workdir))
    made = made.section("What was swept", _swept(sweep, ranking))
    if ranking.keys and any(map(has_value, standings)):
        pictures = page.grid(*(picture(f"parameter-{key}") for key in ranking.keys))
        made = made.section("Each parameter", pictures, page.text(_marks_note(), "note"))
        made = made.section("Which parameters matter", picture("importance", _importance_note()))
        made = made.section("Trials side by side", picture("parallel", _parallel_note()))
    made = made.section("Learning curves", picture("curves", _curves_note(ranking)))
    repeats = _over_repeats(ranking, workdir)
    if repeats:
        made = made.section("Over seeds and folds", *repeats)
    made = made.section("All trials", _trials(ranking))
    failures = list(_failures(ranking))
    return made.section("Trials that failed", *failures) if failures else made


def _ranking(sweep, standings):
    return Ranking(best_first(standings, sweep.metric), varying(standings), sweep.metric)


def _draw(ranking, workdir):
    """Every drawing by its name, or a sentence that says why there is none."""
    drawings: dict[str, Drawing | str] = {}
    evaluated = sum(has_value(one) and one.state != "failed" for one in ranking.standings)
    if any(map(has_value, ranking.standings)):
        for key in ranking.keys:
            drawings[f"parameter-{key}"] = draw_parameter(ranking, key)
        try:
            shares = parameter_importances(ranking.standings, ranking.keys, ranking.metric)
            drawings["importance"] = draw_importances(shares)
        except ValueError as error:
            drawings["importance"] = f"Left out: {error}."
        few = (
            f"Left out: it takes two parameters that vary and two trials, here are {len(ranking.keys)} and {evaluated}."
        )
        drawings["parallel"] = draw_parallel(ranking) if len(ranking.keys) > 1 and evaluated > 1 else few
    drawings["curves"] = draw_curves(ranking, workdir) or "Left out: no metrics of a trial lie in this folder."
    return drawings


def _lead(sweep, ranking):
    states = Counter(one.state for one in ranking.standings)
    wanted = max(sweep.num_trials, len(ranking.standings))
    ended = f"{states['done']} of {wanted} trials are done"
    others = [f"{states[state]} {state}" for state in ("pruned", "failed") if states[state]]
    left = wanted - sum(states[state] for state in ("done", "pruned", "failed"))
    more = f" {left} are still to be trained: what stands here is not the end." if left else ""
    better = "lower" if ranking.metric.lower_is_better else "higher"
    method = {"grid": "A grid", "random": "A random search", "tpe": "A TPE search"}[sweep.method]
    steps = "as many steps as it sets" if "train.steps" in ranking.keys else f"{sweep.base.train.steps:,} steps"
    return (
        f"{method}: {', '.join([ended, *others])}. A trial trains for {steps} at most, and is judged by its "
        f"{ranking.metric.name} on the validation split ({better} is better).{more}"
    )


def _best(sweep, ranking, workdir) -> Iterator[str]:
    best = ranking.best
    if best is None:
        yield page.text("No trial is finished yet." if ranking.standings else "There is no trial yet.")
        return
    unit = _unit(ranking)
    yield page.text(
        f"Trial {best.number} has the best validation {ranking.metric.name}, {_metric(ranking, best.value)}{unit}:"
    )
    yield page.chips([(key, short(value, 3 * _LETTERS), None) for key, value in best.values.items()])
    done = [one for one in ranking.standings if one.state == "done" and has_value(one)]
    if len(done) > 1:
        behind = abs(done[1].value - best.value)
        worst = done[-1]
        points = " points" if unit else ""
        yield page.text(
            f"The next one, trial {done[1].number}, is {_metric(ranking, behind)}{points} behind; the worst that was "
            f"finished, trial {worst.number}, has {_metric(ranking, worst.value)}{unit}."
        )
    try:
        yield page.text("To train it again:")
        yield page.preformatted(reproduce_command(workdir / best.run, experiment=sweep.experiment).text)
    except ConfigError as error:
        yield page.text(f"There is no command for that: {error}")
    yield page.text("For a figure of data that took no part in the choice, which this one is not:")
    words = [*command().split(), "eval", f"--workdir={workdir / best.run}", "--split=test"]
    yield page.preformatted(shlex.join(words))


def _swept(sweep, ranking):
    best = ranking.best
    rows: list[list[str | Field]] = []
    for key in dict.fromkeys([*(sweep.space or {}), *(key for one in ranking.standings for key in one.values)]):
        held = [one.values[key] for one in ranking.standings if key in one.values]
        chosen = best.values.get(key) if best else None
        tried = len(set(map(repr, held)))
        space = space_text(sweep.space[key]) if sweep.space and key in sweep.space else _listed(held)
        rows.append(
            [
                Field(key, kind="code"),
                short(space, 2 * _LETTERS),
                Field(str(tried), tried),
                Field(short(chosen, _LETTERS) if best and key in best.values else "-", kind="best"),
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


def _over_repeats(ranking, workdir):
    """The settings by their mean over seeds and folds, where any was trained with more than one."""
    groups = by_repeats(ranking.standings)
    if not groups:
        return []
    crossed = _FOLD in ranking.keys
    rows = []
    for setting, standings in groups.items():
        values = [one.value for one in standings if one.value is not None]
        cells = [Field(short(setting, 2 * _LETTERS), kind="code"), Field(str(len(values)), len(values))]
        cells += [_mean_cell(ranking, values)]
        cells += [Field(_metric(ranking, value), value) for value in (min(values), max(values))]
        if crossed:
            cells += [_mean_cell(ranking, _test_values(ranking, standings, workdir))]
        rows.append((sum(values) / len(values), cells))
    rows.sort(key=lambda row: row[0], reverse=not ranking.metric.lower_is_better)
    unit = _unit(ranking)
    heads = ["setting", "runs", f"validation {ranking.metric.name}{unit}", "least", "greatest"]
    note = f"Mean ± half of the {LEVEL:.0%} interval over the runs (Student's t); a single good run is no good setting."
    if crossed:
        heads.append(f"test {ranking.metric.name}{unit}")
        note += " The test figure is the mean over the folds, each by the model that has not seen it."
    return [page.table(heads, [cells for _, cells in rows]), page.text(note, "note")]


def _mean_cell(ranking, values):
    if not values:
        return Field("-")
    mean, half = mean_interval(values)
    return Field(_metric(ranking, mean) + (f" ± {ranking.scale * half:.2g}" if len(values) > 1 else ""), mean)


def _test_values(ranking, standings, workdir):
    """The metric on the test split, of the runs whose folders lie here."""
    folders = [RunFolder(workdir / one.run) for one in standings]
    results = [folder.read_results() for folder in folders if folder.results.exists()]
    return [result["test"][ranking.metric.name] for result in results if "test" in result]


def _trials(ranking):
    rows = []
    for one in ranking.standings:
        kind = "best" if one is ranking.best else ""
        value = math.nan if one.value is None else one.value
        cells = [
            Field(str(one.number), one.number, kind),
            Field(one.state, kind=_STATES.get(one.state, kind)),
        ]
        cells += [Field(_metric(ranking, value), value, kind), Field(f"{one.step:,}", one.step)]
        for key in ranking.keys:
            held = one.values.get(key, "")
            numeric = is_number(held)
            cells.append(Field(short(held, _LETTERS), float(held) if numeric else None, "" if numeric else "code"))
        rows.append([*cells, Field(one.run, kind="code")])
    heads = ["trial", "state", f"{ranking.metric.name}{_unit(ranking)}", "step", *short_names(ranking.keys), "folder"]
    return page.table(heads, rows, "Press the head of a column to sort by it.")


_STATES = {"failed": "bad"}


def _failures(ranking) -> Iterator[str]:
    failed = [one for one in ranking.standings if one.state == "failed"]
    for reason, count in Counter(one.reason for one in failed).most_common():
        held = [one for one in failed if one.reason == reason]
        yield page.text(f"{count} trial{'s' * (count > 1)}: {reason}")
        lines = [f"trial {one.number}, step {one.step}: {values_text(one.values)}" for one in held]
        yield (
            page.preformatted("\n".join(lines))
            if count <= 4
            else page.folded("which", page.preformatted("\n".join(lines)))
        )
    if failed:
        yield page.text(
            "Their output is in output.log of their folders. The next start retries all but those that diverged.",
            "note",
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


def _curves_note(ranking):
    shown = f" The {MOST} best of {len(ranking.standings)} trials." if len(ranking.standings) > MOST else ""
    return f"Dashed and grey: pruned or not ended; red: failed.{shown}"


def _unit(ranking):
    return " %" if ranking.scale == 100.0 else ""


def _metric(ranking, value):
    """As people read it: 71.32 per cent for shares, else five digits."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{100 * value:.2f}" if ranking.scale == 100.0 else f"{value:#.5g}"
