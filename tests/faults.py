"""Seeded faults: each is put into a copy of the tree, and the tests there must notice it.

    python tests/faults.py                                   # every fault of faults.toml, without the slow tests
    python tests/faults.py window-one-too-wide hybrid_flax/cells
    python tests/faults.py --marks="" --first=before.jsonl --out=after.jsonl
    python tests/faults.py no-fault                          # the copy as it is: no test may fail there

A fault meets the test file named like its own, then the tests of its folder (of cells and mixers the certificate, too),
then all others, until a test fails. That takes seconds where a test is near and as long as the whole suite where none
is. Before tests are made fewer or faster, write the results to one file; afterwards, to another with the first as
--first: what was caught and no longer is was lost. A test that fails now and then catches everything, so see whether
`no-fault` passes.

Results are appended to --out as they come and are not made again: take another file for another state of the tests.
The exit code is 1 where a fault was not caught.
"""

import argparse
import contextlib
import difflib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

__all__ = ["NO_FAULT", "ROOT", "Fault", "mutated", "read_faults", "stages"]

ROOT = Path(__file__).parents[1]
_TEST_OF_LIST = "tests/test_faults.py"  # it would notice every fault, by its text
_SHOW_ORIGIN = "import importlib.util; print(importlib.util.find_spec('hybrid_flax').origin)"


class Fault(NamedTuple):
    """A slip: `original` stands exactly once in `file`, and `replacement` takes its place."""

    name: str
    file: str
    original: str
    replacement: str


class Result(NamedTuple):
    """What became of a fault.

    by: the id of the test that failed; "timeout", or how pytest ended, where that says it; "" where nothing failed.
    why: the message. stage: as in `stages`, or "first" for the test of an earlier result. marks: tests that ran.
    """

    name: str
    file: str
    caught: bool
    by: str
    why: str
    stage: str
    seconds: float
    marks: str


NO_FAULT = Fault("no-fault", "hybrid_flax/__init__.py", "", "")


def main() -> None:
    """Run what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults, or files and folders that have some; all unless said")
    parser.add_argument("--marks", default="not slow", help='as for pytest -m; "" for all tests')
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time; each has a core if more than one")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    parser.add_argument("--first", type=Path, help="results whose tests are tried before all others")
    parser.add_argument(
        "--limit",
        type=float,
        default=5400,
        help="seconds for a fault, more than all tests take: a hang counts as caught",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = choose(read_faults(), options.names)
        results = run(chosen, options)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"error: stopped; the same command goes on from {options.out}")
    print(table(results))
    sys.exit(any(result.caught == (result.name == NO_FAULT.name) for result in results))


def read_faults() -> list[Fault]:
    """The faults of faults.toml, in order."""
    tables = tomllib.loads(Path(__file__).with_name("faults.toml").read_text(encoding="utf-8"))
    return [Fault(name, **values) for name, values in tables.items()]


def choose(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    """Those of the names, files and folders given, or all. Raises ValueError for what is none of these."""
    chosen = []
    for name in names:
        found = [fault for fault in faults if fault.name == name or Path(fault.file).is_relative_to(name)]
        found += [NO_FAULT] if name == NO_FAULT.name else []
        if not found:
            near = difflib.get_close_matches(name, [fault.name for fault in faults], n=3, cutoff=0.3)
            raise ValueError(f"no fault {name!r}; nearest: {', '.join(near) or 'none'}")
        chosen += found
    return list(dict.fromkeys(chosen)) if names else list(faults)


def mutated(fault: Fault, source: str) -> str:
    """The source with the fault. Raises ValueError where `original` does not stand there exactly once."""
    if fault == NO_FAULT:
        return source
    count = source.count(fault.original)
    if count != 1:
        raise ValueError(f"{fault.name}: {fault.original!r} stands {count} times in {fault.file}, not once")
    return source.replace(fault.original, fault.replacement)


def stages(fault: Fault, tree: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments of pytest) of the tests in `tree`: those nearest to a fault first, no test twice."""
    _, *folders, name = Path(fault.file).parts
    folder, stem = Path("tests", *folders), Path(name).stem
    own = [
        path for pattern in (f"test_{stem}.py", f"test_{stem}_*.py") for path in sorted((tree / folder).glob(pattern))
    ]
    certified = folders[:1] in (["cells"], ["mixers"])
    left_out = [_TEST_OF_LIST]
    for stage, paths in (
        ("file", [str(path.relative_to(tree)) for path in own]),
        ("folder", [str(folder)] if folders and (tree / folder).is_dir() else []),
        ("certify", ["tests/certify"] if certified else []),
        ("rest", ["tests"]),
    ):
        if paths:
            yield stage, [*paths, *(f"--ignore={path}" for path in left_out)]
        left_out += paths


def run(faults: Sequence[Fault], options: argparse.Namespace) -> list[Result]:
    """The results of faults, in order: those that options.out holds, and the others, which are appended to it.

    Raises ValueError where a fault does not fit the tree, and where pytest cannot run the tests.
    """
    for fault in faults:
        mutated(fault, (ROOT / fault.file).read_text(encoding="utf-8"))
    earlier = _read_results(options.out) if options.out.exists() else []
    held = {result.name: result for result in earlier if result.marks == options.marks}
    before = _read_results(options.first) if options.first else []
    killers = {result.name: result.by for result in before if "/" in result.by}
    stop, slots = threading.Event(), itertools.count()
    with (
        options.out.open("a", encoding="utf-8") as out,
        ThreadPoolExecutor(options.jobs, initializer=_take_core, initargs=(slots, options.jobs)) as pool,
    ):
        attempt = functools.partial(try_fault, marks=options.marks, limit=options.limit, stop=stop)
        missing = [fault for fault in faults if fault.name not in held]
        jobs = [pool.submit(attempt, fault, killers.get(fault.name, "")) for fault in missing]
        try:
            for job in as_completed(jobs):
                result = held[job.result().name] = job.result()
                out.write(json.dumps(result._asdict()) + "\n")
                out.flush()
                said = f"{result.stage}: {result.by}" if result.caught else "NOT CAUGHT"
                print(f"{result.name} ({result.seconds:.0f} s) {said}", file=sys.stderr, flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [held[fault.name] for fault in faults]


def try_fault(fault: Fault, killer: str, marks: str, limit: float, stop: threading.Event) -> Result:
    """Put a fault into a copy of the tree and run its tests there; killer: the id of a test to begin with, or ""."""
    since = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder) / "tree"
        environment = os.environ | {"PYTHONPATH": str(tree), "TMPDIR": folder, "COLUMNS": "300"}
        if data := os.environ.get("HYBRID_FLAX_DATA"):
            environment["HYBRID_FLAX_DATA"] = str(Path(data).absolute())
        _copy_tracked_files(tree)
        target = tree / fault.file
        target.write_text(mutated(fault, target.read_text(encoding="utf-8")), encoding="utf-8")
        _check_import(tree, environment)
        by, why = "", ""
        for stage, arguments in [*([("first", [killer])] if killer else []), *stages(fault, tree)]:
            command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-q", "-p", "no:cacheprovider", "-m", marks]
            code, output = _finish([*command, *arguments], tree, environment, since + limit, stop)
            if code == 4 and stage != "first":  # the test that caught it once may be gone
                raise ValueError(f"{fault.name}: pytest cannot run {stage}: {' '.join(output.split())[-300:]}")
            by, why = _failure(code, output)
            if by:
                break
    seconds = round(time.monotonic() - since, 1)
    return Result(fault.name, fault.file, bool(by), by, why, stage if by else "", seconds, marks)


def table(results: Sequence[Result]) -> str:
    """Markdown: a line for every fault, and totals."""
    lines = ["| fault | file | caught by | stage |", "|---|---|---|---|"]
    for result in results:
        by = f"`{result.by}`".replace("|", "\\|") if result.caught else "**nothing**"
        lines.append(f"| {result.name} | {result.file} | {by} | {result.stage} |")
    missed = [result.name for result in results if not result.caught]
    by_stage = ", ".join(f"{stage} {n}" for stage, n in Counter(r.stage for r in results if r.caught).items())
    lines += ["", f"{len(results) - len(missed)} of {len(results)} caught ({by_stage or 'none'})."]
    lines += [f"Not caught: {', '.join(missed)}."] if missed else []
    return "\n".join(lines)


def _read_results(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _take_core(slots: Iterator[int], jobs: int) -> None:
    """Keep this thread, and the processes that it starts, on a core of its own, where several work at a time."""
    if jobs > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[next(slots) % len(cores)]})


def _copy_tracked_files(tree: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def _check_import(tree: Path, environment: dict[str, str]) -> None:
    """Raises ValueError where the tests would import an installed package in place of the copy."""
    command = [sys.executable, "-c", _SHOW_ORIGIN]
    origin = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True).stdout
    if not Path(origin.strip()).is_relative_to(tree):
        raise ValueError(f"{sys.executable} imports hybrid_flax from {origin.strip()}, not from the copy {tree}")


def _finish(
    command: list[str], tree: Path, environment: dict[str, str], deadline: float, stop: threading.Event
) -> tuple[int | None, str]:
    """(exit code, output) of a process of which nothing is left running; None where its time was up."""
    with (tree.parent / "output").open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None and time.monotonic() < deadline and not stop.is_set():
            time.sleep(0.1)
        code = process.returncode
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _kill_those_in(tree.parent.resolve())
        output.seek(0)
        return code, output.read()


def _kill_those_in(folder: Path) -> None:
    """End processes that tests have put into groups of their own: they still work inside the temporary folder."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "cwd").resolve().is_relative_to(folder):
                os.kill(int(place.name), signal.SIGKILL)


def _failure(code: int | None, output: str) -> tuple[str, str]:
    """(what caught the fault, its message), both "" for tests that passed or were none."""
    if code in (0, 4, 5):
        return "", ""
    if code is None:
        return "timeout", ""
    for line in reversed(output.splitlines()):
        word, _, rest = line.partition(" ")
        if word in ("FAILED", "ERROR"):
            test, _, why = rest.partition(" - ")
            return test, why
    return f"exit code {code}", output[-300:]


if __name__ == "__main__":
    main()
