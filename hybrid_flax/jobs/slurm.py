"""Trials as jobs of a SLURM cluster, by submitit: preempted ones are queued again and go on from their checkpoint."""

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.files import read_json, reading, write_json
from hybrid_flax.jobs.executor import Ended, trial_command, trial_environment
from hybrid_flax.jobs.trial import TrialFolder

__all__ = ["SlurmExecutor", "parse_parameters"]

_PAUSE = 3.0  # seconds between two questions to SLURM, which serves others too
_AHEAD = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED")
# Without a result these are the end. COMPLETED is not: its result is on its way through the file system.
_ENDS: tuple[str, ...] = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY")
_ENDS += ("PREEMPTED", "TIMEOUT")
_ENDS += ("FORGOTTEN", "FINISHED", "INTERRUPTED")  # by SLURM, some minutes after its end; the others are of "local"


class SlurmExecutor:
    """One job a trial, `jobs` in the queue at a time. parameters: as submitit's executor takes them.

    Jobs outlive this process, and are found again when the sweep is started again. No accounting is needed. cluster:
    "slurm", or submitit's "local" without a cluster. Raises ConfigError where submitit or SLURM is missing, a parameter
    is unknown, or SLURM refuses a job.
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
            self._executor.update_parameters(**(_defaults() | parameters))
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"--slurm: {one_line(error)}") from error
        self._running: list[Any] = []
        self._states: dict[str, str] | None = None
        self._asked = float("-inf")

    def submit(self, folder: TrialFolder) -> Any:
        job = self._find(folder)
        if job is None:
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    job = self._executor.submit(TrialJob(str(folder.path.absolute())))
            except (OSError, RuntimeError) as error:
                lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines()]
                raise ConfigError(f"--executor=slurm: sbatch refuses a job: {'; '.join(lines)}") from error
            write_json(folder.path / "job.json", {"job": job.job_id, "logs": str(self._logs)})
            self._asked = float("-inf")
        self._running.append(job)
        return job

    def poll(self, job: Any) -> Ended | None:
        state = self._state(job)  # before the result, which is written before a job ends
        if self._cluster != "slurm" and state == "RUNNING":
            return None  # its process is a child of this one
        if job.paths.result_pickle.exists():
            outcome, value = self._submitit.core.utils.pickle_load(job.paths.result_pickle)
            ended = Ended(value) if outcome == "success" else Ended(1, f"job {job.job_id}: {_last_line(value)}")
        elif state in _ENDS:
            ended = Ended(1, f"job {job.job_id} is {state}: {_last_line(job.stderr() or 'it printed nothing')}")
        else:
            return None
        if job in self._running:
            self._running.remove(job)
        return ended

    def cancel(self, job: Any) -> None:
        job.cancel(check=False)

    def close(self) -> None:
        for job in self._running:
            self.cancel(job)
        self._asked = float("-inf")
        while any([self.poll(job) is None for job in list(self._running)]):
            if self._cluster == "slurm" and self._states is None:
                return  # SLURM is out of reach; its jobs are found again
            time.sleep(0.2)

    def _state(self, job):
        if self._cluster != "slurm":
            return job.state
        if time.monotonic() - self._asked > _PAUSE:
            self._states, self._asked = _ask_slurm(), time.monotonic()
        return "UNKNOWN" if self._states is None else self._states.get(job.job_id, "FORGOTTEN")

    def _find(self, folder):
        """The job of an earlier sweep that is still to end, None where there is none."""
        path = folder.path / "job.json"
        if self._cluster != "slurm" or not path.exists():
            return None
        with reading(path):
            saved = read_json(path, dict)
            job = self._submitit.SlurmJob(folder=saved["logs"], job_id=saved["job"])
        return job if self._state(job) in (*_AHEAD, "COMPLETING", "UNKNOWN") else None


class TrialJob:
    """What a node runs: the trial as a process, which saves and ends when the job is preempted or out of time.

    SLURM preempts and cancels by SIGTERM, to every process of the job. It warns of the end of the time by SIGUSR2, to
    all too, which is for submitit: that calls `checkpoint` and queues the job again.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        folder = TrialFolder(self._folder)
        with folder.output.open("ab") as output:
            self._process = subprocess.Popen(
                trial_command(folder, os.getpid()), stdout=output, stderr=output, env=trial_environment()
            )
        code = self._process.wait()
        if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            sys.exit(128 + signal.SIGTERM)  # without a result: SLURM may have queued the job again
        return code

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


def _defaults():
    """Parameters of every job, where --slurm has no others."""
    return {
        "timeout_min": 24 * 60,
        "slurm_setup": [f"export PYTHONPATH={shlex.quote(trial_environment()['PYTHONPATH'])}"],
        "slurm_additional_parameters": {"requeue": True},  # clusters may be set up not to
    }


def _ask_slurm():
    """The state of each of this user's jobs, None where SLURM does not answer."""
    command = ["squeue", "--me", "--states=all", "--noheader", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else dict(line.split() for line in done.stdout.splitlines())


def _last_line(text):
    return text.strip().rpartition("\n")[2].strip()
