"""An executor whose trials train in this process."""

import os

from rich.console import Console

from hybrid_flax.config import experiment_name, load_config
from hybrid_flax.errors import one_line
from hybrid_flax.jobs.executor import Ended
from hybrid_flax.jobs.trial import TrialFolder
from hybrid_flax.training.diagnose import TrainingFailed
from hybrid_flax.training.loop import train
from hybrid_flax.training.signals import Interrupted

__all__ = ["InProcessExecutor"]


class InProcessExecutor:
    """Trials train one after another, by `train`; the first `codes` of them do not, and end with these exit codes."""

    slots = 1

    def __init__(self, train=train, codes=()):
        self._train, self._codes = train, list(codes)

    def submit(self, folder: TrialFolder) -> Ended | None:
        if self._codes:
            return Ended(self._codes.pop(0))
        path = str(folder.trial)
        try:
            self._train(load_config(path), folder.path, experiment_name(path), Console(quiet=True))
        except Interrupted as stopped:
            os.kill(os.getpid(), stopped.signal_number)  # as it came to all that this process does
            return None
        except TrainingFailed as failure:
            return Ended(failure.exit_code, str(failure))
        except Exception as error:
            return Ended(1, one_line(error))
        return Ended(0)

    def poll(self, job: Ended | None) -> Ended | None:
        return job

    def cancel(self, job: Ended | None) -> None:
        pass

    def close(self) -> None:
        pass
