"""A comparison as one page that a person enjoys reading, and its pictures as files."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.progress import track

from hybrid_flax.compare.results import Column, Comparison
from hybrid_flax.compare.statistics import LEVEL, best_rows, mean_interval, reference_row, verdicts
from hybrid_flax.compare.tables import EDGES, format_amount, format_interval, format_rate, is_share
from hybrid_flax.config import ConfigError
from hybrid_flax.report import page
from hybrid_flax.report.diagnosis import COLUMNS, part_cells, saved_diagnosis
from hybrid_flax.report.disagreement import most_disputed
from hybrid_flax.report.drawings import Drawing, draw_costs, draw_curves, draw_intervals, write_pngs
from hybrid_flax.report.finish import write_sample
from hybrid_flax.report.page import Cell, Page
from hybrid_flax.runs import load_run
from hybrid_flax.train.folder import RunFolder

__all__ = ["comparison_page", "write_report"]

_EXAMPLES = 4  # of a task
_SAMPLE = 300  # characters of generated text


def write_report(comparison: Comparison, workdir: str | os.PathLike) -> Path:
    """Write compare.html and plots/*.png in the comparison's folder; returns the path of the page.

    Reads the runs for their curves, predictions and diagnoses; what cannot be read is said on the page in its place.
    """
    workdir = Path(workdir)
    drawings = {
        f"{name}-{_file_name(column.task)}": draw(comparison, column)
        for column in _begun(comparison)
        for name, draw in _drawers(workdir).items()
    }
    write_pngs(drawings, workdir / "plots")
    path = workdir / "compare.html"
    comparison_page(comparison, workdir, drawings).write(path)
    return path


def comparison_page(comparison: Comparison, workdir: Path, drawings: dict[str, Drawing]) -> Page:
    """The page; `drawings` are those of `write_report`."""
    made = Page(comparison.title, _lead(comparison))
    columns = _begun(comparison)
    if not columns:
        return made.section("Results", page.text("No run is finished yet."))

    def pictures(name):
        found = (drawings[f"{name}-{_file_name(column.task)}"] for column in columns)
        return page.grid(*(page.figure(drawing.figure, drawing.alt) for drawing in found))

    made = made.section("In short", *_in_short(comparison))
    made = made.section("Results", _results(comparison), page.text(_results_note(), "note"), pictures("intervals"))
    made = made.section("Against the best single mechanism", *_differences(comparison))
    made = made.section(
        "Learning curves",
        pictures("curves"),
        page.text(
            "Mean over the seeds, the band from the least to the greatest of them. Dashes: one mechanism alone.", "note"
        ),
    )
    made = made.section("Cost", pictures("costs"), *_costs(comparison))
    made = made.section("What the fusions do", *_diagnoses(comparison, workdir))
    made = made.section("Examples", *_examples(comparison, workdir))
    failures = list(_failures(comparison))
    return made.section("Runs that failed", *failures) if failures else made


def _drawers(workdir):
    return {
        "intervals": draw_intervals,
        "curves": lambda comparison, column: draw_curves(comparison, column, workdir),
        "costs": draw_costs,
    }


def _begun(comparison) -> list[Column]:
    """The tasks on which any row has a finished run."""
    return [c for c in comparison.columns if any(e.test for e in comparison.entries if e.task == c.task)]


def _file_name(task):
    """Another for every task: "a b" and "a_b" must not overwrite each other's pictures."""
    return quote(task, safe="")


def _lead(comparison):
    units = {"parameters": "parameters", "flops": "forward FLOPs a token"}
    budgets = {f"{format_amount(float(c.budget.amount))} {units[c.budget.kind]}" for c in comparison.columns}
    done = sum(len(entry.seeds) for entry in comparison.entries)
    wanted = comparison.seeds * len(comparison.entries)
    state = "" if comparison.finished() else f" {done} of {wanted} runs are done: what stands here is not the end."
    return (
        f"{len(comparison.rows)} models on {len(comparison.columns)} tasks, each brought to within 2 % of "
        f"{', '.join(sorted(budgets))} by its width alone. Every model tries the learning rates "
        f"{', '.join(f'{rate:g}' for rate in comparison.learning_rates)} on every task with the first seed, and gets "
        f"{comparison.seeds} seeds at the best of them by validation; the test split is read once a run, at the best "
        f"checkpoint. On {comparison.devices or 'no device yet'}.{state}"
    )


def _in_short(comparison) -> Iterator[str]:
    """A sentence a task: the best single mechanism, the best fusion, and whether one can say that they differ."""
    against = verdicts(comparison)
    for column in _begun(comparison):
        reference = reference_row(comparison, column.task)
        fusions = [
            row.name for row in comparison.rows if not row.single and comparison.entry(row.name, column.task).valid
        ]
        if reference is None or not fusions:
            continue
        sign = 1 if column.higher_is_better else -1
        fusion = max(fusions, key=lambda name: sign * np.mean(comparison.entry(name, column.task).valid))
        figures = {row: _interval(comparison, row, column) for row in (reference, fusion)}
        verdict = against.get((fusion, column.task))
        judged = "" if verdict is None else f": {verdict.word()} ({_difference(verdict, column)})"
        yield page.text(
            f"{column.task}: the best single mechanism is `{reference}` with {figures[reference]}{_unit(column)}, the "
            f"best fusion `{fusion}` with {figures[fusion]}{_unit(column)}{judged}."
        )
    yield page.text(
        "Both are chosen on the validation split; differences are above zero where the fusion is better. Intervals are "
        f"of {LEVEL:.0%} over seeds (Student's t); a difference counts where the paired t-test's p, corrected by Holm "
        f"over all rows and tasks, is below {1 - LEVEL:.2g}.",
        "note",
    )


def _results(comparison):
    best = best_rows(comparison)
    columns = _begun(comparison)
    rows = []
    for row in comparison.rows:
        cells = [Cell(row.name, kind="code"), "one mechanism" if row.single else "fusion"]
        for column in columns:
            entry = comparison.entry(row.name, column.task)
            mark = " †" if reference_row(comparison, column.task) == row.name else ""
            value = float(np.mean(entry.test)) if entry.test else math.nan
            kind = "best" if best.get(column.task) == row.name else ""
            cells.append(Cell(_interval(comparison, row.name, column) + mark, value, kind))
        rows.append(cells)
    titles = [f"{c.task}: {c.metric}{_unit(c)} {'↑' if c.higher_is_better else '↓'}" for c in columns]
    return page.table(["row", "kind", *titles], rows)


def _results_note():
    return (
        f"Test metric, mean ± half of the {LEVEL:.0%} interval over seeds. ↑ higher is better, ↓ lower. † the best "
        "single mechanism by validation, the dotted line in the pictures. Bold: the best, where that can be said. "
        "The small dots are the seeds."
    )


def _differences(comparison):
    found = verdicts(comparison)
    if not found:
        return [page.text("No two rows share a seed yet.")]
    rows: list[list[str | Cell]] = []
    for verdict in found.values():
        column = _column(comparison, verdict.task)
        word = verdict.word()
        kind = {"better": "good", "worse": "bad"}.get(word, "")
        rows.append(
            [
                verdict.task,
                Cell(verdict.row, kind="code"),
                Cell(verdict.reference, kind="code"),
                Cell(_signed(verdict, column), verdict.difference),
                Cell(_p(verdict.p), verdict.p),
                Cell(_p(verdict.corrected), verdict.corrected),
                Cell(word, kind=kind),
            ]
        )
    note = "Above zero: better than the best single mechanism, whatever the direction of the metric; paired over seeds."
    names = ["task", "row", "against", f"difference, {LEVEL:.0%} interval", "p", "p, Holm", "verdict"]
    return [page.table(names, rows), page.text(note, "note")]


def _costs(comparison):
    rows = []
    for entry in comparison.entries:
        cost = entry.cost
        amounts = (cost.flops_per_token, cost.state_bytes, cost.tokens_per_sec, cost.peak_bytes)
        rate = entry.learning_rate
        rows.append(
            [
                Cell(entry.row, kind="code"),
                entry.task,
                Cell(str(entry.width), entry.width),
                Cell(format_rate(rate, comparison.learning_rates), math.nan if rate is None else rate),
                Cell(f"{cost.parameters:,}", cost.parameters),
                *(Cell("-", math.nan) if n is None else Cell(format_amount(float(n)), float(n)) for n in amounts),
            ]
        )
    kinds = sorted({entry.cost.peak_kind for entry in comparison.entries} - {""})
    note = (
        "FLOPs of the forward pass; state: of one sequence after a row of the task, caches included; peak: "
        f"{', '.join(kinds) or 'not measured yet'}. Speeds are measured beside whatever else the machine did. {EDGES}"
    )
    names = ["row", "task", "width", "rate", "parameters", "FLOPs/token", "state bytes", "tokens/s", "peak bytes"]
    return [page.table(names, rows), page.text(note, "note")]


def _diagnoses(comparison, workdir) -> Iterator[str]:
    mixed = [row.name for row in comparison.rows if not row.single]
    found = [comparison.entry(name, column.task) for column in _begun(comparison) for name in mixed]
    found = [entry for entry in found if entry.folders]
    for entry in track(found, "Diagnosing fusions", console=Console(stderr=True), transient=True):
        try:
            diagnosis = saved_diagnosis(workdir / entry.folders[0])
        except ConfigError as error:
            yield page.text(f"{entry.task}, `{entry.row}`: {error}")
            continue
        rows = [
            [Cell(cells[0], kind="code"), *(Cell(text, value) for text, value in zip(cells[1:], _values(part)))]
            for part in diagnosis.parts
            for cells in [part_cells(part, diagnosis.loss)]
        ]
        norms = ", ".join(f"{where} {norm:.2g}" for where, norm in diagnosis.gradients.items())
        words = f"Validation loss {diagnosis.loss:.4f}. Gradient norms: {norms}."
        yield page.folded(f"{entry.task}: {entry.row}", _without_empty(COLUMNS, rows), page.text(words, "note"))
    yield page.text(
        "Of the first seed at its best checkpoint, on the first batches of the validation split. rms: of a part's "
        "output; ratio: to the part beside it; without: what the loss rises by where that output is zero; gate: the "
        "weight of the first part, mean ± standard deviation, and its histogram from 0 to 1; distance: how far back "
        "the heads look, least and most, in tokens; grad: norm of the gradient of the part's parameters.",
        "note",
    )


def _without_empty(header, rows):
    """A table of the columns that hold anything."""
    kept = [place for place in range(len(header)) if any(row[place].text for row in rows)]
    return page.table([header[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _values(part):
    """What the columns of `part_cells` sort by, NaN where there is nothing."""
    gate = math.nan if part.gate is None else part.gate.mean
    distance = math.nan if part.distance is None else max(part.distance)
    ratio = math.nan if part.ratio is None else part.ratio
    return part.rms, ratio, part.loss_without, gate, None, distance, part.gradient_norm


def _examples(comparison, workdir) -> Iterator[str]:
    yield page.text(
        "From the first test batch, the examples on which the rows disagree most; of the first seed at its best "
        "checkpoint. ✓ right, ✗ wrong; [brackets] around single wrong symbols.",
        "note",
    )
    for column in _begun(comparison):
        entries = [entry for entry in comparison.entries if entry.task == column.task and entry.folders]
        folders = {entry.row: workdir / entry.folders[0] for entry in entries}
        try:
            blocks = list(_samples(folders) if column.kind == "lm" else _predictions(folders))
        except ConfigError as error:
            blocks = [page.text(str(error))]
        yield page.subheading(column.task)
        yield from blocks


def _predictions(folders):
    for example in most_disputed(folders, _EXAMPLES):
        said = [(row, one.words, one.right) for row, one in example.said.items()]
        yield page.cards(page.text(example.text) + page.text(f"Label: {example.truth}", "note") + page.chips(said))


def _samples(folders):
    """Text that every row writes after the prompt of its config."""
    blocks = []
    for row, folder in folders.items():
        where = RunFolder(folder)
        text = where.sample.read_text(encoding="utf-8") if where.sample.exists() else None
        text = write_sample(where, load_run(folder, "best")) if text is None else text
        blocks.append(page.text(f"`{row}`") + page.preformatted(text.strip()[:_SAMPLE]))
    yield page.grid(*(f"<div>{block}</div>" for block in blocks))


def _failures(comparison):
    for entry in comparison.entries:
        for failure in entry.failures:
            where = f"{entry.task}, `{entry.row}`, rate {failure.learning_rate:g}, seed {failure.seed}"
            yield page.text(f"{where}: {failure.reason}")


def _column(comparison, task):
    return next(column for column in comparison.columns if column.task == task)


def _unit(column):
    return " %" if is_share(column.metric) else ""


def _interval(comparison, row, column):
    return format_interval(*mean_interval(comparison.entry(row, column.task).test), column)


def _signed(verdict, column):
    sign = "+" if verdict.difference >= 0 else ""
    return sign + format_interval(verdict.difference, verdict.half, column)


def _difference(verdict, column):
    shown = f"{_signed(verdict, column)}{_unit(column).replace('%', 'points')}"
    return shown if math.isnan(verdict.corrected) else f"{shown}, p {_p(verdict.corrected)}"


def _p(value):
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
