"""What to train next: queues of trials that any number of workers work off together.

Every trial is a trial of an Optuna study; its values, its run and its end are there. A worker claims a trial before it
trains it (`claims`), so an unfinished trial without a claim is one whose worker died: the next takes it over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optuna
from optuna.trial import FrozenTrial, TrialState

from hybrid_flax.jobs.study import Study
from hybrid_flax.jobs.trial import Trial

__all__ = ["ENDED", "LOST", "Grid", "Queue", "Queues", "Standing", "StudyQueue", "Ticket", "standing"]

LOST = optuna.exceptions.StorageInternalError  # what is raised where a database does not answer any more
ENDED = ("done", "pruned", "failed")


class Ticket(NamedTuple):
    """A trial that this worker has claimed of a queue. key: its number in the study."""

    queue: "StudyQueue"
    key: int
    trial: Trial


class Standing(NamedTuple):
    """What a queue knows of a trial.

    number: its place in the queue. run: the name of its folder. state: waiting, running, done, pruned or failed. step:
    the last reported. value: the final metric of a trial that is done, the last reported of others, None before the
    first. reason: why it failed.
    """

    number: int
    run: str
    values: Mapping[str, Any]
    state: str
    step: int = 0
    value: float | None = None
    reason: str = ""


@runtime_checkable
class Queue(Protocol):
    """Trials to be trained. num_trials: how many there will be, where none fails."""

    num_trials: int

    def next(self) -> Ticket | None:
        """Claim a trial: one that was left unfinished, or else a new one. None where all are claimed or have ended."""

    def is_over(self) -> bool:
        """Whether no trial is unfinished, of any worker."""

    def standings(self) -> list[Standing]:
        """The trials by number."""

    def close(self) -> None:
        """Give all claims back."""


class StudyQueue:
    """One worker's view of a study. Which trials there are is said by a subclass: `Grid`, or the search of a sweep.

    What failed before the queue was opened is in line again, unless its failure was final; so is a finished run that
    `is_lost`.
    """

    num_trials: int

    def __init__(
        self, study: Study, pruner: optuna.pruners.BasePruner, is_lost: Callable[[str], bool] = lambda run: False
    ):
        self._is_lost = is_lost
        self._study, self._storage, self._claims = study
        self._id_of_study = self._storage.get_study_id_from_name(self._study.study_name)
        self._study.pruner, self._study.sampler = pruner, optuna.samplers.RandomSampler()
        self._handles: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        with self._claims.exclusive():
            self._look()
            self._retry()

    def next(self) -> Ticket | None:
        with self._claims.exclusive():
            self._look()
            for frozen in self._unfinished():
                ticket = self._take(frozen)
                if ticket is not None:
                    return ticket
            return self._new()

    def is_over(self) -> bool:
        with self._claims.exclusive():
            self._look()
            return not self._unfinished() and self._all_known()

    def close(self) -> None:
        self._claims.close()

    def report(self, ticket: Ticket, step: int, value: float) -> bool:
        """Note a validation metric on the way; whether the trial should be pruned."""
        if step <= self._reported.get(ticket.key, -1):
            return False
        self._reported[ticket.key] = step
        trial = self._handles[ticket.key]
        try:
            trial.report(value, step)
        except optuna.exceptions.UpdateFinishedTrialError:  # by a worker that was killed and whose last word came late
            return False
        return bool(trial.should_prune())

    def complete(self, ticket: Ticket, value: float) -> None:
        """The trial is trained to the end."""
        self._tell(ticket, TrialState.COMPLETE, value)

    def prune(self, ticket: Ticket) -> None:
        """The trial was stopped on the way."""
        self._tell(ticket, TrialState.PRUNED)

    def fail(self, ticket: Ticket, reason: str, final: bool = False) -> None:
        """The trial cannot be trained; final: nor will it be when the queue is opened again."""
        for name, value in (("reason", reason), ("final", final)):
            self._storage.set_trial_user_attr(self._id(ticket.key), name, value)
        self._tell(ticket, TrialState.FAIL)

    def release(self, ticket: Ticket) -> None:
        """Leave the trial to whoever goes on with it."""
        self._claims.release(ticket.trial.name)

    def _look(self) -> None:
        """Learn which trials there are by now, where what came of others says so."""

    def _all_known(self) -> bool:
        """Whether the study knows all trials that there are by now."""
        return True

    def _new(self) -> Ticket | None:
        """Claim a trial that the study does not know yet."""
        raise NotImplementedError

    def _trial(self, name: str, values: Mapping[str, Any]) -> Trial:
        """A trial that the study knows."""
        raise NotImplementedError

    def _is_mine(self, name: str) -> bool:
        """Whether a run of the study is one of this queue."""
        return True

    def _retry(self):
        """Put what failed or is lost in line again."""
        for name, frozen in self._known().items():
            failed = frozen.state == TrialState.FAIL and not frozen.user_attrs.get("final")
            if failed or (frozen.state == TrialState.COMPLETE and self._is_lost(name)):
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.WAITING,
                        user_attrs={"run": name, "values": frozen.user_attrs["values"]},
                        params=frozen.params,
                        distributions=frozen.distributions,
                    )
                )

    def _known(self) -> dict[str, FrozenTrial]:
        """The last trial of every run of this queue, by name."""
        return {frozen.user_attrs["run"]: frozen for frozen in self._mine(self._study.get_trials(deepcopy=False))}

    def _mine(self, trials):
        named = (frozen for frozen in trials if "run" in frozen.user_attrs)  # repeated draws have no run
        return [frozen for frozen in named if self._is_mine(frozen.user_attrs["run"])]

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
        return self._ticket(now, self._trial(name, now.user_attrs["values"]))

    def _ticket(self, frozen, trial):
        handle = optuna.Trial(self._study, self._id(frozen.number))
        self._handles[frozen.number] = handle
        self._reported[frozen.number] = max(frozen.intermediate_values, default=-1)
        return Ticket(self, frozen.number, trial)

    def _tell(self, ticket, state, value=None):
        self._study.tell(ticket.key, value, state, skip_if_finished=True)
        self._claims.release(ticket.trial.name)

    def _id(self, number):
        return self._storage.get_trial_id_from_study_id_trial_number(self._id_of_study, number)


class Grid(StudyQueue):
    """The trials that `plan` names, in its order.

    plan: (standings of its trials by run) -> the trials known so far; it may name others as these end. num_trials: how
    many it names in the end, where none fails. prunable: which of them may be pruned.
    """

    def __init__(
        self,
        study: Study,
        pruner: optuna.pruners.BasePruner,
        plan: Callable[[Mapping[str, Standing]], Sequence[Trial]],
        num_trials: int,
        prunable: Callable[[Trial], bool] = lambda trial: True,
        is_lost: Callable[[str], bool] = lambda run: False,
    ):
        self._plan, self.num_trials, self._prunable = plan, num_trials, prunable
        self._trials: dict[str, Trial] = {}
        self._numbers: dict[str, int] = {}
        super().__init__(study, pruner, is_lost)

    def report(self, ticket: Ticket, step: int, value: float) -> bool:
        return super().report(ticket, step, value) and self._prunable(ticket.trial)

    def standings(self) -> list[Standing]:
        self._look()
        known = self._standings()
        return [
            known.get(name) or Standing(number, name, self._trials[name].values, "waiting")
            for name, number in self._numbers.items()
        ]

    def _all_known(self):
        return self._trials.keys() <= self._known().keys()

    def _look(self):
        while new := [t for t in self._plan(self._standings()) if t.name not in self._trials]:
            for trial in new:
                self._numbers[trial.name] = len(self._trials)
                self._trials[trial.name] = trial

    def _standings(self):
        return {name: standing(frozen, self._numbers[name]) for name, frozen in self._known().items()}

    def _new(self):
        known = self._known()
        for name, trial in self._trials.items():
            if name not in known and self._claims.take(name):
                attributes = {"run": name, "values": dict(trial.values)}
                new = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
                identity = self._storage.create_new_trial(self._id_of_study, new)
                return self._ticket(self._storage.get_trial(identity), trial)
        return None

    def _trial(self, name, values):
        return self._trials[name]

    def _is_mine(self, name):
        return name in self._trials


class Queues:
    """Several queues as one: a trial of the first that has any."""

    def __init__(self, queues: Sequence[Queue]):
        self._queues = self._open = list(queues)
        self.num_trials = sum(queue.num_trials for queue in queues)

    def next(self) -> Ticket | None:
        return next((ticket for queue in self._open if (ticket := queue.next()) is not None), None)

    def is_over(self) -> bool:
        self._open = [queue for queue in self._open if not queue.is_over()]
        return not self._open

    def standings(self) -> list[Standing]:
        found = [one for queue in self._queues for one in queue.standings()]
        return [one._replace(number=number) for number, one in enumerate(found)]

    def close(self) -> None:
        for queue in self._queues:
            queue.close()


_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def standing(frozen: FrozenTrial, number: int) -> Standing:
    """What a trial of the study says."""
    reports = frozen.intermediate_values
    step = max(reports, default=0)
    value = frozen.value if frozen.state == TrialState.COMPLETE else reports.get(step)
    attributes = frozen.user_attrs
    reason = attributes.get("reason", "")
    return Standing(number, attributes["run"], attributes["values"], _STATES[frozen.state], step, value, reason)
