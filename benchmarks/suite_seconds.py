"""Where the time of the test suite goes: wall time, the dearest tests, and CPU seconds by folder.

    python benchmarks/suite_seconds.py [--out=FILE.md] [PYTEST ARGUMENTS]

runs pytest as the README does, and then all tests (`-m ''`), or once with the arguments that are given. This file is
also the pytest plugin that measures. CPU seconds are counted in the process of a test and in the processes that it
waits for. Fixtures are included; a fixture that several tests share counts for the first of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
_FILE = "SUITE_SECONDS"  # variable of the environment: where the plugin writes
_SHOWN = 30  # tests


class Seconds(NamedTuple):
    """What one test took."""

    test: str
    slow: bool
    cpu: float


class Run(NamedTuple):
    """One run of pytest: its arguments, seconds of wall time, its closing line, and its tests."""

    arguments: tuple[str, ...]
    wall: float
    closing: str
    tests: list[Seconds]


def main(argv: list[str]) -> int:
    """Run, print and write the tables. Returns 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the tables")
    options, given = parser.parse_known_args(argv)
    runs = [run_pytest(arguments) for arguments in ([given] if given else [[], ["-m", ""]])]
    text = tables(runs)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return int(any(" failed" in run.closing or " error" in run.closing for run in runs))


def run_pytest(arguments: list[str]) -> Run:
    """Run the suite with `arguments`, this file its plugin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.jsonl"
        paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, *arguments]
        since = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {_FILE: str(path), "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            closing = ""
            for line in process.stdout or ():
                print(line, end="", flush=True)
                closing = line.strip() or closing
        wall = time.monotonic() - since
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Run(tuple(arguments), wall, closing, [Seconds(*json.loads(row)) for row in rows])


def tables(runs: list[Run]) -> str:
    """The tables of the last run as Markdown, and the wall time of each."""
    tests = runs[-1].tests
    fast, slow, counts = Counter(), Counter(), Counter()
    for test in tests:
        folder = _folder(test.test)
        (slow if test.slow else fast)[folder] += test.cpu
        counts[folder] += 1
    lines = [f"Python {platform.python_version()}, {os.cpu_count()} cores.", "", "| command | wall time | result |"]
    lines += ["|---|---|---|"]
    for run in runs:
        command = " ".join(["pytest", *(argument or "''" for argument in run.arguments)])
        lines.append(f"| `{command}` | {run.wall / 60:.1f} minutes | {run.closing.strip('= ')} |")
    lines += ["", "| folder | tests | CPU seconds, fast tests | slow tests |", "|---|---|---|---|"]
    for folder in sorted(counts, key=lambda folder: -fast[folder] - slow[folder]):
        lines.append(f"| {folder} | {counts[folder]} | {fast[folder]:.1f} | {slow[folder]:.1f} |")
    lines.append(f"| all | {len(tests)} | {sum(fast.values()):.1f} | {sum(slow.values()):.1f} |")
    lines += ["", f"| the {_SHOWN} dearest tests | CPU seconds | |", "|---|---|---|"]
    for test in sorted(tests, key=lambda test: -test.cpu)[:_SHOWN]:
        lines.append(f"| `{test.test.removeprefix('tests/')}` | {test.cpu:.1f} | {'slow' if test.slow else 'fast'} |")
    return "\n".join(lines) + "\n"


def _folder(test):
    first, *rest = test.partition("::")[0].removeprefix("tests/").split("/")
    return f"{first}/" if rest else "(files at the top)"


# --- The plugin ---


def _cpu_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _measured(item):
    since = _cpu_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu", _cpu_seconds() - since))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    return (yield from _measured(item))


def pytest_runtest_logreport(report):
    if report.when == "teardown" and _FILE in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        cpu = sum(value for name, value in report.user_properties if name == "cpu")
        with open(os.environ[_FILE], "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, "slow" in report.keywords, cpu]) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
