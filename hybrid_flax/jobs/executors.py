"""The executors by their names."""

from pathlib import Path

from hybrid_flax.jobs.executor import Executor
from hybrid_flax.jobs.lane_executor import LanesExecutor
from hybrid_flax.jobs.local import LocalExecutor
from hybrid_flax.jobs.machine import visible_gpus
from hybrid_flax.jobs.slurm import SlurmExecutor, parse_parameters

__all__ = ["default_jobs", "make_executor"]


def make_executor(name: str, workdir: Path, jobs: int | None = None, slurm: str | None = None) -> Executor:
    """What trains `jobs` trials at a time: "local", "lanes" or "slurm". slurm: the parameters of its jobs, as text.

    Raises ConfigError where there is no SLURM, or it does not know a parameter.
    """
    if name == "slurm":
        return SlurmExecutor(workdir, jobs or default_jobs(), parse_parameters(slurm or ""))
    if name == "lanes":
        return LanesExecutor(workdir, jobs or 32)
    return LocalExecutor(jobs or default_jobs(), visible_gpus())


def default_jobs() -> int:
    """How many processes train at a time where nothing is said: as many as there are GPUs to hand out."""
    return max(1, len(visible_gpus()))
