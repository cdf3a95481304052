"""Checkpoints: save, restore, latest and best. The only file that knows Orbax.

A checkpoint of step s holds everything that moves after s updates, as one tree of arrays. Beside it stand a checksum of
every array, the metrics of the evaluation at s, where there was one, and which step was best by then. Saving is
asynchronous; a save that was cut off is not a checkpoint.
"""

import json
import logging
import os
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from hybrid_flax.errors import one_line
from hybrid_flax.tasks.base import Metric
from hybrid_flax.training.writers import Mark
from hybrid_flax.typing import PyTree

__all__ = ["Checkpoints", "Damaged", "SaveFailed"]


class Damaged(ValueError):
    """A checkpoint that cannot be read, or that holds other bytes than were saved."""


class SaveFailed(OSError):
    """A checkpoint that could not be written: one line with the reason."""


class _Record(NamedTuple):
    """What stands beside the arrays; checksums (by path) and rows are None for those of version 0.1.

    rows: what metrics.jsonl held. best: (score, -step).
    """

    step: int
    checksums: dict[str, int] | None
    rows: Mark | None
    metrics: dict[str, float] | None
    best: tuple[float, int] | None


class Checkpoints:
    """The checkpoints in one folder: the two latest, and the best by a metric, the first of equally good ones.

    Only `save` changes the folder, and removes what a save that was cut off has left behind.
    damaged: {step: reason} of those that are known not to be whole; all methods leave them out.
    """

    def __init__(self, directory: str | os.PathLike, metric: Metric):
        _quieten()
        self._metric, self._sign = f"eval/{metric.name}", -1 if metric.lower_is_better else 1
        self._directory = Path(directory).absolute()
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._last: int | None = None  # that was saved here
        self.damaged: dict[int, str] = {}
        self._records: dict[int, _Record] = {}
        for path in self._directory.glob("[0-9]*"):
            if path.name.isdecimal():
                step = int(path.name)
                try:
                    self._records[step] = self._read_record(step)
                except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                    self.damaged[step] = f"checkpoint {path} cannot be read: {one_line(error)}"
        self._best = self._find_best()

    def save(self, step: int, tree: PyTree, metrics: dict[str, float] | None = None, rows: Mark | None = None) -> None:
        """Start saving; returns once the arrays have been copied off the device. rows: what metrics.jsonl holds.

        What was saved at the step without metrics is replaced by what has some. Raises SaveFailed, also where the save
        before this one failed, and RuntimeError where the step is already saved.
        """
        old = self._records.get(step)
        if old is not None and (old.metrics is not None or metrics is None):
            raise RuntimeError(f"a checkpoint of step {step} already exists in {self._directory}")
        if metrics is not None:
            self._best = max(filter(None, (self._best, (self._sign * metrics[self._metric], -step))))
        record = _Record(step, _checksums(tree), rows, metrics, self._best)
        self.wait()
        self._last = step
        try:
            if self._checkpointer is None:
                self._checkpointer = self._open_checkpointer()
            self._checkpointer.save_async(step, tree, custom_metadata=record._asdict(), overwrite=old is not None)
        except Exception as error:
            raise SaveFailed(f"the checkpoint of step {step} was not saved: {_reason(error)}") from error
        self._records[step] = record
        kept = _kept(self._records, self.best())
        self._records = {step: record for step, record in self._records.items() if step in kept}

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The tree of `step` in the structure, shapes, dtypes and shardings of `like` (arrays or abstract ones).

        Raises Damaged, and ValueError in one line, naming the first difference, where the checkpoint holds something
        else.
        """
        return self._load(step, (), like, jax.tree.map(_abstract, like))

    def restore_part(self, step: int, path: tuple[str, ...], like: PyTree) -> PyTree:
        """The subtree at `path` alone, on the first device, in the structure and shapes of `like`, as it was saved.

        Raises Damaged and ValueError as `restore`; dtypes are those that were saved.
        """
        options = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
        with ocp.Context(pytree_options=options):
            return self._load(step, path, like)

    def steps(self) -> list[int]:
        """The saved steps that are not known to be damaged, the latest first."""
        return sorted(self._records, reverse=True)

    def latest(self) -> int | None:
        """The largest of `steps`."""
        return max(self._records, default=None)

    def best(self) -> int | None:
        """The step whose metric is best, perhaps still being saved; None where none was evaluated."""
        return None if self._best is None else -self._best[1]

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics of the evaluation at a saved step; None where there was none."""
        return self._records[step].metrics

    def rows(self, step: int) -> Mark | None:
        """What metrics.jsonl held at a saved step; None where the checkpoint does not say."""
        return self._records[step].rows

    def leave_out(self, step: int, reason: str) -> None:
        """Count a checkpoint as damaged from now on."""
        self._records.pop(step, None)
        self.damaged[step] = reason
        self._best = self._find_best()

    def set_aside(self, folder: Path) -> None:
        """Move what is damaged into `folder`, so that its steps can be saved again."""
        if jax.process_index() == 0:
            for step in self.damaged:
                folder.mkdir(parents=True, exist_ok=True)
                (self._directory / str(step)).rename(_free_name(folder / str(step)))

    def wait(self) -> None:
        """Block until what is being saved is on disk. Raises SaveFailed."""
        try:
            if self._checkpointer is not None:
                self._checkpointer.wait()
        except Exception as error:
            raise SaveFailed(f"the checkpoint of step {self._last} was not saved: {_reason(error)}") from error

    def close(self) -> None:
        """Wait, and let go of the folder. Raises SaveFailed."""
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()

    def _open_checkpointer(self):
        return ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_Preservation(self.best),
            cleanup_tmp_directories=jax.process_index() == 0,
        )

    def _find_best(self):
        return max((record.best for record in self._records.values() if record.best), default=None)

    def _read_record(self, step):
        path = self._directory / str(step)
        saved = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]
        if saved:
            best = saved["best"] and (float(saved["best"][0]), int(saved["best"][1]))
            if saved["step"] != step:
                raise ValueError(f"it is that of step {saved['step']}")
            rows = saved["rows"] and Mark(*map(int, saved["rows"]))
            return _Record(step, dict(saved["checksums"]), rows, saved["metrics"], best)
        file = path / "metrics" / "metrics"  # of version 0.1
        metrics = json.loads(file.read_bytes()) if file.exists() else None
        return _Record(
            step, None, None, metrics, None if metrics is None else (self._sign * metrics[self._metric], -step)
        )

    def _load(self, step, path, like, target=None):
        """target: `like` where it is to lie; None for the first device, in the dtypes that were saved."""
        name = f"checkpoint {self._directory}/{step}"
        checksums = self._records[step].checksums if step in self._records else None
        saved = _read(name, partial(_listed, self._directory / str(step), path))
        if target is None:
            like = target = _as_saved(saved, like)
        problem = _difference(saved, like)
        if problem:
            lost = _paths(_nested(path, like)) & (checksums or {}).keys() - _paths(_nested(path, saved))
            if lost:
                raise Damaged(f"{name} is damaged: {min(lost)} was saved and is not there")
            raise ValueError(f"{name} does not fit this model: {problem}")
        tree = _read(name, partial(ocp.load, self._directory / str(step), _nested(path, target)))
        changed = [key for key, value in _checksums(tree).items() if (checksums or {}).get(key, value) != value]
        if changed:
            raise Damaged(f"{name} is damaged: {changed[0]} is not what was saved")
        for part in path:
            tree = tree[part]
        return tree


def _listed(checkpoint, path):
    """What a checkpoint says of the arrays at `path`."""
    saved = ocp.metadata(checkpoint).metadata
    for part in path:
        saved = (saved or {})[part]
    if not saved:
        raise ValueError("it lists no arrays")
    return saved


def _read(name, call):
    """What `call` returns; whatever Orbax raises as Damaged, in one line, and no page on the screen.

    Neither what it logs comes there, nor, however late, the reads that it began before one of them failed.
    """
    warnings.filterwarnings("ignore", r"coroutine '_\w+' was never awaited", RuntimeWarning)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return call()
    except Exception as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else _reason(error)
    finally:
        logging.disable(level)
    raise Damaged(f"{name} cannot be read: {reason}")


def _kept(steps, best):
    """The steps that stay: the best, and two more, so that one is left where the latest turns out to be damaged."""
    return {*sorted(steps)[-2:], best}


class _Preservation(NamedTuple):
    """`_kept`, as Orbax asks for it."""

    best: Callable[[], int | None]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = _kept(steps, self.best())
        return [step in kept for step in steps]


def _checksums(tree: PyTree) -> dict[str, int]:
    """A checksum of the bytes of every array that this process has whole, by its path."""
    arrays = ((path, _bits(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0])
    return {_path(path): _checksum(array) for path, array in arrays if array is not None}


_WORDS = 8191  # a prime: blocks of a disk that changed places are noticed


def _checksum(array):
    """The CRC-32 of the bytes, folded by XOR to rows of _WORDS words of 64 bits: as fast as memory is read."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(data) - len(data) % (8 * _WORDS)
    folded = np.bitwise_xor.reduce(data[:whole].view(np.uint64).reshape(-1, _WORDS), axis=0)
    return zlib.crc32(data[whole:].data, zlib.crc32(folded.data))


def _bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(leaf.addressable_data(0)) if leaf.is_fully_replicated else None
    return np.asarray(leaf)


def _reason(error):
    """The first line of what Orbax says, without its pages; for a full disk that alone."""
    text = f"{error} {error.__cause__ or ''}"
    if "No space left" in text:
        return "no space left on device"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _free_name(path):
    """`path`, or with a number where that is taken."""
    names = (path.with_name(f"{path.name}{ending}") for ending in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if not name.exists())


@cache
def _quieten():
    """Keep Orbax's tracebacks off the screen: it logs what it raises, and leaves one for every other array."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(event):
        code = getattr(event.object, "cr_code", None)  # of a coroutine
        closed = isinstance(event.exc_value, RuntimeError) and "Event loop is closed" in str(event.exc_value)
        if not closed and "orbax" not in getattr(code, "co_filename", ""):
            show(event)

    sys.unraisablehook = show_others


def _nested(path, leaf):
    for name in reversed(path):
        leaf = {name: leaf}
    return leaf


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def _as_saved(saved, like):
    """`like` on the first device, in the dtypes that were saved, as far as this process has them."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    dtypes = {_path(path): leaf.dtype for path, leaf in jax.tree_util.tree_flatten_with_path(saved)[0]}

    def abstract(path, leaf):
        dtype = jax.dtypes.canonicalize_dtype(dtypes.get(_path(path), leaf.dtype))
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device)

    return jax.tree_util.tree_map_with_path(abstract, like)


def _difference(saved, like):
    """What the checkpoint lacks, has too much, or has in another shape or dtype; empty where they agree."""
    saved = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(saved)[0]}
    like = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    for path in sorted(like.keys() - saved.keys()):
        return f"it has no {path}"
    for path in sorted(saved.keys() - like.keys()):
        return f"it has {path}, which the model has not"
    for path, leaf in like.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        if tuple(saved[path].shape) != tuple(leaf.shape):
            return f"{path} has shape {tuple(saved[path].shape)}, the model wants {tuple(leaf.shape)}"
        if np.dtype(saved[path].dtype) != np.dtype(leaf.dtype):
            return f"{path} is {np.dtype(saved[path].dtype)}, the model wants {np.dtype(leaf.dtype)}"
    return ""


def _paths(tree):
    return {_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _path(path):
    names = (getattr(e, "key", getattr(e, "name", getattr(e, "idx", None))) for e in path)
    return "/".join(str(name) for name in names)
