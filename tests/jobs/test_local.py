"""Trials as processes: their cores and GPUs, their end with the sweep's, and one writer to a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from hybrid_flax.jobs import child, local
from hybrid_flax.jobs.executor import trial_command
from hybrid_flax.jobs.local import LocalExecutor
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.locks import FileLock, is_locked


@pytest.fixture
def folder(tmp_path):
    folder = TrialFolder(tmp_path / "trial")
    folder.path.mkdir()
    return folder


@pytest.fixture
def run(monkeypatch):
    """What the trial's process runs, in place of training."""

    def replace(code: str):
        def command(folder, parent, cpus=""):
            start = trial_command(folder, parent, cpus)[:6]
            return [*start, sys.executable, "-c", code]

        monkeypatch.setattr(local, "trial_command", command)

    return replace


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def finish(executor, job):
    ended = []
    wait_for(lambda: (end := executor.poll(job)) is not None and not ended.append(end))
    return ended[0]


def test_a_process_and_its_output(folder, run):
    run("import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('CUDA_VISIBLE_DEVICES')); exit(3)")
    executor = LocalExecutor(jobs=2)
    jobs = [executor.submit(folder)]
    assert finish(executor, jobs[0]).code == 3
    cores = sorted(os.sched_getaffinity(0))
    assert folder.output.read_text() == f"{cores[::2]} None\n"
    assert not is_locked(folder.launched)


def test_gpus_are_handed_out(folder, run):
    run("import os; print('gpu', os.environ['CUDA_VISIBLE_DEVICES'])")
    executor = LocalExecutor(jobs=2, gpus=["4", "6"])
    assert finish(executor, executor.submit(folder)).code == 0
    assert "gpu 4" in folder.output.read_text()


def test_cancel_and_close(folder, run, tmp_path):
    """SIGTERM first; what does not end is killed, with what it started."""
    run("import signal, time; signal.signal(15, lambda *_: exit(7)); print('up', flush=True); time.sleep(60)")
    executor = LocalExecutor(jobs=2)
    job = executor.submit(folder)
    wait_for(lambda: "up" in folder.output.read_text())
    executor.cancel(job)
    assert finish(executor, job).code == 7

    stubborn = TrialFolder(tmp_path / "stubborn")
    stubborn.path.mkdir()
    run(
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    executor = LocalExecutor(jobs=1, patience=0.5)
    job = executor.submit(stubborn)
    wait_for(lambda: stubborn.output.read_text().endswith("\n"))
    executor.close()
    assert job.process.returncode == -signal.SIGKILL
    wait_for(lambda: not alive(int(stubborn.output.read_text())))


def test_one_writer(folder, run):
    """A process waits for whoever still writes into its folder."""
    lock = FileLock(folder.launched)
    lock.acquire()
    run("print('mine')")
    executor = LocalExecutor()
    job = executor.submit(folder)
    time.sleep(0.5)
    assert executor.poll(job) is None and folder.output.read_text() == ""
    lock.release()
    assert finish(executor, job).code == 0 and folder.output.read_text() == "mine\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to the children is Linux's")
def test_a_trial_ends_with_its_sweep(folder):
    """SIGKILL of the parent is SIGTERM for the child; the lock is held until that has ended."""
    trial = (
        "import signal, time; signal.signal(15, lambda *_: (time.sleep(0.3), exit(0)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, {str(Path(child.__file__))!r}, str(os.getpid()), {str(folder.launched)!r}, '',\n"
        f"           sys.executable, '-c', {trial!r}]\n"
        "print(subprocess.Popen(command).pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    with process:
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "up\n"
        assert is_locked(folder.launched)
        process.kill()
    wait_for(lambda: not alive(pid), 20)
    assert not is_locked(folder.launched)


def test_no_parent_no_trial(folder):
    """The parent was gone before the kernel was told of it."""
    command = [sys.executable, child.__file__, str(2**22), str(folder.launched), "", sys.executable, "-c", "print(1)"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (143, b"")
