"""The kinds of cases, and a case by its seed and number."""

import random
from collections.abc import Sequence
from pathlib import Path

from fuzz.calls import CALLS
from fuzz.case import Case, Outcome
from fuzz.comparisons import COMPARISONS
from fuzz.configs import CONFIGS
from fuzz.data_files import DATA_FILES
from fuzz.judge import judge
from fuzz.layers import LAYERS
from fuzz.run_folders import RUN_FOLDERS
from fuzz.sweeps import SWEEPS

__all__ = ["STRATEGIES", "make_case", "run_case"]

STRATEGIES = {
    "config": CONFIGS,
    "layers": LAYERS,
    "sweeps": SWEEPS,
    "comparisons": COMPARISONS,
    "run_folders": RUN_FOLDERS,
    "data_files": DATA_FILES,
    "calls": CALLS,
}


def make_case(seed: int, number: int, kinds: Sequence[str] = tuple(STRATEGIES)) -> Case:
    """Case `number` of `seed`, of one of `kinds`."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(kinds, [STRATEGIES[kind].weight for kind in kinds])[0]
    return STRATEGIES[kind].make(rng)


def run_case(case: Case, room: Path, limit: float) -> Outcome:
    """Run it in this process."""
    return judge(case, STRATEGIES[case.kind].actions, room, limit)
