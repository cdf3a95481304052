"""Runs as notebooks have them: trained or loaded in one call, and asked in others.

run = hf.train(config)
run.evaluate("test"); run.predict(["a fine film"]); run.attention("a fine film").at["1.b"]
"""

import os
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from hybrid_flax.console import make_console
from hybrid_flax.errors import ConfigError
from hybrid_flax.insides import Insides, read_attention, read_gates
from hybrid_flax.predict import Prediction, predict
from hybrid_flax.report.evaluation import open_split
from hybrid_flax.report.sample import sample
from hybrid_flax.training.devices import set_up_jax
from hybrid_flax.training.evaluate import evaluate, split_batches
from hybrid_flax.training.experiment_source import register_own
from hybrid_flax.training.folder import Run, default_folder
from hybrid_flax.training.load import read_run
from hybrid_flax.training.loop import train as train_loop

__all__ = ["OpenRun", "load_run", "train"]


class OpenRun(Run):
    """A run with what can be asked of it. Its methods raise ValueError in one line for what it cannot answer."""

    __slots__ = ()

    def evaluate(self, split: str = "valid") -> dict[str, float]:
        """The metrics of the task on a split of config.data, every row from nothing, as at the end of training."""
        source, task, parallel = open_split(self, split)
        batches = split_batches(source, self.config, split)
        return evaluate(self.model, task, parallel.put_state(self.params), batches, parallel)

    def generate(self, prompt: str | None = None, *, seed: int = 0, **options: Any) -> str:
        """The text that follows `prompt`. options: tokens, temperature, top_k, top_p; else as config.sample says."""
        return "".join(sample(self, prompt=prompt, seed=seed, **options)[1])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The label of every text, in order, as `hybrid_flax.predict` gives it."""
        if isinstance(texts, str):
            raise ValueError(f"predict takes a list of texts, not {texts!r} alone")
        return predict(self, texts)

    def attention(self, text: str) -> Insides:
        """The weights of every attention while the model reads `text`, by place: float32 [H, T, T]."""
        return read_attention(self, text)

    def gates(self, text: str) -> Insides:
        """The gate of every fusion that has one while the model reads `text`, by place: float32 [T, D]."""
        return read_gates(self, text)


def load_run(
    workdir: str | os.PathLike, checkpoint: str | None = None, *, experiment: str | None = None, trust: bool = False
) -> OpenRun:
    """The run in a folder, or in one that `export` wrote.

    checkpoint: "latest" or "best" (by eval.metric on the validation split), None for what eval.best of the run says.
    experiment: the file that registers what the run has of the user's own. trust: run the file that the folder names.
    Where a checkpoint is damaged the newest that is whole is taken, and a line on stderr says so.
    Raises ConfigError in one line where there is no such run or checkpoint, and where it needs what is not registered.
    """
    register_own(workdir, experiment, trust=trust)
    return OpenRun(*read_run(workdir, checkpoint))


def train(
    config: Any,
    workdir: str | os.PathLike | None = None,
    *,
    experiment: str = "",
    quiet: bool = False,
    changed_data: bool = False,
    changed_schedule: bool = False,
) -> OpenRun:
    """Train a config to its end, going on where the folder holds a part of the run; what comes of it.

    workdir: by default runs/notebook-HASH, of the config. experiment: the file that registers what is the user's own,
    of which the folder then keeps the source. quiet: without progress, figures and sample. changed_data,
    changed_schedule: as the flags of the command `train`.
    Raises ConfigError before anything runs, also for what is no config, TrainingFailed for values that are not finite,
    and Interrupted for Ctrl-C: the same call goes on.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"a config is what base_config or load_config makes, and no {type(config).__name__}")
    set_up_jax()
    folder = default_folder("notebook", config) if workdir is None else str(workdir)
    console = make_console(quiet=True) if quiet else None
    run, results = train_loop(
        config, folder, experiment, console=console, changed_data=changed_data, changed_schedule=changed_schedule
    )
    if not quiet:
        from hybrid_flax.report.finish import finish_run  # and Matplotlib, which no other of these calls needs

        finish_run(folder, run, results)
    return OpenRun(*run)
