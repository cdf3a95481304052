"""Loggers: what they are given, and what becomes of a run whose logger fails."""

import json
import math
import sys
from typing import ClassVar

import engines
import jax.numpy as jnp
import pytest
import tiny
from rich.console import Console

from hybrid_flax import register_logger
from hybrid_flax.errors import ConfigError
from hybrid_flax.training.loggers import TensorBoardWriter
from hybrid_flax.training.loop import train
from hybrid_flax.training.writers import read_jsonl


def test_tensorboard_scalars_can_be_read_back(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with TensorBoardWriter(tmp_path) as writer:
        writer.write({"step": 7, "train/loss": 1.5, "eval/loss": "nan", "name": "lstm", "perf/tokens": jnp.int32(9)})
    with TensorBoardWriter(tmp_path, purge_step=8) as writer:
        writer.write({"step": 8, "train/loss": 1.25})
    events = [e for path in sorted(tmp_path.glob("events.out.tfevents.*")) for e in tensorboard_events(path, Event)]
    scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert math.isnan(scalars.pop((7, "eval/loss")))
    assert scalars == {(7, "train/loss"): 1.5, (7, "perf/tokens"): 9.0, (8, "train/loss"): 1.25}
    assert any(e.session_log.status == 1 and e.step == 8 for e in events)  # START: hide what stood from 8 on


def tensorboard_events(path, event_type):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length (8 bytes), its checksum (4), the record, its checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        yield event_type.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError) as error:
        TensorBoardWriter(tmp_path)
    assert str(error.value) == "it needs tensorboardX: pip install 'hybrid_flax[tensorboard]'"


class Sink:
    """Keeps what it is given; fails at a step."""

    opened: ClassVar[list] = []

    def __init__(self, folder, config, start, *, fails: int = 0, digits: int = 3):
        self.rows, self.folder, self.start, self.digits, self.closed = [], folder, start, digits, False
        self._fails = fails
        self.opened.append(self)

    def write(self, row):
        if row["step"] == self._fails:
            raise OSError("no route to host")
        self.rows.append(dict(row))

    def close(self):
        self.closed = True
        if self._fails < 0:
            raise OSError("gone")


@pytest.fixture
def sink(monkeypatch):
    monkeypatch.setattr(Sink, "opened", [])
    register_logger("sink", Sink)
    return Sink.opened


def spoken(config, folder):
    """What a run says."""
    path = folder.with_suffix(".log")
    with path.open("w") as file:
        train(config, folder, console=Console(file=file, width=1000))
    return path.read_text()


def test_a_logger_is_given_every_row(text, tmp_path, sink, monkeypatch):
    values = {"log__sink": True, "loggers__sink__digits": 5, "eval__every": 3}
    config = tiny.tiny_config(text, **values)
    with monkeypatch.context() as patch:
        tiny.at_step(patch, 5, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    first, second = sink
    assert (first.start, second.start, first.digits) == (0, 3, 5) and first.closed and second.closed
    assert second.folder == tmp_path / "run"
    rows = [{k: v for k, v in row.items() if "perf/" not in k} for row in first.rows if row["step"] <= 3]
    rows += [{k: v for k, v in row.items() if "perf/" not in k} for row in second.rows]
    assert rows == read_jsonl(tmp_path / "run" / "metrics.jsonl")
    train(tiny.tiny_config(text, eval__every=3), tmp_path / "without")
    assert (tmp_path / "without" / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("fails", [4, -1])
def test_a_logger_that_fails_is_left_out_and_loses_nothing(text, tmp_path, sink, fails):
    said = spoken(tiny.tiny_config(text, log__sink=True, loggers__sink__fails=fails), tmp_path / "run")
    when = "at step 4 and is left out from here on: no route to host" if fails > 0 else "when it was closed"
    assert said.count(f"logger sink failed {when}") == 1
    spoken(tiny.tiny_config(text), tmp_path / "without")
    for name in ("metrics.jsonl", "results.json"):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert [row["step"] for row in sink[0].rows] == ([2] if fails > 0 else [2, 4, 6])


def test_a_logger_that_cannot_be_opened_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"log.tensorboard=true: it cannot be opened: it needs tensorboardX: pip"):
        train(tiny.tiny_config(text, log__tensorboard=True), tmp_path / "one")
    register_logger("half", lambda folder, config, start: object())
    with pytest.raises(ConfigError, match=r"log.half=true: object has no write, which a logger must have"):
        train(tiny.tiny_config(text, log__half=True), tmp_path / "two")
    assert not (tmp_path / "two" / "metrics.jsonl").read_bytes()


def test_a_run_goes_on_without_its_logger(text, tmp_path, sink, monkeypatch):
    """What loggers are told makes no other run."""
    with monkeypatch.context() as patch, pytest.raises(tiny.Crash):
        tiny.at_step(patch, 5, tiny.crash)
        train(tiny.tiny_config(text, log__sink=True, eval__every=3), tmp_path / "run")
    train(tiny.tiny_config(text, eval__every=3), tmp_path / "run")
    assert len(sink) == 1 and read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 6


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_says_what_to_install(text, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    wanted = rf"^log.{name}=true: it cannot be opened: it needs {name}: pip install 'hybrid_flax\[{name}\]'$"
    with pytest.raises(ConfigError, match=wanted):
        train(tiny.tiny_config(text, **{f"log__{name}": True}), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_in_a_file(text, tmp_path, monkeypatch):
    """One run, whose figures are those of metrics.jsonl, also where it was cut off."""
    mlflow = engines.library("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tiny.tiny_config(text, log__mlflow=True, loggers__mlflow__experiment="doors")
    with monkeypatch.context() as patch:
        tiny.at_step(patch, 5, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("doors").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    assert run.info.status == "FINISHED" and run.data.params["model.pattern"] == config.model.pattern
    found = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")}
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert found == {(row["step"], row["train/loss"]) for row in rows if "train/loss" in row}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_offline(text, tmp_path, monkeypatch):
    """A run that was cut off goes on under its id."""
    engines.library("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny.tiny_config(text, log__wandb=True)
    with monkeypatch.context() as patch:
        tiny.at_step(patch, 5, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    number = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    written = b"".join(path.read_bytes() for path in files)
    assert b"train/loss" in written and config.model.pattern.encode() in written
