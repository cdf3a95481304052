"""A run whose end is moved: the run that had that end from the start, or a line that says how it differs."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from sampling import sampled

from hybrid_flax import cli
from hybrid_flax.config import apply_overrides
from hybrid_flax.errors import ConfigError
from hybrid_flax.runs import load_run
from hybrid_flax.training import session
from hybrid_flax.training.checkpoint import Checkpoints
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.loop import train
from hybrid_flax.training.setup import make_setup

CHANGES = {"train__steps": 4, "train__log_every": 2, "train__checkpoint_every": 3, "eval__every": 2}
CHANGES |= {"schedule__name": "constant", "optim__ema_decay": 0.9, "data__mode": "stream", "train__dropout": 0.1}
WHOLE = {"train__steps": 8}


def position_of(config, folder):
    setup = make_setup(config)
    checkpoints = Checkpoints(RunFolder(folder).checkpoints, setup.metric)
    position = session.start_position(setup, config, checkpoints)
    checkpoints.close()
    assert int(position.state.step) == config.train.steps
    return position._replace(state=position.state._replace(key=jax.random.key_data(position.state.key)))


def assert_same_run(config, one, other):
    leaves = zip(*(jax.tree.leaves(position_of(config, folder)) for folder in (one, other)), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)
    for name in ("metrics.jsonl", "results.json", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """A run of eight steps from the start."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(tiny.tiny_config(text, **CHANGES | WHOLE), folder)
    return folder


@pytest.fixture
def short(text, tmp_path):
    """A finished run of four steps."""
    train(tiny.tiny_config(text, **CHANGES), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("cut", [None, 6])
def test_a_finished_run_goes_on_to_more_steps(cut, whole, short, text, monkeypatch, capsys):
    """Bit for bit the run that was longer from the start, also where it is cut off on the way."""
    config = tiny.tiny_config(text, **CHANGES | WHOLE)
    results = (short / "results.json").read_bytes()
    if cut is not None:
        with monkeypatch.context() as patch:
            tiny.at_step(patch, cut, tiny.crash)
            with pytest.raises(tiny.Crash):
                train(config, short)
        assert (short / "results.json").read_bytes() == results, "they stay until there are others"
    train(config, short)
    assert_same_run(config, whole, short)
    assert "train.steps: 4 -> 8" in capsys.readouterr().out
    ends = json.loads((short / "run.json").read_text())["earlier_ends"]
    assert ends == [{"step": 4, "train.steps": 4, "train.patience": 0}]
    train(config, short)
    assert "this run is finished: 8 steps" in capsys.readouterr().out


def test_results_of_the_earlier_end_are_not_taken_for_the_later_one(whole, short, text, monkeypatch):
    """A run that is cut off between its last step and its final metrics."""
    config = tiny.tiny_config(text, **CHANGES | WHOLE)
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "finish", lambda *a, **k: tiny.crash())
        with pytest.raises(tiny.Crash):
            train(config, short)
    train(config, short)
    assert_same_run(config, whole, short)


@pytest.mark.parametrize("schedule", sampled(["cosine", "linear", "wsd"], ["cosine"]))
def test_a_learning_rate_that_would_jump_is_named(schedule, text, tmp_path, capsys):
    experiment = tiny.write_experiment(tmp_path, text, **CHANGES | {"schedule__name": schedule})
    command = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    capsys.readouterr()
    more = [*command, "--config.train.steps=8"]
    assert cli.main(more) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the learning rate goes from " in err and "--changed_schedule" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before
    assert cli.main([*more, "--changed_schedule"]) == 0
    assert "going on with another schedule: the learning rate goes from " in capsys.readouterr().out
    assert load_run(tmp_path / "run").step == 8
    assert cli.main(more) == 0, "the end is the run's now"


@pytest.mark.parametrize("schedule", sampled(["exponential", "step", "rsqrt"], ["exponential"]))
def test_schedules_that_know_no_end_go_on(schedule, text, tmp_path):
    config = tiny.tiny_config(text, **CHANGES | {"schedule__name": schedule, "schedule__decay_every": 3})
    train(config, tmp_path / "run")
    longer = apply_overrides(config, ["train.steps=8"])
    train(longer, tmp_path / "run")
    train(longer, tmp_path / "whole")
    assert_same_run(longer, tmp_path / "whole", tmp_path / "run")


def test_an_end_that_came_before(short, text):
    with pytest.raises(ConfigError, match=r"run has done 4 steps: train\.steps=3 is less"):
        train(tiny.tiny_config(text, **CHANGES | {"train__steps": 3}), short)
    with pytest.raises(ConfigError, match=r"another config: model\.width: 8 -> 4; train\.steps: 4 -> 8"):
        train(tiny.tiny_config(text, **CHANGES | WHOLE | {"model__width": 4}), short)


def test_a_shorter_end_of_another_course(text, tmp_path, monkeypatch):
    """What was trained by the schedule of a longer run is no run of the shorter one."""
    changes = CHANGES | {"schedule__name": "cosine", "train__checkpoint_every": 2, "eval__every": 0}
    with monkeypatch.context() as patch:
        tiny.at_step(patch, 3, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(tiny.tiny_config(text, **changes | WHOLE), tmp_path)
    shorter = tiny.tiny_config(text, **changes | {"train__steps": 2})
    with pytest.raises(ConfigError, match=r"was .* at step 2, and by its own schedule would have been"):
        train(shorter, tmp_path)
    assert train(shorter, tmp_path, changed_schedule=True)[0].step == 2


def test_a_run_that_stopped_early_goes_on_with_more_patience(text, tmp_path):
    worse = {"train__steps": 12, "eval__every": 1, "eval__best": True, "optim__name": "sgd"}
    worse |= {"optim__learning_rate": 8.0, "model__pattern": "gru", "schedule__name": "constant"}
    impatient, patient = (tiny.tiny_config(text, **worse | {"train__patience": n}) for n in (1, 3))
    train(patient, tmp_path / "whole")
    train(impatient, tmp_path / "run")
    first, last = (json.loads((tmp_path / name / "results.json").read_text())["last_step"] for name in ("run", "whole"))
    assert first < last
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    train(patient, tmp_path / "run")
    for name in ("metrics.jsonl", "results.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
