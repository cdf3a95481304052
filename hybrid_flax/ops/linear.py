"""Matrix products in the compute dtype."""

import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Any, Array, Inexact, state_dtype

__all__ = ["contract", "project"]


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
