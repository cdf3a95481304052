"""32 trials that differ in learning rate and seed: in lanes, one after another in one process, and in 32 processes.

    python benchmarks/lanes.py --widths=16,32,64,128

Every side trains the same trials of a one-layer LSTM to run folders, from an empty compile cache, one side after the
other; the figure is the wall time of the whole command, from its start to its end. "One process" calls
`hybrid_flax.training.loop.train` for every trial, which compiles once; "processes" is the local executor, `--jobs` at a
time, by default one after another as a shell loop starts them.

This file is the experiment, too: `python launch.py sweep --config=benchmarks/lanes.py:16 --executor=lanes
--config.data.path=FILE`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from hybrid_flax.config import base_config
from hybrid_flax.sweep.space import axis, product

ROOT = Path(__file__).parents[1]
RATES = [1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 1e-2, 2e-2, 3e-2]


def get_config(arg: str = "") -> ConfigDict:
    """arg: the width."""
    config = base_config()
    config.data.length = 32
    config.data.batch_size = 4
    config.data.valid_fraction = 0.1
    config.data.test_fraction = 0.1
    config.model.pattern = "lstm"
    config.model.depth = 1
    config.model.width = int(arg or 16)
    config.train.steps = 1500
    config.train.log_every = 100
    config.eval.every = 1500
    config.train.checkpoint_every = 1500
    config.eval.batch_size = 16
    return config


def sweep() -> Iterator[dict]:
    """Eight learning rates, four seeds."""
    return product(axis("optim.learning_rate", RATES), axis("seed", [0, 1, 2, 3]))


def write_text(path: Path) -> None:
    """100,000 characters of two plays."""
    from hybrid_flax.data.corpora import load_corpus

    path.write_text("".join(load_corpus("shakespeare").valid)[:100_000], encoding="utf-8")


def train_alone(width: str, text: str, folder: Path) -> None:
    """Every trial in this process."""
    import jax
    from rich.console import Console

    from hybrid_flax.sweep.definition import read_sweep
    from hybrid_flax.training.loop import train

    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    for trial in read_sweep(f"{__file__}:{width}", [f"data.path={text}"]).trials:
        train(trial.config, folder / trial.name, __file__, Console(quiet=True))


def seconds_of(side: str, width: int, text: Path, folder: Path, jobs: int) -> float:
    """Wall time of one side, checked to have trained every trial."""
    target = folder / f"{side}-{width}"
    shutil.rmtree(target, ignore_errors=True)
    sweep_command = [sys.executable, str(ROOT / "launch.py"), "sweep", f"--config={__file__}:{width}"]
    sweep_command += [f"--config.data.path={text}", f"--workdir={target}"]
    command = {
        "lanes": [*sweep_command, "--executor=lanes"],
        "one process": [sys.executable, __file__, f"--alone={width}", f"--text={text}", f"--folder={target}"],
        "processes": [*sweep_command, f"--jobs={jobs}"],
    }[side]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        since = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds = time.perf_counter() - since
    done = len(list(target.glob("*/results.json")))
    assert done == 32, f"{side}: {done} of 32 trials are done"
    return seconds


def measure(widths: list[int], sides: list[str], folder: Path, jobs: int) -> str:
    """A Markdown table of all widths."""
    text = folder / "text.txt"
    write_text(text)
    lines = ["| width | lanes, s | one process, s | 32 processes, s | lanes : one process | lanes : processes |"]
    lines[0] += " runs an hour | what ran, ms a step and run in lanes / alone |"
    lines.append("|---" * 8 + "|")
    for width in widths:
        taken = {side: seconds_of(side, width, text, folder, jobs) for side in sides}
        row = json.loads((folder / f"lanes-{width}" / "lanes.jsonl").read_text().splitlines()[0])
        cells = [str(width)]
        cells += [f"{taken[side]:.0f}" if side in taken else "" for side in ("lanes", "one process", "processes")]
        cells += [f"{taken['lanes'] / taken[s]:.2f}" if s in taken else "" for s in ("one process", "processes")]
        cells += [
            f"{32 / taken['lanes'] * 3600:,.0f}",
            f"{row['choice']}, {row['lanes_ms']:.2f} / {row['alone_ms']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="16,32,64,128")
    parser.add_argument("--sides", default="lanes,one process,processes")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hybrid_flax-lanes")
    parser.add_argument("--alone")
    parser.add_argument("--text")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.alone:
        train_alone(options.alone, options.text, options.folder)
        return
    widths = [int(width) for width in options.widths.split(",")]
    print(measure(widths, options.sides.split(","), options.folder, options.jobs))


if __name__ == "__main__":
    main()
