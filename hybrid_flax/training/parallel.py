"""One per-device step and its maps: jit on one device, pmap in one process, jit(shard_map) over many processes.

Many runs are mapped as lanes: vmap on one device, pmap of vmap on several.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hybrid_flax.typing import PyTree

__all__ = ["MAPS", "Parallel", "any_process", "check_rows", "make_lanes", "make_parallel"]

MAPS = ("auto", "jit", "pmap", "shard_map")
_AXIS, _LANES = "data", "lanes"


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process of the run; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Parallel(NamedTuple):
    """How steps are mapped over devices.

    kind: "jit", "pmap", "shard_map" or "lanes". axis_name: what a step sums over, None under jit.
    wrap: (step, donate) -> the mapped step(state, rows, rows) -> (state, rows, sums).
    put_state: place a value on every device, or that of each lane on its device.
    put_rows: split rows [B, ...] of this process over the devices.
    get_rows: rows as they are checkpointed, [B, ...], whatever the number of devices.
    rows: (batch_size) -> the slice of global rows that this process builds.
    blocking: whether every step must end before the next begins (several CPU devices deadlock otherwise).
    """

    kind: str
    axis_name: str | None
    num_devices: int
    wrap: Callable[..., Callable]
    put_state: Callable[[PyTree], PyTree]
    put_rows: Callable[[PyTree], PyTree]
    get_rows: Callable[[PyTree], PyTree]
    rows: Callable[[int], slice]
    blocking: bool


def make_parallel(kind: str = "auto", devices: Sequence[Any] | None = None) -> Parallel:
    """The map for `devices` (all by default). "auto": jit for one, pmap in one process, else shard_map.

    Equal arguments give the identical object, and its `wrap` the identical mapped step, which compiles once.
    Raises ValueError for an unknown kind, and for one that does not fit the devices or processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    if kind not in MAPS:
        raise ValueError(f"train.parallel={kind!r} is none of {', '.join(MAPS)}")
    if kind == "auto":
        kind = "shard_map" if jax.process_count() > 1 else "jit" if len(devices) == 1 else "pmap"
    if kind != "shard_map" and jax.process_count() > 1:
        raise ValueError(
            f"train.parallel={kind!r} works in one process, there are {jax.process_count()}: use shard_map"
        )
    if kind == "jit":
        devices = devices[:1]
    return _build(kind, tuple(devices))


@functools.cache
def make_lanes(*, shared: bool = False) -> Parallel:
    """The map of many runs, a run a lane, over the devices of this process, which share the lanes.

    States, rows and sums have a first axis for the lanes, whose number is a multiple of the devices; `get_rows` undoes
    how a tree is split. shared: all lanes read the same rows, which have no such axis.
    """
    devices = tuple(jax.local_devices())
    axes = (0, 0, None if shared else 0)

    @functools.cache
    def wrap(step, donate=(0, 1)):
        mapped = jax.vmap(step, in_axes=axes)
        if len(devices) == 1:
            return jax.jit(mapped, donate_argnums=donate)
        return jax.pmap(mapped, axis_name=_LANES, in_axes=axes, devices=devices, donate_argnums=donate)

    def put(tree):
        if len(devices) == 1:
            return jax.device_put(tree, devices[0])
        # Where a step leaves it: a tree that lay elsewhere would compile the step a second time.
        split = NamedSharding(Mesh(np.array(devices), (_LANES,)), P(_LANES))
        return jax.tree.map(lambda leaf: jax.device_put(leaf.reshape(len(devices), -1, *leaf.shape[1:]), split), tree)

    def get(tree):
        return tree if len(devices) == 1 else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    put_rows = (lambda tree: tree) if shared else put
    blocking = len(devices) > 1 and devices[0].platform == "cpu"
    return Parallel("lanes", None, len(devices), wrap, put, put_rows, get, lambda batch_size: slice(None), blocking)


def check_rows(parallel: Parallel, batch_size: int, accumulate: int = 1, name: str = "data.batch_size") -> None:
    """Raise ValueError where a batch does not split evenly over devices and parts, naming the nearest that does."""
    unit = parallel.num_devices * accumulate
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        near = f"{below} or {above}" if below else f"{above}"
        parts = f" x {accumulate} accumulated parts" if accumulate > 1 else ""
        raise ValueError(f"{name}={batch_size} does not divide over {parallel.num_devices} devices{parts}: use {near}")


@functools.cache
def _build(kind, devices):
    make = {"jit": _make_jit, "pmap": _make_pmap, "shard_map": _make_shard_map}[kind]
    blocking = len(devices) > 1 and devices[0].platform == "cpu"
    return make(devices)._replace(blocking=blocking)


def _make_jit(devices):
    @functools.cache
    def wrap(step, donate=(0, 1)):
        return jax.jit(step, donate_argnums=donate)

    def put(tree):
        return jax.device_put(tree, devices[0])

    return Parallel("jit", None, 1, wrap, put, put, lambda tree: tree, lambda batch_size: slice(None), False)


def _make_pmap(devices):
    num_devices = len(devices)

    @functools.cache
    def wrap(step, donate=(0, 1)):
        axes: dict[str, Any] = {"in_axes": (None, 0, 0), "out_axes": (None, 0, None)}
        return jax.pmap(step, axis_name=_AXIS, devices=devices, donate_argnums=donate, **axes)

    def put_rows(tree):
        # Where a step leaves a carry: one that lay elsewhere would compile the step a second time.
        split = NamedSharding(_mesh(devices), P(_AXIS))
        return jax.tree.map(lambda leaf: jax.device_put(leaf.reshape(num_devices, -1, *leaf.shape[1:]), split), tree)

    def get_rows(tree):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    put_state = partial(jax.device_put, device=NamedSharding(_mesh(devices), P()))
    return Parallel("pmap", _AXIS, num_devices, wrap, put_state, put_rows, get_rows, lambda b: slice(None), False)


def _make_shard_map(devices):
    mesh = _mesh(devices)
    split = NamedSharding(mesh, P(_AXIS))

    @functools.cache
    def wrap(step, donate=(0, 1)):
        # With check_vma (the default) psum-ed gradients come out multiplied by the number of devices.
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(_AXIS), P(_AXIS)), out_specs=(P(), P(_AXIS), P()), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate)

    def put_state(tree):
        return jax.tree.map(lambda leaf: _replicate(leaf, NamedSharding(mesh, P())), tree)

    def put_rows(tree):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), tree)

    def rows(batch_size):
        per_process = batch_size // jax.process_count()
        start = jax.process_index() * per_process
        return slice(start, start + per_process)

    return Parallel("shard_map", _AXIS, len(devices), wrap, put_state, put_rows, lambda tree: tree, rows, False)


def _mesh(devices):
    # Not jax.make_mesh, whose Explicit axes flax's modules do not accept.
    return Mesh(np.array(devices), (_AXIS,))


def _replicate(leaf, sharding):
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(leaf))
        whole = jax.make_array_from_process_local_data(sharding, data, data.shape)
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), leaf.shape)
