"""Runs in lanes of several devices, and alone on one; prints the largest relative difference of final parameters.

python lanes_script.py TEXT FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

sys.path[:0] = [f"{__file__.rpartition('/')[0]}/..", __file__.rpartition("/")[0]]

import tiny  # noqa: E402

from hybrid_flax.jobs.lanes import open_session, prepare_paces, train_lanes  # noqa: E402
from hybrid_flax.training.loop import train  # noqa: E402
from hybrid_flax.training.setup import make_setup  # noqa: E402

QUIET = Console(quiet=True)


class Feed:
    def __init__(self, configs, folder):
        self.waiting, self.folder, self.errors = list(enumerate(configs)), folder, []

    def admit(self, count):
        new, self.waiting = self.waiting[:count], self.waiting[count:]
        return [
            open_session(make_setup(config), config, self.folder / f"lane{number}", console=QUIET)
            for number, config in new
        ]

    def stops(self, session):
        return False

    def ended(self, session, error):
        self.errors.append(error)


def main(text: str, folder: Path) -> None:
    values = {"train__steps": 20, "eval__every": 10, "data__mode": "stream", "optim__ema_decay": 0.9}
    configs = [tiny.tiny_config(text, seed=seed, **values, train__parallel="jit") for seed in range(5)]
    feed = Feed(configs, folder)
    train_lanes(make_setup(configs[0]), 3, feed)  # four, on two devices; the fifth run takes a lane that is free
    assert feed.errors == [None] * 5
    worst = 0.0
    for number, config in enumerate(configs):
        alone, _ = train(config, folder / f"alone{number}", console=QUIET)
        lane, _ = train(config, folder / f"lane{number}", console=QUIET)  # finished: it is read
        for a, b in zip(jax.tree.leaves(lane.params), jax.tree.leaves(alone.params), strict=True):
            worst = max(worst, float(np.max(np.abs(a - b)) / np.max(np.abs(b))))
        for name in ("metrics.jsonl", "results.json"):
            assert (folder / f"lane{number}" / name).exists()
    paces = prepare_paces(make_setup(configs[0]), configs[0], 4)()
    print(json.dumps({"devices": jax.local_device_count(), "worst": worst, "paces": paces}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
