"""A comparison as one page that a person enjoys reading, and its pictures as files."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from rich.progress import track

from hybrid_flax.compare.results import Column, Comparison
from hybrid_flax.compare.statistics import LEVEL, mean_interval, reference_row, verdicts
from hybrid_flax.console import make_console
from hybrid_flax.errors import ConfigError
from hybrid_flax.report import page
from hybrid_flax.report.comparison_tables import (
    cost_section,
    difference_section,
    failures,
    format_interval,
    format_p,
    lead,
    result_section,
    signed_difference,
    unit,
)
from hybrid_flax.report.diagnosis import COLUMNS, part_cells, saved_diagnosis
from hybrid_flax.report.disagreement import most_disputed
from hybrid_flax.report.drawings import Drawing, draw_costs, draw_curves, draw_intervals, write_pngs
from hybrid_flax.report.finish import write_sample
from hybrid_flax.report.page import Field, Page
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.load import read_run

__all__ = ["comparison_page", "write_report"]

_EXAMPLES = 4  # of a task
_DOTS = "The dotted line in the pictures is †, the small dots are the seeds."
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
    made = Page(comparison.title, lead(comparison))
    columns = _begun(comparison)
    if not columns:
        return made.section("Results", page.text("No run is finished yet."))

    def pictures(name):
        found = (drawings[f"{name}-{_file_name(column.task)}"] for column in columns)
        return page.grid(*(page.figure(drawing.figure, drawing.alt) for drawing in found))

    results, differences, costs = (make(comparison) for make in (result_section, difference_section, cost_section))
    made = made.section("In short", *_in_short(comparison))
    made = made.section(
        results.heading, _table(results), page.text(f"{results.note} {_DOTS}", "note"), pictures("intervals")
    )
    against = [_table(differences), page.text(differences.note, "note")]
    made = made.section(differences.heading, *against if differences.rows else [page.text("No two rows share a seed.")])
    made = made.section(
        "Learning curves",
        pictures("curves"),
        page.text(
            "Mean over the seeds, the band from the least to the greatest of them. Dashes: one mechanism alone.", "note"
        ),
    )
    made = made.section(costs.heading, pictures("costs"), _table(costs), page.text(costs.note, "note"))
    made = made.section("What the fusions do", *_diagnoses(comparison, workdir))
    made = made.section("Examples", *_examples(comparison, workdir))
    lines = [page.text(line) for line in failures(comparison)]
    return made.section("Runs that did not get to their end", *lines) if lines else made


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
        sign = -1 if column.metric.lower_is_better else 1
        fusion = max(fusions, key=lambda name: sign * np.mean(comparison.entry(name, column.task).valid))
        figures = {
            row: format_interval(*mean_interval(comparison.entry(row, column.task).test), column)
            for row in (reference, fusion)
        }
        verdict = against.get((fusion, column.task))
        judged = "" if verdict is None else f": {verdict.word()} ({_difference(verdict, column)})"
        yield page.text(
            f"{column.task}: the best single mechanism is `{reference}` with {figures[reference]}{unit(column)}, the "
            f"best fusion `{fusion}` with {figures[fusion]}{unit(column)}{judged}."
        )
    yield page.text(
        "Both are chosen on the validation split; differences are above zero where the fusion is better. Intervals are "
        f"of {LEVEL:.0%} over seeds (Student's t); a difference counts where the paired t-test's p, corrected by Holm "
        f"over all rows and tasks, is below {1 - LEVEL:.2g}.",
        "note",
    )


def _table(section):
    return page.table(section.header, section.rows)


def _diagnoses(comparison, workdir) -> Iterator[str]:
    mixed = [row.name for row in comparison.rows if not row.single]
    found = [comparison.entry(name, column.task) for column in _begun(comparison) for name in mixed]
    found = [entry for entry in found if entry.folders]
    for entry in track(found, "Diagnosing fusions", console=make_console(stderr=True), transient=True):
        try:
            diagnosis = saved_diagnosis(workdir / entry.folders[0])
        except ConfigError as error:
            yield page.text(f"{entry.task}, `{entry.row}`: {error}")
            continue
        rows = [
            [Field(cells[0], kind="code"), *(Field(text, value) for text, value in zip(cells[1:], _values(part)))]
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
            blocks = list(_samples(folders) if all(map(_generates, folders.values())) else _predictions(folders))
        except ConfigError as error:
            blocks = [page.text(str(error))]
        yield page.subheading(column.task)
        yield from blocks


def _generates(workdir):
    folder = RunFolder(workdir)
    return make_task(folder.read_config(), folder.read_vocabulary()[1]).generates


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
        text = write_sample(where, read_run(folder, "best")) if text is None else text
        blocks.append(page.text(f"`{row}`") + page.preformatted(text.strip()[:_SAMPLE]))
    yield page.grid(*(f"<div>{block}</div>" for block in blocks))


def _difference(verdict, column):
    shown = f"{signed_difference(verdict, column)}{unit(column).replace('%', 'points')}"
    return shown if math.isnan(verdict.corrected) else f"{shown}, p {format_p(verdict.corrected)}"
