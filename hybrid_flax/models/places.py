"""Places: the names of a model's parameters, layer by layer, whether or not its layers are scanned.

A leaf of scanned layers is a stack, one entry a repeat of the pattern. Its places are those that its entries would have
in the model without the scan, counted from the first layer: `backbone.layer_3.mixer.input.kernel`.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from hybrid_flax.typing import Params

__all__ = ["by_place", "find_places", "leaf_places", "replace_places"]


def leaf_places(params: Params) -> list[tuple[str, ...]]:
    """The places of every leaf, in the order of `jax.tree.leaves`: one, or for a stack one for each of its entries."""
    return [places for _, _, places in _walk(params)]


def by_place(params: Params) -> dict[str, Any]:
    """{place: array} of parameters, or of their shapes; the entries of a stack stand each by itself."""
    found: dict[str, Any] = {}
    for path, leaf, places in _walk(params):
        found |= dict(zip(places, _entries(leaf) if _is_stack(path) else [leaf]))
    return found


def replace_places(params: Params, given: Mapping[str, Any]) -> Params:
    """`params` with other arrays at some places: the inverse of `by_place`, on the host."""
    leaves = []
    for path, leaf, places in _walk(params):
        if not any(place in given for place in places):
            leaves.append(leaf)
        elif _is_stack(path):
            leaves.append(np.stack([given.get(place, entry) for place, entry in zip(places, _entries(leaf))]))
        else:
            leaves.append(given[places[0]])
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def find_places(params: Params, chosen: Collection[str]) -> list[bool | np.ndarray]:
    """Which leaves stand at `chosen` places, in the order of `jax.tree.leaves`.

    True or False for a whole leaf; an array of booleans for a stack, one an entry, where some are and some are not.
    """
    masks: list[bool | np.ndarray] = []
    for _, leaf, places in _walk(params):
        is_chosen = np.array([place in chosen for place in places])
        whole = bool(is_chosen[0]) if is_chosen.all() or not is_chosen.any() else None
        masks.append(is_chosen.reshape(-1, *[1] * (leaf.ndim - 1)) if whole is None else whole)
    return masks


def _walk(params) -> Iterator[tuple[tuple[str, ...], Any, tuple[str, ...]]]:
    """(names on the way, leaf, places) of every leaf."""
    repeated = params.get("backbone", {}).get("repeats", {})
    period = len(repeated)
    repeats = jax.tree.leaves(repeated)[0].shape[0] if period else 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = tuple(str(entry.key) for entry in path)
        yield names, leaf, _places(names, period, repeats)


def _places(names, period, repeats):
    if names[:2] not in (("backbone", "repeats"), ("backbone", "rest")):
        return (".".join(names),)
    place = int(names[2].removeprefix("layer_"))
    indices = range(place, repeats * period, period) if _is_stack(names) else [repeats * period + place]
    return tuple(".".join(("backbone", f"layer_{index}", *names[3:])) for index in indices)


def _is_stack(names):
    return names[:2] == ("backbone", "repeats")


def _entries(leaf):
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)] * leaf.shape[0]
    return list(np.asarray(leaf))
