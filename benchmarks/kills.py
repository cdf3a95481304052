"""Jobs that are killed at random moments and gone on with, against the same jobs left alone, bit for bit.

    python benchmarks/kills.py --kills=60 --seed=0                    # about twelve minutes on one core
    python benchmarks/kills.py --kills=10 --job=stream --kind=damage

Every job lasts some seconds and is run undisturbed first. Then it is started again and again in new folders, disturbed
at a moment drawn uniformly from its duration, start-up included, and the same command is repeated until it ends: every
row of metrics.jsonl, results.json, the tables and the final parameters must equal the undisturbed job's.

SIGKILL, SIGTERM: the signal, to the process that was started. full disk: from the moment on no file of any of its
processes can grow, and it ends by itself (RLIMIT_FSIZE, so the error is EFBIG and not ENOSPC, and empty files, folders
and renames still succeed). damage: SIGKILL, then a bit of a random file of the folder is flipped or its end is cut off;
here a refusal in one line that names the file is right as well, and so is a line that says which checkpoint of a
finished run is damaged. second writer: the same command while the first runs
must be refused in one line (but workers of a sweep or a comparison may share a folder), then SIGKILL to the first.

Prints a table by job and kind; the exit code is 1 if a row was lost, a figure differs, or there was a traceback.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

KINDS = ("SIGKILL", "SIGTERM", "full disk", "damage", "second writer")
FAILED = ("lost", "traceback")
ENDINGS = ("identical", "refused", "told", *FAILED)
LONGEST = 300.0  # seconds after which a process counts as hung
FIGURES = ("metrics.jsonl", "results.json", "*.csv")
CLOCK = re.compile(r"second|tokens_per|peak_")  # columns that are never the same


class Job(NamedTuple):
    """A command, to which the folder is added as --workdir=FOLDER. shared: several may run on one folder."""

    name: str
    command: tuple[str, ...]
    shared: bool = False


class Ended(NamedTuple):
    """A process that ended by itself, or None for its code where it had to be killed."""

    code: int | None
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class Result(NamedTuple):
    """What came of one disturbance. reason: where it failed."""

    job: str
    kind: str
    ending: str
    reason: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", default="", help="names with commas; all unless said")
    parser.add_argument("--kind", default=",".join(KINDS), help="names with commas")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "compiled")
        jobs = make_jobs(Path(folder), options.job.split(",") if options.job else ())
        plan = list(itertools.islice(itertools.cycle(itertools.product(jobs, options.kind.split(","))), options.kills))
        results = list(run_all(plan, Path(folder), options.seed, options.jobs, read_params))
    print_table(results)
    sys.exit(any(result.ending in FAILED for result in results))


def make_jobs(folder: Path, names: Sequence[str] = ()) -> list[Job]:
    """The jobs called `names`, by default all, with their experiment files."""
    import tiny
    from fuzz.room import write_sentences

    text = tiny.write_text(folder)
    write_sentences(folder / "sentences.csv")
    common = {"train__steps": 60, "train__checkpoint_every": 7, "train__log_every": 4, "eval__every": 15}
    common |= {"train__dropout": 0.1, "data__test_fraction": 0.2}
    changes = {
        "windows": {"eval__best": True, "optim__ema_decay": 0.9},
        "stream": {"data__mode": "stream", "model__pattern": "cascade:lru+swa"},
        "packed": {"data__mode": "packed", "data__document": "paragraph", "optim__accumulate": 2},
        "padded": {
            "data__mode": "padded",
            "data__tokenizer": "word",
            "task__name": "classify",
            "model__pattern": "lstm",
            "eval__metric": "accuracy",
            "eval__best": True,
        },
        "lanes": {"model__pattern": "lstm"},
        "sweep": {"model__pattern": "lstm"},
        "compare": {"model__pattern": "lstm"},
    }
    sweep = (
        "from hybrid_flax.sweep.space import axis\ndef sweep():\n    return axis('optim.learning_rate', [1e-3, 1e-2])"
    )
    compare = (
        "from hybrid_flax.compare.definition import ComparedTask, Definition\n"
        "def get_compare(arg=''):\n"
        "    rows = {name: {'model.pattern': name} for name in ('lstm', 'gru')}\n"
        "    tasks = {'text': ComparedTask(get_config())}\n"
        "    return Definition('Killed', rows, tasks, {'parameters': 12000}, (1e-2,), 1)"
    )
    heads = {"lanes": sweep, "sweep": sweep, "compare": compare}
    words = {"lanes": ("sweep", "--executor=lanes"), "sweep": ("sweep", "--jobs=1"), "compare": ("compare", "--jobs=1")}
    made = []
    for name in names or changes:
        data = folder / "sentences.csv" if name == "padded" else text
        experiment = tiny.write_experiment(folder, data, heads.get(name, ""), **common | changes[name])
        experiment = experiment.rename(folder / f"{name}.py")
        launch = (sys.executable, "-W", "error", str(ROOT / "launch.py"))
        command = (*launch, *words.get(name, ("train",)), f"--config={experiment}")
        made.append(Job(name, command, shared=name in words))
    return made


def run_all(
    plan: Sequence[tuple[Job, str]],
    folder: Path,
    seed: int,
    at_a_time: int,
    params_of: Callable[[Path], Mapping[str, str]] = lambda folder: {},
) -> Iterator[Result]:
    """The result of every disturbance of the plan, after its job was run undisturbed. Prints each that failed."""
    sound = {}
    for job in dict.fromkeys(job for job, _ in plan):
        undisturbed = [_time_alone(job, folder / f"{job.name}-alone-{number}", params_of) for number in range(2)]
        one, other = (figures for figures, _ in undisturbed)
        assert one == other, f"{job.name} is not the same twice, undisturbed: {', '.join(_differing(one, other))}"
        sound[job.name] = undisturbed[1]  # the first one compiled
        print(f"{job.name}: {undisturbed[1][1]:.1f} seconds undisturbed, {len(undisturbed[1][0])} figures", flush=True)

    def disturb(number: int) -> Result:
        job, kind = plan[number]
        return disturb_job(job, kind, folder / f"{job.name}-{number}", seed, *sound[job.name], params_of)

    with ThreadPoolExecutor(at_a_time) as pool:
        for number, result in enumerate(pool.map(disturb, range(len(plan)))):
            print(f"{number + 1}/{len(plan)} {' '.join(filter(None, result))}", flush=True)
            yield result


def disturb_job(
    job: Job,
    kind: str,
    folder: Path,
    seed: int,
    sound: Mapping[str, str],
    seconds: float,
    params_of: Callable[[Path], Mapping[str, str]],
) -> Result:
    """Start `job` in `folder`, disturb it at a random moment of its `seconds`, go on with it, compare with `sound`."""
    rng = random.Random(f"{seed}/{folder.name}")
    running = _Running(job, folder)
    running.wait(rng.uniform(0, seconds))
    process = running.process
    harmed, ends, problem = "", [], ""
    if kind == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    elif kind == "full disk":
        _fill_disk(process.pid)
    elif kind == "second writer":
        second = _Running(job, folder).finish()
        ends.append(second)
        if process.poll() is None and not job.shared and not (second.code and len(second.errors) == 1):
            problem = f"a second writer was let in (exit {second.code})"
        process.kill()
    else:
        process.kill()
    ends.append(running.finish())
    if kind == "damage":
        harmed = _damage(folder, rng)
    for _ in range(3):
        last = _Running(job, folder).finish()
        ends.append(last)
        if last.code == 0:
            break
    what = f"--seed={seed}, {folder.name}{f', {harmed}' if harmed else ''}"
    texts = [end.output for end in ends] + [path.read_text(errors="replace") for path in folder.rglob("output.log")]
    traces = [text for text in texts if "Traceback (most recent call last)" in text]
    if traces:
        print(traces[0][-4000:], flush=True)
        return Result(job.name, kind, "traceback", f"{what}: {_last_error(traces[0])}")
    if problem:
        return Result(job.name, kind, "lost", f"{what}: {problem}")
    if last.code:
        named = len(last.errors) == 1 and _names(last.errors[0], harmed)
        said = (last.errors or last.output.strip().splitlines() or ["nothing"])[-1][:200]
        return Result(job.name, kind, "refused" if named else "lost", f"{what}: exit {last.code}, {said}")
    if last.code is None:
        return Result(job.name, kind, "lost", f"{what}: no end within {LONGEST:.0f} s")
    found = read_figures(folder, params_of)
    told = [name.removesuffix("told") for name in found if name.endswith("/told")]
    if told and all(any(name.startswith(run) for run in told) for name in _differing(sound, found)):
        return Result(job.name, kind, "told", what)
    if sound != found:
        return Result(job.name, kind, "lost", f"{what}: {', '.join(_differing(sound, found))} differ")
    return Result(job.name, kind, "identical")


def read_figures(folder: Path, params_of: Callable[[Path], Mapping[str, str]]) -> dict[str, str]:
    """A hash of everything that must be the same, by its place in the folder."""
    files = [path for pattern in FIGURES for path in folder.rglob(pattern)]
    found = {str(path.relative_to(folder)): _hash(_without_clock(path)) for path in files}
    runs = [path.parent for path in folder.rglob("results.json")]
    return found | {
        f"{run.relative_to(folder)}/{name}": value for run in runs for name, value in params_of(run).items()
    }


def read_params(run: Path) -> dict[str, str]:
    """A hash of every parameter that a run ended with; why, where it cannot be loaded any more.

    "told" where a checkpoint was damaged after training had ended, and a line says that an earlier one is taken.
    """
    import jax

    from hybrid_flax.errors import ConfigError
    from hybrid_flax.runs import load_run

    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            leaves = jax.tree_util.tree_leaves_with_path(load_run(run).params)
    except ConfigError as error:
        return {f"not loaded ({error})": ""}
    told = {"told": ""} if "is taken instead" in said.getvalue() else {}
    return told | {jax.tree_util.keystr(path): _hash(jax.device_get(leaf).tobytes()) for path, leaf in leaves}


def print_table(results: Sequence[Result]) -> None:
    """Counts by job and kind."""
    from rich.console import Console
    from rich.table import Table

    counts = Counter(result[:3] for result in results)
    table = Table("job", "kind", "kills", *ENDINGS)
    for job, kind in dict.fromkeys(result[:2] for result in results):
        row = [counts[job, kind, ending] for ending in ENDINGS]
        table.add_row(job, kind, str(sum(row)), *map(str, row))
    total = Counter(result.ending for result in results)
    table.add_row("all", "", str(len(results)), *(str(total[ending]) for ending in ENDINGS))
    Console().print(table)


def _time_alone(job, folder, params_of) -> tuple[dict[str, str], float]:
    since = time.monotonic()
    end = _Running(job, folder).finish()
    seconds = time.monotonic() - since
    assert end.code == 0, f"{job.name}, undisturbed, ended with {end.code}:\n{end.output[-3000:]}"
    return read_figures(folder, params_of), seconds


class _Running:
    """A job's process; a thread reads what it prints, so that it never waits for a reader."""

    def __init__(self, job: Job, folder: Path):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
        command = [*job.command, f"--workdir={folder}"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._pool = ThreadPoolExecutor(1)
        self._printed = self._pool.submit(self.process.stdout.read)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)
        return self.process.poll() is not None

    def finish(self) -> Ended:
        """How it ends, with what its children of before still print."""
        code = self.process.poll() if self.wait(LONGEST) else None
        if code is None:
            self.process.kill()
            self.process.wait()
        output = self._printed.result(timeout=LONGEST).decode(errors="replace")
        self._pool.shutdown()
        self.process.stdout.close()
        return Ended(code, output)


def _fill_disk(pid: int) -> None:
    """No file of the process, of its children, and of those that they start, grows any more."""
    for one in [pid, *_children(pid)]:
        try:
            _, most = resource.prlimit(one, resource.RLIMIT_FSIZE)
            resource.prlimit(one, resource.RLIMIT_FSIZE, (0, most))
        except ProcessLookupError:
            continue


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = list(map(int, path.read_text().split()))
        except OSError:
            continue
        for child in children:
            yield child
            yield from _children(child)


def _damage(folder: Path, rng: random.Random) -> str:
    """Flip a bit of a file or cut off its end; returns how and where, "" where there is none yet."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return ""
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    how = rng.choice(("flipped", "cut"))
    if how == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{how} {path.relative_to(folder)}"


def _names(error: str, harmed: str) -> bool:
    """Whether an error names the file that was harmed, or the checkpoint or the run that holds it."""
    return any(part in error for part in harmed.partition(" ")[2].split("/") if part and not part.isdigit())


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of a few figures that differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))[:4]


def _last_error(text: str) -> str:
    """What the last traceback of a text ends with."""
    lines = re.findall(r"^[\w.]+(?:Error|Exception|Interrupt|Exit)\b.*", text, re.MULTILINE)
    return (lines or text.strip().splitlines())[-1][:200]


def _without_clock(path: Path) -> bytes:
    """What is in a file; of a table, but for its columns of time and memory."""
    if path.suffix != ".csv":
        return path.read_bytes()
    head, *rows = csv.reader(io.StringIO(path.read_text()))
    kept = [place for place, name in enumerate(head) if not CLOCK.search(name)]
    return repr([[row[place] for place in kept if place < len(row)] for row in (head, *rows)]).encode()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main()
