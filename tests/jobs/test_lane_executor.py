"""Trials in the lanes of one process: ordinary run folders, whatever happens to the process or to the sweep."""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

from hybrid_flax.jobs import lane_worker
from hybrid_flax.jobs.lane_executor import LanesExecutor
from hybrid_flax.jobs.lanes import Paces
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.locks import is_locked
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.training.loop import train
from hybrid_flax.training.writers import read_jsonl

SWEEP = """
from hybrid_flax.sweep.space import axis, product
def sweep():
    return product(axis("model.pattern", ["lstm", "tanh"]), axis("seed", [0, 1, 2]))
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    changes = {"train__steps": 30, "train__checkpoint_every": 1000, "train__log_every": 1, "eval__every": 10}
    return tiny.write_experiment(folder, tiny.write_text(folder), SWEEP, **changes)


@pytest.fixture
def folders(experiment, tmp_path):
    """Prepared folders of the six trials."""
    folders = []
    for trial in read_sweep(str(experiment), []).trials:
        folders.append(TrialFolder(tmp_path / trial.name))
        folders[-1].prepare(trial, str(experiment))
    return folders


class Messages(queue.SimpleQueue):
    """Messages of a sweep that is over once its trials have ended."""

    def __init__(self, *messages):
        super().__init__()
        for message in messages:
            self.put(message)


def train_all(folders, tmp_path, num_lanes=8, choice=None, monkeypatch=None):
    """(reports, calls of prepare_paces) of a trainer in this process."""
    measured, reports = [], []
    if choice is not None:

        def prepare(experiment, config, lanes):
            measured.append(lanes)
            return lambda: Paces(1.0, 2.0) if choice == "lanes" else Paces(2.0, 1.0)

        monkeypatch.setattr(lane_worker, "prepare_paces", prepare)
    messages = Messages({"submit": [str(folder.path) for folder in folders]})

    def report(message):
        reports.append(message)
        if sum("ended" in message for message in reports) == len(folders):
            messages.put(None)

    lane_worker.Trainer(num_lanes, tmp_path, messages, report).work()
    return reports, measured


@pytest.mark.slow
def test_programs_in_turn(folders, tmp_path, monkeypatch):
    """Two programs of three trials: each is measured once, also where the sweep is started again."""
    reports, measured = train_all(folders, tmp_path, 8, "lanes", monkeypatch)
    assert measured == [3, 3]
    assert [report["code"] for report in reports if "ended" in report] == [0] * 6
    for folder in folders:
        assert read_status(folder.path, "loss").state == "done"
        assert [row["step"] for row in read_jsonl(folder.metrics) if "train/loss" in row] == list(range(1, 31))
        assert not is_locked(folder.launched)
    rows = read_jsonl(tmp_path / "lanes.jsonl", needs="choice")
    assert [(row["pattern"], row["lanes"], row["choice"]) for row in rows] == [
        ("lstm", 3, "lanes"),
        ("tanh", 3, "lanes"),
    ]
    assert [row["lanes_ms"] for row in rows] == [1000.0, 1000.0]
    reports, measured = train_all(folders, tmp_path, 8, "alone", monkeypatch)  # all are finished
    assert measured == [] and [report["code"] for report in reports if "ended" in report] == [0] * 6


@pytest.mark.slow
def test_lanes_and_alone_agree(folders, tmp_path, monkeypatch):
    train_all(folders[:3], tmp_path / "a", 2, "lanes", monkeypatch)
    values = [read_status(folder.path, "loss").value for folder in folders[:3]]
    for folder in folders[:3]:
        (folder.path / "trial.json").rename(tmp_path / "trial.json")
        for path in sorted(folder.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "trial.json").rename(folder.path / "trial.json")
    reports, measured = train_all(folders[:3], tmp_path / "b", 2, "alone", monkeypatch)
    assert measured == [2]  # once, though there are fewer and fewer
    assert [read_status(folder.path, "loss").value for folder in folders[:3]] == pytest.approx(values, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("far", [3, 11, 25, 100])
def test_training_while_the_lanes_compile(folders, tmp_path, monkeypatch, far):
    """What has trained alone goes on as a lane from an evaluation; trials that end meanwhile need none."""
    compiled, starts, opened = threading.Event(), [], lane_worker.open_session

    def prepare(experiment, config, lanes):
        assert compiled.wait(120)
        return lambda: Paces(1.0, 2.0)

    def at(self, step, told=lane_worker._Wish.at):
        if self._waiting.folder.path == folders[0].path and step == far:
            compiled.set()
            wait_for(self._until)
        if self._waiting.folder.path == folders[2].path and step == 30:
            compiled.set()
        return told(self, step)

    def open_session(*args):
        session = opened(*args)
        starts.append(session.start)
        return session

    monkeypatch.setattr(lane_worker, "prepare_paces", prepare)
    monkeypatch.setattr(lane_worker._Wish, "at", at)
    monkeypatch.setattr(lane_worker, "open_session", open_session)
    reports, _ = train_all(folders[:3], tmp_path)
    assert starts == {3: [10, 0, 0], 11: [20, 0, 0], 25: [0, 0], 100: []}[far]
    begun = [report["begun"] for report in reports if "begun" in report]
    assert begun == [str(folder.path) for folder in folders[:3]]
    assert [report["code"] for report in reports if "ended" in report] == [0] * 3
    for folder in folders[:3]:
        assert [row["step"] for row in read_jsonl(folder.metrics) if "train/loss" in row] == list(range(1, 31))
    assert (tmp_path / "lanes.jsonl").exists() == (far < 100)


@pytest.mark.slow
def test_a_program_that_does_not_fit(folders, tmp_path, monkeypatch):
    def prepare(experiment, config, lanes):
        raise lane_worker.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte\nmore")

    monkeypatch.setattr(lane_worker, "prepare_paces", prepare)
    reports, _ = train_all(folders[3:], tmp_path)
    assert [report["code"] for report in reports if "ended" in report] == [0] * 3
    (row, *_) = read_jsonl(tmp_path / "lanes.jsonl", needs="choice")
    assert row["choice"] == "alone" and row["reason"].startswith("RESOURCE_EXHAUSTED") and "more" not in row["reason"]


def test_a_config_that_does_not_fit(folders, tmp_path, monkeypatch):
    saved = json.loads(folders[0].trial.read_text())
    saved["config"]["model"]["width"] = -1
    folders[0].trial.write_text(json.dumps(saved))
    reports, _ = train_all(folders[:2], tmp_path, 8, "lanes", monkeypatch)
    ended = {Path(report["ended"]).name: report for report in reports if "ended" in report}
    assert ended[folders[0].path.name]["code"] == 1 and "model.width" in ended[folders[0].path.name]["reason"]
    assert ended[folders[1].path.name]["code"] == 0


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_the_process(experiment, tmp_path, monkeypatch):
    """Cancelled, killed, closed: what had begun says why it ended, what waited is trained by the next process."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    plan = read_sweep(str(experiment), ["train.steps=100000"])
    folders = [TrialFolder(tmp_path / trial.name) for trial in plan.trials]
    for trial, one in zip(plan.trials, folders):
        one.prepare(trial, str(experiment))
    lstm, tanh = folders[:3], folders[3:]
    executor = LanesExecutor(tmp_path, 8)
    jobs = {one.path.name: executor.submit(one) for one in folders}
    ended = {}

    def look():
        for name, job in jobs.items():
            if name not in ended and (end := executor.poll(job)) is not None:
                ended[name] = end

    def begun(some):
        look()
        return any(len(read_jsonl(one.metrics)) > 2 for one in some)

    wait_for(lambda: begun(lstm))
    assert not any(one.metrics.exists() for one in tanh)
    running = next(one for one in lstm if one.metrics.exists())
    executor.cancel(jobs[running.path.name])
    wait_for(lambda: look() or running.path.name in ended)
    assert ended[running.path.name].code == 143 and "is saved" in ended[running.path.name].reason
    rest = [one for one in lstm if one is not running]
    wait_for(lambda: begun(rest))
    os.kill(executor._process.pid, signal.SIGKILL)
    wait_for(lambda: look() or any(one.path.name in ended for one in rest))
    reasons = [ended[one.path.name].reason for one in rest if one.path.name in ended]
    assert all("killed (SIGKILL): out of memory?" in reason for reason in reasons)
    assert not any(one.path.name in ended for one in tanh)
    waiting = [one for one in folders if one.path.name not in ended]
    wait_for(lambda: begun(waiting))  # in another process
    executor.close()
    assert not any(is_locked(one.launched) for one in folders)
    saved = [one for one in waiting if one.checkpoints.exists() and any(one.checkpoints.iterdir())]
    assert saved


@pytest.mark.slow
def test_a_sweep_stopped_and_gone_on_with(experiment, tmp_path):
    """By launch.py: Ctrl-C leaves nothing running; trials that train alone have the same figures."""
    folder, trials = tmp_path / "lanes", read_sweep(str(experiment), []).trials
    for trial in trials:
        train(trial.config, tmp_path / "alone" / trial.name)
    lanes = (tiny.ROOT / "launch.py", "sweep", f"--config={experiment}", f"--workdir={folder}", "--executor=lanes")
    process = tiny.start(*lanes)
    wait_for(lambda: any((folder / trial.name / "metrics.jsonl").exists() for trial in trials) or process.poll())
    process.send_signal(signal.SIGINT)
    code, out, err = tiny.finish(process)
    assert (code, err) == (130, ""), out
    assert not any(is_locked(TrialFolder(folder / trial.name).launched) for trial in trials)
    code, out, err = tiny.python(*lanes)
    assert code == 0, (out, err, (folder / "lanes.log").read_text())
    for trial in trials:
        one, other = (read_status(tmp_path / where / trial.name, "loss") for where in ("lanes", "alone"))
        assert one.state == other.state == "done" and one.step == other.step == 30
        assert one.value == pytest.approx(other.value, rel=1e-4)
        steps = [row["step"] for row in read_jsonl(folder / trial.name / "metrics.jsonl") if "train/loss" in row]
        assert steps == list(range(1, 31))
    assert {row["choice"] for row in read_jsonl(folder / "lanes.jsonl", needs="choice")} <= {"lanes", "alone"}


def test_a_process_that_cannot_start_is_told(folders, tmp_path, monkeypatch):
    """It is not started again and again: no trial has begun, so all have failed."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    executor = LanesExecutor(tmp_path, 8)
    jobs, ended = [executor.submit(folder) for folder in folders[:2]], {}
    until = time.monotonic() + 30
    while len(ended) < 2 and time.monotonic() < until:
        ended |= {job: end for job in jobs if (end := executor.poll(job)) is not None}
        time.sleep(0.02)
    assert {end.reason for end in ended.values()} == {"the process of the lanes: exit code 1: it printed nothing"}
    executor.close()
