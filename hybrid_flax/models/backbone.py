"""The stack of layers: a pattern repeated to the depth, its repeats scanned."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from hybrid_flax.mixers.registry import make_mixer
from hybrid_flax.models.layers import Block, Dropout, Norm
from hybrid_flax.typing import Hidden, Segments, State

__all__ = ["Backbone", "Period"]

_MIN_REPEATS = 4  # fewer compile soon enough side by side, and run some 15 % faster so on a CPU


class Period(nn.Module):
    """The layers of one pattern, in order; what `nn.scan` repeats. index: the number of the first layer."""

    layers: tuple[str, ...]
    block: Mapping[str, Any]
    options: tuple[tuple[tuple[str, Any], ...], ...]

    @nn.compact
    def __call__(self, x, index, state, segments, dropout):
        after = []
        for place, layer in enumerate(self.layers):
            block = Block(layer=layer, options=self.options[place], **self.block, name=f"layer_{place}")
            x, layer_state = block(x, segments, None if state is None else state[place], dropout, index + place)
            after.append(layer_state)
        return x, (None if state is None else tuple(after))


class Backbone(nn.Module):
    """Residual layers over embedded tokens, then a final norm.

    layers: the layer of every depth; period: after how many they repeat. Four whole repeats or more are one `nn.scan`,
    so that compile time does not grow with the depth; what is left over follows unscanned.
    State: {"repeats": per layer of the period [B, R, ...], "rest": per layer [B, ...]}.
    """

    layers: tuple[str, ...]
    period: int
    width: int
    options: tuple[tuple[str, Any], ...] = ()
    norm: str = "rms"
    mlp: str = "none"
    mlp_ratio: float = 4.0
    scan_layers: bool = True
    remat: bool = False

    @nn.nowrap
    def sections(self) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
        """(repeats, layers of one repeat, layers left over)."""
        repeats = len(self.layers) // self.period
        if not self.scan_layers or repeats < _MIN_REPEATS:
            return 0, (), self.layers
        return repeats, self.layers[: self.period], self.layers[repeats * self.period :]

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int) -> State:
        """The state before the first token, for `batch_size` rows that cache up to `capacity` live tokens."""
        repeats, repeated, rest = self.sections()

        def fresh(layer):
            mixer = make_mixer(layer, self.width, **dict(self._layer_options(layer)))
            return mixer.init_state(batch_size, capacity)

        def stack(leaf):
            return jnp.repeat(leaf[:, None], repeats, axis=1)

        return {
            "repeats": tuple(jax.tree.map(stack, fresh(layer)) for layer in repeated),
            "rest": tuple(fresh(layer) for layer in rest),
        }

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
    ) -> tuple[Hidden, State]:
        repeats, repeated, rest = self.sections()
        period = nn.remat(Period) if self.remat else Period
        after = {"repeats": (), "rest": ()}
        if repeats:
            scanned = nn.scan(
                period,
                variable_axes={"params": 0, "diagnostics": 0},
                split_rngs={"params": True},
                in_axes=(0, 1, nn.broadcast, nn.broadcast),
                out_axes=1,
                length=repeats,
            )(**self._period_fields(repeated), name="repeats")
            index = jnp.arange(repeats) * len(repeated)
            x, after["repeats"] = scanned(x, index, None if state is None else state["repeats"], segments, dropout)
        if rest:
            left_over = period(**self._period_fields(rest), name="rest")
            x, after["rest"] = left_over(
                x, repeats * len(repeated), None if state is None else state["rest"], segments, dropout
            )
        x = Norm(self.norm, name="norm")(x)
        return x, None if state is None else after

    @nn.nowrap
    def _period_fields(self, layers):
        fields = ("width", "norm", "mlp", "mlp_ratio")
        return {
            "layers": layers,
            "block": FrozenDict({name: getattr(self, name) for name in fields}),
            "options": tuple(self._layer_options(layer) for layer in layers),
        }

    @nn.nowrap
    def _layer_options(self, layer):
        names = layer.rpartition(":")[2].split("+")
        return tuple((key, value) for key, value in self.options if key.partition(".")[0] in names)
