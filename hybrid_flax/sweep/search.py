"""What to try next: one study, shared by any number of workers, that Optuna searches and prunes.

Every trial, of a grid too, is a trial of the study; its row, its run and its end are there. A worker claims a trial
before it trains it (`claims`), so an unfinished trial without a claim is one whose worker died: the next takes it over.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hybrid_flax.config import ConfigError, config_diff
from hybrid_flax.sweep.claims import Claims, FileClaims, FileLock, PostgresClaims
from hybrid_flax.sweep.space import FloatRange, IntRange, draw
from hybrid_flax.sweep.trials import Trial
from hybrid_flax.tasks.base import lower_is_better

__all__ = ["PRUNERS", "SEARCHES", "Record", "Search", "Ticket", "make_pruner", "open_study"]

SEARCHES = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "halving", "hyperband")
_ATTEMPTS = 200  # at a trial that was not there before
Row = Mapping[str, Any]


class Ticket(NamedTuple):
    """A trial that this worker has claimed. number: in the grid, or in the study; key: in the study."""

    number: int
    key: int
    trial: Trial


class Record(NamedTuple):
    """What the study knows of a trial.

    number: as its ticket has it. run: the name of its folder. state: waiting, running, done, pruned or failed. step:
    the last reported. value: the final metric of a trial that is done, the last reported of others, None before the
    first. reason: why it failed.
    """

    number: int
    run: str
    values: Row
    state: str
    step: int
    value: float | None
    reason: str


class Study(NamedTuple):
    """A study, where it is stored, and the claims of its workers."""

    optuna: optuna.Study
    storage: optuna.storages.BaseStorage
    claims: Claims


def open_study(workdir: Path, storage: str | None, sweep: Row, metric: str = "loss") -> Study:
    """The study of a sweep folder: a journal file in it, or (storage) on a PostgreSQL server under the folder's name.

    sweep: what makes it this sweep; a study of another one is refused. metric: what its trials are judged by.
    Raises ConfigError in one line.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = workdir.absolute().name
    claims: Claims
    if storage is None:
        claims = FileClaims(workdir / "claims")
        with claims.exclusive():
            backend = _open_journal(workdir / "study.journal")
            study = _create(backend, name, sweep, metric)
    else:
        claims = PostgresClaims(_postgres_url(storage, "postgresql"), name)
        with claims.exclusive():
            try:
                backend = optuna.storages.RDBStorage(_postgres_url(storage, "postgresql+psycopg"))
            except Exception as error:
                raise ConfigError(f"--storage cannot be used: {' '.join(str(error).split())[:300]}") from error
            study = _create(backend, name, sweep, metric)
    return Study(study, backend, claims)


def make_pruner(name: str, eval_every: int, num_steps: int) -> optuna.pruners.BasePruner:
    """The pruner of a name; its resource is training steps, looked at every `eval_every` of `num_steps`."""
    if name == "none":
        return optuna.pruners.NopPruner()
    if not eval_every:
        raise ConfigError(f"--pruner={name} needs evaluations on the way: set eval.every, of {num_steps} steps")
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=eval_every)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=eval_every, reduction_factor=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=eval_every, max_resource=max(num_steps, eval_every), reduction_factor=3
        )
    raise ConfigError(f"--pruner={name!r} is none of {', '.join(PRUNERS)}")


class Search:
    """One worker's view of a study.

    Either `trials`, a grid to work off, or `space`, a row to draw `num_trials` different trials from by `method`
    ("random" or "tpe"). make: row -> its Trial; check: raises ConfigError for a trial that cannot run. Draws are a
    function of `seed`, the number of the trial, and the results before it.
    """

    def __init__(
        self,
        study: Study,
        pruner: optuna.pruners.BasePruner,
        *,
        make: Callable[[Row], Trial],
        check: Callable[[Trial], object],
        trials: Sequence[Trial] = (),
        space: Row | None = None,
        num_trials: int = 0,
        method: str = "grid",
        seed: int = 0,
    ):
        self._study, self._storage, self._claims = study
        self._id_of_study = self._storage.get_study_id_from_name(self._study.study_name)
        self._study.pruner, self._study.sampler = pruner, optuna.samplers.RandomSampler()
        self._make, self._check = make, check
        self._grid = {trial.name: trial for trial in trials}
        self._number = {name: number for number, name in enumerate(self._grid)}
        self._space, self._method, self._seed = space, method, seed
        self.num_trials = num_trials if space is not None else len(self._grid)
        self._handles: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        with self._claims.exclusive():
            self._retry()

    def next(self) -> Ticket | None:
        """Claim a trial: one that was left unfinished, else a new one. None where there is none now."""
        with self._claims.exclusive():
            for frozen in self._unfinished():
                ticket = self._take(frozen)
                if ticket is not None:
                    return ticket
            return self._next_of_grid() if self._space is None else self._ask()

    def report(self, ticket: Ticket, step: int, value: float) -> bool:
        """Note a validation metric on the way; whether the trial should be pruned."""
        if step <= self._reported.get(ticket.key, -1):
            return False
        self._reported[ticket.key] = step
        trial = self._handles[ticket.key]
        trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, ticket: Ticket, value: float) -> None:
        """The trial is trained to the end."""
        self._tell(ticket, TrialState.COMPLETE, value)

    def prune(self, ticket: Ticket) -> None:
        """The trial was stopped on the way."""
        self._tell(ticket, TrialState.PRUNED)

    def fail(self, ticket: Ticket, reason: str) -> None:
        """The trial cannot be trained."""
        self._storage.set_trial_user_attr(self._id(ticket.key), "reason", reason)
        self._tell(ticket, TrialState.FAIL)

    def is_over(self) -> bool:
        """Whether no trial is unfinished, of any worker."""
        with self._claims.exclusive():
            return not self._unfinished() and (self._space is not None or self._grid.keys() <= self._known().keys())

    def release(self, ticket: Ticket) -> None:
        """Leave the trial to whoever goes on with it."""
        self._claims.release(ticket.trial.name)

    def records(self) -> list[Record]:
        """The trials of this sweep by number; of a grid all, of a space those that were drawn."""
        known = self._known()
        if self._space is not None:
            return [_record(frozen, frozen.number) for frozen in known.values()]
        return [
            _record(known[name], number)
            if name in known
            else Record(number, name, self._grid[name].values, "waiting", 0, None, "")
            for name, number in self._number.items()
        ]

    def close(self) -> None:
        """Give all claims back."""
        self._claims.close()

    def _retry(self):
        """Put what failed in line again."""
        for name, frozen in self._known().items():
            if frozen.state == TrialState.FAIL:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        user_attrs={"run": name, "values": frozen.user_attrs["values"]},
                        params=frozen.params,
                        distributions=frozen.distributions,
                    )
                )

    def _known(self):
        """The last trial of every run of this sweep, by name; those of other grids and repeated draws are none."""
        return {frozen.user_attrs["run"]: frozen for frozen in self._mine(self._study.get_trials(deepcopy=False))}

    def _mine(self, trials):
        named = (frozen for frozen in trials if "run" in frozen.user_attrs)
        return [frozen for frozen in named if self._space is not None or frozen.user_attrs["run"] in self._grid]

    def _unfinished(self):
        """Trials that have not ended. Only for who is alone in the study: others leave none half written then."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        for frozen in trials:
            if "run" not in frozen.user_attrs:  # its worker died between two words
                self._study.tell(frozen.number, state=TrialState.FAIL)
        return self._mine(trials)

    def _take(self, frozen):
        name = frozen.user_attrs["run"]
        if not self._claims.take(name):
            return None
        identity = self._id(frozen.number)
        now = self._storage.get_trial(identity)
        if now.state.is_finished():  # since it was listed
            self._claims.release(name)
            return None
        if now.state == TrialState.WAITING:
            self._storage.set_trial_state_values(identity, TrialState.RUNNING)
        return self._ticket(
            optuna.Trial(self._study, identity), self._grid.get(name) or self._make(now.user_attrs["values"])
        )

    def _next_of_grid(self):
        known = self._known()
        for name, trial in self._grid.items():
            if name not in known and self._claims.take(name):
                attributes = {"run": name, "values": dict(trial.values)}
                new = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
                identity = self._storage.create_new_trial(self._id_of_study, new)
                return self._ticket(optuna.Trial(self._study, identity), trial)
        return None

    def _ticket(self, handle, trial):
        reports = self._storage.get_trial(self._id(handle.number)).intermediate_values
        self._handles[handle.number], self._reported[handle.number] = handle, max(reports, default=-1)
        return Ticket(self._number.get(trial.name, handle.number), handle.number, trial)

    def _ask(self):
        """A trial of the space that was not drawn before, None where there are enough or none is left."""
        assert self._space is not None
        for _ in range(_ATTEMPTS):
            known = self._known()
            if len(known) >= self.num_trials:
                return None
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = _make_sampler(self._method, (self._seed, number))
            drawn = self._study.ask()
            trial = self._make(draw(self._space, partial(_suggest, drawn)))
            if trial.name in known:
                first = known[trial.name]
                drawn.set_user_attr("same_as", first.number)
                done = first.state == TrialState.COMPLETE
                self._study.tell(drawn, first.value if done else None, None if done else TrialState.FAIL)
                continue
            drawn.set_user_attr("values", dict(trial.values))
            drawn.set_user_attr("run", trial.name)
            ticket = self._ticket(drawn, trial)
            self._claims.take(trial.name)
            try:
                self._check(trial)
            except ConfigError as error:
                self.fail(ticket, str(error))
                continue
            return ticket
        return None

    def _tell(self, ticket, state, value=None):
        self._study.tell(ticket.key, value, state)
        self._claims.release(ticket.trial.name)

    def _id(self, number):
        return self._storage.get_trial_id_from_study_id_trial_number(self._id_of_study, number)


class _JournalLock:
    """A lock of the kernel: Optuna's own outlive a killed process by half a minute."""

    def __init__(self, path: str):
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


def _open_journal(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _JournalLock(f"{path}.lock")
    if path.exists():
        lock.acquire()
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # a line cut off by the end of the machine
            os.truncate(path, whole)
        lock.release()
    # The class that optuna wants of a lock has no public name.
    backend = JournalFileBackend(str(path), lock)  # type: ignore[arg-type]
    return optuna.storages.JournalStorage(backend)


def _create(backend, name, sweep, metric):
    study = optuna.create_study(
        study_name=name,
        storage=backend,
        load_if_exists=True,
        direction="minimize" if lower_is_better(metric) else "maximize",
    )
    saved = study.user_attrs.get("sweep")
    if saved is None:
        study.set_user_attr("sweep", json.dumps(dict(sweep)))
        return study
    changes = config_diff(json.loads(saved), json.loads(json.dumps(dict(sweep))))
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        raise ConfigError(
            f"{name} holds another sweep, the config file or the command has changed: {'; '.join(changes[:3])}{more}; "
            "use another --workdir"
        )
    return study


def _postgres_url(url, scheme):
    if url.partition("://")[0] not in ("postgresql", "postgres", "postgresql+psycopg") or "://" not in url:
        raise ConfigError(f"--storage={url}: give postgresql://USER@HOST/DATABASE, or leave it out for a journal file")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError("--storage needs psycopg: pip install 'hybrid_flax[postgresql]'") from None
    return f"{scheme}://{url.partition('://')[2]}"


def _make_sampler(method, entropy):
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])  # no draw of one search is one of another's
    if method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _suggest(trial, key, space):
    if isinstance(space, FloatRange):
        return trial.suggest_float(key, space.low, space.high, log=space.log)
    if isinstance(space, IntRange):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a high that no step reaches is made lower
            return trial.suggest_int(key, space.low, space.high, step=space.step, log=space.log)
    return trial.suggest_categorical(key, space.options)


_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def _record(frozen, number):
    reports = frozen.intermediate_values
    step = max(reports, default=0)
    value = frozen.value if frozen.state == TrialState.COMPLETE else reports.get(step)
    attributes = frozen.user_attrs
    return Record(
        number,
        attributes["run"],
        attributes["values"],
        _STATES[frozen.state],
        step,
        value,
        attributes.get("reason", ""),
    )
