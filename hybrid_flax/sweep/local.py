"""Trials on this machine: a fresh process each, some at a time."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from hybrid_flax.sweep.executor import Ended, trial_command, trial_environment
from hybrid_flax.sweep.trials import TrialFolder

__all__ = ["LocalExecutor", "Share", "share_of", "visible_gpus"]


class _Job(NamedTuple):
    process: subprocess.Popen
    slot: int


class LocalExecutor:
    """`jobs` processes at a time, each in a group of its own; output goes to the trial's output.log.

    gpus: handed out one to a process, shared where there are fewer than jobs; without any, jobs share the cores
    evenly. A process ends with this one. patience: seconds from the wish to end to SIGKILL.
    """

    def __init__(self, jobs: int = 1, gpus: Sequence[str] = (), patience: float = 120.0):
        self.slots = jobs
        self._gpus, self._patience = list(gpus), patience
        self._running: dict[int, _Job] = {}

    def submit(self, folder: TrialFolder) -> _Job:
        slot = min(set(range(self.slots)) - self._running.keys())
        share = share_of(slot, self.slots, self._gpus)
        with folder.output.open("ab") as output:
            process = subprocess.Popen(
                trial_command(folder, os.getpid(), share.cores),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=trial_environment(**share.environment),
                start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which passes it on
            )
        self._running[slot] = _Job(process, slot)
        return self._running[slot]

    def poll(self, job: _Job) -> Ended | None:
        code = job.process.poll()
        if code is None:
            return None
        self._running.pop(job.slot, None)
        _signal_group(job, signal.SIGKILL)  # what it may have left behind
        return Ended(code)

    def cancel(self, job: _Job) -> None:
        _signal_group(job, signal.SIGTERM)

    def close(self) -> None:
        jobs = list(self._running.values())
        try:
            for job in jobs:
                self.cancel(job)
            deadline = time.monotonic() + self._patience
            while any(self.poll(job) is None for job in jobs) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:  # also after another Ctrl-C
            for job in jobs:
                if job.process.poll() is None:
                    _signal_group(job, signal.SIGKILL)
                    job.process.wait()
            self._running.clear()


class Share(NamedTuple):
    """A job's part of the machine. environment: variables to set. cores: numbers of those to stay on, none for all."""

    environment: dict[str, str]
    cores: tuple[int, ...]


def share_of(slot: int, slots: int, gpus: Sequence[str]) -> Share:
    """What job number `slot` of `slots` gets: a GPU, or a part of one, where there are any, else its cores.

    Jobs that all use every core wait for one another more than they compute.
    """
    if gpus:
        environment = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}
        if slots > len(gpus):
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-slots // len(gpus)):.3f}"
        return Share(environment, ())
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if slots == 1 or not cores:
        return Share({}, ())
    return Share({}, tuple(cores[slot % len(cores) :: slots]))


def visible_gpus() -> list[str]:
    """The GPUs that JAX would find, as CUDA_VISIBLE_DEVICES names them; JAX is not asked, as it would take them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu and gpu != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if not listed.returncode else []


def _signal_group(job, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)
