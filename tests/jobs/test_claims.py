"""Claims and the study behind them: one holder at a time, free when it dies, nothing lost and nothing repeated."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from hybrid_flax.config import ConfigError
from hybrid_flax.jobs.claims import FileClaims, PostgresClaims
from hybrid_flax.jobs.study import open_store, open_study
from hybrid_flax.locks import is_locked
from hybrid_flax.training.writers import read_jsonl

WORKER = Path(__file__).with_name("worker_script.py")
SWEEP = """
from hybrid_flax.sweep.space import *
def sweep():
    return product(axis("optim.learning_rate", [0.1, 0.01, 0.001]), axis("seed", [0, 1, 2, 3]))
def sweep_space():
    yield {"optim.learning_rate": float_range(1e-3, 1e-1, log=True), "seed": 0}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    return tiny.write_experiment(folder, tiny.write_text(folder), SWEEP, eval__every=1, train__steps=9)


@pytest.fixture(params=["files", "postgresql"])
def make_claims(request, tmp_path):
    if request.param == "files":
        return lambda: FileClaims(tmp_path)
    url = request.getfixturevalue("database")
    return lambda: PostgresClaims(url, str(tmp_path))


def test_one_holder_at_a_time(make_claims):
    one, other = make_claims(), make_claims()
    assert one.take("a") and not other.take("a") and not one.take("a")
    assert other.take("b")
    one.release("a")
    assert other.take("a")
    with one.exclusive():
        assert other.take("c")  # claims are not what it excludes
    other.close()
    assert one.take("a") and one.take("b") and one.take("c")
    one.close()


def test_claims_die_with_their_process(tmp_path):
    code = (
        "import sys, time; from hybrid_flax.jobs.claims import FileClaims\n"
        "claims = FileClaims(sys.argv[1]); print(claims.take('a'), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=tiny.ROOT, text=True)
    with process:
        assert process.stdout.readline() == "True\n"
        assert is_locked(tmp_path / "a") and not FileClaims(tmp_path).take("a")
        process.kill()
        process.wait()
    assert not is_locked(tmp_path / "a") and FileClaims(tmp_path).take("a")


def test_a_lost_server_is_one_line(database):
    claims = PostgresClaims(database, "lost")
    claims._session.close()
    with pytest.raises(ConfigError, match="--storage is lost"):
        claims.take("a")


def test_hostile_storages(tmp_path):
    for url, message in (
        ("sqlite:///x.db", "give postgresql://USER@HOST/DATABASE"),
        ("study.db", "give postgresql://USER@HOST/DATABASE"),
        ("postgresql://nobody@127.0.0.1:1/none", "--storage does not answer"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            open_store(tmp_path / "sweep", url)
        assert "\n" not in str(caught.value)


def opened(workdir, identity):
    return open_study(open_store(workdir), identity, lower_is_better=True)


def test_a_torn_journal(tmp_path):
    opened(tmp_path, {"a": 1}).claims.close()
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    study = opened(tmp_path, {"a": 1})
    assert journal.read_bytes().startswith(whole) and journal.read_bytes()[len(whole) :].startswith(b'{"op_code":0')
    study.optuna.ask()
    assert [json.loads(line) for line in journal.read_text().splitlines()]
    with pytest.raises(ConfigError, match="a: 1 -> 2"):
        opened(tmp_path, {"a": 2})


def start_worker(experiment, workdir, method, storage):
    count = "12" if method == "grid" else "10"
    command = [
        sys.executable,
        "-W",
        "error",
        WORKER,
        experiment,
        workdir,
        method,
        count,
        *([storage] if storage else []),
    ]
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "JAX_PLATFORMS": "cpu"}
    with (workdir.parent / "workers.log").open("a") as log:
        return subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=log, stderr=log)


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def steps_trained(workdir) -> dict[str, list[int]]:
    return {path.parent.name: [row["step"] for row in read_jsonl(path)] for path in workdir.glob("*/metrics.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("journal", "tpe"), ("postgresql", "grid")])
def test_workers_share_a_study(kind, method, experiment, tmp_path, request):
    """Two workers, one of them killed with trials in its hands and another started: every step of all is done once."""
    storage = request.getfixturevalue("database") if kind == "postgresql" else None
    workdir = tmp_path / f"sweep-{method}"
    workers = [start_worker(experiment, workdir, method, storage) for _ in range(2)]
    wanted = random.Random(kind + method).randint(20, 60)
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    (tmp_path / "go").touch()
    wait_for(lambda: sum(map(len, steps_trained(workdir).values())) >= wanted or any(w.poll() for w in workers))
    workers[0].send_signal(signal.SIGKILL)
    workers.append(start_worker(experiment, workdir, method, storage))
    codes = [worker.wait(timeout=300) for worker in workers]
    assert codes == [-signal.SIGKILL, 0, 0], (tmp_path / "workers.log").read_text()
    count = 12 if method == "grid" else 10
    trained = steps_trained(workdir)
    assert len(trained) == count and set(map(tuple, trained.values())) == {tuple(range(1, 10))}
    assert (workdir / "sweep.csv").read_text().count(",done,") == count
