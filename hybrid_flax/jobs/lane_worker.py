"""The process of a LanesExecutor: `python -m hybrid_flax.jobs.lane_worker LANES WORKDIR`.

It reads messages from stdin, JSON a line: {"submit": [FOLDER, ...]}, {"cancel": FOLDER}; and writes {"begun": FOLDER}
and {"ended": FOLDER, "code": C, "reason": R} to stdout. At the end of stdin, and on SIGTERM, it saves and ends.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from hybrid_flax.config import config_hash, experiment_name, flatten, load_config
from hybrid_flax.console import make_console
from hybrid_flax.errors import ConfigError
from hybrid_flax.jobs.lanes import FAULTS, open_session, prepare_paces, program_of, train_lanes
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.locks import FileLock
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.loop import train
from hybrid_flax.training.session import Session
from hybrid_flax.training.setup import Setup, make_setup
from hybrid_flax.training.signals import Interrupt, Interrupted
from hybrid_flax.training.state import Hparams, OwnHparams
from hybrid_flax.training.writers import JsonlWriter, read_jsonl

__all__ = ["Trainer", "main"]

_QUIET = make_console(quiet=True)


class _Waiting(NamedTuple):
    folder: TrialFolder
    setup: Setup
    config: Any
    name: str  # of the setup
    program: Any


class Trainer:
    """Trains the trials that messages name, until the messages end.

    messages: as above, None for the end. report: of what began and what ended.
    """

    def __init__(self, num_lanes: int, workdir: str | os.PathLike, messages: queue.SimpleQueue, report: Any):
        self._num_lanes, self._messages, self._report = num_lanes, messages, report
        self._choices = Path(workdir) / "lanes.jsonl"
        self._waiting: list[_Waiting] = []
        self._cancelled: set[str] = set()
        self._locks: dict[str, FileLock] = {}
        self._program: Any = None
        self._stopping = False

    def work(self) -> None:
        """Until the end of the messages."""
        while not self._stopping:
            self._receive(wait=not self._waiting)
            if self._waiting and not self._stopping:
                self._train(self._waiting[0])

    def admit(self, count: int) -> Sequence[Session]:
        """Sessions for free lanes (`jobs.lanes.Feed`)."""
        self._receive()
        sessions = []
        for waiting in [waiting for waiting in self._waiting if waiting.program == self._program][:count]:
            if self._stopping:
                break
            self._begin(waiting)
            try:
                session = open_session(waiting.setup, waiting.config, waiting.folder.path, waiting.name, _QUIET)
            except FAULTS as error:
                self._end(waiting.folder, error)
                continue
            if session.ended:
                session.__exit__()
                self.ended(session, None)
            else:
                sessions.append(session)
        return sessions

    def stops(self, session: Session) -> bool:
        """Whether the run of a lane was cancelled."""
        self._receive()
        return self._is_cancelled(str(session.folder.path))

    def ended(self, session: Session, error: Exception | None) -> None:
        """The run of a lane has ended."""
        self._end(TrialFolder(session.folder.path), error)

    def _train(self, first):
        lanes = min(len(self._alike(first)), self._num_lanes)
        choice = self._choice(first, lanes) if lanes > 1 else "alone"
        if choice == "lanes":
            self._program = first.program
            train_lanes(first.setup, lanes, self)
        elif choice == "alone":
            self._train_alone(self._alike(first)[0])

    def _alike(self, first):
        return [waiting for waiting in self._waiting if waiting.program == first.program]

    def _train_alone(self, waiting, until=lambda: False):
        """Until it is finished or, from some evaluation on, `until` holds: then it goes on waiting."""
        self._begin(waiting)
        wish = _Wish(self, waiting, until)
        try:
            train(waiting.config, waiting.folder.path, waiting.name, _QUIET, wish)
        except FAULTS as error:
            self._end(waiting.folder, error)
        except Interrupted as error:
            if wish.is_cancelled():
                self._end(waiting.folder, error)
            else:
                self._waiting.insert(0, waiting)
        else:
            self._end(waiting.folder, None)

    def _choice(self, first, lanes):
        """What is faster for a program; measured once, also where the sweep is started again.

        None where there is nothing left to choose for: trials train while they are waited for, and may be stopped.
        """
        identity = {
            "program": _program_hash(first.config, first.setup),
            "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        }
        for row in read_jsonl(self._choices, needs="choice"):
            if identity.items() <= row.items():
                return row["choice"]
        paces = self._measure(first, lanes)
        if paces is None:
            return None
        row = {"pattern": first.config.model.pattern, **identity, "lanes": lanes, **paces}
        with JsonlWriter(self._choices) as writer:
            writer.write(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row["choice"]

    def _measure(self, first, lanes):
        """The choice and what it is by; its trials train one after another while the lanes compile."""
        with ThreadPoolExecutor(1) as pool:
            prepared = pool.submit(prepare_paces, first.setup, first.config, lanes)
            while not prepared.done() and not self._stopping and self._alike(first):
                self._train_alone(self._alike(first)[0], prepared.done)
        if self._stopping or not self._alike(first):
            return None
        try:
            paces = prepared.result()()
        except jax.errors.JaxRuntimeError as error:  # most likely out of memory
            return {"choice": "alone", "reason": str(error).splitlines()[0][:200]}
        choice = "lanes" if paces.lanes < paces.alone else "alone"
        return {"choice": choice, **{f"{name}_ms": 1e3 * seconds for name, seconds in paces._asdict().items()}}

    def _receive(self, wait=False):
        """Take in what has come; wait for something if asked to."""
        while wait or not self._messages.empty():
            message = self._messages.get()
            wait = False
            if message is None:
                self._stopping = True
                return
            for path in message.get("submit", ()):
                self._take(TrialFolder(path))
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
                for waiting in [w for w in self._waiting if self._is_cancelled(str(w.folder.path))]:
                    self._end(waiting.folder, Interrupted(0, signal.SIGTERM))

    def _take(self, folder):
        try:
            config = load_config(str(folder.trial), trust=True)
            setup = make_setup(config, starts=not folder.config.exists())
        except ConfigError as error:
            self._end(folder, error)
            return
        name = experiment_name(str(folder.trial))
        self._waiting.append(_Waiting(folder, setup, config, name, program_of(setup, config)))

    def _is_cancelled(self, path):
        return self._stopping or path in self._cancelled

    def _begin(self, waiting):
        """Take it for good, once nobody else writes into its folder."""
        self._waiting.remove(waiting)
        path = str(waiting.folder.path)
        if path in self._locks:  # it had begun
            return
        self._locks[path] = FileLock(waiting.folder.launched)
        self._locks[path].acquire()
        self._report({"begun": path})

    def _end(self, folder, error):
        path = str(folder.path)
        self._waiting = [waiting for waiting in self._waiting if str(waiting.folder.path) != path]
        self._cancelled.discard(path)
        if path in self._locks:
            self._locks.pop(path).release()
        code = 0 if error is None else 128 + signal.SIGTERM if isinstance(error, Interrupted) else 1
        code = TrainingFailed.exit_code if isinstance(error, TrainingFailed) else code
        self._report({"ended": path, "code": code, "reason": "" if error is None else str(error)})


class _Wish(Interrupt):
    """To stop a run that trains alone: at once where it is cancelled, with an evaluation where `until` holds.

    Lanes evaluate together, so what is to go on as a lane must stand at an evaluation.
    """

    def __init__(self, trainer: Trainer, waiting: _Waiting, until: Callable[[], bool]):
        self._trainer, self._waiting, self._until = trainer, waiting, until

    def is_cancelled(self) -> bool:
        self._trainer._receive()
        return self._trainer._is_cancelled(str(self._waiting.folder.path))

    def now(self) -> int | None:
        return signal.SIGTERM if self.is_cancelled() else None

    def at(self, step: int) -> int | None:
        stands = step % (self._waiting.config.eval.every or 1) == 0
        return signal.SIGTERM if self.is_cancelled() or (stands and self._until()) else None


def _own_options(setup):
    return setup.hparams.options if isinstance(setup.hparams, OwnHparams) else ()


def _program_hash(config, setup):
    """A name for the program of a trial that outlives this process: its config without what is data to a program."""
    data = {
        "seed",
        "model.init_scale",
        *(f"{part}.{name}" for part in ("optim", "train", "loss") for name in Hparams._fields),
        *(f"optimizers.{config.optim.name}.{name}" for name in _own_options(setup)),
    }
    rest = {key: value for key, value in flatten(config).items() if key not in data}
    return config_hash({**rest, "traits": repr(setup.traits)})


def _read(messages):
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put(None)


def main(num_lanes: int, workdir: str) -> None:
    """Train until stdin ends."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does so into the log

    def report(message):
        output.write(json.dumps(message) + "\n")
        output.flush()

    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, frame: messages.put(None))
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    Trainer(num_lanes, workdir, messages, report).work()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
