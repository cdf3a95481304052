"""One residual layer, and the pieces that every layer is made of."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.mlp import mlp
from hybrid_flax.ops.norm import layer_norm, rms_norm
from hybrid_flax.typing import Array, Hidden, Key, Mixer, Scalar, Segments, State

__all__ = ["NORMS", "Block", "Dropout", "LockedDropout", "Mlp", "Norm", "init_kernel"]

NORMS = ("rms", "layer")


class Dropout(NamedTuple):
    """What dropout depends on: a key for every row, so that masks do not change with the number of devices.

    keys: one typed key a row. rate: probability to drop, in [0, 1); may be traced.
    """

    keys: Key[Array, "B"]
    rate: Scalar | float

    def __call__(self, x: Hidden, site: Any) -> Hidden:
        """Drop entries of x and scale the rest by 1 / (1 - rate); `site` numbers the place in the model."""

        def keep_row(key):
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - self.rate, self.mask_shape(x))

        kept = jax.vmap(keep_row)(self.keys)
        return jnp.where(kept, x / jnp.asarray(1.0 - self.rate, x.dtype), jnp.zeros_like(x))

    def mask_shape(self, x: Hidden) -> tuple[int, ...]:
        """Of the mask of one row."""
        return x.shape[1:]


class LockedDropout(Dropout):
    """Dropout of features: one mask a row for all time steps, another at every site (Gal & Ghahramani 2016)."""

    __slots__ = ()

    def mask_shape(self, x: Hidden) -> tuple[int, ...]:
        return 1, x.shape[2]


def init_kernel(key: Key[Array, ""], shape: tuple[int, ...]) -> dict[str, Array]:
    """A linear map's parameters: kernel [fan_in, ...]."""
    return {"kernel": fan_in_normal(key, shape)}


class Norm(nn.Module):
    """Normalisation over the model width. Parameters: scale [D], bias [D] for "layer"."""

    kind: str = "rms"

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.kind == "rms":
            return rms_norm(x, scale)
        return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, (x.shape[-1],)))


class Mlp(nn.Module):
    """Position-wise network of `ops.mlp`. Parameters: up.kernel [D, hidden], gate.kernel, down.kernel."""

    kind: str
    hidden: int

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        up = (x.shape[-1], self.hidden)
        shapes = {"up": up, "gate": up, "down": up[::-1]} if self.kind == "swiglu" else {"up": up, "down": up[::-1]}
        params = {name: self.param(name, init_kernel, shape) for name, shape in shapes.items()}
        return mlp(params, x, self.kind)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where there is one: the pre-norm residual layer.

    layer, width, options: arguments of `make_mixer`, options as sorted pairs.
    """

    layer: str
    width: int
    options: tuple[tuple[str, Any], ...] = ()
    norm: str = "rms"
    mlp: str = "none"
    mlp_ratio: float = 4.0

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
        index: Any = 0,
    ) -> tuple[Hidden, State]:
        mixer = self.layer_mixer()
        params = self.param("mixer", mixer.init)
        y, state = mixer.apply(params, Norm(self.norm, name="mixer_norm")(x), segments, state)
        x = x + (y if dropout is None else dropout(y, 2 * index + 1))
        if self.mlp != "none":
            hidden = round(self.mlp_ratio * self.width)
            y = Mlp(self.mlp, hidden, name="mlp")(Norm(self.norm, name="mlp_norm")(x))
            x = x + (y if dropout is None else dropout(y, 2 * index + 2))
        self.sow("diagnostics", "finite", jnp.all(jnp.isfinite(x)))
        return x, state

    def layer_mixer(self) -> Mixer:
        """The mixer that stands here; a method, so that `models.swap` may put another in its place."""
        return make_mixer(self.layer, self.width, **dict(self.options))
