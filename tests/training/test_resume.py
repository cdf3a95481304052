"""A run that is cut off anywhere and started again is the run that never stopped, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from sampling import sampled
from tiny import Crash, at_step, crash

from hybrid_flax.training import session
from hybrid_flax.training.checkpoint import Checkpoints
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.loop import train
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.signals import Interrupted

MODES = {
    "windows": {
        "train__dropout": 0.2,
        "train__locked_dropout": True,
        "train__embedding_dropout": 0.1,
        "train__word_dropout": 0.1,
        "train__recurrent_dropout": 0.2,
        "optim__ema_decay": 0.9,
    },
    "stream": {
        "train__dropout": 0.2,
        "optim__name": "muon",
        "eval__every": 30,
        "model__pattern": "cascade:lru+swa",  # whose carry is complex
    },
    "packed": {"train__dropout": 0.2, "optim__accumulate": 2, "data__document": "paragraph", "optim__ema_decay": 0.9},
}


def final_position(config, workdir) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by its path: parameters, optimizer, EMA, carry, sums, key, step."""
    experiment = make_setup(config)
    checkpoints = Checkpoints(RunFolder(workdir).checkpoints, experiment.metric)
    assert checkpoints.latest() == config.train.steps
    position = session.start_position(experiment, config, checkpoints)
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
def test_killed_five_times(mode, text, tmp_path):
    """SIGKILL at five random moments of training, in the middle of a save for every second one."""
    changes = MODES[mode] | {"data__mode": mode, "train__steps": 150, "train__checkpoint_every": 4}
    changes |= {"train__log_every": 7}
    experiment = tiny.write_experiment(tmp_path, text, **changes)
    config = tiny.tiny_config(text, **changes)

    def command(workdir):
        return (tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={workdir}")

    code, _, err = tiny.python(*command(tmp_path / "whole"))
    assert code == 0, err

    rng = random.Random(mode)
    checkpoints = tmp_path / "cut" / "checkpoints"
    in_save = 0
    for cut in range(5):
        process = tiny.start(*command(tmp_path / "cut"))
        wait_for_step(process, checkpoints, 24 * cut + rng.randint(4, 20))
        if cut % 2:
            in_save += wait_for_save(process, checkpoints)
        else:
            time.sleep(rng.uniform(0.0, 0.05))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert in_save
    code, _, err = tiny.python(*command(tmp_path / "cut"))
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


def quick(text, mode, **changes):
    return tiny.tiny_config(text, **MODES[mode] | {"data__mode": mode, "train__steps": 9} | changes)


@pytest.mark.parametrize("mode", sampled(MODES, ["stream"]))
def test_crash_and_signal_in_one_process(mode, text, tmp_path, monkeypatch):
    config = quick(text, mode, eval__every=4)
    train(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(Crash):
            train(config, cut)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])  # as SLURM does
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 7, which is saved") as stop:
            train(config, cut)
        assert (stop.value.step, stop.value.signal_number) == (7, signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert (cut / "checkpoints" / "7").is_dir()
    train(config, cut)
    assert_same_run(config, tmp_path / "whole", cut)


@pytest.fixture(scope="module")
def whole_and_cut(text, tmp_path_factory):
    """(config, folder of a whole run, folder of the same run cut off after its first checkpoint)."""
    folder = tmp_path_factory.mktemp("runs")
    config = quick(text, "stream", optim__ema_decay=0.9, eval__every=0, train__log_every=9)
    train(config, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(Crash):
            train(config, folder / "cut")
    return config, folder / "whole", folder / "cut"


@pytest.mark.parametrize("forgotten", ["carry", "opt_state", "ema", "params", "key", "sums", "step"])
def test_all_that_moves_is_restored(forgotten, whole_and_cut, tmp_path, monkeypatch):
    """The comparison of this file notices whatever is not restored."""
    config, whole, cut = whole_and_cut
    cut = shutil.copytree(cut, tmp_path / "cut")
    original = session.start_position

    def forget(experiment, config, checkpoints):
        position, fresh = original(experiment, config, checkpoints), fresh_position(experiment, config)
        if forgotten == "carry":
            return position._replace(carry=fresh.carry)
        value = jax.random.key(7) if forgotten == "key" else getattr(fresh.state, forgotten)
        return position._replace(state=position.state._replace(**{forgotten: value}))

    monkeypatch.setattr(session, "start_position", forget)
    if forgotten == "step":
        with pytest.raises(RuntimeError, match="already exists"):
            train(config, cut)
        return
    train(config, cut)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        assert_same_run(config, whole, cut)


@pytest.mark.slow
def test_stopped_by_signals(text, tmp_path):
    """SIGTERM, then Ctrl-C: 128 + n, a message, the checkpoint; the same command goes on to the end."""
    experiment = tiny.write_experiment(tmp_path, text, train__steps=400, train__log_every=1)
    workdir = tmp_path / "run"
    command = (tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={workdir}")
    last = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = tiny.start(*command)
        wait_for_step(process, workdir / "checkpoints", last + 20)
        process.send_signal(number)
        code, out, err = tiny.finish(process)
        assert (code, err) == (128 + number, "")
        step = int(out.split(f"stopped by {number.name} after step ")[1].split(",")[0])
        assert out.endswith(f"after step {step}, which is saved; run the same command to go on\n")
        assert max(map(int, list_names(workdir / "checkpoints"))) == step > last
        last = step
    code, out, err = tiny.python(*command)
    assert (code, err) == (0, "")
    assert f"going on from the checkpoint of step {last}" in out
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 401))
