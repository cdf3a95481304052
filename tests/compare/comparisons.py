"""A comparison of seconds: two rows, one of them a fusion, on two tasks."""

from pathlib import Path

import tiny

__all__ = ["write_comparison_file"]

_TEMPLATE = """
import tiny
from hybrid_flax.compare.definition import ComparedTask, Definition

FIXED = {{"eval__every": 3, "eval__batch_size": 64}}

def get_compare(arg=""):
    text = tiny.tiny_config({text!r}, data__test_fraction=0.2, **FIXED)
    answers = {{"task__name": "answer", "data__mode": "padded", "eval__length": 12, "eval__metric": "accuracy"}}
    parity = tiny.tiny_config("synthetic:parity", **answers, **FIXED)
    return Definition(
        title="Tiny",
        rows={{"tanh": {{"model.pattern": "tanh"}}, "both": {{"model.pattern": "add:tanh+conv"}}}},
        tasks={{"text": ComparedTask(text), "parity": ComparedTask(parity, {{"flops": 6_000}})}},
        budget={{"parameters": 4_000}},
        learning_rates=(1e-3, 1e-2),
        seeds=2,
    )
"""


def write_comparison_file(folder: Path, text: Path) -> Path:
    """An experiment file with that comparison in get_compare."""
    path = folder / "tiny_comparison.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\n{_TEMPLATE.format(text=str(text))}")
    return path
