"""Trials as jobs of SLURM: mistakes, jobs that wait, a sweep that it stops; see also test_end_to_end.py."""

import json
import subprocess
import sys
import time

import engines
import pytest
import tiny

from hybrid_flax.cli import main
from hybrid_flax.config import ConfigError
from hybrid_flax.jobs.executor import trial_command
from hybrid_flax.jobs.slurm import SlurmExecutor, parse_parameters
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.training.writers import read_jsonl

engines.library("submitit")

SWEEP = """
from hybrid_flax.sweep.space import axis
def sweep():
    return axis("optim.learning_rate", [1e-3, 3e-3, 1e-2, 3e-2])
"""
STEPS = 3000
ALONE = """
import sys
from hybrid_flax.cli import main
for trial, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    assert main(["train", f"--config={trial}", f"--workdir={folder}"]) == 0
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    changes = {"train__steps": STEPS, "train__checkpoint_every": STEPS, "train__log_every": 25, "train__dropout": 0.1}
    return tiny.write_experiment(folder, tiny.write_text(folder), SWEEP, **changes)


def test_parameters():
    assert parse_parameters("partition=gpu,timeout_min=60,gpus_per_node=1") == {
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "gpus_per_node": 1,
    }
    assert parse_parameters("") == {}
    with pytest.raises(ConfigError, match="'gpu' is no NAME=VALUE"):
        parse_parameters("gpu")


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs SLURM's sbatch"):
        SlurmExecutor(tmp_path, 1, {})
    (tmp_path / "sbatch").touch(0o755)
    (tmp_path / "srun").touch(0o755)
    with pytest.raises(ConfigError, match=r"--slurm: .*slurm_partitoin") as caught:
        SlurmExecutor(tmp_path, 1, parse_parameters("partitoin=gpu"))
    assert "\n" not in str(caught.value)


def test_a_trial_lives_through_the_warning(tmp_path):
    """SLURM's SIGUSR2 before the end of the time goes to every process of a job, and is not for the trial."""
    start = trial_command(TrialFolder(tmp_path), 0)[:6]
    signals = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)"
    assert subprocess.run([*start, sys.executable, "-c", signals], check=False).returncode == 0


@pytest.mark.parametrize("parameter, reason", [("partition=nope", "nope"), ("gpus_per_node=1", "generic resource")])
def test_what_slurm_refuses(parameter, reason, slurm, experiment, tmp_path, capsys):
    command = ["sweep", f"--config={experiment}", "--executor=slurm", f"--slurm={parameter}", f"--workdir={tmp_path}"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --executor=slurm: sbatch refuses a job: ") and reason in line


def test_jobs_are_found_again(slurm, tmp_path):
    """A job that waits is the same job for the next sweep; a cancelled one is not, and none is left behind."""
    folder = TrialFolder(tmp_path / "trial")
    folder.path.mkdir()
    one, other = (SlurmExecutor(tmp_path, 1, parse_parameters("partition=closed")) for _ in range(2))
    job = one.submit(folder)
    same = other.submit(folder)
    assert same.job_id == job.job_id and one.poll(job) is None and other.poll(same) is None
    other.cancel(same)
    while (ended := other.poll(same)) is None:
        time.sleep(0.1)
    assert ended.code == 1 and f"job {job.job_id} is CANCELLED" in ended.reason
    again = other.submit(folder)
    assert again.job_id != job.job_id
    other.close()
    listed = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True).stdout
    assert not {job.job_id, again.job_id} & set(listed.split())


@pytest.mark.slow
def test_stopped_by_slurm(slurm, experiment, tmp_path):
    """Of four trials one is preempted and one warned of the end of its time: both save, are queued again, and go on;
    every step of every trial is trained once."""
    trials = read_sweep(str(experiment), []).trials
    folders = [TrialFolder(tmp_path / "swept" / trial.name) for trial in trials]
    command = ("sweep", f"--config={experiment}", "--executor=slurm", "--jobs=2", "--slurm=partition=normal")
    process = tiny.start(tiny.ROOT / "launch.py", *command, f"--workdir={tmp_path / 'swept'}")

    def wait_until_trained(*some):
        while not all(folder.metrics.exists() and read_jsonl(folder.metrics) for folder in some):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)

    wait_until_trained(*folders[:2])
    subprocess.run(["sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=true"], check=True)
    wait_until_trained(folders[3])
    job = json.loads((folders[3].path / "job.json").read_text())["job"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    code, out, err = tiny.finish(process)
    assert (code, err) == (0, ""), out

    outputs = [folder.output.read_text() for folder in folders]
    stopped = [text for text in outputs if "stopped by SIGTERM" in text]
    assert len(stopped) == 2 and outputs[3] in stopped
    for text in stopped:
        step = int(text.partition("stopped by SIGTERM after step ")[2].partition(",")[0])
        assert 0 < step < STEPS and f"going on from the checkpoint of step {step}\n" in text

    alone = [tmp_path / "alone" / trial.name for trial in trials]
    pairs = [path for folder, path in zip(folders, alone) for path in (folder.trial, path)]
    code, out, err = tiny.python("-c", ALONE, *pairs)
    assert code == 0, err
    for folder, path in zip(folders, alone):
        for name in ("metrics.jsonl", "results.json", "config.json"):
            assert (folder.path / name).read_bytes() == (path / name).read_bytes(), name
