"""The most memory that training held."""

import re
import resource
import sys
from pathlib import Path

import jax

__all__ = ["peak_memory"]


def peak_memory() -> dict[str, int]:
    """The peak so far in bytes: of the accelerator where there is one, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"perf/device_peak_bytes": stats["peak_bytes_in_use"]}
    return {"perf/process_peak_bytes": _resident_bytes()}


def _resident_bytes():
    """Of this process. What getrusage says would be its parent's, where that was larger when it was started."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
