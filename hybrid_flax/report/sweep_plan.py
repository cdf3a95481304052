"""What a sweep will cost, before anything trains: its trials, the programs they share, parameters, and time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybrid_flax.console import make_console
from hybrid_flax.cost import flops, tree_size
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import Trial, values_text
from hybrid_flax.report.plan import step_arguments
from hybrid_flax.sweep.definition import Sweep
from hybrid_flax.sweep.space import Choice, FloatRange, IntRange, When
from hybrid_flax.sweep.trials import check_config
from hybrid_flax.training.pace import measure_pace, start_seconds
from hybrid_flax.training.setup import Setup, step_program
from hybrid_flax.training.step import make_train_step
from hybrid_flax.units import format_duration

__all__ = ["Group", "group_trials", "print_sweep_plan", "space_text"]


class Group(NamedTuple):
    """Trials that train by one compiled step.

    setup: of the first. parameters: numbers. step_flops: of one step, with the update. num_steps: those left to
    train, of all its trials. num_left: trials with such steps.
    """

    setup: Setup
    trials: Sequence[Trial]
    parameters: int
    step_flops: float
    num_steps: int
    num_left: int


def group_trials(sweep: Sweep, steps_done: Mapping[str, int]) -> list[Group]:
    """The trials of a grid by the program that trains them; nothing is compiled or run.

    steps_done: of trials by name, where there are any.
    """
    groups: dict[Any, tuple[Setup, list[Trial]]] = {}
    for trial in sweep.trials:
        setup = check_config(trial.config)
        groups.setdefault(step_program(setup, trial.config), (setup, []))[1].append(trial)
    programs = []
    for setup, trials in groups.values():
        left = [trial.config.train.steps - steps_done.get(trial.name, 0) for trial in trials]
        arguments = step_arguments(setup, setup.batch_size)
        cost = tree_size(arguments[0].params), flops(_step(setup), *arguments)
        programs.append(Group(setup, trials, *cost, sum(left), sum(steps > 0 for steps in left)))
    return programs


def print_sweep_plan(sweep: Sweep, workdir: Path, jobs: int, on_cpu: bool, console: Console | None = None) -> None:
    """The trials or the search space, the programs, and an estimate of time.

    on_cpu: whether the trials run on the kind of device that a probe here measures.
    """
    console = console or make_console(highlight=False)
    if sweep.space is not None:
        _print_space(sweep, console)
        return
    statuses = {trial.name: read_status(workdir / trial.name, sweep.metric.name) for trial in sweep.trials}
    programs = group_trials(sweep, {name: status.step for name, status in statuses.items()})
    number_of = {trial.name: number for number, program in enumerate(programs) for trial in program.trials}
    table = Table(title=f"{len(sweep.trials)} trials", title_justify="left", box=SIMPLE_HEAD)
    for name in ("trial", "run", "program", "state", "values"):
        table.add_column(name, overflow="fold")
    for number, trial in enumerate(sweep.trials):
        state = statuses[trial.name].state
        table.add_row(
            *map(Text, (str(number), trial.name, str(number_of[trial.name]), state, values_text(trial.values)))
        )
    console.print(table)
    table = Table(title=f"{len(programs)} programs to compile", title_justify="left", box=SIMPLE_HEAD)
    for name in ("program", "trials", "parameters", "GFLOPs/step", "steps left", "pattern"):
        table.add_column(name, justify="left" if name == "pattern" else "right", overflow="fold")
    for number, program in enumerate(programs):
        counts = (number, len(program.trials), f"{program.parameters:,}", f"{program.step_flops / 1e9:.4g}")
        table.add_row(*map(str, counts), f"{program.num_steps:,}", Text(program.trials[0].config.model.pattern))
    console.print(table)
    console.print(Text(_estimate(programs, jobs, on_cpu)), soft_wrap=True)


def space_text(value: Any) -> str:
    """What a key of a search space may be, in words."""
    if isinstance(value, When):
        return f"{space_text(value.space)} where {value.key} is {' or '.join(map(str, value.values))}"
    if isinstance(value, Choice):
        return " | ".join(map(str, value.options))
    if isinstance(value, FloatRange | IntRange):
        every = getattr(value, "step", 1)
        step = f" in steps of {every}" if every > 1 else ""
        return f"{value.low} to {value.high}{step}{', evenly in the logarithm' if value.log else ''}"
    return str(value)


def _estimate(programs, jobs, on_cpu):
    left = [program for program in programs if program.num_steps]
    total = sum(program.step_flops * program.num_steps for program in left)
    if not left:
        return "nothing is left to train"
    if not on_cpu:
        return f"{total:.3g} FLOPs are left to train; time unknown: a probe here would measure the CPU"
    probed = min(left, key=lambda program: program.step_flops)
    start, pace = start_seconds(), measure_pace(probed.setup, probed.trials[0].config)
    speed = probed.step_flops / pace.step
    # Programs are compiled once and then read from the cache on disk; every trial starts a process.
    before = (start * sum(program.num_left for program in left) + pace.compile * len(left)) / jobs
    training = total / speed / jobs
    return (
        f"about {format_duration(before + training)} with --jobs={jobs}: {format_duration(training)} for the "
        f"{total:.3g} FLOPs that are left to train, at the {speed / 1e9:.3g} GFLOP/s of program "
        f"{programs.index(probed)} ({pace.step * 1e3:.3g} ms a step, measured now, alone), and "
        f"{format_duration(before)} for starting ({start:.3g} s a trial) and compiling ({pace.compile:.3g} s a "
        "program); evaluating comes on top"
    )


def _print_space(sweep, console):
    table = Table(title=f"{sweep.method} search, {sweep.num_trials} trials", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("key", overflow="fold")
    table.add_column("values", overflow="fold")
    for key, value in sweep.space.items():
        table.add_row(Text(key), Text(space_text(value)))
    console.print(table)
    steps = sweep.base.train.steps * sweep.num_trials
    console.print(f"at most {steps:,} steps; programs and time unknown: trials are drawn on the way")


def _step(setup):
    return make_train_step(setup.model, setup.task, setup.traits, None)
