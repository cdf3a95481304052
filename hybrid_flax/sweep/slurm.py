"""Trials as jobs of a SLURM cluster, by submitit: preempted ones are queued again and go on from their checkpoint."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from hybrid_flax.config import ConfigError
from hybrid_flax.sweep.executor import Ended, trial_command, trial_environment
from hybrid_flax.sweep.trials import TrialFolder

__all__ = ["SlurmExecutor", "parse_parameters"]


class SlurmExecutor:
    """One job a trial, `jobs` in the queue at a time. parameters: as submitit's executor takes them.

    Jobs outlive this process, and are found again when the sweep is started again. cluster: "slurm", or submitit's
    "local" without a cluster. Raises ConfigError where submitit or SLURM is missing or a parameter is unknown.
    """

    def __init__(self, workdir: str | os.PathLike, jobs: int, parameters: dict[str, Any], cluster: str = "slurm"):
        try:
            import submitit
        except ImportError:
            raise ConfigError("--executor=slurm needs submitit: pip install 'hybrid_flax[slurm]'") from None
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise ConfigError("--executor=slurm needs SLURM's sbatch, which is not on this machine")
        self.slots = jobs
        self._submitit, self._cluster = submitit, cluster
        self._logs = Path(workdir).absolute() / "slurm"
        # A trial may be queued again for as long as it takes.
        self._executor = submitit.AutoExecutor(folder=self._logs, cluster=cluster, slurm_max_num_timeout=1000)
        try:
            self._executor.update_parameters(**{"timeout_min": 24 * 60, **parameters})
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"--slurm: {' '.join(str(error).split())}") from error
        self._running: list[Any] = []

    def submit(self, folder: TrialFolder) -> Any:
        job = self._find(folder)
        if job is None:
            job = self._executor.submit(TrialJob(str(folder.path.absolute())))
            (folder.path / "job.json").write_text(json.dumps({"job": job.job_id, "logs": str(self._logs)}))
        self._running.append(job)
        return job

    def poll(self, job: Any) -> Ended | None:
        if not job.done():
            return None
        if job in self._running:
            self._running.remove(job)
        error = job.exception()
        return Ended(job.result()) if error is None else Ended(1, f"job {job.job_id}: {_last_line(error)}")

    def cancel(self, job: Any) -> None:
        job.cancel()

    def close(self) -> None:
        for job in self._running:
            job.cancel()
        for job in self._running:
            job.wait()
        self._running.clear()

    def _find(self, folder):
        """The job of an earlier sweep that is still to end, None where there is none."""
        path = folder.path / "job.json"
        if self._cluster != "slurm" or not path.exists():
            return None
        saved = json.loads(path.read_text())
        job = self._submitit.SlurmJob(folder=saved["logs"], job_id=saved["job"])
        return job if job.state in ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "CONFIGURING") else None


class TrialJob:
    """What a node runs: the trial as a process, which is asked to save when the job is preempted or out of time."""

    def __init__(self, folder: str):
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        folder = TrialFolder(self._folder)
        with folder.output.open("ab") as output:
            self._process = subprocess.Popen(
                trial_command(folder, os.getpid()), stdout=output, stderr=output, env=trial_environment()
            )
        return self._process.wait()

    def checkpoint(self) -> Any:
        import submitit

        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGTERM)
            # Not Popen.wait: this is a signal handler in the middle of one, which has its lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(TrialJob(self._folder))


def parse_parameters(text: str) -> dict[str, Any]:
    """The value of --slurm, "partition=gpu,timeout_min=60", as SLURM's parameters of submitit.

    Raises ConfigError for what is no NAME=VALUE.
    """
    common = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
    parameters = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--slurm={text}: {part!r} is no NAME=VALUE; an example: partition=gpu,timeout_min=60")
        number = int(value) if value.isdigit() else value
        parameters[name if name in common else f"slurm_{name}"] = number
    return parameters


def _last_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
