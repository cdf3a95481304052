"""Export and import: a run folder to a folder of plain files for others, and such a folder to a run folder."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_flax.errors import ConfigError
from hybrid_flax.files import read_json, write_json, write_whole
from hybrid_flax.tasks.base import find_metric
from hybrid_flax.tasks.registry import make_task
from hybrid_flax.training.checkpoint import Checkpoints
from hybrid_flax.training.folder import Run, RunFolder
from hybrid_flax.training.weights import write_weights

__all__ = ["export_run", "import_run"]


def export_run(run: Run, source: str | os.PathLike, target: str | os.PathLike, card: str) -> list[Path]:
    """Write the weights of `run`, loaded from folder `source`, into the new folder `target`; returns its files.

    model.safetensors, README.md (the `card`), and the small files of the run folder: config, run, tokenizer, labels,
    results, and the source of its experiment. Raises ConfigError in one line where `target` is there.
    """
    with _new_folder(target) as folder:
        _copy_small(RunFolder(source), folder)
        write_weights(folder.weights, run.params, run.step)
        write_whole(folder.card, card)
    return sorted(path for path in Path(target).rglob("*") if path.is_file())


def import_run(run: Run, source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write `run`, loaded from the exported folder `source`, as the new run folder `target`.

    It holds weights, and nothing else that moves: it can be read and started from, and not gone on with. Raises
    ConfigError in one line where `source` is no exported folder, and where `target` is there.
    """
    exported = RunFolder(source)
    if not exported.is_exported():
        raise ConfigError(
            f"{exported.path} is no exported folder: it has no {exported.weights.name} or has checkpoints"
        )
    with _new_folder(target) as folder:
        _copy_small(exported, folder)
        about = read_json(folder.about, dict)
        write_json(folder.about, about | {"imported": str(source)})
        metric = find_metric(make_task(run.config, run.labels), run.config.eval.metric)
        checkpoints = Checkpoints(folder.checkpoints, metric)
        name = "ema" if run.config.optim.ema_decay > 0.0 else "params"
        checkpoints.save(run.step, {"state": {name: run.params}})
        checkpoints.close()


@contextmanager
def _new_folder(target) -> Iterator[RunFolder]:
    """A folder that is there as a whole, or not at all."""
    target = Path(target)
    if target.exists():
        raise ConfigError(f"{target} is there already: name a folder that is not, or remove it")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield RunFolder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _copy_small(source, target):
    """The files that say what a run is."""
    for name in ("config", "about", "tokenizer", "labels", "results", "start", "experiment"):
        path = getattr(source, name)
        if path.exists():
            shutil.copyfile(path, getattr(target, name))
    if source.modules.is_dir():
        shutil.copytree(source.modules, target.modules)
