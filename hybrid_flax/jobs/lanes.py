"""Many runs as one program: each in a lane of a mapped step, with its own folder, data, seed and hyperparameters.

The step and the evaluation are those of a single run under `vmap`, and under `pmap` of `vmap` on several devices, which
then share the lanes where a single run would share its rows. What a lane computes depends on no other lane.
"""

import signal
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_flax.errors import ConfigError
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.evaluate import add_up, eval_params, evaluate_split, split_batches
from hybrid_flax.training.pace import measure_pace, quickest
from hybrid_flax.training.parallel import make_lanes, make_parallel
from hybrid_flax.training.position import Position, fresh_position
from hybrid_flax.training.session import Due, Session
from hybrid_flax.training.setup import Setup, step_program
from hybrid_flax.training.signals import Interrupted
from hybrid_flax.training.step import make_train_step
from hybrid_flax.typing import Batch, PyTree

__all__ = ["FAULTS", "Feed", "Paces", "open_session", "prepare_paces", "program_of", "train_lanes"]


@runtime_checkable
class Feed(Protocol):
    """Where the runs of `train_lanes` come from and what becomes of them."""

    def admit(self, count: int) -> Sequence[Session]:
        """At most `count` further runs of the same program, as `open_session` opens them; none where there are none."""

    def stops(self, session: Session) -> bool:
        """Whether a run is to be saved and left."""

    def ended(self, session: Session, error: Exception | None) -> None:
        """A run has ended: by itself, by TrainingFailed or ConfigError, or by Interrupted. Its session is closed."""


class Paces(NamedTuple):
    """Seconds a step and run: of runs in lanes, and of one run alone."""

    lanes: float
    alone: float


def program_of(setup: Setup, config: Any) -> Hashable:
    """What runs that can be lanes of one program have in common: the step, the evaluation and the data."""
    return step_program(setup, config), id(setup.source), tuple(sorted(config.eval.items()))


FAULTS = (TrainingFailed, ConfigError, OSError)  # of one run, that do not end the others


def open_session(setup: Setup, *args: Any, **kwargs: Any) -> Session:
    """A session for a lane: its rows are not split over devices, and no evaluation is owed."""
    session = Session(setup._replace(parallel=make_parallel("jit")), *args, **kwargs)
    config, position, start = session.config, session.position, session.start
    if not session.ended and session.owes_evaluation(start):
        most, params = config.eval.max_batches, eval_params(position.state)
        try:
            measure = partial(evaluate_split, session.setup, config, params, "valid", max_batches=most)
            session.evaluate(start, position, measure)
        except BaseException:
            session.__exit__()
            raise
    return session


def prepare_paces(setup: Setup, config: Any, num_lanes: int) -> Callable[[], Paces]:
    """Compile the step in lanes, which takes a while; what is returned times it, and that of a run alone, when called.

    Time them while nothing else computes. Neither trains anything.
    """
    lanes = _Lanes(setup, num_lanes)
    fresh = fresh_position(setup._replace(parallel=make_parallel("jit")), config, starts=False)
    position = lanes.stack([fresh] * num_lanes)
    rows = lanes.stack_rows([setup.batches.batch(0)] * num_lanes)

    def once():
        nonlocal position
        position = lanes.step(position, rows)
        jax.block_until_ready(position.state.step)

    once()
    return lambda: Paces(quickest(once) / num_lanes, measure_pace(setup, config).step)


def train_lanes(setup: Setup, num_lanes: int, feed: Feed) -> None:
    """Train the runs of `feed`, at most `num_lanes` at a time, until it has no more; all are of one program.

    A lane that ends is given to the next run, when the others begin a round of evaluation; a free lane computes what
    nobody reads.
    """
    lanes = _Lanes(setup, num_lanes)
    runs: list[_Run | None] = [None] * lanes.num_lanes
    position = None
    while True:
        for index, run in enumerate(runs):
            if run is not None and feed.stops(run.session):
                runs[index] = _interrupt(lanes, position, index, run, feed)
        _finish(lanes, position, runs, feed)
        position = _admit(lanes, position, runs, feed)
        active = [run for run in runs if run is not None]
        if not active:
            return
        if any(run.session.is_over(run.step) for run in active):
            continue  # admitted with nothing to do but its end
        position = _step(lanes, position, runs)
        _look(lanes, position, runs, feed)


class _Run:
    def __init__(self, session: Session):
        self.session, self.step = session, session.start


class _Lanes:
    """A setup in `num_lanes` lanes, rounded up to a multiple of the devices."""

    def __init__(self, setup: Setup, num_lanes: int):
        self._setup, self._parallel = setup, make_lanes()
        self.num_lanes = -(-num_lanes // self._parallel.num_devices) * self._parallel.num_devices
        self._step = self._parallel.wrap(make_train_step(setup.model, setup.task, setup.traits, None))

    def stack(self, positions: Sequence[Position]) -> Position:
        """Positions of all lanes as one; free lanes take any."""
        return jax.tree.map(self._stack_leaf, *self._filled(positions))

    def stack_rows(self, batches: Sequence[Batch]) -> PyTree:
        """Batches of all lanes as one."""
        return self._parallel.put_rows(jax.tree.map(lambda *leaves: np.stack(leaves), *self._filled(batches)))

    def step(self, position: Position, batches: PyTree) -> Position:
        """All lanes one step on; `position` is donated."""
        state, carry, _ = self._step(*position, batches)
        if self._parallel.blocking:
            jax.block_until_ready(state.step)
        return Position(state, carry)

    def take(self, tree: PyTree, lane: int) -> PyTree:
        """What a lane holds, on the first device."""
        return jax.device_put(_take(self._parallel.get_rows(tree), lane), jax.local_devices()[0])

    def put(self, tree: PyTree, lane: int, value: PyTree) -> PyTree:
        """The tree with another value in a lane."""
        whole = self._parallel.get_rows(tree)
        value = jax.tree.map(lambda new, old: jax.device_put(new, _everywhere(old)), value, whole)
        return self._parallel.put_state(_put(whole, lane, value))

    def evaluate(self, params: PyTree, batches: Sequence[Batch], max_batches: int = 0) -> list[dict[str, float]]:
        """`training.evaluate.evaluate` of every lane's parameters."""
        model, task = self._setup.model, self._setup.task
        total = add_up(model, task, params, batches, make_lanes(shared=True), max_batches=max_batches)
        total = self._parallel.get_rows(total)
        lanes = ({name: value[lane] for name, value in total.items()} for lane in range(self.num_lanes))
        return [{name: float(value) for name, value in task.measure(sums).items()} for sums in lanes]

    def _filled(self, values):
        return list(values) + [values[0]] * (self.num_lanes - len(values))

    def _stack_leaf(self, *leaves):
        """On the host: a program with every leaf of every lane as an argument would take seconds to compile."""
        if not jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return self._parallel.put_state(np.stack(leaves))
        data = self._parallel.put_state(np.stack([jax.random.key_data(leaf) for leaf in leaves]))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))


def _everywhere(leaf):
    """Every device that a leaf lies on."""
    devices = np.array(sorted(leaf.sharding.device_set, key=lambda device: device.id))
    return NamedSharding(Mesh(devices, ("lanes",)), P())


@jax.jit
def _take(tree, lane):
    return jax.tree.map(lambda leaf: leaf[lane], tree)


@jax.jit
def _put(tree, lane, value):
    return jax.tree.map(lambda leaf, new: leaf.at[lane].set(new), tree, value)


def _admit(lanes, position, runs, feed):
    """Fill free lanes, when the first run is about to begin a round of evaluation: runs are to evaluate together."""
    free = [index for index, run in enumerate(runs) if run is None]
    first = next((run for run in runs if run is not None), None)
    every = 1 if first is None else first.session.config.eval.every or 1
    if not free or (first is not None and first.step % every):
        return position
    new = list(zip(free, feed.admit(len(free))))
    for index, session in new:
        runs[index] = _Run(session)
    if position is None and new:
        position = lanes.stack([session.position for _, session in new])
    elif new:
        for index, session in new:
            position = lanes.put(position, index, session.position)
    for _, session in new:
        session.position = None
    return position


def _step(lanes, position, runs):
    """One step of all lanes; what free ones do is of no interest."""
    batches = [None if run is None else run.session.setup.batches.batch(run.step) for run in runs]
    some = next(batch for batch in batches if batch is not None)
    rows = lanes.stack_rows([some if batch is None else batch for batch in batches])
    for run in runs:
        if run is not None:
            run.step += 1
    return lanes.step(position, rows)


def _look(lanes, position, runs, feed):
    """Log, evaluate and save where it is due."""
    due = {index: run.session.due(run.step) for index, run in enumerate(runs) if run is not None}
    metrics: list[dict[str, float]] = []
    if any(entry.evaluates for entry in due.values()):
        session = runs[next(iter(due))].session
        batches = split_batches(session.setup.source, session.config, "valid")
        metrics = lanes.evaluate(eval_params(position.state), batches, session.config.eval.max_batches)
    for index, entry in due.items():
        run = runs[index]
        if not (entry.logs or entry.saves or run.step == run.session.start + 1):
            continue
        try:
            here = lanes.take(position, index)
            run.session.after_step(run.step, here, entry, lambda index=index: metrics[index])
        except FAULTS as error:
            runs[index] = _close(run, feed, error)


def _finish(lanes, position, runs, feed):
    """The end of runs that are over: their final metrics, of all that end together at once."""
    over = {i: run for i, run in enumerate(runs) if run is not None and run.session.is_over(run.step)}
    if not over:
        return
    params, judged, errors = eval_params(position.state), {}, {}
    for index, run in over.items():
        here = lanes.take(position, index)
        try:
            judged[index] = run.session.judged_state(here)
        except FAULTS as error:
            errors[index] = error
            continue
        if judged[index] is not here.state:
            params = lanes.put(params, index, eval_params(judged[index]))
    session = next(iter(over.values())).session
    setup, config = session.setup, session.config
    splits = [split for split in ("valid", "test") if split in setup.source.splits]
    results = {
        split: lanes.evaluate(params, split_batches(setup.source, config, split), config.eval.final_batches)
        for split in splits
    }
    for index, run in over.items():
        if index in judged:
            mine = {split: metrics[index] for split, metrics in results.items()}
            try:
                run.session.finish(run.step, judged[index], mine)
            except FAULTS as error:
                errors[index] = error
        runs[index] = _close(run, feed, errors.get(index))


def _interrupt(lanes, position, index, run, feed):
    """Save where a run stands, and leave it."""
    session = run.session
    if run.step > session.start and not session.due(run.step).saves:
        try:
            session.after_step(run.step, lanes.take(position, index), Due(False, False, True), dict)
        except FAULTS as error:
            return _close(run, feed, error)
    return _close(run, feed, Interrupted(run.step, signal.SIGTERM))


def _close(run, feed, error):
    try:
        run.session.__exit__()  # which waits for what is being saved
    except FAULTS as fault:
        error = fault if error is None or isinstance(error, Interrupted) else error
    feed.ended(run.session, error)
