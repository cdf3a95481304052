"""Every benchmark loads, with whatever it takes from the package; lost rows and tracebacks of killed jobs are found."""

import importlib.util
import sys

import pytest
import tiny


def load(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((tiny.ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_loads(path):
    module = load(path)
    assert module.__doc__ and callable(module.main)


FAKE_JOB = """
import json, signal, sys, time
from pathlib import Path
fault, folder = sys.argv[1], Path(sys.argv[2].removeprefix("--workdir="))
folder.mkdir(exist_ok=True)
rows = folder / "metrics.jsonl"
done = rows.read_text().count("\\n") if rows.exists() else 0
if fault == "page":
    signal.signal(signal.SIGTERM, lambda *_: 1 / 0)
if 0 < done < 6 and fault == "row":  # it forgets one where it goes on
    done += 1
for step in range(done, 6):
    time.sleep(0.02)
    with rows.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
(folder / "results.json").write_text("{}")
"""


@pytest.mark.parametrize(
    ("fault", "kind", "ending"),
    [("none", "SIGKILL", "identical"), ("row", "SIGKILL", "lost"), ("page", "SIGTERM", "traceback")],
)
def test_kills_are_counted(fault, kind, ending, tmp_path, capsys):
    kills = load(tiny.ROOT / "benchmarks" / "kills.py")
    (tmp_path / "job.py").write_text(FAKE_JOB)
    job = kills.Job("fake", (sys.executable, "-S", str(tmp_path / "job.py"), fault))
    results = []
    for result in kills.run_all([(job, kind)] * 20, tmp_path, 0, 1):  # some come before it has done anything
        results.append(result)
        if result.ending == ending:
            break
    assert {result.ending for result in results} <= {"identical", ending} and result.ending == ending
    kills.print_table(results)
    assert f"│ {len(results)} " in capsys.readouterr().out
