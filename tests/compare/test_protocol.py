"""A comparison from its file to its tables: whole, failing in parts, cut off and gone on with."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import comparisons
import jax
import pytest
import tiny
from jobs.fake import FakeExecutor
from jobs.in_process import InProcessExecutor
from rich.console import Console

from hybrid_flax import cli
from hybrid_flax.compare import protocol
from hybrid_flax.compare.protocol import num_runs, plan_comparison, plan_runs, run_comparison
from hybrid_flax.compare.results import Failure, read_comparison
from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.queue import Standing
from hybrid_flax.report import comparison as report_module
from hybrid_flax.report.comparison_tables import markdown, write_tables
from hybrid_flax.runs import load_run
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.loop import train
from hybrid_flax.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_pauses")


def run_here(plan, spec, workdir, **given):
    """What a comparison found whose trials train in this process."""
    return run_comparison(*plan, str(spec), workdir, InProcessExecutor(**given), console=Console(quiet=True))[0]


@pytest.fixture(scope="module")
def plan(comparison_file):
    return plan_comparison(str(comparison_file))


@pytest.fixture(scope="module")
def whole(plan, comparison_file, tmp_path_factory, no_pauses):
    """The folder of a finished comparison."""
    workdir = tmp_path_factory.mktemp("whole")
    write_tables(run_here(plan, comparison_file, workdir), workdir)
    return workdir


def figures(workdir, *tasks) -> list:
    """All that must not depend on the machine or on how often the comparison was cut off, of some tasks or of all."""
    entries = [entry for entry in read_comparison(workdir).entries if not tasks or entry.task in tasks]
    return [entry._replace(cost=None, failures=()) for entry in entries]


@pytest.mark.slow
def test_whole_comparison(whole, plan):
    comparison = read_comparison(whole)
    assert comparison.finished() and comparison.title == "Tiny"
    assert [(row.name, row.single) for row in comparison.rows] == [("tanh", True), ("both", False)]
    assert [column.task for column in comparison.columns] == ["pairs", "parity"]
    assert [(e.row, e.task) for e in comparison.entries] == [
        (r, t) for r in ("tanh", "both") for t in ("pairs", "parity")
    ]
    assert comparison.entry("both", "pairs") is comparison.entries[2]
    for entry in comparison.entries:
        values = dict(entry.search)
        sign = 1 if entry.task == "parity" else -1
        assert entry.learning_rate == max(values, key=lambda rate: sign * values[rate]) and values.keys() == {
            1e-3,
            1e-2,
        }
        assert entry.seeds == (0, 1) and not entry.failures
        assert entry.valid[0] == values[entry.learning_rate]
        for place, folder in enumerate(entry.folders):
            results = json.loads((whole / folder / "results.json").read_text())
            metric = "accuracy" if entry.task == "parity" else "loss"
            assert (entry.valid[place], entry.test[place]) == (results["valid"][metric], results["test"][metric])
            config = json.loads((whole / folder / "config.json").read_text())
            assert (config["seed"], config["optim"]["learning_rate"]) == (entry.seeds[place], entry.learning_rate)
            assert config["model"]["width"] == entry.width and config["eval"]["best"]
    assert len(list((whole / "runs").iterdir())) == sum(map(num_runs, plan[1])) == 12


def test_costs_are_those_of_the_runs(whole):
    for entry in read_comparison(whole).entries:
        params = load_run(whole / entry.folders[0]).params
        assert entry.cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
        if entry.task == "pairs":
            assert abs(entry.cost.parameters - 9_750) <= 0.02 * 9_750
        else:
            assert abs(entry.cost.flops_per_token - 20_000) <= 0.02 * 20_000
        assert entry.cost.tokens_per_sec > 0 and entry.cost.peak_bytes > 1e8 and "resident" in entry.cost.peak_kind


def test_tables_hold_the_figures(whole):
    comparison = read_comparison(whole)
    text = (whole / "compare.md").read_text()
    with (whole / "compare.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 4
    for record, entry in zip(records, comparison.entries):
        assert [float(value) for value in record["test_by_seed"].split()] == list(entry.test)
        assert float(record["test_mean"]) == pytest.approx(sum(entry.test) / 2)
        assert (record["row"], int(record["width"])) == (entry.row, entry.width)
        mean = sum(entry.test) / 2
        assert f"{100 * mean:.1f} ±" in text if entry.task == "parity" else f"{mean:.3f} ±" in text
    assert [record["reference"] for record in records] == ["", "", "tanh", "tanh"]
    assert text.count("†") == 2 + 3 and "`add:tanh+conv`" not in text  # rows go by their names


def test_a_finished_comparison_trains_nothing(whole, plan, comparison_file):
    before = (whole / "compare.json").read_bytes()
    run_here(plan, comparison_file, whole, train=None)
    assert (whole / "compare.json").read_bytes() == before


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_what_is_missing_is_done_again(copy, whole, plan, comparison_file):
    entry = read_comparison(copy).entries[0]
    shutil.rmtree(copy / entry.folders[1])
    trained = []

    def noted(config, *rest):
        trained.append(config)
        train(config, *rest)

    assert run_here(plan, comparison_file, copy, train=noted).finished()
    assert [(config.seed, config.optim.learning_rate) for config in trained] == [(1, entry.learning_rate)]
    assert figures(copy) == figures(whole)


def test_failures_are_noted_and_the_rest_goes_on(copy, whole, plan, comparison_file):
    """A run that is not finite stays failed; one that fails for another reason is tried again at the next start."""
    first, second = (read_comparison(copy).entry("tanh", task) for task in ("pairs", "parity"))
    for folder in (first.folders[1], second.folders[1]):
        shutil.rmtree(copy / folder)

    def broken(config, *rest):
        raise TrainingFailed("step 3: not finite") if "even_pairs" in config.data.path else MemoryError("too\nlittle")

    comparison = run_here(plan, comparison_file, copy, train=broken)
    assert not comparison.finished()
    pairs, parity = (comparison.entry("tanh", task) for task in ("pairs", "parity"))
    assert (pairs.seeds, len(pairs.test), pairs.failures[0].reason) == ((0,), 1, "step 3: not finite")
    assert (pairs.failures[0].seed, pairs.failures[0].learning_rate) == (1, first.learning_rate)
    assert parity.failures[0].reason == "too little"
    assert "Runs that did not get to their end" in markdown(comparison)
    again = run_here(plan, comparison_file, copy)
    assert again.entry("tanh", "parity") == read_comparison(whole).entry("tanh", "parity")._replace(
        cost=again.entry("tanh", "parity").cost
    )
    assert again.entry("tanh", "pairs").seeds == (0,)


def test_a_search_without_any_success_has_no_rate(plan, comparison_file, tmp_path):
    def broken(config, *rest):
        raise TrainingFailed("step 3: not finite")

    comparison = run_here(plan, comparison_file, tmp_path, train=broken)
    for entry in comparison.entries:
        assert entry.learning_rate is None and entry.test == () and len(entry.failures) == 2
    assert "| - |" in markdown(comparison)


@pytest.mark.parametrize(("seeds", "code"), [((0, 1), 0), ((0,), 1), ((), 1)])
def test_the_exit_code_says_whether_anything_is_missing(seeds, code, whole, plan, comparison_file, monkeypatch, capsys):
    """A rate of the search that diverges is a finding; a seed without a result is not."""
    made = read_comparison(whole)
    first = made.entries[0]._replace(seeds=seeds, failures=(Failure("x", 0.1, 0, "step 3: not finite"),))
    made = made._replace(entries=(first, *made.entries[1:]))
    monkeypatch.setattr(protocol, "plan_comparison", lambda *arguments: plan)
    monkeypatch.setattr(protocol, "run_comparison", lambda *arguments, **options: (made, None))
    monkeypatch.setattr(report_module, "write_report", lambda *arguments: "compare.html")
    assert cli.main(["compare", f"--config={comparison_file}", f"--workdir={whole}"]) == code


def test_a_process_that_is_killed_is_noted_and_the_others_go_on(copy, whole, plan, comparison_file):
    entry = read_comparison(copy).entries[0]
    for folder in entry.folders:
        shutil.rmtree(copy / folder)
    comparison = run_here(plan, comparison_file, copy, codes=[-signal.SIGKILL])
    (failure,) = comparison.entries[0].failures
    assert failure.reason == "killed (SIGKILL): out of memory?"
    assert comparison.entries[0].learning_rate != failure.learning_rate  # for now it goes on with what is left
    assert not run_here(plan, comparison_file, copy).entries[0].failures
    assert figures(copy) == figures(whole)


def test_a_signal_stops_after_the_step_and_the_next_start_goes_on(copy, whole, plan, comparison_file):
    entry = read_comparison(copy).entries[0]
    shutil.rmtree(copy / entry.folders[1])

    def stopped(config, workdir, *rest):
        raise Interrupted(3, signal.SIGTERM)

    executor = InProcessExecutor(train=stopped)
    _, stopped_by = run_comparison(*plan, str(comparison_file), copy, executor, console=Console(quiet=True))
    assert stopped_by == signal.SIGTERM
    assert not read_comparison(copy).entries[0].failures
    assert run_here(plan, comparison_file, copy).finished()
    assert figures(copy) == figures(whole)


def test_the_search_comes_first_and_its_best_run_is_a_seed(plan):
    contender = plan[1][0]
    trials, standings = plan_runs(contender), {}
    for place, value in enumerate((0.7, 0.6)):
        planned = trials(standings)
        assert [(t.values["optim.learning_rate"], t.values["seed"]) for t in planned] == [(1e-3, 0), (1e-2, 0)]
        name = planned[place].name
        standings[name] = Standing(place, name, planned[place].values, "done", 6, value)
    assert [(t.values["optim.learning_rate"], t.values["seed"]) for t in trials(standings)[2:]] == [(1e-2, 1)]
    standings[name] = standings[name]._replace(state="pruned")
    assert [(t.values["optim.learning_rate"], t.values["seed"]) for t in trials(standings)[2:]] == [(1e-3, 1)]


def test_pruning_is_for_the_search_alone(comparison_file, tmp_path):
    """A rate that is behind the others of its contender is stopped; no seed at the best rate is, however bad."""
    title, contenders = plan_comparison(str(comparison_file), ["train.steps=9", "eval.every=1"])
    contenders = [c._replace(learning_rates=(0.01, 0.02, 0.04, 0.08), seeds=(0, 1, 2)) for c in contenders[:1]]
    executor = FakeExecutor()
    result, _ = run_comparison(
        title, contenders, "x.py", tmp_path, executor, pruner="halving", console=Console(quiet=True)
    )
    (entry,) = result.entries
    assert executor.cancelled == len(entry.failures) > 0
    assert all(failure.seed == 0 and failure.reason.startswith("pruned at step") for failure in entry.failures)
    assert entry.learning_rate == 0.01 and entry.seeds == (0, 1, 2)


def test_unreadable_comparisons(tmp_path):
    with pytest.raises(ConfigError, match="holds no comparison"):
        read_comparison(tmp_path)
    (tmp_path / "compare.json").write_text('{"title": "of version 0.1"}')
    with pytest.raises(ConfigError, match="start its comparison again"):
        read_comparison(tmp_path)
    (tmp_path / "compare.json").write_text('{"title": "half')
    with pytest.raises(ConfigError, match=r"compare\.json cannot be read"):
        read_comparison(tmp_path)


def test_a_folder_that_cannot_be(plan, comparison_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a folder of runs"):
        run_comparison(*plan, str(comparison_file), tmp_path / "file", InProcessExecutor())


@pytest.mark.slow
def test_killed_stopped_and_gone_on_with(whole, comparison_file, tmp_path):
    """SIGKILL, then SIGTERM, in the middle of a run: nothing is left running, and the end is that of the whole.

    Jobs share the cores: all read the file of the comparison, which notes where.
    """
    workdir, cores = tmp_path / "cut", tmp_path / "cores"
    note = f"\nimport os\nprint(*sorted(os.sched_getaffinity(0)), file=open({str(cores)!r}, 'a'))\n"
    comparison_file = tmp_path / comparison_file.name
    comparison_file.write_text(comparisons.write_comparison_file(tmp_path).read_text() + note)
    command = (tiny.ROOT / "launch.py", "compare", f"--config={comparison_file}:pairs", "--jobs=2")
    command += (f"--workdir={workdir}",)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        before = len(list(workdir.glob("runs/*/results.json")))
        process = tiny.start(*command)
        wait_for_results(process, workdir, before + 1)
        process.send_signal(number)
        assert tiny.finish(process)[0] == code
        assert_nothing_runs(workdir)
        assert len(list(workdir.glob("runs/*/results.json"))) < 6
    code, out, err = tiny.python(*command)
    assert code == 0, err
    assert figures(workdir) == figures(whole, "pairs") and "6/6 trials" in out
    mine = sorted(os.sched_getaffinity(0))
    wanted = [mine, mine[::2], mine[1::2] or mine]
    assert {*cores.read_text().splitlines()} == {" ".join(map(str, some)) for some in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["lanes", "slurm"])
def test_every_executor_gives_the_same_table(executor, whole, comparison_file, tmp_path, request):
    """Killed and gone on with: that of runs which train here, one after another."""
    if executor == "slurm":
        request.getfixturevalue("slurm")
    command = (tiny.ROOT / "launch.py", "compare", f"--config={comparison_file}:pairs", f"--workdir={tmp_path}")
    command += (f"--executor={executor}", "--jobs=2")
    process = tiny.start(*command)
    wait_for_results(process, tmp_path, 1)
    process.send_signal(signal.SIGKILL)
    assert tiny.finish(process)[0] == -signal.SIGKILL
    assert len(list(tmp_path.glob("runs/*/results.json"))) < 6
    code, out, err = tiny.python(*command)
    assert code == 0, err
    assert "6/6 trials" in out and len(list(tmp_path.glob("runs/*/results.json"))) == 6
    for entry, wanted in zip(figures(tmp_path), figures(whole, "pairs"), strict=True):
        assert (entry.row, entry.task, entry.learning_rate, entry.seeds, entry.folders) == (
            *(wanted.row, wanted.task, wanted.learning_rate),
            *(wanted.seeds, wanted.folders),
        )
        values = (*entry.valid, *entry.test, *(value for _, value in entry.search))
        assert values == pytest.approx((*wanted.valid, *wanted.test, *(v for _, v in wanted.search)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_workers_share_a_comparison(storage, whole, comparison_file, tmp_path, request):
    """Two at once do every run once, and both end with the whole table."""
    workdir = tmp_path / f"shared-{storage}"
    command = [tiny.ROOT / "launch.py", "compare", f"--config={comparison_file}:pairs", f"--workdir={workdir}"]
    if storage == "postgresql":
        command.append(f"--storage={request.getfixturevalue('database')}")
    workers = [tiny.finish(process) for process in [tiny.start(*command), tiny.start(*command)]]
    assert [code for code, _, _ in workers] == [0, 0], workers
    started = [line for _, out, _ in workers for line in out.splitlines() if line.startswith("started: ")]
    assert len(started) == len(set(started)) == 6
    assert figures(workdir) == figures(whole, "pairs")


def wait_for_results(process, workdir, number):
    """Return once so many runs are finished."""
    while process.poll() is None:
        if len(list(workdir.glob("runs/*/results.json"))) >= number:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


def assert_nothing_runs(workdir, seconds=10.0):
    """No process writes into the folder: every lock of a run is free within a moment, and stays so."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not [pid for pid in os.listdir("/proc") if pid.isdigit() and holds(pid, workdir)]:
            return
        time.sleep(0.1)
    raise AssertionError("a process of the comparison is left")


def holds(pid, workdir):
    """Whether a process has a file of the folder open."""
    try:
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(path.startswith(str(workdir)) for path in opened)
