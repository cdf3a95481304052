"""The tables of a comparison: CSV for programs, Markdown for people."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from hybrid_flax.compare.cells import num_runs
from hybrid_flax.compare.definition import Cell
from hybrid_flax.compare.results import Column, Comparison
from hybrid_flax.compare.statistics import LEVEL, best_rows, mean_interval, reference_row, verdicts

__all__ = [
    "EDGES",
    "format_amount",
    "format_interval",
    "format_metric",
    "format_rate",
    "is_share",
    "markdown",
    "print_cells",
    "print_results",
    "write_tables",
]

EDGES = "Rate: the best by validation; ≥ the greatest, ≤ the least of those tried: a better one may lie beyond."
_SHARES = ("accuracy", "exact", "precision", "recall", "sign")  # metrics in [0, 1] that people read as per cent
_FIELDS = (
    *("task", "metric", "row", "pattern", "width"),
    *("parameters", "flops_per_token", "state_bytes", "tokens_per_sec", "peak_bytes", "peak_kind"),
    *("learning_rate", "seeds", "valid_mean", "valid_half", "test_mean", "test_half", "test_by_seed"),
    *("reference", "difference", "difference_half", "p", "p_corrected", "failures"),
)


def write_tables(comparison: Comparison, workdir: str | os.PathLike) -> None:
    """Write compare.csv and compare.md."""
    with (Path(workdir) / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS)
        writer.writeheader()
        writer.writerows(_records(comparison))
    (Path(workdir) / "compare.md").write_text(markdown(comparison), encoding="utf-8")


def markdown(comparison: Comparison) -> str:
    """The whole comparison: how it was made, test metrics, differences, costs, failures."""
    parts = [f"# {comparison.title}", _protocol(comparison), _results(comparison), _differences(comparison)]
    parts += [_costs(comparison), _failures(comparison)]
    return "\n\n".join(filter(None, parts)) + "\n"


def print_cells(title: str, cells: Sequence[Cell]) -> None:
    """What a comparison is going to do."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("task", "row", "pattern"):
        table.add_column(name, overflow="fold")
    for name in ("width", "parameters", "FLOPs/token", "state", "steps", "runs"):
        table.add_column(name, justify="right")
    for cell in cells:
        cost, model = cell.cost, cell.config.model
        counts = (f"{cost.parameters:,}", format_amount(cost.flops_per_token), format_amount(cost.state_bytes))
        names = (cell.column.task, cell.row, model.pattern, str(model.width))
        table.add_row(*names, *counts, str(cell.column.steps), str(num_runs(cell)))
    console = Console()
    console.print(table)
    console.print(f"{len(cells)} cells, {sum(map(num_runs, cells))} runs")


def print_results(comparison: Comparison, workdir: str | os.PathLike) -> None:
    """The tables, and where they are."""
    console = Console()
    console.print(Markdown(markdown(comparison)))
    console.print(", ".join(str(Path(workdir) / f"compare.{kind}") for kind in ("json", "csv", "md")), soft_wrap=True)


def format_metric(value: float, column: Column) -> str:
    """A test metric as people read it: 71.3 (per cent) for shares, else four digits behind the point."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}" if is_share(column.metric) else f"{value:.3f}"


def format_interval(mean: float, half: float, column: Column) -> str:
    """ "71.3 ± 0.8", or the mean alone where half is NaN."""
    return format_metric(mean, column) + ("" if math.isnan(half) else f" ± {format_metric(half, column)}")


def is_share(metric: str) -> bool:
    """Whether people read a metric as per cent."""
    return metric in _SHARES or metric.startswith("f1")


def format_amount(value: int | float | None) -> str:
    """Three digits and a prefix: 12.3 k; "-" for None."""
    if value is None:
        return "-"
    power = 0
    while abs(value) >= 999.5 and power < 4:
        value, power = value / 1000.0, power + 1
    return f"{value:.3g}{('', ' k', ' M', ' G', ' T')[power]}"


def format_rate(rate: float | None, rates: Sequence[float]) -> str:
    """The best of `rates`: "≥ 0.01" where it is the greatest of several, "≤ 0.01" the least; "-" for None."""
    if rate is None:
        return "-"
    edge = "" if len(rates) < 2 else "≥ " if rate == max(rates) else "≤ " if rate == min(rates) else ""
    return f"{edge}{rate:g}"


def _protocol(comparison):
    unit = {"parameters": "parameters", "flops": "forward FLOPs a token"}
    rates = ", ".join(f"{rate:g}" for rate in comparison.learning_rates)
    budgets = "; ".join(
        f"{c.task}: {format_amount(c.budget.amount)} {unit[c.budget.kind]}, {c.steps} steps" for c in comparison.columns
    )
    done = "" if comparison.finished() else " **Not all runs are done.**"
    return (
        f"Every row is brought to within 2 % of the budget of its task ({budgets}) by its width alone, tries the "
        f"learning rates {rates} with the first seed, and gets {comparison.seeds} seeds at the one with the best "
        "validation metric; tests are taken once, at the best checkpoint by that metric. "
        f"On {comparison.devices or 'no device yet'}.{done}"
    )


def _results(comparison):
    best = best_rows(comparison)
    lines = [f"## Test metrics, mean ± half of the {LEVEL:.0%} interval (Student's t over seeds)", ""]
    lines += _header(["row", *map(_column_title, comparison.columns)])
    for row in comparison.rows:
        cells = []
        for column in comparison.columns:
            text = format_interval(*mean_interval(comparison.entry(row.name, column.task).test), column)
            text = f"**{text}**" if best.get(column.task) == row.name else text
            cells.append(text + (" †" if reference_row(comparison, column.task) == row.name else ""))
        lines.append(_line([f"`{row.name}`", *cells]))
    lines += [
        "",
        "† the best single mechanism by validation. Bold: the best, where the difference between it and †, or ",
    ]
    lines[-1] += "if it is † between it and the next best, holds after Holm's correction over rows and tasks."
    return "\n".join(lines)


def _differences(comparison):
    found = verdicts(comparison)
    if not found:
        return ""
    lines = ["## Against the best single mechanism (above zero: better; paired over seeds)", ""]
    lines += _header(["task", "row", "against", f"difference, {LEVEL:.0%} interval", "p", "p, Holm", "verdict"])
    for column in comparison.columns:
        for row in comparison.rows:
            if (verdict := found.get((row.name, column.task))) is None:
                continue
            difference = format_interval(verdict.difference, verdict.half, column)
            names = [column.task, f"`{row.name}`", f"`{verdict.reference}`"]
            lines.append(_line([*names, difference, _p(verdict.p), _p(verdict.corrected), verdict.word()]))
    return "\n".join(lines)


def _costs(comparison):
    kinds = {entry.cost.peak_kind for entry in comparison.entries} - {""}
    lines = [f"## Costs (FLOPs of the forward pass; peak: {', '.join(sorted(kinds)) or 'not measured yet'})", ""]
    names = ["task", "row", "width", "rate", "parameters", "FLOPs/token", "state bytes", "tokens/s", "peak bytes"]
    lines += _header(names)
    for column in comparison.columns:
        for row in comparison.rows:
            entry = comparison.entry(row.name, column.task)
            cost, rate = entry.cost, format_rate(entry.learning_rate, comparison.learning_rates)
            amounts = (cost.flops_per_token, cost.state_bytes, cost.tokens_per_sec, cost.peak_bytes)
            figures = [str(entry.width), rate, f"{cost.parameters:,}", *map(format_amount, amounts)]
            lines.append(_line([column.task, f"`{row.name}`", *figures]))
    return "\n".join([*lines, "", EDGES])


def _failures(comparison):
    lines = [
        f"* {entry.task}, `{entry.row}`, rate {failure.learning_rate:g}, seed {failure.seed}: {failure.reason}"
        for entry in comparison.entries
        for failure in entry.failures
    ]
    return "\n".join(["## Runs that failed", "", *lines]) if lines else ""


def _records(comparison):
    """The rows of the CSV file."""
    against = verdicts(comparison)
    for entry in comparison.entries:
        column = next(column for column in comparison.columns if column.task == entry.task)
        valid, test = mean_interval(entry.valid), mean_interval(entry.test)
        cost = {name: value for name, value in entry.cost._asdict().items() if value is not None}
        record = {
            **cost,
            "task": entry.task,
            "metric": column.metric,
            "row": entry.row,
            "pattern": entry.pattern,
            "width": entry.width,
            "learning_rate": entry.learning_rate,
            "seeds": len(entry.seeds),
            **{"valid_mean": valid[0], "valid_half": valid[1], "test_mean": test[0], "test_half": test[1]},
            "test_by_seed": " ".join(map(str, entry.test)),
            "failures": len(entry.failures),
        }
        if verdict := against.get((entry.row, entry.task)):
            record |= {"reference": verdict.reference, "difference": verdict.difference}
            record |= {"difference_half": verdict.half, "p": verdict.p, "p_corrected": verdict.corrected}
        yield {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in record.items()}


def _column_title(column):
    unit = " %" if is_share(column.metric) else ""
    return f"{column.task}: {column.metric}{unit} {'↑' if column.higher_is_better else '↓'}"


def _p(value):
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _header(names):
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells):
    return f"| {' | '.join(cells)} |"
