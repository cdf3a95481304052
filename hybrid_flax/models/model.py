"""The model: token ids to outputs, through residual layers that each hold a mixer.

Here stand parameters and their names; what is computed with them stands in `mixers` and `ops`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hybrid_flax.models.embedding import Spelling, embed, init_embedding
from hybrid_flax.ops.broadcast import align
from hybrid_flax.ops.crf import Transitions
from hybrid_flax.ops.initializers import fan_in_normal
from hybrid_flax.ops.linear import contract
from hybrid_flax.ops.mlp import mlp
from hybrid_flax.ops.norm import layer_norm, rms_norm
from hybrid_flax.ops.pool import pool
from hybrid_flax.typing import Array, Float, Hidden, Int, Key, Mixer, Scalar, Segments, State

__all__ = ["NORMS", "Block", "Design", "Dropout", "LockedDropout", "Norm", "SequenceModel", "layer_mixer"]

NORMS = ("rms", "layer")

_MIN_REPEATS = 4  # fewer compile soon enough side by side, and run some 15 % faster so on a CPU


class Design(NamedTuple):
    """What a model is made of; `models.build.make_model` makes one from names and numbers.

    layers: the layer of every depth. mixers: those of the first layers, after which they repeat; a model is another one
    where a name was registered anew. tied: the output layer uses the embedding as its weights. num_outputs: None for
    one a symbol of the vocabulary. pooling: "none" for outputs [B, T, num_outputs], else one of POOLINGS for
    [B, num_outputs]. crf: outputs are (emissions, `Transitions`). embedding_width: of a token, 0 for the model's.
    spelling: how the characters of a word are read, for tokens [B, T, 1 + W]. dtype: the compute dtype, "float32" or
    "bfloat16"; parameters, states and outputs stay float32. The other fields are knobs, described in `knobs`.
    """

    vocab_size: int
    width: int
    layers: tuple[str, ...]
    mixers: tuple[Mixer, ...]
    norm: str
    mlp: str
    mlp_ratio: float
    tied: bool
    num_outputs: int | None
    pooling: str
    crf: bool
    embedding_width: int
    spelling: Spelling | None
    scan_layers: bool
    remat: bool
    dtype: str

    def sections(self) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
        """(repeats that are scanned, layers of one repeat, layers left over)."""
        period = len(self.mixers)
        repeats = len(self.layers) // period
        if not self.scan_layers or repeats < _MIN_REPEATS:
            return 0, (), self.layers
        return repeats, self.layers[:period], self.layers[repeats * period :]


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


class SequenceModel(nn.Module):
    """Embedding, residual layers, and a head that is tied to the embedding or has weights of its own.

    Parameters: embed (`init_embedding`), backbone, head.kernel [D, outputs] (untied), head.bias [outputs],
    pool.kernel [D, 1] (pooling "attention"), crf.start, crf.between, crf.end.
    """

    design: Design

    def setup(self):
        design = self.design
        self.backbone = Backbone(design)
        sizes = (design.vocab_size, design.width, design.embedding_width, design.spelling)
        self.embed = self.param("embed", init_embedding, *sizes)
        outputs = design.num_outputs or design.vocab_size
        self.head = self.param("head", _init_head, design.width, outputs, design.tied)
        if design.pooling == "attention":
            self.pool = self.param("pool", _init_kernel, (design.width, 1))
        if design.crf:
            self.transitions = self.param("crf", _init_transitions, outputs)

    def __call__(
        self,
        tokens: Int[Array, "B T *W"],
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
        type_factors: Float[Array, "V"] | None = None,
    ) -> tuple[Any, State]:
        """(outputs as `Design` has them, state after the last token; None where none was given).

        type_factors: what the embedding of every word type is multiplied by where it is read; tied outputs are not.
        """
        design = self.design
        x = embed(self.embed, tokens, design.spelling, design.dtype, type_factors)
        x = x if dropout is None else dropout(x, 0)
        x, state = self.backbone(x, segments, state, dropout)
        if design.pooling != "none":
            scores = contract(x, self.pool["kernel"], x.dtype)[..., 0] if design.pooling == "attention" else None
            x = pool(x, segments.ids > 0, design.pooling, scores)
        kernel = self.embed["embedding"].T if design.tied else self.head["kernel"]
        logits = contract(x, kernel, x.dtype)
        logits = logits + align(self.head["bias"], logits)
        if design.crf:
            return (logits, Transitions(*(self.transitions[name]["bias"] for name in Transitions._fields))), state
        return logits, state

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int) -> State:
        """The state before the first token, for `batch_size` rows that cache up to `capacity` live tokens.

        {"repeats": per layer of the period [B, R, ...], "rest": per layer [B, ...]}. It needs no parameters.
        """
        repeats, repeated, rest = self.design.sections()

        def fresh(layer):
            return layer_mixer(self.design, layer).init_state(batch_size, capacity)

        def stack(leaf):
            return jnp.repeat(leaf[:, None], repeats, axis=1)

        return {
            "repeats": tuple(jax.tree.map(stack, fresh(layer)) for layer in repeated),
            "rest": tuple(fresh(layer) for layer in rest),
        }

    @nn.nowrap
    def token_shape(self, batch_size: int, length: int) -> tuple[int, ...]:
        """The shape of its tokens: [B, T], or [B, T, 1 + W] where words are spelt."""
        spelling = self.design.spelling
        return (batch_size, length) + (() if spelling is None else (1 + spelling.length,))


class Backbone(nn.Module):
    """The layers, then a final norm.

    Four whole repeats of the period or more are one `nn.scan`, so that compile time does not grow with the depth; what
    is left over follows unscanned.
    """

    design: Design

    @nn.compact
    def __call__(self, x: Hidden, segments: Segments, state: State, dropout: Dropout | None) -> tuple[Hidden, State]:
        repeats, repeated, rest = self.design.sections()
        before = {"repeats": None, "rest": None} if state is None else state
        after = {"repeats": (), "rest": ()}
        period = nn.remat(Period) if self.design.remat else Period
        if repeats:
            scanned = nn.scan(
                period,
                variable_axes={"params": 0, "diagnostics": 0},
                split_rngs={"params": True},
                in_axes=(0, 1, nn.broadcast, nn.broadcast),
                out_axes=1,
                length=repeats,
            )(self.design, repeated, name="repeats")
            index = jnp.arange(repeats) * len(repeated)
            x, after["repeats"] = scanned(x, index, before["repeats"], segments, dropout)
        if rest:
            left_over = period(self.design, rest, name="rest")
            x, after["rest"] = left_over(x, repeats * len(repeated), before["rest"], segments, dropout)
        x = Norm(self.design.norm, name="norm")(x)
        return x, None if state is None else after


class Period(nn.Module):
    """The layers of one pattern, in order; what `nn.scan` repeats. index: the number of the first layer."""

    design: Design
    layers: tuple[str, ...]

    @nn.compact
    def __call__(self, x, index, state, segments, dropout):
        after = []
        for place, layer in enumerate(self.layers):
            block = Block(self.design, layer, name=f"layer_{place}")
            x, layer_state = block(x, segments, None if state is None else state[place], dropout, index + place)
            after.append(layer_state)
        return x, (None if state is None else tuple(after))


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) where there is one: the pre-norm residual layer."""

    design: Design
    layer: str

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        segments: Segments,
        state: State = None,
        dropout: Dropout | None = None,
        index: Any = 0,
    ) -> tuple[Hidden, State]:
        design, mixer = self.design, self.layer_mixer()
        params = self.param("mixer", mixer.init)
        y, state = mixer.apply(params, Norm(design.norm, name="mixer_norm")(x), segments, state)
        x = x + (y if dropout is None else dropout(y, 2 * index + 1))
        if design.mlp != "none":
            hidden = round(design.mlp_ratio * design.width)
            y = Mlp(design.mlp, hidden, name="mlp")(Norm(design.norm, name="mlp_norm")(x))
            x = x + (y if dropout is None else dropout(y, 2 * index + 2))
        self.sow("diagnostics", "finite", jnp.all(jnp.isfinite(x)))
        return x, state

    def layer_mixer(self) -> Mixer:
        """The mixer that stands here; a method, so that `models.swap` may put another in its place."""
        return layer_mixer(self.design, self.layer)


class Mlp(nn.Module):
    """Position-wise network of `ops.mlp`. Parameters: up.kernel [D, hidden], gate.kernel, down.kernel."""

    kind: str
    hidden: int

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        up = (x.shape[-1], self.hidden)
        shapes = {"up": up, "gate": up, "down": up[::-1]} if self.kind == "swiglu" else {"up": up, "down": up[::-1]}
        params = {name: self.param(name, _init_kernel, shape) for name, shape in shapes.items()}
        return mlp(params, x, self.kind)


class Norm(nn.Module):
    """Normalisation over the model width, kind one of NORMS. Parameters: scale [D], bias [D] for "layer"."""

    kind: str

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.kind == "rms":
            return rms_norm(x, scale)
        return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, (x.shape[-1],)))


def layer_mixer(design: Design, layer: str) -> Mixer:
    """The mixer that stands in a model of this design for `layer`."""
    return dict(zip(design.layers, design.mixers))[layer]


def _init_kernel(key, shape):
    """A linear map's parameters: kernel [fan_in, ...]."""
    return {"kernel": fan_in_normal(key, shape)}


def _init_head(key, width, num_outputs, tied):
    bias = {"bias": jnp.zeros(num_outputs)}
    return bias if tied else _init_kernel(key, (width, num_outputs)) | bias


def _init_transitions(key, num_tags):
    del key
    shapes = {"start": (num_tags,), "between": (num_tags, num_tags), "end": (num_tags,)}
    return {name: {"bias": jnp.zeros(shape)} for name, shape in shapes.items()}
