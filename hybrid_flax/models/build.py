"""A model from its arguments: names and numbers in, a Flax module out."""

import functools
from typing import Any

import jax

from hybrid_flax.errors import nearest
from hybrid_flax.knobs import KNOBS
from hybrid_flax.mixers.registry import make_mixer, parse_layer, parse_pattern
from hybrid_flax.models.embedding import SPELLINGS, Spelling
from hybrid_flax.models.model import NORMS, Design, SequenceModel, layer_mixer
from hybrid_flax.ops.mlp import MLPS
from hybrid_flax.ops.pool import POOLINGS
from hybrid_flax.typing import Mixer, Params, Segments

__all__ = [
    "CARRIED_CAPACITY",
    "FIELDS",
    "abstract_params",
    "init_params",
    "is_bounded",
    "make_model",
    "model_is_bounded",
    "model_is_causal",
]

CARRIED_CAPACITY = 2**30  # for states that are carried without end: those of bounded mixers do not depend on it

_START = ("model.init_scale", "model.vectors", "model.freeze")  # how a model is trained, and not what it is made of
# The knobs model.* that `make_model` takes, by name, and their defaults.
FIELDS = {
    key.removeprefix("model."): knob.default
    for key, knob in KNOBS.items()
    if key.startswith("model.") and key not in _START
}


def make_model(
    *,
    vocab_size: int,
    options: tuple[tuple[str, Any], ...] = (),
    num_outputs: int | None = None,
    pooling: str = "none",
    crf: bool = False,
    num_characters: int = 0,
    word_length: int = KNOBS["data.word_length"].default,
    **fields: Any,
) -> SequenceModel:
    """The model; equal arguments give the identical object.

    options: sorted ("name.option", value) pairs for the mixers of the pattern; those of other names are ignored.
    num_outputs, pooling, crf: as `Design` has them. num_characters, word_length: alphabet and length of its `Spelling`,
    read where characters is not "none". fields: knobs model.* by their names in FIELDS, whose defaults they have.
    Raises ValueError for unknown names and for sizes that do not fit, before anything is computed.
    """
    for field in fields:
        if field not in FIELDS:
            raise ValueError(f"a model has no {field!r}; {nearest(field, FIELDS)}")
    given = FIELDS | fields
    period, layers = parse_pattern(given["pattern"]), parse_pattern(given["pattern"], given["depth"])
    design = Design(
        vocab_size=vocab_size,
        layers=layers,
        mixers=tuple(_layer_mixer(layer, given["width"], options) for layer in layers[: len(period)]),
        num_outputs=num_outputs,
        pooling=pooling,
        crf=crf,
        spelling=_spelling(given["characters"], num_characters, word_length, given["character_width"]),
        **{name: value for name, value in given.items() if name in Design._fields},
    )
    _check(design)
    return _make_model(design)


def init_params(model: SequenceModel, key: jax.Array) -> Params:
    """Parameters of the model; output maps into the residual stream start smaller by sqrt(number of them).

    (Radford et al. 2019, section 2.3.) Mixers know nothing of the depth they stand at, so this is done here.
    """
    tokens = jax.numpy.zeros(model.token_shape(1, 2), jax.numpy.int32)
    params = model.init(key, tokens, Segments.single(1, 2))["params"]
    branches = len(model.design.layers) * (1 if model.design.mlp == "none" else 2)

    def scale(path, leaf):
        names = [entry.key for entry in path]
        into_stream = names[0] == "backbone" and names[-2:] in (["output", "kernel"], ["down", "kernel"])
        return leaf * branches**-0.5 if into_stream else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def abstract_params(model: SequenceModel) -> Params:
    """The shapes and dtypes of `init_params`; nothing is drawn."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def is_bounded(mixer: Mixer) -> bool:
    """Whether the state stays of one size however long the sequence; derived from the state itself."""
    sizes = [jax.eval_shape(lambda c=capacity: mixer.init_state(1, c)) for capacity in (2**20, 2**21)]
    return jax.tree.map(lambda leaf: leaf.shape, sizes[0]) == jax.tree.map(lambda leaf: leaf.shape, sizes[1])


def model_is_causal(model: SequenceModel) -> bool:
    """Whether every layer is."""
    return all(layer_mixer(model.design, layer).traits.causal for layer in model.design.layers)


def model_is_bounded(model: SequenceModel) -> bool:
    """Whether the state of every layer is."""
    return all(is_bounded(layer_mixer(model.design, layer)) for layer in model.design.layers)


@functools.cache
def _make_model(design: Design) -> SequenceModel:
    return SequenceModel(design)


def _layer_mixer(layer: str, width: int, options) -> Mixer:
    names = parse_layer(layer).names
    return make_mixer(layer, width, **{key: value for key, value in options if key.partition(".")[0] in names})


def _spelling(kind, alphabet, length, width) -> Spelling | None:
    _check_name("model.characters", kind, SPELLINGS)
    if kind == "rnn" and width % 2:
        raise ValueError(f"model.character_width={width} must be even: half of it is of either direction")
    return None if kind == "none" else Spelling(kind, alphabet, length, width)


def _check(design: Design) -> None:
    _check_name("model.norm", design.norm, NORMS)
    _check_name("model.mlp", design.mlp, MLPS)
    _check_name("model.dtype", design.dtype, ("float32", "bfloat16"))
    _check_name("task.pooling", design.pooling, ("none", *POOLINGS))
    if design.tied and design.num_outputs is not None:
        raise ValueError("model.tied=true needs outputs that are the vocabulary: set model.tied=false")
    if design.tied and design.embedding_width not in (0, design.width):
        raise ValueError(
            "model.tied=true needs embeddings as wide as the model: set model.embedding_width=0, "
            f"not {design.embedding_width}"
        )


def _check_name(key, value, known):
    if value not in known:
        raise ValueError(f"{key}={value!r} is none of {', '.join(known)}")
