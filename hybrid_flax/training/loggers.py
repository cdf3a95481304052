"""Loggers: further places for the rows of a run, which log.NAME=true switches on. Their libraries are extras.

A row is one of `training.writers`: a flat dict with `step` and metrics by slash paths.
"""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from hybrid_flax.config import flatten
from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.files import read_json, write_json
from hybrid_flax.registration import LOGGERS, Chosen
from hybrid_flax.training.writers import as_number

__all__ = ["Logger", "Loggers", "TensorBoardWriter", "register_logger"]


@runtime_checkable
class Logger(Protocol):
    """A sink of rows."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Take a row; `step` is in it."""

    def close(self) -> None:
        """Let go; nothing is written any more."""


def register_logger(name: str, open: Callable[..., Logger]) -> None:
    """Make `log.NAME=true` open a logger: open(folder, config, start, **options) -> an object with write and close.

    folder: of the run, a Path. config: of the run. start: the step that it goes on from, 0 where it begins: rows of
    later steps may have been written before, by a process that was cut off, and are written again. Options are the
    keyword-only arguments of `open`, `loggers.NAME.OPTION` in a config. The first process alone opens loggers.
    Raises ValueError as `Table.register`.
    """
    LOGGERS.register(name, open)


class Loggers:
    """Those of a run. One that cannot be opened is refused; one that fails later is left out, and `message` says so."""

    def __init__(self, folder: Path, config: Any, start: int, message: Callable[[str], None]):
        self._message = message
        self._open: dict[str, Logger] = {}
        try:
            for name in [name for name, on in config.log.items() if on]:
                options = dict(config.get("loggers", {}).get(name, {}))
                self._open[name] = _open(LOGGERS.choose(name, options), folder, config, start)
        except BaseException:
            self.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Give the row to all."""
        for name, logger in list(self._open.items()):
            self._try(name, f"at step {row.get('step')}", logger.write, row)

    def close(self) -> None:
        """Close all."""
        for name, logger in list(self._open.items()):
            self._try(name, "when it was closed", logger.close)
        self._open.clear()

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _try(self, name, when, call, *args):
        try:
            call(*args)
        except Exception as error:
            with suppress(Exception):
                self._open.pop(name).close()
            self._message(f"logger {name} failed {when} and is left out from here on: {one_line(error)[:200]}")


class TensorBoardWriter:
    """Writes the numbers of rows as TensorBoard scalars under `directory`; needs the extra `tensorboard`.

    On resume pass `purge_step`, the first step that will be written again: TensorBoard then hides what an earlier,
    interrupted process wrote from that step on.
    """

    def __init__(self, directory: str | os.PathLike, purge_step: int | None = None):
        summary_writer = _library("tensorboardX", "tensorboard").SummaryWriter
        # tensorboardX names files by the second: two writers within one second would overwrite each other.
        suffix = f".{time.time_ns() % 10**9:09d}"
        self._writer = summary_writer(str(directory), purge_step=purge_step, filename_suffix=suffix)

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes every number of `row` except `step`, which is the abscissa and must be there."""
        step = int(row["step"])
        for name, number in _numbers(row).items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _WandbLogger:
    """A run of Weights & Biases, whose id is kept in wandb.json; WANDB_MODE=offline works as it does elsewhere."""

    def __init__(self, folder: Path, config: Any, options: Mapping[str, str]):
        wandb = _library("wandb", "wandb")
        self._run = wandb.init(
            dir=str(folder),
            name=folder.name,
            id=_kept(folder / "wandb.json", lambda: {"id": uuid.uuid4().hex[:16]})["id"],
            **{name: value or None for name, value in options.items()},
            resume="allow",
            reinit="create_new",
            config=config.to_dict(),
            settings=wandb.Settings(console="off", init_timeout=60),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # a run that resumes goes back by some steps

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log({"step": int(row["step"]), **_numbers(row)})

    def close(self) -> None:
        self._run.finish()


class _MlflowLogger:
    """A run of MLflow, whose id and store are kept in mlflow.json; the store is "" where it lies in the folder."""

    def __init__(self, folder: Path, config: Any, options: Mapping[str, str]):
        mlflow = _library("mlflow", "mlflow")
        self._metric = mlflow.entities.Metric
        local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        place = folder / "mlflow.json"
        given = options["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or ""
        uri = read_json(place, dict).get("uri", given) if place.exists() else given
        self._client = client = mlflow.MlflowClient(tracking_uri=uri or local)

        def begin():
            experiment = client.get_experiment_by_name(options["experiment"])
            artifacts = None if uri else str(folder.resolve() / "mlartifacts")
            number = (
                experiment.experiment_id if experiment else client.create_experiment(options["experiment"], artifacts)
            )
            run_id = client.create_run(number, run_name=folder.name).info.run_id
            # A call takes 100 at most, of texts that every version of MLflow stores.
            params = [mlflow.entities.Param(key, str(value)[:500]) for key, value in flatten(config).items()]
            for first in range(0, len(params), 100):
                client.log_batch(run_id, params=params[first : first + 100])
            return {"run_id": run_id, "uri": uri}

        self._run_id = _kept(place, begin)["run_id"]
        client.update_run(self._run_id, status="RUNNING")

    def write(self, row: Mapping[str, Any]) -> None:
        now, step = time.time_ns() // 10**6, int(row["step"])
        metrics = [self._metric(name, number, now, step) for name, number in _numbers(row).items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _open(choice: Chosen, folder: Path, config: Any, start: int) -> Logger:
    """The logger; raises ConfigError in one line where it cannot be opened."""
    try:
        logger = choice.entry.make(folder, config, start, **dict(choice.values))
    except Exception as error:
        raise ConfigError(f"log.{choice.name}=true: it cannot be opened: {one_line(error)[:300]}") from error
    for name in ("write", "close"):
        if not callable(getattr(logger, name, None)):
            raise ConfigError(
                f"log.{choice.name}=true: {type(logger).__name__} has no {name}, which a logger must have"
            )
    return logger


def _library(name: str, extra: str) -> ModuleType:
    """An optional library. Raises ImportError in one line that says how to install it."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"it needs {name}: pip install 'hybrid_flax[{extra}]'") from error


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row but its step."""
    numbers = {name: as_number(value) for name, value in row.items() if name != "step"}
    return {name: number for name, number in numbers.items() if number is not None}


def _kept(path: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What a file of the run folder says; made and written where there is none."""
    if not path.exists():
        write_json(path, make())
    return read_json(path, dict)


def _open_tensorboard(folder, config, start):
    del config
    return TensorBoardWriter(folder / "tensorboard", purge_step=start + 1)


def _open_wandb(folder, config, start, *, project: str = "hybrid_flax", entity: str = "", group: str = ""):
    del start
    return _WandbLogger(folder, config, {"project": project, "entity": entity, "group": group})


def _open_mlflow(folder, config, start, *, experiment: str = "hybrid_flax", uri: str = ""):
    del start
    return _MlflowLogger(folder, config, {"experiment": experiment, "uri": uri})


register_logger("tensorboard", _open_tensorboard)
register_logger("wandb", _open_wandb)
register_logger("mlflow", _open_mlflow)
