"""A run small enough to repeat many times: its text, its config, and the processes that launch it."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hybrid_flax.config import apply_overrides, base_config
from hybrid_flax.data import sources
from hybrid_flax.typing import Batch

__all__ = [
    "ROOT",
    "Crash",
    "asked",
    "at_step",
    "crash",
    "finish",
    "overrides_of",
    "python",
    "start",
    "tiny_config",
    "write_experiment",
    "write_text",
]

ROOT = Path(__file__).parents[1]

_VALUES = {
    "data.length": 8,
    "data.batch_size": 4,
    "data.valid_fraction": 0.2,
    "model.pattern": "cascade:lstm+swa",
    "model.depth": 1,
    "model.width": 8,
    "mixers.swa.num_heads": 2,
    "mixers.swa.window": 4,
    "train.steps": 6,
    "train.log_every": 2,
    "train.checkpoint_every": 3,
    "eval.every": 0,
    "eval.batch_size": 4,
    "sample.tokens": 8,
}


def overrides_of(text_file: str | os.PathLike, **changes: Any) -> list[str]:
    """The "key=value" texts of a run of seconds; changes are dotted names with `__` for the dot."""
    values = {"data.path": str(text_file), **_VALUES} | {key.replace("__", "."): v for key, v in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def tiny_config(text_file: str | os.PathLike, **changes: Any) -> ConfigDict:
    """The config of `overrides_of`."""
    return apply_overrides(base_config(), overrides_of(text_file, **changes))


def write_text(folder: Path, num_chars: int = 3000, seed: int = 0) -> Path:
    """A text of words, lines and paragraphs of many lengths."""
    rng = random.Random(seed)
    text = ""
    while len(text) < num_chars:
        text += "".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 6))) + rng.choice("   ,.\n\n")
        text += "\n" * (rng.random() < 0.15)
    path = folder / "text.txt"
    path.write_text(text[:num_chars], encoding="utf-8")
    return path


def write_experiment(folder: Path, text_file: Path, head: str = "", **changes: Any) -> Path:
    """An experiment file with the config of `tiny_config`; `head` is code that runs before get_config."""
    path = folder / "tiny_experiment.py"
    path.write_text(
        "from hybrid_flax.config import apply_overrides, base_config\n"
        f"{head}\n"
        'def get_config(arg=""):\n'
        f"    return apply_overrides(base_config(), {overrides_of(text_file, **changes)!r})\n"
    )
    return path


def start(*arguments: Any, num_devices: int = 1, output: Any = subprocess.PIPE) -> subprocess.Popen:
    """A fresh Python with warnings as errors, on the CPU as `num_devices` devices, which compiles as the tests do."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, timeout: float = 1200) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process, killed where it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout} s\n{out}\n{err}") from None
    return process.returncode, out, err


def python(*arguments: Any, num_devices: int = 1, timeout: float = 1200) -> tuple[int, str, str]:
    """`finish` of `start`."""
    return finish(start(*arguments, num_devices=num_devices), timeout)


def asked(targets: Any, weights: Any, **widths: Any) -> Batch:
    """A batch of which a task reads nothing but what is asked: it has no tokens."""
    return Batch(None, None, targets, weights, None, **widths)


class Crash(Exception):
    """Stands for a machine that goes down."""


def at_step(monkeypatch, step, act):
    """Call act() once, when the batch of `step` (counted from 0) is asked for."""
    original, todo = sources.make_batches, [act]

    def make_batches(*args, **kwargs):
        batches = original(*args, **kwargs)

        def batch(index, rows=slice(None)):
            if index == step and todo:
                todo.pop()()
            return batches.batch(index, rows)

        return batches._replace(batch=batch)

    monkeypatch.setattr(sources, "make_batches", make_batches)


def crash():
    raise Crash


_CELL = '''
import jax.numpy as jnp
from hybrid_flax import Cell, register_cell
from hybrid_flax.cells.inputs import linear


def leaky(width: int, *, rate: float = 0.5) -> Cell:
    """h_t = tanh(W x_t + b) + rate h_tm1."""

    def step(params, state, u_t):
        h = jnp.tanh(u_t[:, 0]) + rate * state["h"]
        return {"h": h}, h

    def init_state(batch_size):
        return {"h": jnp.zeros((batch_size, width))}

    return Cell(linear(width, (1, width)), lambda key: {}, init_state, step, width)


register_cell("NAME", leaky)
'''


def own_cell(name: str) -> str:
    """The source of an experiment file that registers a cell of its own."""
    return _CELL.replace("NAME", name)
