"""Sweeps that train, in processes: killed twice and gone on with they are the sweep that never stopped."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import engines
import pytest
import tiny

from hybrid_flax.jobs.slurm import SlurmExecutor
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.training.writers import read_jsonl

SWEEP = """
from hybrid_flax.sweep.space import axis, product
def sweep():
    return product(axis("model.pattern", ["lstm", "cascade:lstm+swa"]), axis("optim.learning_rate", [1e-3, 1e-2]))
"""
STEPS = 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    changes = {"train__steps": STEPS, "train__checkpoint_every": 40, "eval__every": 50, "train__dropout": 0.1}
    return tiny.write_experiment(folder, tiny.write_text(folder), SWEEP, **changes)


def start(experiment, workdir) -> subprocess.Popen:
    command = ("sweep", f"--config={experiment}", "--jobs=2", f"--workdir={workdir}")
    return tiny.start(tiny.ROOT / "launch.py", *command)


def processes_of(folder: Path) -> list[int]:
    """The processes whose command names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{folder}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def steps_done(workdir) -> int:
    return sum(rows[-1]["step"] for path in workdir.glob("*/metrics.jsonl") if (rows := read_jsonl(path)))


def wait_for(condition, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_killed_twice(experiment, tmp_path):
    code, out, err = tiny.finish(start(experiment, tmp_path / "whole"))
    assert code == 0, err

    rng = random.Random(0)
    for part in (0.1, 0.5):
        process = start(experiment, tmp_path / "cut")
        wanted = (part + rng.uniform(0, 0.2)) * 4 * STEPS
        wait_for(lambda wanted=wanted, p=process: steps_done(tmp_path / "cut") > wanted or p.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, out, err = tiny.finish(start(experiment, tmp_path / "cut"))
    assert code == 0, err
    assert not processes_of(tmp_path / "cut")

    trials = read_sweep(str(experiment), []).trials
    for trial in trials:
        for name in ("metrics.jsonl", "results.json", "config.json"):
            whole = (tmp_path / "whole" / trial.name / name).read_bytes()
            assert (tmp_path / "cut" / trial.name / name).read_bytes() == whole, (trial.values, name)
    assert (tmp_path / "cut" / "sweep.csv").read_text() == (tmp_path / "whole" / "sweep.csv").read_text()
    logs = "".join((tmp_path / "cut" / trial.name / "output.log").read_text() for trial in trials)
    assert "going on from the checkpoint of step" in logs

    # Ctrl-C leaves nothing running, and what it stopped is saved.
    process = start(experiment, tmp_path / "stopped")
    wait_for(lambda: steps_done(tmp_path / "stopped") > 0)
    process.send_signal(signal.SIGINT)
    code, out, err = tiny.finish(process)
    assert (code, err) == (130, "") and "run the same command to go on" in out
    assert not processes_of(tmp_path / "stopped")


def test_a_preempted_job(experiment, tmp_path, monkeypatch):
    """submitit without a cluster: on its signal the trial saves, is queued again, and goes on under the same handle."""
    engines.library("submitit")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    executor = SlurmExecutor(tmp_path, 1, {"timeout_min": 10}, cluster="local")
    trial = read_sweep(str(experiment), []).trials[0]
    folder = TrialFolder(tmp_path / trial.name)
    folder.prepare(trial, str(experiment))
    job = executor.submit(folder)
    wait_for(lambda: steps_done(tmp_path) > 0 or job.done())
    assert not job.done(), job.stderr()
    children = Path(f"/proc/{job._process.pid}/task/{job._process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGUSR2)
    ended = []
    wait_for(lambda: (end := executor.poll(job)) is not None and not ended.append(end))
    assert ended[0].code == 0, folder.output.read_text()
    assert read_status(folder.path, "loss").state == "done"
    output = folder.output.read_text()
    assert "stopped by SIGTERM after step" in output and "going on from the checkpoint of step" in output
    executor.close()
