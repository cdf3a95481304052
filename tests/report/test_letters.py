"""What a user has named is text on the screen, in drawings and on pages: no markup, no formula, no tag."""

import io
import re

import pytest
import tiny
from markup import read
from metrics import LOSS

from hybrid_flax.config import base_config
from hybrid_flax.console import make_console
from hybrid_flax.jobs.queue import Standing
from hybrid_flax.report import page
from hybrid_flax.report.curves import plot_loss_curve
from hybrid_flax.report.sweep_report import write_sweep_report
from hybrid_flax.sweep.definition import Sweep
from hybrid_flax.sweep.tables import write_tables
from hybrid_flax.units import markdown_table

NAMES = ["[/x]", "[red]b", "$\\frac{$", "<b>", "a\nb", ":smile:", "x$y$z", "\\$", "a|b"]


def test_a_console_writes_letters():
    from rich.table import Table

    file = io.StringIO()
    console = make_console(file=file, width=200)
    table = Table(*NAMES[:3], title=NAMES[0])
    table.add_row(*NAMES[3:6])
    console.print(table)
    for name in NAMES:
        console.print(name)
    assert all(line in file.getvalue() for name in NAMES for line in name.split("\n"))


def test_every_console_is_made_in_one_place():
    for path in (tiny.ROOT / "hybrid_flax").rglob("*.py"):
        made = re.findall(r"(?<![\w`])Console\((?!quiet=True\) for)", path.read_text("utf-8"))
        assert not made or path.name == "console.py", path


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_draws_letters(name):
    figure, axes = page.new_figure(3.0, 2.0)
    axes.set_title(page.letters(name))
    axes.set_yticks([0], [page.letters(name)])
    drawn = page.figure(figure, name)
    words, _ = read(f"<p>{drawn}</p>")
    assert words.count(" ".join(page.printable(name).split())) == 2


def test_reports_of_such_names_are_written(tmp_path):
    values = [{"sample.prompt": name, "optim.learning_rate": 10.0**-n} for n, name in enumerate(NAMES)]
    standings = [Standing(n, f"run{n}", held, "done", 10, 0.5 + n / 10, "") for n, held in enumerate(values)]
    sweep = Sweep("x.py", base_config(), LOSS, "grid", (), None, len(standings))
    text, _ = read(write_sweep_report(sweep, standings, tmp_path).read_text("utf-8"))
    assert all(name in text for name in NAMES if name != "a\nb")
    write_tables(standings, tmp_path, LOSS)
    assert (tmp_path / "sweep.md").read_text("utf-8").count("\n") > len(NAMES)
    for name in NAMES:
        plot_loss_curve([{"step": 1, "train/loss": 1.0}], tmp_path / "loss.png", LOSS, title=name)


def test_a_cell_of_markdown_is_one_cell():
    lines = markdown_table([["name"], *([name] for name in NAMES)]).splitlines()
    assert len(lines) == len(NAMES) + 2
    assert "| \\<b> |" in lines and "| a\\nb |" in lines and "| a\\|b |" in lines and "| [/x] |" in lines
