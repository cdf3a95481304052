"""A run that is cut off anywhere and started again is the run that never stopped, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax.config import ConfigError
from hybrid_flax.train import loop
from hybrid_flax.train.checkpoint import Checkpoints
from hybrid_flax.train.experiment import make_experiment
from hybrid_flax.train.folder import RunFolder
from hybrid_flax.train.loop import Interrupted, train

MODES = {
    "windows": {"train__dropout": 0.2, "optim__ema_decay": 0.9},
    "stream": {"train__dropout": 0.2, "optim__name": "muon", "eval__every": 40},
    "packed": {"train__dropout": 0.2, "optim__accumulate": 2, "data__document": "paragraph", "optim__ema_decay": 0.9},
}


def final_position(config, workdir) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by its path: parameters, optimizer, EMA, carry, sums, key, step."""
    checkpoints = Checkpoints(RunFolder(workdir).checkpoints)
    assert checkpoints.latest() == config.train.steps
    position = loop._start_or_resume(make_experiment(config), config, checkpoints)
    checkpoints.close()
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(position)[0]:
        data = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        arrays[jax.tree_util.keystr(path)] = np.asarray(data)
    return arrays


def assert_same_run(config, one, other):
    a, b = final_position(config, one), final_position(config, other)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].tobytes() == b[path].tobytes(), path
    assert (Path(one) / "metrics.jsonl").read_bytes() == (Path(other) / "metrics.jsonl").read_bytes()
    assert (Path(one) / "results.json").read_bytes() == (Path(other) / "results.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed_five_times(mode, text, cache, tmp_path):
    """SIGKILL at five random moments of training, in the middle of a save for every second one."""
    changes = MODES[mode] | {"data__mode": mode, "train__steps": 400, "train__checkpoint_every": 5}
    changes |= {"train__log_every": 7}
    experiment = tiny.write_experiment(tmp_path, text, **changes)
    config = tiny.tiny_config(text, **changes)

    def command(workdir):
        return (tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={workdir}")

    whole = tiny.start(*command(tmp_path / "whole"), cache=cache)
    code, _, err = tiny.finish(whole)
    assert code == 0, err

    rng = random.Random(mode)
    checkpoints = tmp_path / "cut" / "checkpoints"
    in_save = 0
    for cut in range(5):
        process = tiny.start(*command(tmp_path / "cut"), cache=cache)
        wait_for_step(process, checkpoints, 60 * cut + rng.randint(5, 50))
        if cut % 2:
            in_save += wait_for_save(process, checkpoints)
        else:
            time.sleep(rng.uniform(0.0, 0.05))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert in_save
    code, _, err = tiny.python(*command(tmp_path / "cut"), cache=cache)
    assert code == 0, err
    assert_same_run(config, tmp_path / "whole", tmp_path / "cut")


def wait_for_step(process, checkpoints, step):
    """Return once a checkpoint of `step` or later is on disk."""
    while process.poll() is None:
        if any(name.isdigit() and int(name) >= step for name in list_names(checkpoints)):
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate()[1])


def wait_for_save(process, checkpoints):
    """Return whether a save was seen under way, at once when it is."""
    since = time.monotonic()
    while process.poll() is None and time.monotonic() - since < 5:
        if any("tmp" in name for name in list_names(checkpoints)):
            return True
    return False


def list_names(folder):
    return os.listdir(folder) if folder.exists() else []
