"""One step, three maps: jit, pmap and shard_map on one, two and four devices, and two processes, learn the same."""

import json
import socket
import time

import pytest
import tiny

from hybrid_flax.training.parallel import check_rows, make_parallel
from hybrid_flax.training.writers import read_jsonl

SCRIPT = tiny.ROOT / "tests" / "training" / "maps_script.py"


@pytest.fixture(scope="module", params=["windows", "stream"])
def report(request, text):
    """What `maps_script` found, in one mode of data."""
    code, out, err = tiny.python(SCRIPT, text, request.param, num_devices=4)
    assert code == 0, err
    return json.loads(out.splitlines()[-1]) | {"mode": request.param}


@pytest.mark.slow
def test_maps_agree_over_two_hundred_steps(report):
    counts = report["targets per row"]
    assert max(counts) >= 2 * min(counts), "rows must have unequal numbers of targets"
    assert report["last loss"] < report["first loss"] - 0.2
    for name, difference in report["loss"].items():
        assert difference < 1e-6, name
    for name, difference in report["params"].items():
        assert difference < 1e-5, name
    for name, difference in report["carry"].items():
        assert difference < 1e-5, name
    for name, difference in report["eval"].items():
        assert difference < 1e-6, name
    assert not any(report["late compilations"].values()), "the second step must not compile again"
    assert report["same bits"] == {"2": True, "4": True}
    assert report["wrong mean"] > 1e-3, "the comparison must notice a wrong mean"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["packed", "stream"])
def test_two_processes_learn_the_same(mode, text, tmp_path):
    """launch.py twice, with a coordinator: metrics as one process has them, a checkpoint, and one finish."""
    changes = {"data__mode": mode, "train__steps": 12, "train__dropout": 0.2, "eval__every": 6}
    experiment = tiny.write_experiment(tmp_path, text, **changes)

    def command(workdir):
        return (tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={tmp_path / workdir}")

    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    processes = [
        tiny.start(*command("two"), coordinator, "--num_processes=2", f"--process_id={index}") for index in range(2)
    ]
    try:
        for process in processes:
            code, out, err = tiny.finish(process, timeout=1200)
            assert code == 0, err
    finally:
        for process in processes:
            process.kill()
    code, _, err = tiny.python(*command("one"))
    assert code == 0, err
    one, two = (read_jsonl(tmp_path / workdir / "metrics.jsonl") for workdir in ("one", "two"))
    assert len(one) == len(two) == 8
    for row, other in zip(one, two):
        assert row.keys() == other.keys()
        assert all(other[key] == pytest.approx(row[key], rel=2e-6) for key in row), (row, other)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["step"] == 12 and (tmp_path / "two" / "sample.txt").exists()
    assert (tmp_path / "two" / "checkpoints" / "12").is_dir()


@pytest.mark.slow
def test_a_process_whose_partner_is_killed_ends_with_a_line(text, tmp_path):
    """At once, where JAX alone waits for a minute and a half and ends in a page of C++."""
    changes = {"train__steps": 100_000, "train__log_every": 100, "train__checkpoint_every": 100_000}
    experiment = tiny.write_experiment(tmp_path, text, **changes)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    command = (tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", coordinator)
    leader, other = (tiny.start(*command, "--num_processes=2", f"--process_id={index}") for index in range(2))
    try:
        rows = tmp_path / "run" / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size) and leader.poll() is None:
            time.sleep(0.1)
        other.kill()
        since = time.monotonic()
        code, _, err = tiny.finish(leader)
        assert (code, time.monotonic() - since < 60) == (1, True), err
        assert err.startswith("error: ") and err.count("\n") == 1, err
    finally:
        for process in (leader, other):
            process.kill()
            process.communicate()


def test_batches_that_do_not_divide(text, tmp_path):
    """On four devices: one line with the nearest sizes that do."""
    experiment = tiny.write_experiment(tmp_path, text)
    command = (tiny.ROOT / "launch.py", "plan", f"--config={experiment}")
    code, _, err = tiny.python(*command, "--config.data.batch_size=6", num_devices=4)
    assert (code, err.count("\n")) == (2, 1)
    assert "data.batch_size=6 does not divide over 4 devices: use 4 or 8" in err
    four = make_parallel("jit")._replace(num_devices=4)
    with pytest.raises(ValueError, match=r"eval.batch_size=3 does not divide over 4 devices: use 4"):
        check_rows(four, 3, name="eval.batch_size")
    with pytest.raises(ValueError, match=r"over 4 devices x 3 accumulated parts: use 12 or 24"):
        check_rows(four, 16, 3)
    check_rows(four, 24, 3)


def test_what_auto_picks():
    assert make_parallel("auto").kind == "jit"
    with pytest.raises(ValueError, match="auto, jit, pmap, shard_map"):
        make_parallel("xmap")
