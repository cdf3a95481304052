"""This machine, shared out among jobs that run at the same time."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Share", "share_of", "visible_gpus"]


class Share(NamedTuple):
    """A job's part of the machine. environment: variables to set. cores: numbers of those to stay on, none for all."""

    environment: dict[str, str]
    cores: tuple[int, ...]


def share_of(slot: int, slots: int, gpus: Sequence[str]) -> Share:
    """What job number `slot` of `slots` gets: a GPU, or a part of one, where there are any, else its cores.

    Jobs that all use every core get in one another's way.
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
