"""Parameters that do not move: which they are, and how a step leaves them out.

They have no gradient, no optimizer state, no weight decay and no part in the norm that gradients are clipped by; their
running mean is what they are. Of scanned layers, some of which are frozen, the stack has a gradient, which is zero for
those, and an optimizer state.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.errors import nearest
from hybrid_flax.models.places import by_place, find_places
from hybrid_flax.typing import Params

__all__ = ["find_frozen", "hold", "merge", "moving", "without_frozen"]


def find_frozen(patterns: str, params: Params) -> tuple[str, ...]:
    """The places of `params` that comma-separated patterns (of `fnmatch`) match, sorted.

    Raises ValueError in one line for a pattern that matches none, and where nothing is left to train.
    """
    if not patterns:
        return ()
    places, frozen = list(by_place(params)), set()
    for pattern in map(str.strip, patterns.split(",")):
        found = [place for place in places if fnmatchcase(place, pattern)]
        if not found:
            near = nearest(pattern, places, cutoff=0.0)
            raise ValueError(f"model.freeze={patterns!r}: {pattern!r} matches no parameter; {near}")
        frozen |= {*found}
    if len(frozen) == len(places):
        raise ValueError(f"model.freeze={patterns!r} matches all {len(places)} parameters: nothing is left to train")
    return tuple(sorted(frozen))


def moving(params: Params, frozen: Sequence[str]) -> Params:
    """`params` without the leaves that are frozen as a whole."""
    return _prune(params, _masks(params, frozen)) if frozen else params


def without_frozen(grads: Params, params: Params, frozen: Sequence[str]) -> Params:
    """Gradients of `moving` parameters, zero for the layers of a stack that are frozen."""
    return hold(grads, jax.tree.map(jnp.zeros_like, grads), params, frozen) if frozen else grads


def hold(new: Params, old: Params, params: Params, frozen: Sequence[str]) -> Params:
    """`new`, of the shape of `moving`, but `old` for the layers of a stack that are frozen."""
    if not frozen:
        return new
    masks = _prune(_masks(params, frozen), _masks(params, frozen))
    return jax.tree.map(lambda n, o, mask: n if mask is False else jnp.where(mask, o, n), new, old, masks)


def merge(params: Params, moved: Params) -> Params:
    """`params` with the leaves of `moved` in their places."""
    if not isinstance(moved, Mapping):
        return moved
    return {name: merge(part, moved[name]) if name in moved else part for name, part in params.items()}


def _masks(params, frozen):
    return jax.tree.unflatten(jax.tree.structure(params), find_places(params, {*frozen}))


def _prune(tree, masks):
    if not isinstance(masks, Mapping):
        return tree
    return {name: _prune(tree[name], mask) for name, mask in masks.items() if not _is_frozen(mask)}


def _is_frozen(masks):
    return all(not isinstance(mask, np.ndarray) and mask for mask in jax.tree.leaves(masks))
