"""Runs in lanes: each is the run that it would be alone, whatever runs beside it, and its folder says no other."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from rich.console import Console

from hybrid_flax.files import read_json
from hybrid_flax.jobs.lanes import open_session, prepare_paces, program_of, train_lanes
from hybrid_flax.training.checkpoint import Checkpoints
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.loop import train
from hybrid_flax.training.position import start_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.signals import Interrupted
from hybrid_flax.training.writers import read_jsonl

QUIET = Console(quiet=True)
FIXED = {"train__steps": 100, "train__log_every": 10, "eval__every": 20, "train__checkpoint_every": 30}
FIXED |= {"optim__ema_decay": 0.9, "train__dropout": 0.1, "train__recurrent_dropout": 0.1, "train__parallel": "jit"}


class Feed:
    """Hands out runs of `configs` and notes how they end. stops: (folder name, step) of those that are cancelled."""

    def __init__(self, configs, folder, stops=()):
        self.waiting = [(f"run{number}", config) for number, config in enumerate(configs)]
        self.folder, self.to_stop = folder, dict(stops)
        self.errors, self.most, self.running = {}, 0, set()

    def admit(self, count):
        new, self.waiting = self.waiting[:count], self.waiting[count:]
        self.running |= {name for name, _ in new}
        self.most = max(self.most, len(self.running))
        return [open_session(make_setup(config), config, self.folder / name, console=QUIET) for name, config in new]

    def stops(self, session):
        name = session.folder.path.name
        rows = read_jsonl(session.folder.metrics)
        return name in self.to_stop and bool(rows) and rows[-1]["step"] >= self.to_stop[name]

    def ended(self, session, error):
        name = session.folder.path.name
        self.running.remove(name)
        self.errors[name] = error


def in_lanes(configs, folder, num_lanes, stops=()):
    feed = Feed(configs, folder, stops)
    train_lanes(make_setup(configs[0]), num_lanes, feed)
    assert not feed.running and not feed.waiting
    return feed


def final_position(config, folder):
    experiment = make_setup(config)
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, experiment.metric)
    position = start_position(experiment, config, checkpoints)
    checkpoints.close()
    assert int(position.state.step) == config.train.steps
    return position


def assert_near(one, other, bound):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a == b
        else:
            difference, scale = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)
            assert difference <= bound * scale, (jax.tree_util.keystr(path), difference / scale)


def assert_same_rows(one: Path, other: Path, bound):
    mine, wanted = read_jsonl(one / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl")
    assert [list(row) for row in mine] == [list(row) for row in wanted]
    for a, b in zip(mine, wanted):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=bound)


def various(text, **changes):
    """Runs that differ in all that a program takes as data."""
    values = [
        {},
        {"optim__learning_rate": 1e-3, "optim__b1": 0.8, "optim__clip_norm": 0.5},
        {"seed": 1, "optim__weight_decay": 0.3, "model__init_scale": 0.5},
        {"train__dropout": 0.3, "optim__ema_decay": 0.7},
        {"train__recurrent_dropout": 0.2},
    ]
    changes = FIXED | changes
    return [
        tiny.tiny_config(text, **(changes | each))
        for each in values
        if changes["train__recurrent_dropout"] or "train__recurrent_dropout" not in each
    ]


# Rounding grows where training is unstable, under Adam, which divides a gradient by itself, and in Newton-Schulz
# iterations. So it is Adam for a small model, SGD at a low rate for others, and Muon for a few steps.
PROGRAMS = {
    "windows": {"eval__final_batches": 1},
    "stream": {"data__mode": "stream", "model__pattern": "cascade:lru+swa", "optim__learning_rate": 3e-4},
    "packed": {"data__mode": "packed", "model__pattern": "cascade:gru+attn", "data__document": "paragraph"},
    "muon": {"optim__name": "muon", "train__steps": 5, "eval__every": 2},
    "frozen": {"model__freeze": "embed.*,*.recurrent_kernel", "train__steps": 20},
}
for name in ("stream", "packed"):
    PROGRAMS[name] |= {"optim__name": "sgd", "train__recurrent_dropout": 0.0}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, text, tmp_path_factory):
    """(configs, folder of the runs alone, folder of the runs in lanes)."""
    configs = various(text, **PROGRAMS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    for number, config in enumerate(configs):
        train(config, folder / "alone" / f"run{number}", console=QUIET)
    feed = in_lanes(configs, folder / "lanes", len(configs))
    assert feed.most == len(configs) and set(feed.errors.values()) == {None}
    return configs, folder / "alone", folder / "lanes"


@pytest.mark.slow
def test_a_lane_is_the_run_alone(program):
    """After 100 steps: parameters, optimizer, running mean, carry, key, sums, and every row of metrics."""
    configs, alone, lanes = program
    for number, config in enumerate(configs):
        one, other = lanes / f"run{number}", alone / f"run{number}"
        assert_near(final_position(config, one), final_position(config, other), 1e-5)
        assert_same_rows(one, other, 1e-5)
        final = [read_json(folder / "results.json", dict)["valid"] for folder in (one, other)]
        assert final[0] == pytest.approx(final[1], rel=1e-5)
        assert read_json(one / "config.json", dict) == read_json(other / "config.json", dict)
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())


@pytest.mark.slow
def test_lanes_do_not_matter(program, tmp_path):
    """The same runs two at a time, then the others: data and initial parameters are a lane's own."""
    configs, _, lanes = program
    feed = in_lanes(configs, tmp_path, 2)
    assert feed.most == 2 and len(feed.errors) == len(configs) and set(feed.errors.values()) == {None}
    for number, config in enumerate(configs):
        assert_near(
            final_position(config, tmp_path / f"run{number}"), final_position(config, lanes / f"run{number}"), 1e-5
        )


@pytest.fixture(scope="module")
def small(text):
    """Configs of one small program that differ in their seed."""
    fixed = {"train__steps": 40, "train__log_every": 5, "eval__every": 10, "model__pattern": "tanh"}
    fixed |= {"train__checkpoint_every": 1000, "train__parallel": "jit"}
    return lambda count, **changes: [tiny.tiny_config(text, **(fixed | changes), seed=seed) for seed in range(count)]


@pytest.mark.slow
def test_a_run_goes_on_in_another_lane_and_alone(small, tmp_path):
    """Cancelled in its lane, a run is saved; it goes on in a lane or by `train`, to the same end."""
    configs = small(3)
    feed = in_lanes(configs, tmp_path / "cut", 3, stops={"run1": 15, "run2": 5})
    assert isinstance(feed.errors["run1"], Interrupted) and isinstance(feed.errors["run2"], Interrupted)
    assert feed.errors["run0"] is None
    stopped = {name: feed.errors[name].step for name in ("run1", "run2")}
    assert 15 <= stopped["run1"] < 40 and 5 <= stopped["run2"] < 15
    for number in (1, 2):
        train(configs[number], tmp_path / "alone" / f"run{number}", console=QUIET)
    train(configs[1], tmp_path / "cut" / "run1", console=QUIET)

    class Later(Feed):
        def __init__(self):
            super().__init__(configs, tmp_path / "cut")
            self.waiting = [("run2", configs[2]), ("fresh", configs[0])]

    feed = Later()
    train_lanes(make_setup(configs[0]), 3, feed)
    for number in (1, 2):
        one, other = tmp_path / "cut" / f"run{number}", tmp_path / "alone" / f"run{number}"
        assert_near(final_position(configs[number], one), final_position(configs[number], other), 1e-5)
        assert_same_rows(one, other, 1e-5)


@pytest.mark.slow
def test_a_lane_that_fails_is_alone_in_it(small, tmp_path):
    configs = small(3, optim__name="sgd", optim__clip_norm=1e30)
    configs[1].optim.learning_rate = 1e30
    feed = in_lanes(configs, tmp_path, 3)
    assert isinstance(feed.errors["run1"], TrainingFailed) and "not finite" in str(feed.errors["run1"])
    assert feed.errors["run0"] is None and feed.errors["run2"] is None
    assert not RunFolder(tmp_path / "run1").results.exists()
    train(configs[2], tmp_path / "alone", console=QUIET)
    assert_same_rows(tmp_path / "run2", tmp_path / "alone", 1e-5)


@pytest.mark.slow
def test_lanes_are_filled_again(small, tmp_path):
    """With patience every lane ends when it will; the best checkpoint is judged, as alone."""
    configs = small(6, train__patience=1, eval__best=True, optim__name="sgd", eval__every=5)
    for number, config in enumerate(configs):
        config.optim.learning_rate = (0.1, 1e-12)[number % 2]  # the second learns nothing
    feed = in_lanes(configs, tmp_path / "lanes", 3)
    assert set(feed.errors.values()) == {None} and len(feed.errors) == 6
    ends = set()
    for number, config in enumerate(configs):
        train(config, tmp_path / "alone" / f"run{number}", console=QUIET)
        one, other = (RunFolder(tmp_path / where / f"run{number}") for where in ("lanes", "alone"))
        mine, wanted = read_json(one.results, dict), read_json(other.results, dict)
        assert {k: mine[k] for k in ("step", "last_step")} == {k: wanted[k] for k in ("step", "last_step")}
        np.testing.assert_allclose(mine["valid"]["loss"], wanted["valid"]["loss"], rtol=1e-5)
        ends.add(mine["last_step"])
    assert len(ends) > 1


@pytest.mark.slow
def test_one_compilation_for_all(small, tmp_path):
    """Twelve runs, three rounds of four lanes: the step and the evaluation are compiled once each."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kwargs: (
            names.append(kwargs.get("fun_name", event)) if event.endswith("backend_compile_duration") else None
        )
    )
    configs = small(12, model__width=6, optim__name="sgd")
    in_lanes(configs[:5], tmp_path / "first", 4)  # the fifth is put into a lane that is free
    compiled = len(names)
    assert compiled > 0
    in_lanes(configs, tmp_path / "second", 4)
    assert len(names) == compiled, names[compiled:]


def test_programs(small):
    """Equal programs for what is data; another for what is not."""

    def program(**changes):
        config = small(1, **changes)[0]
        return program_of(make_setup(config), config)

    base = program()
    assert program(optim__learning_rate=0.5, optim__weight_decay=0.0, optim__b2=0.9) == base
    assert program(train__patience=3, eval__best=True) == program(eval__best=True)
    assert program(train__dropout=0.1) == program(train__dropout=0.4)
    assert program(model__init_scale=0.5) == base
    different = [{"model__width": 4}, {"train__dropout": 0.1}, {"data__length": 4}, {"optim__name": "lion"}]
    different += [{"eval__metric": "bits_per_char"}, {"eval__batch_size": 2}, {"data__batch_size": 2}]
    assert len({program(**changes) for changes in different} | {base}) == len(different) + 1


def test_paces(small):
    """Both are measured, and nothing but time is."""
    config = small(1)[0]
    paces = prepare_paces(make_setup(config), config, 4)()
    assert 0 < paces.lanes < 10 and 0 < paces.alone < 10


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_devices_share_the_lanes(num_devices, text, tmp_path):
    """`pmap` of `vmap`: the runs are those of one device, also where the lanes do not divide over the devices."""
    script = Path(__file__).with_name("lanes_script.py")
    code, out, err = tiny.python(script, text, tmp_path, num_devices=num_devices)
    assert code == 0, err
    said = json.loads(out.splitlines()[-1])
    assert said["devices"] == num_devices and min(said["paces"]) > 0
    assert said["worst"] <= 1e-5


def test_a_fault_of_one_run_does_not_end_the_others(text, tmp_path, monkeypatch):
    """A folder that is gone, or a disk that is full, is the end of one lane."""
    from hybrid_flax.training.session import Session

    right = Session.after_step

    def after_step(self, step, *rest):
        if self.folder.path.name == "run1" and step == 4:
            raise OSError(28, "No space left on device")
        return right(self, step, *rest)

    monkeypatch.setattr(Session, "after_step", after_step)
    configs = [tiny.tiny_config(text, seed=seed) for seed in range(2)]
    ended = {}
    waiting = [(number, config) for number, config in enumerate(configs)]

    class Feed:
        def admit(self, count):
            new, waiting[:] = waiting[:count], waiting[count:]
            return [open_session(make_setup(config), config, tmp_path / f"run{number}") for number, config in new]

        def stops(self, session):
            return False

        def ended(self, session, error):
            ended[session.folder.path.name] = error

    train_lanes(make_setup(configs[0]), 2, Feed())
    assert ended["run0"] is None and isinstance(ended["run1"], OSError)
    assert RunFolder(tmp_path / "run0").results.exists() and not RunFolder(tmp_path / "run1").results.exists()
