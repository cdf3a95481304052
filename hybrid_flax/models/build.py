"""A model from its arguments: names and numbers in, a Flax module out."""

import functools
from typing import Any

import jax

from hybrid_flax.mixers.registry import make_mixer, parse_pattern
from hybrid_flax.models.embedding import SPELLINGS, Spelling
from hybrid_flax.models.heads import SequenceModel
from hybrid_flax.models.layers import NORMS, Block
from hybrid_flax.ops.mlp import MLPS
from hybrid_flax.ops.pool import POOLINGS
from hybrid_flax.typing import Mixer, Params, Segments

__all__ = [
    "CARRIED_CAPACITY",
    "init_params",
    "is_bounded",
    "layer_block",
    "layer_mixer",
    "make_model",
    "model_is_bounded",
    "model_is_causal",
]

CARRIED_CAPACITY = 2**30  # for states that are carried without end: those of bounded mixers do not depend on it


@functools.cache
def make_model(
    *,
    vocab_size: int,
    width: int,
    depth: int,
    pattern: str,
    options: tuple[tuple[str, Any], ...] = (),
    norm: str = "rms",
    mlp: str = "none",
    mlp_ratio: float = 4.0,
    tied: bool = True,
    scan_layers: bool = True,
    remat: bool = False,
    dtype: str = "float32",
    num_outputs: int | None = None,
    pooling: str = "none",
    crf: bool = False,
    embedding_width: int = 0,
    characters: str = "none",
    character_width: int = 32,
    word_length: int = 16,
    num_characters: int = 0,
) -> SequenceModel:
    """The model; equal arguments give the identical object.

    options: sorted ("name.option", value) pairs for the mixers of the pattern; those of other names are ignored.
    num_outputs, pooling, crf, embedding_width: as `SequenceModel` has them. characters: kind of `Spelling`, or "none";
    character_width, word_length, num_characters: its width, length and alphabet.
    Raises ValueError for unknown names and for sizes that do not fit, before anything is computed.
    """
    layers = parse_pattern(pattern, depth)
    known_values = (
        ("model.norm", norm, NORMS),
        ("model.mlp", mlp, MLPS),
        ("task.pooling", pooling, ("none", *POOLINGS)),
        ("model.characters", characters, SPELLINGS),
    )
    for field, value, known in known_values:
        if value not in known:
            raise ValueError(f"{field}={value!r} is none of {', '.join(known)}")
    if tied and num_outputs is not None:
        raise ValueError("model.tied=true needs outputs that are the vocabulary: set model.tied=false")
    if tied and embedding_width not in (0, width):
        raise ValueError(
            f"model.tied=true needs embeddings as wide as the model: set model.embedding_width=0, not {embedding_width}"
        )
    spelling = None
    if characters != "none":
        if characters == "rnn" and character_width % 2:
            raise ValueError(f"model.character_width={character_width} must be even: half of it is of either direction")
        spelling = Spelling(characters, num_characters, word_length, character_width)
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype={dtype!r} is none of float32, bfloat16")
    used = {name for layer in layers for name in layer.rpartition(":")[2].split("+")}
    options = tuple((key, value) for key, value in options if key.partition(".")[0] in used)
    model = SequenceModel(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        period=min(len(pattern.split(",")), depth),
        options=options,
        norm=norm,
        mlp=mlp,
        mlp_ratio=mlp_ratio,
        tied=tied,
        scan_layers=scan_layers,
        remat=remat,
        dtype=dtype,
        num_outputs=num_outputs,
        pooling=pooling,
        crf=crf,
        embedding_width=embedding_width,
        spelling=spelling,
    )
    for layer in layers:
        layer_mixer(model, layer)
    return model


def init_params(model: SequenceModel, key: jax.Array) -> Params:
    """Parameters of the model; output maps into the residual stream start smaller by sqrt(number of them).

    (Radford et al. 2019, section 2.3.) Mixers know nothing of the depth they stand at, so this is done here.
    """
    tokens = jax.numpy.zeros(model.token_shape(1, 2), jax.numpy.int32)
    params = model.init(key, tokens, Segments.single(1, 2))["params"]
    branches = len(model.layers) * (1 if model.mlp == "none" else 2)

    def scale(path, leaf):
        names = [entry.key for entry in path]
        into_stream = names[0] == "backbone" and names[-2:] in (["output", "kernel"], ["down", "kernel"])
        return leaf * branches**-0.5 if into_stream else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def layer_mixer(model: SequenceModel, layer: str) -> Mixer:
    """The mixer that stands in `model` for `layer`."""
    return make_mixer(layer, model.width, **_layer_options(model, layer))


def layer_block(model: SequenceModel, layer: str) -> Block:
    """The residual layer that stands in `model` for `layer`."""
    fields = ("width", "norm", "mlp", "mlp_ratio")
    options = tuple(sorted(_layer_options(model, layer).items()))
    return Block(layer=layer, options=options, **{name: getattr(model, name) for name in fields})


def is_bounded(mixer: Mixer) -> bool:
    """Whether the state stays of one size however long the sequence; derived from the state itself."""
    sizes = [jax.eval_shape(lambda c=capacity: mixer.init_state(1, c)) for capacity in (2**20, 2**21)]
    return jax.tree.map(lambda leaf: leaf.shape, sizes[0]) == jax.tree.map(lambda leaf: leaf.shape, sizes[1])


def model_is_causal(model: SequenceModel) -> bool:
    """Whether every layer is."""
    return all(layer_mixer(model, layer).traits.causal for layer in model.layers)


def model_is_bounded(model: SequenceModel) -> bool:
    """Whether the state of every layer is."""
    return all(is_bounded(layer_mixer(model, layer)) for layer in model.layers)


def _layer_options(model, layer):
    names = layer.rpartition(":")[2].split("+")
    return {key: value for key, value in model.options if key.partition(".")[0] in names}
