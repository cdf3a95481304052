"""The training run as a story: build, resume or start, step, log, evaluate, save, report."""

import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from hybrid_flax.training.evaluate import eval_params, evaluate_split
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.parallel import any_process
from hybrid_flax.training.position import Position
from hybrid_flax.training.session import Session
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.signals import Interrupt, Interrupted, stop_on_signals
from hybrid_flax.training.step import make_train_step

__all__ = ["train"]


def train(
    config: Any,
    workdir: str | Path,
    experiment_name: str = "",
    console: Console | None = None,
    interrupt: Interrupt | None = None,
    *,
    changed_data: bool = False,
    changed_schedule: bool = False,
) -> tuple[Run, dict[str, dict[str, float]]]:
    """Train to config.train.steps in `workdir`, going on from its latest checkpoint where there is one.

    console: where progress is shown; Console(quiet=True) for nowhere. interrupt: the caller's; by default SIGTERM and
    Ctrl-C are caught. changed_data: go on with a run whose data have changed since, with its tokenizer and labels.
    A run goes on to another train.steps or train.patience; changed_schedule: also where its learning rate would have
    been another one with these from the start.
    Returns the finished run and its final metrics by split. Raises ConfigError before anything runs, TrainingFailed for
    values that are not finite, Interrupted, and OSError where the folder cannot be written or is gone; these leave the
    last good checkpoint.
    """
    goes_on = RunFolder(workdir).config.exists()
    known = RunFolder(workdir).read_vocabulary() if changed_data and goes_on else ()
    setup = make_setup(config, *known, starts=not goes_on)
    changed = {"changed_data": changed_data, "changed_schedule": changed_schedule}
    with Session(setup, config, workdir, experiment_name, console, **changed) as session:
        if session.ended:
            session.progress.message(f"this run is finished: {session.start} steps")
            return session.run(session.judged_state(session.position)), session.folder.read_results()
        with stop_on_signals() if interrupt is None else nullcontext(interrupt) as stop:
            position = _run_steps(session, stop)
            step, state = int(position.state.step), session.judged_state(position)
            params = eval_params(state)

            def final(split):
                track = partial(_track, session, stop, step, what=f"{split} batch")
                most = config.eval.final_batches
                return evaluate_split(setup, config, params, split, max_batches=most, track=track)

            results = {split: final(split) for split in ("valid", "test") if split in setup.source.splits}
        return session.finish(step, state, results), results


def _run_steps(session, stop) -> Position:
    """Steps from the session's own to the last, or until patience is out."""
    setup, config = session.setup, session.config
    parallel = setup.parallel
    step_fn = parallel.wrap(make_train_step(setup.model, setup.task, setup.traits, parallel.axis_name))
    rows = parallel.rows(setup.batch_size)
    (state, carry), step = session.position, session.start
    session.position = None  # steps donate it

    def measure():
        """The metrics, None where a signal cuts them off."""
        track = partial(_track, session, stop, step, what="valid batch")
        params, most = eval_params(state), config.eval.max_batches
        try:
            return evaluate_split(setup, config, params, "valid", max_batches=most, track=track)
        except Interrupted:
            return None

    if session.owes_evaluation(step):
        session.evaluate(step, Position(state, carry), measure)
        _end_where_cut_off(session, step, stop)
    while not session.is_over(step):
        batch = parallel.put_rows(setup.batches.batch(step, rows))
        state, carry, _ = step_fn(state, carry, batch)
        step += 1
        if parallel.blocking:
            jax.block_until_ready(state.step)
        number = stop.at(step)
        # Processes of one run must save together; they ask each other at log steps.
        stops = (jax.process_count() == 1 or session.due(step).logs) and any_process(number is not None)
        session.after_step(step, Position(state, carry), session.due(step, stops), measure)
        _end_where_cut_off(session, step, stop)
        if stops and step < config.train.steps:
            session.wait()
            raise Interrupted(step, number or signal.SIGTERM)
    return Position(state, carry)


def _end_where_cut_off(session, step, stop):
    """Raise Interrupted where a signal has cut off the evaluation at `step`."""
    if session.owes_evaluation(step):
        session.wait()
        raise Interrupted(step, stop.now() or signal.SIGTERM)


def _track(session, stop, step, items, what):
    """The numbers of an evaluation's batches, shown; raises Interrupted where a signal asks to stop."""
    for item in session.progress.track(items, what=what):
        if any_process(stop.now() is not None):
            raise Interrupted(step, stop.now() or signal.SIGTERM)
        yield item
