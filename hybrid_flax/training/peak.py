"""The most memory that training held."""

import re
import resource
import sys
from pathlib import Path

import jax

__all__ = ["PEAKS", "peak_memory"]

# What each peak is of, by its name in perf.jsonl; the first that a run has is its own.
_DEVICE, _PROCESS = "perf/device_peak_bytes", "perf/process_peak_bytes"
PEAKS = {_DEVICE: "device memory", _PROCESS: "resident memory of the process"}


def peak_memory() -> dict[str, int]:
    """The peak so far in bytes: of the accelerator where there is one, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {_DEVICE: stats["peak_bytes_in_use"]}
    return {_PROCESS: _resident_bytes()}


def _resident_bytes():
    """Of this process. What getrusage says would be its parent's, where that was larger when it was started."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
