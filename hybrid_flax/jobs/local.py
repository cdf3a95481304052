"""Trials on this machine: a fresh process each, some at a time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from hybrid_flax.jobs.executor import Ended, trial_command, trial_environment
from hybrid_flax.jobs.machine import share_of
from hybrid_flax.jobs.trial import TrialFolder

__all__ = ["LocalExecutor"]


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


def _signal_group(job, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)
