"""Matrix products in the compute dtype."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, Inexact, state_dtype

__all__ = ["contract", "contract_blocks", "project"]


def project(x: Inexact[Array, "*B D"], kernel: Inexact[Array, "D *N"]) -> Inexact[Array, "..."]:
    """Contract the last axis of x with the first of kernel, in the dtype of x."""
    return contract(x, kernel, x.dtype).astype(x.dtype)


def contract(x: Inexact[Array, "*B D"], kernel: Inexact[Array, "D *N"], dtype: Any) -> Inexact[Array, "..."]:
    """Contract as `project` does: operands in `dtype`, the sum and the result in `state_dtype(dtype)`."""
    return lax.dot_general(
        x.astype(dtype),
        kernel.astype(dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.dtype(state_dtype(dtype)),
    )


def contract_blocks(
    x: Inexact[Array, "*B D"], kernel: Inexact[Array, "M blocks gates N"], dtype: Any
) -> Inexact[Array, "..."]:
    """Each of `blocks` equal parts of x makes its own part of every gate: [*B, gates, blocks N]; else as `contract`."""
    rows, blocks, gates, columns = kernel.shape
    y = jnp.einsum(
        "...ki,ikgo->...gko",
        x.astype(dtype).reshape(*x.shape[:-1], blocks, rows),
        kernel.astype(dtype),
        preferred_element_type=jnp.dtype(state_dtype(dtype)),
    )
    return y.reshape(*x.shape[:-1], gates, blocks * columns)
