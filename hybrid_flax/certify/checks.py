"""Comparisons of arrays and trees: each returns the worst relative error it saw, or raises `Violation`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "TOLERANCE",
    "Violation",
    "check_close",
    "check_finite",
    "check_same",
    "check_shapes",
    "check_zero",
    "distance",
    "inexact",
    "require",
]

TOLERANCE = 1e-5


class Violation(AssertionError):
    """A property that does not hold: what, where, by how much."""


def require(condition: Any, message: str) -> None:
    """Raise `Violation` unless `condition` holds."""
    if not condition:
        raise Violation(message)


def distance(a: Any, b: Any) -> float:
    """max|a - b| / max|b|; infinite where b is nothing but zero and a is not, or where either is not finite."""
    a, b = _wide(a), _wide(b)
    require(a.shape == b.shape, f"shape {a.shape} in place of {b.shape}")
    error = float(np.max(np.abs(a - b), initial=0.0))
    size = float(np.max(np.abs(b), initial=0.0))
    if error == 0.0:
        return 0.0
    return error / size if 0.0 < size < np.inf and np.isfinite(error) else np.inf


def check_close(a: Any, b: Any, tolerance: float = TOLERANCE) -> float:
    """Every inexact leaf of a within `tolerance` of that of b, every other leaf equal."""
    require(_structure(a) == _structure(b), "another tree structure")
    worst = 0.0
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
        where = jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            error = distance(leaf, wanted)
            require(error <= tolerance, f"{where or 'output'}: {error:.1e} is more than {tolerance:.0e}")
            worst = max(worst, error)
        else:
            require(np.array_equal(leaf, wanted), f"{where or 'output'}: not equal")
    return worst


def check_same(a: Any, b: Any) -> float:
    """Equal bit for bit."""
    return check_close(a, b, 0.0)


def check_zero(x: Any) -> float:
    """Exactly zero in every leaf."""
    for leaf in jax.tree.leaves(x):
        require(not np.any(np.asarray(leaf)), f"{np.max(np.abs(leaf), initial=0.0):.1e} is not zero")
    return 0.0


def check_finite(x: Any) -> float:
    """Neither NaN nor infinite in any leaf."""
    for path, leaf in jax.tree.leaves_with_path(x):
        require(np.all(np.isfinite(_wide(leaf))), f"{jax.tree_util.keystr(path) or 'output'}: not finite")
    return 0.0


def check_shapes(a: Any, b: Any) -> float:
    """Equal structure, shapes and dtypes."""
    require(_structure(a) == _structure(b), "another tree structure")
    for leaf, wanted in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        got, want = (leaf.shape, leaf.dtype), (wanted.shape, wanted.dtype)
        require(got == want, f"{leaf.dtype}{leaf.shape} in place of {wanted.dtype}{wanted.shape}")
    return 0.0


def inexact(tree: Any) -> list[Any]:
    """The floating and complex leaves."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _structure(tree: Any) -> Any:
    """As Any, because the type stubs of jax do not say that structures can be compared."""
    return jax.tree.structure(tree)


def _wide(x):
    x = np.asarray(x)
    return x.astype(np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64)
