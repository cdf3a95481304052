"""`python worker.py ROOM LIMIT`: the process that runs cases, a JSON line each from stdin, outcomes to stdout.

It is meant to be killed: a case that hangs where no signal is heard is ended from outside, or by faulthandler, which
says where.
"""

import faulthandler
import json
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

MEMORY = 4 * 2**30  # bytes of address space beyond those at the start: what is huge must not take the machine's


def main(room: Path, limit: float) -> None:
    answers = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 1)
    questions = os.fdopen(os.dup(0))
    os.dup2(silence, 0)
    log = open(os.dup(2), "w")  # noqa: SIM115
    import jax.numpy as jnp
    from fuzz.case import Case, Part
    from fuzz.strategies import run_case
    from fuzz.supervise import stretched

    jnp.zeros(1).block_until_ready()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, -1))
    for line in questions:
        kind, frame, parts = json.loads(line)
        case = Case(kind, tuple(frame), tuple(Part(*part) for part in parts))
        seconds = stretched(limit)
        faulthandler.dump_traceback_later(seconds + 5, exit=True, file=log)
        outcome = run_case(case, room, seconds)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
