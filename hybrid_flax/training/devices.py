"""JAX as a command needs it: its compile cache, its platform, and the other processes of the run."""

import os
import sys
import time
from pathlib import Path

import jax

from hybrid_flax.errors import ConfigError, one_line

__all__ = ["device_memory", "leave", "set_up_jax"]

_HEAD_START = 3.0  # seconds


def set_up_jax(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    platforms: str | None = None,
) -> None:
    """Keep compiled programs on disk, and meet the other processes of a run; before JAX is first asked for a device.

    coordinator: HOST:PORT of process 0, None for a run of one process. platforms: those that this process may use, None
    for all. Raises ConfigError where the processes do not meet.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "hybrid_flax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if platforms is not None:
        jax.config.update("jax_platforms", platforms)
    if coordinator is not None:
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"--coordinator={coordinator}: the processes do not meet: {one_line(error)}") from error


def device_memory() -> int:
    """Bytes of memory that one device has: an accelerator's own, else that of this machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def leave(code: int) -> None:
    """End a process of a run of several at once, after a fault; a run of one goes on.

    An ordinary end waits for the others, which wait for this one: that takes minutes. The first one, by which they
    meet, lets the others go before it: without it JAX ends them with a page of C++.
    """
    if jax.distributed.is_initialized():
        if jax.process_index() == 0:
            time.sleep(_HEAD_START)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
