"""python worker_script.py EXPERIMENT WORKDIR METHOD TRIALS [STORAGE]: a worker of a sweep whose trials do not train."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweep.fake import FakeExecutor

from hybrid_flax.sweep import run

if __name__ == "__main__":
    experiment, workdir, method, trials, *storage = sys.argv[1:]
    run._PAUSE = run._PAUSE_IDLE = 0.02
    plan = run.read_sweep(experiment, [], ["space"] if method != "grid" else [], method, int(trials))
    sys.exit(run.run_sweep(plan, Path(workdir), FakeExecutor(slots=2), storage=storage[0] if storage else None))
