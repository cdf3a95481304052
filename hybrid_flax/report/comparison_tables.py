"""What a comparison found, as tables: on the screen, as Markdown, as CSV, and as parts of its page."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from hybrid_flax.compare.definition import Contender
from hybrid_flax.compare.protocol import num_runs
from hybrid_flax.compare.results import Column, Comparison
from hybrid_flax.compare.statistics import LEVEL, best_rows, mean_interval, reference_row, verdicts
from hybrid_flax.console import make_console
from hybrid_flax.files import write_whole
from hybrid_flax.report.page import Field
from hybrid_flax.units import format_count, markdown_table

__all__ = [
    "Section",
    "cost_section",
    "difference_section",
    "failures",
    "format_interval",
    "lead",
    "markdown",
    "print_contenders",
    "print_results",
    "result_section",
    "signed_difference",
    "unit",
    "write_tables",
]

_EDGES = "Rate: the best by validation; ≥ the greatest, ≤ the least of those tried: a better one may lie beyond."
_FIELDS = (
    *("task", "metric", "row", "pattern", "width"),
    *("parameters", "flops_per_token", "state_bytes", "tokens_per_sec", "peak_bytes", "peak_kind"),
    *("learning_rate", "seeds", "valid_mean", "valid_half", "test_mean", "test_half", "test_by_seed"),
    *("reference", "difference", "difference_half", "p", "p_corrected", "failures"),
)


class Section(NamedTuple):
    """A table of the report, with a note on how to read it."""

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Field]]
    note: str


def write_tables(comparison: Comparison, workdir: str | os.PathLike) -> None:
    """Write compare.csv and compare.md."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(comparison))
    write_whole(Path(workdir) / "compare.csv", text.getvalue())
    write_whole(Path(workdir) / "compare.md", markdown(comparison))


def markdown(comparison: Comparison) -> str:
    """The whole comparison: how it was made, test metrics, differences, costs, failures."""
    sections = [result_section(comparison), difference_section(comparison), cost_section(comparison)]
    parts = [f"# {comparison.title}", lead(comparison), *(_markdown(section) for section in sections if section.rows)]
    if lines := [f"* {line}" for line in failures(comparison)]:
        parts.append("\n".join(["## Runs that did not get to their end", "", *lines]))
    return "\n\n".join(parts) + "\n"


def print_contenders(title: str, contenders: Sequence[Contender]) -> None:
    """What a comparison is going to do."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for name in ("task", "row", "pattern"):
        table.add_column(name, overflow="fold")
    for name in ("width", "parameters", "FLOPs/token", "state", "steps", "runs"):
        table.add_column(name, justify="right")
    for one in contenders:
        cost, model = one.cost, one.config.model
        counts = (f"{cost.parameters:,}", format_count(cost.flops_per_token), format_count(cost.state_bytes))
        names = (one.column.task, one.row, model.pattern, str(model.width))
        table.add_row(*map(Text, (*names, *counts, str(one.column.steps), str(num_runs(one)))))
    console = make_console()
    console.print(table)
    console.print(f"{len(contenders)} rows on tasks, {sum(map(num_runs, contenders))} runs")


def print_results(comparison: Comparison, workdir: str | os.PathLike) -> None:
    """The tables, and where they are."""
    console = make_console()
    console.print(Markdown(markdown(comparison)))
    files = ", ".join(str(Path(workdir) / f"compare.{kind}") for kind in ("json", "csv", "md"))
    console.print(Text(files), soft_wrap=True)


def lead(comparison: Comparison) -> str:
    """How the comparison is made, in a paragraph."""
    units = {"parameters": "parameters", "flops": "forward FLOPs a token"}
    budgets = "; ".join(
        f"{c.task}: {format_count(c.budget.amount)} {units[c.budget.kind]}, {c.steps} steps" for c in comparison.columns
    )
    rates = ", ".join(f"{rate:g}" for rate in comparison.learning_rates)
    done, wanted = sum(len(entry.seeds) for entry in comparison.entries), comparison.seeds * len(comparison.entries)
    unfinished = f" {done} of {wanted} runs are done: what stands here is not the end."
    return (
        f"{len(comparison.rows)} models on {len(comparison.columns)} tasks. Every model is brought to within 2 % of "
        f"the budget of a task ({budgets}) by its width alone, tries the learning rates {rates} with the first seed, "
        f"and gets {comparison.seeds} seeds at the best by validation. The test split is read once a run, "
        f"at the best checkpoint by that metric. On {comparison.devices or 'no device yet'}."
        f"{'' if comparison.finished() else unfinished}"
    )


def result_section(comparison: Comparison) -> Section:
    """Test metrics of every row on every task."""
    best = best_rows(comparison)
    rows = []
    for row in comparison.rows:
        fields: list[str | Field] = [Field(row.name, kind="code"), "one mechanism" if row.single else "fusion"]
        for column in comparison.columns:
            values = comparison.entry(row.name, column.task).test
            mark = " †" if reference_row(comparison, column.task) == row.name else ""
            kind = "best" if best.get(column.task) == row.name else ""
            mean = float(np.mean(values)) if values else math.nan
            fields.append(Field(format_interval(*mean_interval(values), column) + mark, mean, kind))
        rows.append(fields)
    titles = [
        f"{c.task}: {c.metric.name}{unit(c)} {'↓' if c.metric.lower_is_better else '↑'}" for c in comparison.columns
    ]
    note = (
        f"Test metric, mean ± half of the {LEVEL:.0%} interval (Student's t over seeds). ↑ higher is better, ↓ lower. "
        "† the best single mechanism by validation. Bold: the best, where the difference between it and †, or if it is "
        "† between it and the next best, holds after Holm's correction over rows and tasks."
    )
    return Section("Results", ["row", "kind", *titles], rows, note)


def difference_section(comparison: Comparison) -> Section:
    """Every row against the best single mechanism of its task."""
    found = verdicts(comparison)
    rows: list[list[str | Field]] = []
    for column in comparison.columns:
        for row in comparison.rows:
            if (verdict := found.get((row.name, column.task))) is None:
                continue
            word = verdict.word()
            fields = [
                Field(verdict.task),
                Field(verdict.row, kind="code"),
                Field(verdict.reference, kind="code"),
                Field(signed_difference(verdict, column), verdict.difference),
                *(Field(format_p(p), p) for p in (verdict.p, verdict.corrected)),
                Field(word, kind={"better": "good", "worse": "bad"}.get(word, "")),
            ]
            rows.append(list(fields))
    note = "Above zero: better than the best single mechanism, whatever the direction of the metric; paired over seeds."
    header = ["task", "row", "against", f"difference, {LEVEL:.0%} interval", "p", "p, Holm", "verdict"]
    return Section("Against the best single mechanism", header, rows, note)


def cost_section(comparison: Comparison) -> Section:
    """What every row costs on every task."""
    rows: list[list[str | Field]] = []
    for column in comparison.columns:
        for row in comparison.rows:
            entry = comparison.entry(row.name, column.task)
            cost, rate = entry.cost, entry.learning_rate
            amounts = (cost.flops_per_token, cost.state_bytes, cost.tokens_per_sec, cost.peak_bytes)
            fields = [
                Field(column.task),
                Field(row.name, kind="code"),
                Field(str(entry.width), entry.width),
                Field(_rate(rate, comparison.learning_rates), math.nan if rate is None else rate),
                Field(f"{cost.parameters:,}", cost.parameters),
                *(Field(format_count(amount), math.nan if amount is None else float(amount)) for amount in amounts),
            ]
            rows.append(list(fields))
    kinds = sorted({entry.cost.peak_kind for entry in comparison.entries} - {""})
    note = (
        "FLOPs of the forward pass; state: of one sequence after a row of the task, caches included; peak: "
        f"{', '.join(kinds) or 'not measured yet'}. Speeds are measured beside whatever else the machine did. {_EDGES}"
    )
    header = ["task", "row", "width", "rate", "parameters", "FLOPs/token", "state bytes", "tokens/s", "peak bytes"]
    return Section("Costs", header, rows, note)


def failures(comparison: Comparison) -> list[str]:
    """A line for every run that failed or was pruned."""
    return [
        f"{entry.task}, `{entry.row}`, rate {failure.learning_rate:g}, seed {failure.seed}: {failure.reason}"
        for entry in comparison.entries
        for failure in entry.failures
    ]


def format_interval(mean: float, half: float, column: Column) -> str:
    """ "71.3 ± 0.8", in per cent for shares, or the mean alone where half is NaN."""
    return _metric(mean, column) + ("" if math.isnan(half) else f" ± {_metric(half, column)}")


def signed_difference(verdict, column: Column) -> str:
    """ "+1.2 ± 0.8"."""
    sign = "+" if verdict.difference >= 0 else ""
    return sign + format_interval(verdict.difference, verdict.half, column)


def format_p(value: float) -> str:
    """Three digits behind the point; "-" where there was no test."""
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def unit(column: Column) -> str:
    """ " %" of a metric that people read as per cent."""
    return " %" if column.metric.share else ""


def _metric(value, column):
    return "-" if math.isnan(value) else f"{100 * value:.1f}" if column.metric.share else f"{value:.3f}"


def _rate(rate, rates):
    """The best of `rates`: "≥ 0.01" where it is the greatest of several, "≤ 0.01" the least; "-" for None."""
    if rate is None:
        return "-"
    edge = "" if len(rates) < 2 else "≥ " if rate == max(rates) else "≤ " if rate == min(rates) else ""
    return f"{edge}{rate:g}"


def _markdown(section):
    table = markdown_table([section.header, *([_marked(field) for field in row] for row in section.rows)])
    return f"## {section.heading}\n\n{table}\n{section.note}"


def _marked(field):
    if isinstance(field, str):
        return field
    return {"code": "`{}`", "best": "**{}**"}.get(field.kind, "{}").format(field.text)


def _records(comparison) -> Iterator[dict]:
    """The rows of the CSV file."""
    against = verdicts(comparison)
    for entry in comparison.entries:
        column = next(column for column in comparison.columns if column.task == entry.task)
        valid, test = mean_interval(entry.valid), mean_interval(entry.test)
        record = {
            **{name: value for name, value in entry.cost._asdict().items() if value is not None},
            **{name: getattr(entry, name) for name in ("task", "row", "pattern", "width", "learning_rate")},
            "metric": column.metric.name,
            "seeds": len(entry.seeds),
            **{"valid_mean": valid[0], "valid_half": valid[1], "test_mean": test[0], "test_half": test[1]},
            "test_by_seed": " ".join(map(str, entry.test)),
            "failures": len(entry.failures),
        }
        if verdict := against.get((entry.row, entry.task)):
            record |= {"reference": verdict.reference, "difference": verdict.difference}
            record |= {"difference_half": verdict.half, "p": verdict.p, "p_corrected": verdict.corrected}
        yield {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in record.items()}
