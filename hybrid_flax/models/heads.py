"""What stands before and after the backbone, and the whole model."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hybrid_flax.models.backbone import Backbone
from hybrid_flax.models.embedding import Spelling, embed, init_embedding
from hybrid_flax.models.layers import Dropout, init_kernel
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.crf import Transitions
from hybrid_flax.ops.linear import contract
from hybrid_flax.ops.pool import pool
from hybrid_flax.typing import Array, Float, Int, Segments, State

__all__ = ["SequenceModel"]


class SequenceModel(nn.Module):
    """Token ids to outputs: embedding, backbone, and a head that is tied to the embedding or its own.

    num_outputs: None for one a symbol of the vocabulary. pooling: "none" for outputs [B, T, num_outputs], else one of
    POOLINGS for [B, num_outputs]. crf: outputs are (emissions, `Transitions`). dtype: the compute dtype, "float32" or
    "bfloat16"; parameters, states and outputs stay float32. embedding_width: of a token, 0 for the model's; spelling:
    how words are spelt, for tokens [B, T, 1 + W].
    type_factors: what the embedding of every word type is multiplied by where it is read; tied outputs are not.
    Parameters: embed (`init_embedding`), backbone, head.kernel [D, outputs] (untied), head.bias [outputs],
    pool.kernel [D, 1] (pooling "attention"), crf.start, crf.between, crf.end.
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
    num_outputs: int | None = None
    pooling: str = "none"
    crf: bool = False
    embedding_width: int = 0
    spelling: Spelling | None = None
    scan_layers: bool = True
    remat: bool = False
    dtype: str = "float32"

    def setup(self):
        self.backbone = Backbone(**self._backbone_fields())
        sizes = (self.vocab_size, self.width, self.embedding_width, self.spelling)
        self.embed = self.param("embed", init_embedding, *sizes)
        outputs = self.num_outputs or self.vocab_size
        self.head = self.param("head", _init_head, self.width, outputs, self.tied)
        if self.pooling == "attention":
            self.pool = self.param("pool", init_kernel, (self.width, 1))
        if self.crf:
            self.transitions = self.param("crf", _init_transitions, outputs)

    def __call__(
        self,
        tokens: Int[Array, "B T *W"],
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
        type_factors: Float[Array, "V"] | None = None,
    ) -> tuple[Any, State]:
        x = embed(self.embed, tokens, self.spelling, self.dtype, type_factors)
        x = x if dropout is None else dropout(x, 0)
        x, state = self.backbone(x, segments, state, dropout)
        if self.pooling != "none":
            scores = contract(x, self.pool["kernel"], x.dtype)[..., 0] if self.pooling == "attention" else None
            x = pool(x, segments.ids > 0, self.pooling, scores)
        kernel = self.embed["embedding"].T if self.tied else self.head["kernel"]
        logits = contract(x, kernel, x.dtype)
        logits = logits + align(self.head["bias"], logits)
        if self.crf:
            return (logits, Transitions(*(self.transitions[name]["bias"] for name in Transitions._fields))), state
        return logits, state

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int) -> State:
        """The state before the first token; needs no parameters. See `Backbone.init_state`."""
        return Backbone(**self._backbone_fields(), parent=None).init_state(batch_size, capacity)

    @nn.nowrap
    def token_shape(self, batch_size: int, length: int) -> tuple[int, ...]:
        """The shape of its tokens: [B, T], or [B, T, 1 + W] where words are spelt."""
        return (batch_size, length) + (() if self.spelling is None else (1 + self.spelling.length,))

    @nn.nowrap
    def _backbone_fields(self):
        names = ("layers", "period", "width", "options", "norm", "mlp", "mlp_ratio", "scan_layers", "remat")
        return {name: getattr(self, name) for name in names}


def _init_head(key, width, num_outputs, tied):
    bias = {"bias": jnp.zeros(num_outputs)}
    return bias if tied else init_kernel(key, (width, num_outputs)) | bias


def _init_transitions(key, num_tags):
    del key
    shapes = {"start": (num_tags,), "between": (num_tags, num_tags), "end": (num_tags,)}
    return {name: {"bias": jnp.zeros(shape)} for name, shape in shapes.items()}
