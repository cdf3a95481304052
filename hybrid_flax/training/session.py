"""A run while it trains: where it starts or goes on from, what it logs, evaluates and saves, and how it ends."""

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from hybrid_flax.config import ConfigError
from hybrid_flax.data.sources import cut_rows
from hybrid_flax.files import write_json
from hybrid_flax.training.checkpoint import Checkpoints, Damaged, SaveFailed
from hybrid_flax.training.course import check_course
from hybrid_flax.training.diagnose import TrainingFailed, explain_failure
from hybrid_flax.training.evaluate import eval_length, eval_params
from hybrid_flax.training.experiment_source import is_same_source, save_source
from hybrid_flax.training.folder import News, Run, RunFolder
from hybrid_flax.training.hooks import RunView, call_hooks, has_hooks
from hybrid_flax.training.loggers import Loggers
from hybrid_flax.training.optimizer import make_unit_schedule
from hybrid_flax.training.parallel import any_process
from hybrid_flax.training.peak import peak_memory
from hybrid_flax.training.position import Position, restore_position, start_position
from hybrid_flax.training.progress import Progress
from hybrid_flax.training.setup import Setup
from hybrid_flax.training.state import TrainState
from hybrid_flax.training.warm_start import check_source, read_warm_start
from hybrid_flax.training.writers import (
    JsonlWriter,
    Mark,
    as_number,
    cut_to_mark,
    holds_mark,
    read_jsonl,
    truncate_jsonl,
)

__all__ = ["Due", "Session"]


class Due(NamedTuple):
    """What is to be done after a step: log, evaluate, save."""

    logs: bool
    evaluates: bool
    saves: bool


class Session:
    """A run of `config` in `workdir`, open for training: all of it but the steps themselves, which the caller does.

    start: the step that it goes on from, that of the newest checkpoint that is whole. position: where it stands there.
    ended: whether there is nothing left to do. console: where progress is shown. changed_data: as in `RunFolder.open`.
    changed_schedule: as in `check_course`. Raises ConfigError where the folder or its checkpoint is of another run, or
    another process trains there.
    """

    def __init__(
        self,
        setup: Setup,
        config: Any,
        workdir: str | Path,
        experiment_name: str = "",
        console: Console | None = None,
        *,
        changed_data: bool = False,
        changed_schedule: bool = False,
    ):
        self.setup, self.config = setup, config
        self.folder = RunFolder(workdir)
        self._stack = ExitStack()
        check_source(config, workdir)
        try:
            news = self._open_folder(experiment_name, changed_data)
            self._checkpoints = Checkpoints(self.folder.checkpoints, setup.metric)
            self._stack.callback(self._close_checkpoints)
            self._leave_out_lost_rows()
            self.setup = setup = self._with_start()
            self.position = start_position(setup, config, self._checkpoints)
            self.start = int(self.position.state.step)
            end = ""
            if news.end:
                old = self.folder.read_config()
                end = check_course(self.folder.path, old, config, self.start, changed_schedule=changed_schedule)
            self.progress = Progress(config.train.steps, self.start, console, metric=setup.metric.name)
            self.ended = self.is_over(self.start) and self.folder.has_results(self.start)
            if not self.ended:
                self._begin(news, end, experiment_name)
            elif news.end:
                self.progress.message(f"nothing is trained, as train.patience has ended the run: {news.end}")
            elif news.data:
                self.progress.message(f"nothing is trained on other data, as the run is finished: {news.data}")
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def is_over(self, step: int) -> bool:
        """Whether no step follows `step`: it is the last, or patience is out."""
        return step == self.config.train.steps or self._out_of_patience(step)

    def due(self, step: int, stops: bool = False) -> Due:
        """What to do after `step`; stops: whether training is interrupted there."""
        train, evaluation = self.config.train, self.config.eval
        last = step == train.steps
        logs = step % train.log_every == 0 or last
        evaluates = bool(evaluation.every) and (step % evaluation.every == 0 or last)
        return Due(logs, evaluates, evaluates or stops or step % train.checkpoint_every == 0 or last)

    def after_step(self, step: int, position: Position, due: Due, measure: Callable[[], Mapping[str, float]]) -> None:
        """Log, evaluate and save as is due. measure: the metrics of the validation split at `position`.

        Raises TrainingFailed for values that are not finite, before any of them is saved.
        """
        if due.logs or due.saves or step == self.start + 1:
            self._check_folder()
            self._check_finite(position)
        if step == self.start + 1:
            self._clock.start(step)
        if due.logs:
            rate = float(position.state.hparams.learning_rate) * _unit_rate(self.setup.traits.schedule, step - 1)
            row = {"step": step, **_train_metrics(position.state), "train/learning_rate": rate}
            perf = {"step": step, **self._clock.lap(step, self.setup.batches.tokens_per_step)}
            self._writers.write(row, perf)
            self.progress.update(step, row | perf)
        if due.evaluates:
            self.evaluate(step, position, measure)
        elif due.saves:
            self._save(step, position)
            self._call_hooks("checkpoint", step, {}, position)
        if due.logs:
            self._call_hooks("log", step, row | perf, position)

    def evaluate(self, step: int, position: Position, measure: Callable[[], Mapping[str, float] | None]) -> None:
        """Evaluate and save. Where `measure` was cut off and gives None, the evaluation is owed."""
        since = time.perf_counter()
        measured = measure()
        metrics = None if measured is None else self._checked(measured, step)
        if metrics is not None:
            self._writers.write({"step": step, **metrics}, {"step": step, **self._clock.skip(since)})
            self.progress.update(step, metrics)
        if metrics is not None or step not in self._checkpoints.steps():
            self._save(step, position, metrics)
            self._call_hooks("checkpoint", step, metrics or {}, position)
        if metrics is not None:
            self._call_hooks("evaluation", step, metrics, position)

    def owes_evaluation(self, step: int) -> bool:
        """Whether the checkpoint of `step` was saved when its evaluation was cut off."""
        saved = step > 0 and step in self._checkpoints.steps() and self.due(step).evaluates
        return saved and self._checkpoints.metrics(step) is None

    def wait(self) -> None:
        """Block until what is being saved is on disk. Raises SaveFailed."""
        with self._saving():
            self._checkpoints.wait()

    def judged_state(self, position: Position) -> TrainState:
        """The state that final metrics are of: the last one, or with eval.best that of the best evaluation."""
        best = self._checkpoints.best()
        if not self.config.eval.best or best is None or best == int(position.state.step):
            return position.state
        self.wait()
        try:
            return restore_position(self.setup, self._checkpoints, best, position).state
        except Damaged as error:
            raise ConfigError(f"{error}; it is the best, which eval.best=true goes by") from error

    def finish(self, last_step: int, judged: TrainState, results: dict[str, dict[str, float]]) -> Run:
        """Write the final metrics by split, those of the state `judged`; training ended with `last_step`."""
        self._check_folder()
        early = last_step < self.config.train.steps
        if early:
            best = self._checkpoints.best()
            self.progress.message(f"stopped early: no better eval/{self.setup.metric.name} since step {best}")
        if self._writers.perf is not None and last_step > self.start:
            self._writers.perf.write({"step": last_step, **self._clock.skip(time.perf_counter()), **peak_memory()})
        if jax.process_index() == 0:
            self.folder.write_results(results, int(judged.step), last_step=last_step, stopped_early=early)
        source = self.setup.source
        for split in results:
            if cut := cut_rows(source.splits[split], eval_length(self.config, source)):
                self.progress.message(f"{split}: {cut}")
        self._call_hooks("end", last_step, results, Position(judged, ()))
        return self.run(judged)

    def run(self, state: TrainState) -> Run:
        """The run as it can be used, with the parameters of `state`."""
        params, source = jax.device_get(eval_params(state)), self.setup.source
        return Run(self.setup.model, params, source.tokenizer, self.config, int(state.step), source.labels)

    def _open_folder(self, experiment_name, changed_data):
        """What has changed. Where a process of several refuses, all do, or the others would wait for it."""
        problem, news = None, News()
        try:
            self._stack.enter_context(self.folder.claim())
            news = self.folder.open(self.config, self.setup.source, experiment_name, changed_data=changed_data)
        except ConfigError as error:
            problem = error
        if any_process(problem is not None):
            raise problem or ConfigError("another process of this run has refused to start, and says why")
        return news

    def _with_start(self):
        """The setup with what the run starts from, also where it was cut off before that was saved."""
        setup, saved = self.setup, self._checkpoints.steps() or self._checkpoints.damaged
        if saved or setup.start is not None:
            return setup
        start = read_warm_start(self.config, setup.model, setup.source.tokenizer, setup.source.labels)
        return setup._replace(start=start)

    def _keep_source(self, experiment_name):
        """Keep the source of the experiment where the run begins; where it goes on, say whether it has changed."""
        if not self._checkpoints.steps() and not self._checkpoints.damaged:
            save_source(self.folder, experiment_name)
        elif experiment_name and not is_same_source(self.folder, experiment_name):
            name = experiment_name.partition(":")[0]
            self.progress.message(f"{name} is not what it was when the run began: {self.folder.experiment} is")

    def _begin(self, news, end, experiment_name):
        checkpoints, best = self._checkpoints, self._checkpoints.best()
        # Where a later one is damaged, and not the best, what is trained anew from here on is better again.
        superseded = best not in checkpoints.damaged and any(step > self.start for step in checkpoints.damaged)
        if self.config.eval.best and best is not None and best not in checkpoints.steps() and not superseded:
            raise ConfigError(
                f"{self.folder.checkpoints}/{best}, the best checkpoint, which eval.best=true goes by, is "
                f"{checkpoints.damaged.get(best, 'missing')}: put it back, or use another --workdir"
            )
        if jax.process_index() == 0:
            self._keep_source(experiment_name)
            self.folder.checkpoints.mkdir(exist_ok=True)  # rows without it are rows whose checkpoints are gone
            self._inode = self.folder.path.stat().st_ino
            if news.data:
                self.folder.note_data(self.setup.source)
            if news.end:
                self.folder.note_end(self.config, self.start)
        rows = checkpoints.rows(self.start) if self.start else None
        self._writers = _open_writers(self.folder, self.config, self.start, rows, self._stack, self.progress.message)
        self._clock = _Clock(spent=_seconds_spent(self.folder) if self.start else 0.0)
        self._stack.enter_context(self.progress)
        for reason in checkpoints.damaged.values():
            self.progress.message(f"{reason}; it is set aside in {self.folder.damaged}")
        checkpoints.set_aside(self.folder.damaged)
        for change in filter(None, (news.data and f"going on with other data: {news.data}", news.end, end)):
            self.progress.message(change)
        for note in self.setup.notes:
            self.progress.message(note)
        if self.start:
            self.progress.message(f"going on from the checkpoint of step {self.start}")
        if self.setup.start is not None and not checkpoints.steps():
            self._note_start(self.setup.start)

    def _note_start(self, start):
        """Say what is taken from another run, and save it, so that nobody needs that one any more."""
        for line in start.lines():
            self.progress.message(line)
        if jax.process_index() == 0:
            write_json(self.folder.start, start.record())
        self._save(0, self.position)

    def _leave_out_lost_rows(self):
        """A checkpoint counts as damaged where metrics.jsonl does not hold what it held then."""
        for step in self._checkpoints.steps():
            rows = self._checkpoints.rows(step)
            if rows is not None and not holds_mark(self.folder.metrics, rows):
                where = f"checkpoint {self.folder.checkpoints}/{step}"
                reason = f"the rows of {self.folder.metrics} up to there are not as they were"
                self._checkpoints.leave_out(step, f"{where} cannot be gone on from: {reason}")

    def _save(self, step, position, metrics=None):
        carry = self.setup.parallel.get_rows(position.carry)
        with self._saving():
            self._checkpoints.save(step, Position(position.state, carry), metrics, self._writers.mark())

    def _call_hooks(self, event, step, values, position):
        """Raise TrainingFailed, in all processes, where one fails; the checkpoint of `step` is then on disk."""
        if not has_hooks(event):
            return
        if event == "checkpoint":
            self.wait()
        error = None
        if jax.process_index() == 0:
            try:
                call_hooks(event, step, values, self._view(position))
            except ConfigError as failure:
                error = failure
        if not any_process(error is not None):
            return
        if event != "end" and step not in self._checkpoints.steps():
            self._save(step, position)
        self.wait()
        raise TrainingFailed(f"{error or 'a hook of the first process fails'}; the checkpoint of step {step} is saved")

    def _view(self, position):
        setup, params = self.setup, eval_params(position.state)
        source, fetch = setup.source, functools.partial(jax.device_get, params)
        return RunView(setup.model, source.tokenizer, source.labels, self.config, self.folder.path, fetch)

    def _close_checkpoints(self):
        with self._saving():
            self._checkpoints.close()

    @contextmanager
    def _saving(self):
        """Where a save failed as the folder is gone, say that."""
        try:
            yield
        except SaveFailed:
            self._check_folder()
            raise

    def _check_folder(self):
        """Raise FileNotFoundError where the folder was removed or moved: whatever is written would be lost."""
        path = self.folder.path
        if jax.process_index() != 0:
            return
        if not self.folder.config.exists() or path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{path} was removed or moved while a run trained in it")

    def _out_of_patience(self, step):
        """Whether train.patience evaluations up to `step` brought nothing better than the best.

        It follows from what the checkpoints say, so a run that is cut off can keep no other count.
        """
        every, patience, best = self.config.eval.every, self.config.train.patience, self._checkpoints.best()
        return bool(patience) and best is not None and step // every - best // every >= patience

    def _check_finite(self, position):
        failed = int(position.state.failed_step)
        if failed < 0:
            return
        if jax.process_count() > 1:
            raise TrainingFailed(f"step {failed + 1}: train/loss or train/grad_norm is not finite")
        setup, device = self.setup, jax.devices()[0]
        # From the failed step on nothing has moved: state and carry are those it started from.
        state, carry = jax.device_put((position.state, setup.parallel.get_rows(position.carry)), device)
        batch = jax.device_put(setup.batches.batch(failed), device)
        message = explain_failure(setup.model, setup.task, state, carry, batch, setup.traits.noise)
        raise TrainingFailed(f"{message}; the last checkpoint is good: lower optim.learning_rate or optim.clip_norm")

    def _checked(self, metrics, step):
        """Metrics by their slash paths."""
        for name in ("loss", self.setup.metric.name):
            if not np.isfinite(metrics[name]):
                raise TrainingFailed(f"step {step}: eval/{name} is not finite, while train/loss is")
        return {f"eval/{name}": value for name, value in metrics.items()}


@functools.lru_cache(maxsize=64)
def _unit_rate(schedule, step):
    return float(make_unit_schedule(**dict(schedule))(step))


def _train_metrics(state):
    sums = {name: float(value) for name, value in jax.device_get(state.sums).items()}
    return {
        "train/loss": sums["loss"] / max(sums["count"], 1.0),
        "train/grad_norm": sums["grad_norm"] / max(sums["steps"], 1.0),
    }


class _Writers(NamedTuple):
    metrics: Any
    perf: Any
    loggers: Any

    def write(self, row: dict[str, Any], perf: dict[str, Any] | None = None) -> None:
        if self.metrics is not None:
            self.metrics.write(row)
            if perf is not None:
                self.perf.write(perf)
            self.loggers.write(row | (perf or {}))

    def mark(self) -> Mark | None:
        """What metrics.jsonl holds."""
        return None if self.metrics is None else self.metrics.mark()


def _open_writers(folder, config, start, rows, stack, message) -> _Writers:
    """Writers of the first process, cut back to the step that the run goes on from."""
    if jax.process_index() != 0:
        return _Writers(None, None, None)
    truncate_jsonl(folder.perf, start)
    if rows is None:
        truncate_jsonl(folder.metrics, start)
    else:
        cut_to_mark(folder.metrics, rows)
    metrics = stack.enter_context(JsonlWriter(folder.metrics))
    perf = stack.enter_context(JsonlWriter(folder.perf))
    loggers = stack.enter_context(Loggers(folder.path, config, start, message))
    return _Writers(metrics, perf, loggers)


def _seconds_spent(folder):
    rows = read_jsonl(folder.perf)
    return (as_number(rows[-1].get("perf/seconds")) if rows else None) or 0.0


class _Clock:
    """Wall-clock seconds of the run, resumed ones included, and tokens per second of training steps alone."""

    def __init__(self, spent: float):
        self._since = time.perf_counter()
        self._begin = self._since - spent

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
