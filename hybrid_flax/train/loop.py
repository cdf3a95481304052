"""The training run as a story: build, resume or start, step, log, evaluate, save, report."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from hybrid_flax.config import ConfigError
from hybrid_flax.data.vectors import read_vectors
from hybrid_flax.models.build import CARRIED_CAPACITY, init_params
from hybrid_flax.models.embedding import replace_rows
from hybrid_flax.train.checkpoint import Checkpoints
from hybrid_flax.train.diagnose import TrainingFailed, explain_failure
from hybrid_flax.train.evaluate import evaluate
from hybrid_flax.train.experiment import Experiment, make_experiment
from hybrid_flax.train.folder import Run, RunFolder
from hybrid_flax.train.optimizer import make_unit_schedule
from hybrid_flax.train.state import TrainState
from hybrid_flax.train.step import init_train_state, make_train_step
from hybrid_flax.train.writers import JsonlWriter, Progress, TensorBoardWriter, read_jsonl, truncate_jsonl
from hybrid_flax.typing import PyTree

__all__ = ["Interrupted", "evaluate_split", "train"]


class Interrupted(Exception):
    """A signal asked to stop; the checkpoint of `step` is on disk."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}, which is saved")
        self.step = step
        self.signal_number = signal_number


class _Position(NamedTuple):
    """All that moves, as it is checkpointed: a run is this and its config."""

    state: TrainState
    carry: PyTree


def train(
    config: Any, workdir: str | Path, experiment_name: str = "", console: Console | None = None
) -> tuple[Run, dict[str, dict[str, float]]]:
    """Train to config.train.steps in `workdir`, going on from its latest checkpoint where there is one.

    console: where progress is shown; Console(quiet=True) for nowhere.
    Returns the finished run and its final metrics by split. Raises ConfigError before anything runs, TrainingFailed
    for values that are not finite, and Interrupted after SIGTERM or Ctrl-C; the latter two leave the last good
    checkpoint.
    """
    experiment = make_experiment(config)
    folder = RunFolder(workdir)
    folder.open(config, experiment.source.tokenizer, experiment.source.labels, experiment_name)
    with ExitStack() as stack:
        checkpoints = Checkpoints(folder.checkpoints, config.eval.metric)
        stack.callback(checkpoints.close)
        position = _start_or_resume(experiment, config, checkpoints)
        start = int(position.state.step)
        progress = Progress(config.train.steps, start, console)
        ended = start == config.train.steps or _out_of_patience(config, start, checkpoints.best())
        if ended and folder.results.exists():
            progress.message(f"this run is finished: {start} steps")
            state = _judged_state(experiment, config, position, checkpoints)
            return _finished(experiment, config, state), folder.read_results()
        writers = _open_writers(folder, config, start, stack)
        clock = _Clock(spent=_seconds_spent(folder) if start else 0.0)
        stack.enter_context(progress)
        if start:
            progress.message(f"going on from the checkpoint of step {start}")
        interrupt = stack.enter_context(_catch_signals())
        position = _run_steps(experiment, config, position, checkpoints, writers, clock, progress, interrupt)
        last_step = int(position.state.step)
        state = _judged_state(experiment, config, position, checkpoints)
        params = _eval_params(state)
        results = {
            split: evaluate_split(experiment, config, params, split)
            for split in ("valid", "test")
            if split in experiment.source.splits
        }
    if jax.process_index() == 0:
        stopped_early = last_step < config.train.steps
        folder.write_results(results, int(state.step), last_step=last_step, stopped_early=stopped_early)
    return _finished(experiment, config, state), results


def evaluate_split(
    experiment: Experiment, config: Any, params: PyTree, split: str, *, carried: bool = False, max_batches: int = 0
) -> dict[str, float]:
    """Metrics of `params` on one split, as config.eval says."""
    length = config.eval.length or config.data.length
    return evaluate(
        experiment.model,
        experiment.task,
        params,
        experiment.source.splits[split].batches(config.eval.batch_size, length, carried),
        experiment.parallel,
        carried=carried,
        max_batches=max_batches,
    )


def _run_steps(experiment, config, position, checkpoints, writers, clock, progress, interrupt) -> _Position:
    """Steps from the state's own to the last, or until patience is out; logs, evaluates and saves on the way."""
    parallel = experiment.parallel
    step_fn = parallel.wrap(make_train_step(experiment.model, experiment.task, experiment.spec, parallel.axis_name))
    schedule = make_unit_schedule(**dict(experiment.spec.schedule))
    rows = parallel.rows(experiment.batch_size)
    state, carry = position
    start, last = int(state.step), config.train.steps
    for step in range(start + 1, last + 1):
        if _out_of_patience(config, step - 1, checkpoints.best()):
            progress.message(f"stopped early: no better eval/{config.eval.metric} since step {checkpoints.best()}")
            break
        batch = parallel.put_rows(experiment.batches.batch(step - 1, rows))
        state, carry, _ = step_fn(state, carry, batch)
        if parallel.blocking:
            jax.block_until_ready(state.step)
        logs = step % config.train.log_every == 0 or step == last
        evaluates = bool(config.eval.every) and (step % config.eval.every == 0 or step == last)
        stops = _agree_to_stop(interrupt, logs)
        saves = evaluates or stops or step % config.train.checkpoint_every == 0 or step == last
        if logs or saves or step == start + 1:
            _check_finite(experiment, state, carry)
        if step == start + 1:
            clock.start(step)
        if logs:
            rate = float(state.hparams.learning_rate) * float(schedule(step - 1))
            row = {"step": step, **_train_metrics(state), "train/learning_rate": rate}
            perf = {"step": step, **clock.lap(step, experiment.batches.tokens_per_step)}
            writers.write(row, perf)
            progress.update(step, row | perf)
        metrics = None
        if evaluates:
            since = time.perf_counter()
            metrics = _validate(experiment, config, state, step)
            writers.write({"step": step, **metrics}, {"step": step, **clock.skip(since)})
            progress.update(step, metrics)
        if saves:
            checkpoints.save(step, _Position(state, parallel.get_rows(carry)), metrics)
        if stops and step < last:
            checkpoints.wait()
            raise Interrupted(step, interrupt.number or signal.SIGTERM)
    return _Position(state, carry)


def _validate(experiment, config, state, step):
    """Metrics of the validation split by their slash paths."""
    metrics = evaluate_split(experiment, config, _eval_params(state), "valid", max_batches=config.eval.max_batches)
    for name in ("loss", config.eval.metric):
        if not np.isfinite(metrics[name]):
            raise TrainingFailed(f"step {step}: eval/{name} is not finite, while train/loss is")
    return {f"eval/{name}": value for name, value in metrics.items()}


def _out_of_patience(config, step, best):
    """Whether train.patience evaluations up to `step` brought nothing better than that of step `best`.

    It follows from what the checkpoints say, so a run that is cut off can keep no other count.
    """
    every, patience = config.eval.every, config.train.patience
    return bool(patience) and best is not None and step // every - best // every >= patience


def _judged_state(experiment, config, position, checkpoints) -> TrainState:
    """The state that final metrics are of: the last one, or with eval.best that of the best evaluation."""
    if not config.eval.best or checkpoints.best() == int(position.state.step):
        return position.state
    checkpoints.wait()
    return _restore(experiment, checkpoints, checkpoints.best(), position).state


def _start_or_resume(experiment, config, checkpoints) -> _Position:
    """The position of the latest checkpoint, or that before the first step, on its devices."""
    parallel, model = experiment.parallel, experiment.model
    key_params, key_steps = jax.random.split(jax.random.key(config.seed))
    latest = checkpoints.latest()
    params = jax.jit(init_params, static_argnums=0)(model, key_params)
    if latest is None and config.model.vectors:
        params = _with_vectors(params, config.model, experiment.source.tokenizer)
    state = parallel.put_state(init_train_state(params, experiment.hparams, experiment.spec, key_steps))
    carry = ()
    if experiment.carried:
        fresh = model.init_state(experiment.batch_size, CARRIED_CAPACITY)
        rows = parallel.rows(experiment.batch_size)
        carry = parallel.put_rows(jax.tree.map(lambda leaf: leaf[rows], fresh))
    position = _Position(state, carry)
    return position if latest is None else _restore(experiment, checkpoints, latest, position)


def _restore(experiment, checkpoints, step, like) -> _Position:
    """The position that was saved after `step` updates, placed as `like` is."""
    parallel = experiment.parallel
    try:
        restored = checkpoints.restore(step, _Position(like.state, parallel.get_rows(like.carry)))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    carry = parallel.put_rows(restored.carry) if parallel.kind == "pmap" else restored.carry
    return _Position(restored.state, carry)


def _with_vectors(params, model, tokenizer):
    """Initial parameters whose embedding has the vectors of known words."""
    try:
        vectors = read_vectors(model.vectors, tokenizer, model.embedding_width or model.width)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    known, total = len(vectors.ids), tokenizer.vocab_size - 1
    print(
        f"{model.vectors}: vectors of {known:,} of {total:,} words ({100 * known / total:.1f} %), "
        f"{vectors.lowered:,} of them by lower case"
    )
    ids, rows = jax.device_put((vectors.ids, vectors.rows))
    return params | {"embed": replace_rows(params["embed"], ids, rows)}


def _finished(experiment, config, state) -> Run:
    params, source = jax.device_get(_eval_params(state)), experiment.source
    return Run(experiment.model, params, source.tokenizer, config, int(state.step), source.labels)


def _eval_params(state):
    return state.params if state.ema is None else state.ema


def _train_metrics(state):
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    return {
        "train/loss": sums["loss"] / max(sums["count"], 1.0),
        "train/grad_norm": sums["grad_norm"] / max(sums["steps"], 1.0),
    }


def _check_finite(experiment, state, carry):
    failed = int(state.failed_step)
    if failed < 0:
        return
    if jax.process_count() > 1:
        raise TrainingFailed(f"step {failed + 1}: train/loss or train/grad_norm is not finite")
    device = jax.devices()[0]
    # From the failed step on nothing has moved: state and carry are those it started from.
    state, carry = jax.device_put((state, experiment.parallel.get_rows(carry)), device)
    batch = jax.device_put(experiment.batches.batch(failed), device)
    message = explain_failure(experiment.model, experiment.task, state, carry, batch, experiment.spec.noise)
    raise TrainingFailed(f"{message}; the last checkpoint is good: lower optim.learning_rate or optim.clip_norm")


class _Writers(NamedTuple):
    metrics: Any
    perf: Any
    tensorboard: Any

    def write(self, row: dict[str, Any], perf: dict[str, Any] | None = None) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
            if perf is not None:
                self.perf.write(perf)
        if self.tensorboard is not None:
            self.tensorboard.write(row | (perf or {}))


def _open_writers(folder, config, start, stack) -> _Writers:
    """Writers of the first process, cut back to the step that the run goes on from."""
    if jax.process_index() != 0:
        return _Writers(None, None, None)
    for path in (folder.metrics, folder.perf):
        truncate_jsonl(path, start)
    metrics = stack.enter_context(JsonlWriter(folder.metrics))
    perf = stack.enter_context(JsonlWriter(folder.perf))
    board = None
    if config.log.tensorboard:
        board = stack.enter_context(TensorBoardWriter(folder.tensorboard, purge_step=start + 1))
    return _Writers(metrics, perf, board)


def _seconds_spent(folder):
    rows = read_jsonl(folder.perf)
    return rows[-1]["perf/seconds"] if rows else 0.0


class _Clock:
    """Wall-clock seconds of the run, resumed ones included, and tokens per second of training steps alone."""

    def __init__(self, spent: float):
        self._begin = time.perf_counter() - spent

    def start(self, step: int) -> None:
        """Measure from here: the first step compiles."""
        self._step, self._since = step, time.perf_counter()

    def lap(self, step: int, tokens_per_step: int) -> dict[str, float]:
        """Seconds so far, and the rate since the last lap."""
        now = time.perf_counter()
        elapsed, steps = now - self._since, step - self._step
        rate = {"perf/tokens_per_sec": steps * tokens_per_step / elapsed} if steps else {}
        self._step, self._since = step, now
        return {"perf/seconds": now - self._begin, **rate}

    def skip(self, since: float) -> dict[str, float]:
        """Seconds so far; those after `since` were not training."""
        now = time.perf_counter()
        self._since += now - since
        return {"perf/seconds": now - self._begin}


def _agree_to_stop(interrupt, logs):
    """Whether to stop after this step. Processes of one run must save together, so they ask each other at log steps."""
    if jax.process_count() == 1:
        return interrupt.number is not None
    return logs and bool(np.any(multihost_utils.process_allgather(np.array(interrupt.number is not None))))


class _Interrupt:
    number: int | None = None


@contextmanager
def _catch_signals() -> Iterator[_Interrupt]:
    """Note SIGTERM and SIGINT for the end of the step; after that Ctrl-C acts at once, SIGTERM schedulers repeat."""
    interrupt = _Interrupt()
    previous = {}

    def note(number, frame):
        if interrupt.number is not None and number == signal.SIGINT:
            signal.signal(number, previous[number])
            raise KeyboardInterrupt
        interrupt.number = interrupt.number or number

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are not ours to catch
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
