"""The queue of a search: trials drawn from a space by Optuna, one after another, from what came of those before."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
from optuna.trial import TrialState

from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.queue import Standing, StudyQueue, Ticket, standing
from hybrid_flax.jobs.study import Study
from hybrid_flax.jobs.trial import Trial
from hybrid_flax.sweep.space import FloatRange, IntRange, Setting, draw

__all__ = ["METHODS", "Search"]

METHODS = ("random", "tpe")
_ATTEMPTS = 200  # at a trial that was not there before


class Search(StudyQueue):
    """`num_trials` different trials of `space`, drawn by `method` ("random" or "tpe").

    make: setting -> its Trial; check: raises ConfigError for a trial that cannot run. Draws are a function of `seed`,
    the number of the trial, and the results before it.
    """

    def __init__(
        self,
        study: Study,
        pruner: optuna.pruners.BasePruner,
        *,
        make: Callable[[Setting], Trial],
        check: Callable[[Trial], object],
        space: Setting,
        num_trials: int,
        method: str,
        seed: int = 0,
    ):
        self._make, self._check, self._space = make, check, space
        self.num_trials, self._method, self._seed = num_trials, method, seed
        super().__init__(study, pruner)

    def standings(self) -> list[Standing]:
        known = self._known().values()  # a trial that was tried again has a new number in the study
        return [standing(frozen, number) for number, frozen in enumerate(known)]

    def _trial(self, name, values):
        return self._make(values)

    def _new(self) -> Ticket | None:
        """A trial of the space that was not drawn before, None where there are enough or none is left."""
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
            ticket = self._ticket(self._storage.get_trial(self._id(drawn.number)), trial)
            self._claims.take(trial.name)
            try:
                self._check(trial)
            except ConfigError as error:
                self.fail(ticket, str(error))
                continue
            return ticket
        return None


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
