"""Weights that leave and come in: a file model.safetensors, whose names are the places of parameters.

The only file that knows safetensors. An exported folder is a run folder that has this file in place of checkpoints.
"""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.models.places import by_place, replace_places
from hybrid_flax.typing import Params

__all__ = ["read_weights", "write_weights"]

_MADE_BY = "hybrid_flax"  # what the metadata of a file say


def write_weights(path: str | os.PathLike, params: Params, step: int) -> None:
    """Write parameters after `step` updates, every array in its dtype, scanned layers each by itself.

    Raises ConfigError in one line where the library is missing or knows no such dtype.
    """
    arrays = {place: np.ascontiguousarray(leaf) for place, leaf in by_place(jax.device_get(params)).items()}
    metadata = {"made_by": _MADE_BY, "step": str(step), "checksum": _checksum(arrays)}
    library = _library()
    try:
        library.numpy.save_file(arrays, path, metadata=metadata)
    except (library.SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {one_line(error)}") from error


def read_weights(path: str | os.PathLike, like: Params) -> tuple[Params, int]:
    """(parameters of the structure and shapes of `like` in the dtypes of the file, updates that they have had).

    Raises ConfigError in one line where the file is missing, damaged, or holds other places or shapes. Of a file that
    others made, which has no checksum, the updates are 0.
    """
    library = _library()
    if not Path(path).is_file():
        raise ConfigError(f"{path} is no file")
    try:
        with library.safe_open(path, "numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(metadata.get("step", 0))
        if step < 0:
            raise ValueError(f"step={step}")
    except (library.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged, or no safetensors file: {one_line(error)}") from error
    if metadata.get("made_by") == _MADE_BY and metadata.get("checksum") != _checksum(arrays):
        raise ConfigError(f"{path} is damaged: its arrays are not what was saved")
    if problem := _difference(arrays, by_place(like)):
        raise ConfigError(f"{path} does not fit this model: {problem}")
    return replace_places(like, arrays), step


def _difference(arrays, like):
    for place in sorted(like.keys() - arrays.keys()):
        return f"it has no {place}"
    for place in sorted(arrays.keys() - like.keys()):
        return f"it has {place}, which the model has not"
    for place, leaf in like.items():
        if arrays[place].shape != tuple(leaf.shape):
            return f"{place} has shape {arrays[place].shape}, the model wants {tuple(leaf.shape)}"
        if not jax.numpy.issubdtype(arrays[place].dtype, jax.numpy.inexact):
            return f"{place} is {arrays[place].dtype}, the model wants {leaf.dtype}"
    return ""


def _checksum(arrays):
    total = 0
    for place in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[place]).reshape(-1).view(np.uint8).data, total)
    return str(total)


def _library():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ConfigError("weights are written and read by safetensors: pip install 'hybrid_flax[hub]'") from None
    return safetensors
