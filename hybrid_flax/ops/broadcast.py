"""Broadcasting that is written out, so that an operand of a wrong shape fails in place of spreading."""

import jax.numpy as jnp
from jax import lax

from hybrid_flax.typing import Array, Inexact

__all__ = ["align"]


def align(parameter: Inexact[Array, "*P"] | float, x: Inexact[Array, "*B"]) -> Inexact[Array, "..."]:
    """`parameter` with as many axes as x, those it lacks in front and of length 1, in the dtype of x."""
    return lax.expand_dims(jnp.asarray(parameter, x.dtype), range(x.ndim - jnp.ndim(parameter)))
