"""A comparison of seconds: two rows, one of them a fusion, on two tasks, or with the argument `pairs` on the first."""

from pathlib import Path

import tiny

__all__ = ["write_comparison_file"]

# Both languages have two symbols and both budgets the same widths, so that the tasks share their programs.
_CODE = """
import tiny
from hybrid_flax.compare.definition import ComparedTask, Definition


def language(name, metric):
    values = {"task__name": "answer", "data__mode": "padded", "eval__length": 12, "eval__metric": metric}
    return tiny.tiny_config(f"synthetic:{name}", eval__every=3, eval__batch_size=64, **values)


def get_compare(arg=""):
    tasks = {
        "pairs": ComparedTask(language("even_pairs", "loss")),
        "parity": ComparedTask(language("parity", "accuracy"), {"flops": 20_000}),
    }
    return Definition(
        title="Tiny",
        rows={"tanh": {"model.pattern": "tanh"}, "both": {"model.pattern": "add:tanh+conv"}},
        tasks={arg: tasks[arg]} if arg else tasks,
        budget={"parameters": 9_750},
        learning_rates=(1e-3, 1e-2),
        seeds=2,
    )
"""


def write_comparison_file(folder: Path) -> Path:
    """An experiment file with that comparison in get_compare."""
    path = folder / "tiny_comparison.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\n{_CODE}")
    return path
