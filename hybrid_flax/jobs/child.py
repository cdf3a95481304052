"""The start of a trial's process: `python child.py PARENT LOCK CORES COMMAND...`. It imports nothing of the package.

It asks the kernel to end it (SIGTERM, on which a run saves) with its parent, waits for whoever else still writes into
the folder, and becomes COMMAND, which keeps the lock for as long as it lives. PARENT 0: there is none to end with.
"""

import ctypes
import fcntl
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, lock: str, cores: str, command: list[str]) -> None:
    """Become `command`; cores: comma-separated numbers of those to stay on, "" for all."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before the kernel knew
            sys.exit(128 + signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a warning of SLURM, on which the parent acts
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(file, True)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
