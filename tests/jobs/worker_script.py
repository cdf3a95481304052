"""python worker_script.py EXPERIMENT WORKDIR METHOD TRIALS [STORAGE]: a worker of a sweep whose trials do not train.

It says that it is there by a file beside WORKDIR, and begins when there is one called "go".
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep.fake import FakeExecutor

from hybrid_flax.sweep import run

if __name__ == "__main__":
    experiment, workdir, method, trials, *storage = sys.argv[1:]
    run._PAUSE = run._PAUSE_IDLE = 0.04
    plan = run.read_sweep(experiment, [], ["space"] if method != "grid" else [], method, int(trials))
    beside = Path(workdir).parent
    (beside / f"ready-{os.getpid()}").touch()
    while not (beside / "go").exists():
        time.sleep(0.01)
    sys.exit(run.run_sweep(plan, Path(workdir), FakeExecutor(slots=2), storage=storage[0] if storage else None).code)
