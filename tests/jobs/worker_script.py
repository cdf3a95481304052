"""python worker_script.py EXPERIMENT WORKDIR METHOD TRIALS [STORAGE]: a worker of a sweep whose trials do not train.

It says that it is there by a file beside WORKDIR, and begins when there is one called "go".
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs.fake import FakeExecutor

from hybrid_flax.jobs import worker
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.run import run_sweep

if __name__ == "__main__":
    experiment, workdir, method, trials, *storage = sys.argv[1:]
    worker._PAUSE = worker._PAUSE_IDLE = 0.04
    sweep = read_sweep(experiment, [], ["space"] if method != "grid" else [], method, int(trials))
    beside = Path(workdir).parent
    (beside / f"ready-{os.getpid()}").touch()
    while not (beside / "go").exists():
        time.sleep(0.01)
    standings, _ = run_sweep(sweep, Path(workdir), FakeExecutor(slots=2), storage=storage[0] if storage else None)
    sys.exit(any(one.state == "failed" for one in standings))
