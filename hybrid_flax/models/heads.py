"""What stands before and after the backbone, and the whole model."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hybrid_flax.models.backbone import Backbone
from hybrid_flax.models.layers import Dropout, init_kernel
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract
from hybrid_flax.typing import Array, Float, Int, Segments, State

__all__ = ["LanguageModel"]


class LanguageModel(nn.Module):
    """Token ids to logits: embedding, backbone, and a head that is tied to the embedding or its own.

    dtype: the compute dtype, "float32" or "bfloat16"; parameters, states and logits stay float32.
    Parameters: embed.embedding [V, D], backbone, head.kernel [D, V] (untied), head.bias [V].
    """

    vocab_size: int
    width: int
    layers: tuple[str, ...]
    period: int
    options: tuple[tuple[str, Any], ...] = ()
    norm: str = "rms"
    mlp: str = "none"
    mlp_ratio: float = 4.0
    tied: bool = True
    scan_layers: bool = True
    remat: bool = False
    dtype: str = "float32"

    def setup(self):
        self.backbone = Backbone(**self._backbone_fields())
        self.embed = self.param("embed", _init_embedding, self.vocab_size, self.width)
        self.head = self.param("head", _init_head, self.width, self.vocab_size, self.tied)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "B T V"], State]:
        x = self.embed["embedding"][tokens].astype(self.dtype)
        x = x if dropout is None else dropout(x, 0)
        x, state = self.backbone(x, segments, state, dropout)
        kernel = self.embed["embedding"].T if self.tied else self.head["kernel"]
        return contract(x, kernel, x.dtype) + self.head["bias"], state

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int) -> State:
        """The state before the first token; needs no parameters. See `Backbone.init_state`."""
        return Backbone(**self._backbone_fields(), parent=None).init_state(batch_size, capacity)

    @nn.nowrap
    def _backbone_fields(self):
        names = ("layers", "period", "width", "options", "norm", "mlp", "mlp_ratio", "scan_layers", "remat")
        return {name: getattr(self, name) for name in names}


def _init_embedding(key, vocab_size, width):
    return {"embedding": fan_in_normal(key, (vocab_size, width), width)}


def _init_head(key, width, vocab_size, tied):
    bias = {"bias": jnp.zeros(vocab_size)}
    return bias if tied else init_kernel(key, (width, vocab_size)) | bias
