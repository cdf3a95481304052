"""Where the time of the test suite goes: the dearest tests, and the CPU seconds of each folder.

    python benchmarks/suite_seconds.py [-m ''] [--out=FILE.md] [pytest arguments]

The file is also the pytest plugin that measures: CPU seconds of a test are those of its process and of the processes
that it waited for, fixtures included; a fixture that several tests share counts for the test that needed it first.
"""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    if report.when == "teardown" and "PYTEST_XDIST_WORKER" not in os.environ:
        seconds = sum(value for name, value in report.user_properties if name == "cpu")
        with open(os.environ["SUITE_SECONDS"], "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, seconds]) + "\n")
