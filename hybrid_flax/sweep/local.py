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

__all__ = ["LocalExecutor", "visible_gpus"]


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
        environment, cpus = self._share(slot)
        with folder.output.open("ab") as output:
            process = subprocess.Popen(
                trial_command(folder, os.getpid(), cpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
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

    def _share(self, slot):
        """(environment, cores) of the process in a slot."""
        if self._gpus:
            changes = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]}
            if self.slots > len(self._gpus):
                sharing = -(-self.slots // len(self._gpus))
                changes["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
            return trial_environment(**changes), ""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if self.slots == 1 or not cores:
            return trial_environment(), ""
        mine = cores[slot % len(cores) :: self.slots] if self.slots <= len(cores) else [cores[slot % len(cores)]]
        return trial_environment(), ",".join(map(str, mine))


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
