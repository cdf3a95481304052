"""Names for mixers: what each name of the layer grammar (`mixers.grammar`) stands for.

`parse_layer` is the one reader of a layer, `parse_pattern` of the layers of a model. Options belong to names:
`make_mixer("cascade:lstm+swa", 64, **{"swa.window": 32})`. An option without a name goes to every part that has it, and
one that stands in the layer, as in `add:swa@window=16+swa@window=64`, to the part that it stands with.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from hybrid_flax.cells import delta, diagonal, gated, linear_attention, minimal
from hybrid_flax.cells.inputs import conv
from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.mixers import attention, blockwise, fusion
from hybrid_flax.mixers.grammar import RESERVED, Layer, Named, count_layers, read_layer
from hybrid_flax.mixers.recurrent import recurrent
from hybrid_flax.options import Option, check_defaults, options_of, source_of
from hybrid_flax.typing import LEAF_KINDS, Cell, Mixer

__all__ = [
    "known_fusions",
    "make_cell",
    "make_mixer",
    "mixer_options",
    "parse_layer",
    "parse_pattern",
    "register_cell",
    "register_fusion",
    "register_mixer",
    "registered_instances",
    "registered_mixers",
]


class _Primitive(NamedTuple):
    """build: (width, **options) -> Mixer. definition: the function that was registered, and what was given with it."""

    build: Callable[..., Mixer]
    build_cell: Callable[..., Cell] | None
    options: dict[str, Option]
    definition: tuple[Any, ...]

    @property
    def num_parts(self) -> int:
        return 0

    @property
    def source(self) -> str:
        return source_of(self.definition[0])


class _Fusion(NamedTuple):
    """build: (*mixers, width, **options) -> Mixer."""

    build: Callable[..., Mixer]
    num_parts: int
    options: dict[str, Option]
    instances: tuple[str, ...]
    definition: tuple[Any, ...]

    @property
    def source(self) -> str:
        return source_of(self.definition[0])


_Entry = TypeVar("_Entry", _Primitive, _Fusion)

_primitives: dict[str, _Primitive] = {}
_fusions: dict[str, _Fusion] = {}


def register_mixer(name: str, build: Callable[..., Mixer], leaves: Mapping[str, str] = {}, **defaults: Any) -> None:
    """Make `name` a primitive: build(width, **options) -> Mixer, options being its keyword-only arguments.

    leaves: kinds of parameter names that `typing.LEAF_KINDS` does not know yet. defaults: values that replace
    those of the builder under this name. A name that is registered again stands for the new function from then on, in
    mixers and models that are made anew; those that were made before stay what they are.
    Raises ValueError for a name that is taken by something else or that the grammar cannot hold.
    """
    made = functools.partial(build, **defaults)
    entry = _Primitive(made, None, options_of(build, defaults), (build, *sorted(defaults.items())))
    _register(_primitives, name, entry, leaves)


def register_cell(name: str, build: Callable[..., Cell], leaves: Mapping[str, str] = {}, **defaults: Any) -> None:
    """Make `name` the primitive `recurrent(build(width, **options), width)`: build returns a `Cell`.

    The options are those of the cell and of `recurrent`. Otherwise as `register_mixer`.
    """
    cell_options, unroll_options = options_of(build), options_of(recurrent)
    options = cell_options | unroll_options
    check_defaults(build, defaults, options)
    options |= {key: options[key]._replace(default=value) for key, value in defaults.items()}

    def build_cell(width: int, **given: Any) -> Cell:
        values = {key: option.default for key, option in options.items()} | given
        return build(width, **{key: values[key] for key in cell_options})

    def build_mixer(width: int, **given: Any) -> Mixer:
        values = {key: option.default for key, option in options.items()} | given
        return recurrent(build_cell(width, **given), width, **{key: values[key] for key in unroll_options})

    entry = _Primitive(build_mixer, build_cell, options, (build, *sorted(defaults.items())))
    _register(_primitives, name, entry, leaves)


def register_fusion(
    name: str, combine: Callable[..., Mixer], canonical: str, *others: str, leaves: Mapping[str, str] = {}
) -> None:
    """Make `name:a+b` (or `name:a`) mean combine(a, b, width, **options), options being its keyword-only arguments.

    canonical: its parts in `registered_mixers`, as many as it always has; others: parts over which it is certified as
    well. leaves: as in `register_mixer`, which says what is raised; `mixers.fusion.fuse` makes fusions.
    """
    instances = (canonical, *others)
    num_parts = count_layers(canonical, _known())
    if num_parts < 1:
        raise ValueError(f"fusion {name!r}: {canonical!r} are no parts; write layers with '+' between them")
    entry = _Fusion(combine, num_parts, options_of(combine), instances, (combine, *instances))
    _register(_fusions, name, entry, leaves)


def registered_mixers() -> list[str]:
    """Every primitive, and one canonical instance of every fusion; `make_mixer` accepts each of them."""
    return sorted(_primitives) + [f"{name}:{entry.instances[0]}" for name, entry in sorted(_fusions.items())]


def registered_instances() -> list[str]:
    """Every primitive, and every fusion over all the parts that it was registered with."""
    fusions = sorted(_fusions.items())
    return sorted(_primitives) + [f"{name}:{parts}" for name, entry in fusions for parts in entry.instances]


def make_cell(name: str, width: int, **options: Any) -> Cell | None:
    """The cell under a registered name, which may have options; None for any other layer. Raises as `make_mixer`."""
    layer = _resolved(name, options)
    _build(layer, width)
    build_cell = None if layer.parts else _primitives[layer.name].build_cell
    return None if build_cell is None else build_cell(width, **dict(layer.options))


def known_fusions() -> list[str]:
    """The names of all fusions, and of what stands before one mixer, as `bi`."""
    return sorted(_fusions)


def mixer_options() -> dict[str, dict[str, Option]]:
    """The options of every primitive and of every fusion that has any, by name."""
    known = sorted(_known().items())
    return {name: dict(entry.options) for name, entry in known if entry.options or not entry.num_parts}


def make_mixer(layer: str, width: int, **options: Any) -> Mixer:
    """The mixer that `layer` names, of model width `width`; equal arguments give the identical object.

    layer: in the grammar of `mixers.grammar`, such as `lstm`, `cascade:lstm+swa@window=32` or `gate:bi:lstm+attn`.
    options: `option=value` for every part that has the option, or `**{"name.option": value}` for those of one name; one
    that stands in the layer counts before them. Raises ValueError for an unknown name or option, naming the nearest
    ones, and for values that the builder refuses.
    """
    return _build(_resolved(layer, options), width)


def _resolved(layer: str, options: Mapping[str, Any]) -> Layer:
    """The layer with all its options, those at their default left out."""
    read = parse_layer(layer)
    for key in options:
        _check_option(read, key)
    return _with_options(read, options)


def _known() -> Mapping[str, Named]:
    return {**_primitives, **_fusions}


def _build(layer: Layer, width: int) -> Mixer:
    """The mixer of a layer that carries its options."""
    parts = tuple(_build(part, width) for part in layer.parts)
    build = (_fusions if parts else _primitives)[layer.name].build
    return _assemble(layer, width, parts, build)


@functools.cache
def _assemble(layer: Layer, width: int, parts: tuple[Mixer, ...], build: Callable[..., Mixer]) -> Mixer:
    try:
        mixer = build(*parts, width, **dict(layer.options))
    except ValueError as error:
        raise ConfigError(f"layer {str(layer)!r}: {error}") from error
    made_of = tuple(part.traits.spec for part in parts) if parts else (width,)
    return mixer._replace(traits=mixer.traits._replace(spec=(layer.name, *made_of, *layer.options)))


def parse_layer(layer: str) -> Layer:
    """A layer from its text, as `mixers.grammar` has it; raises ConfigError with the nearest known names."""
    return read_layer(layer, _known())


def parse_pattern(pattern: str, depth: int | None = None) -> tuple[str, ...]:
    """The layers of a comma-separated pattern: once, or repeated to `depth`. Raises as `parse_layer`."""
    period = tuple(str(parse_layer(layer)) for layer in pattern.split(","))
    if depth is None:
        return period
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")
    return tuple(period[index % len(period)] for index in range(depth))


def _with_options(layer: Layer, options: Mapping[str, Any]) -> Layer:
    """The layer, whose names carry those of `options` that are theirs, unless they have another one already."""
    known, chosen = _known()[layer.name].options, {}
    for key, value in options.items():
        owner, dot, option = key.rpartition(".")
        if option in known and (not dot or owner == layer.name):
            chosen[option] = tuple(value) if isinstance(value, list) else value
            known[option].check(f"{layer.name}.{option}", chosen[option])
    chosen |= dict(layer.options)
    own = sorted((key, value) for key, value in chosen.items() if value != known[key].default)
    return Layer(layer.name, tuple(_with_options(part, options) for part in layer.parts), tuple(own))


def _check_option(layer: Layer, key: str) -> None:
    owner, dot, option = key.rpartition(".")
    names = layer.names
    if dot and owner not in names:
        raise ValueError(f"option {key!r}: layer {str(layer)!r} has no part {owner!r}, only {', '.join(names)}")
    known = {option for name in ([owner] if dot else names) for option in _known()[name].options}
    if option not in known:
        raise ValueError(f"unknown option {option!r} of {owner or layer}; {nearest(option, sorted(known))}")


def _register(table: dict[str, _Entry], name: str, entry: _Entry, leaves: Mapping[str, str]) -> None:
    for leaf, kind in leaves.items():
        if kind not in ("matrix", "vector", "table"):
            raise ValueError(f"leaf {leaf!r}: kind {kind!r} is none of matrix, vector, table")
        if LEAF_KINDS.get(leaf, kind) != kind:
            raise ValueError(f"leaf {leaf!r} is already a {LEAF_KINDS[leaf]}, not a {kind}")
    if not name or set(name) & set(RESERVED):
        raise ValueError(f"{name!r} cannot be a name: it must be free of any of {RESERVED!r}")
    taken = _primitives.get(name) or _fusions.get(name)
    if taken is not None and taken.source != entry.source:
        raise ValueError(f"{name!r} is already registered for {taken.source}")
    LEAF_KINDS.update(leaves)
    if taken is None or taken.definition != entry.definition:  # the same again would compile what uses it once more
        table[name] = entry


register_cell("tanh", gated.elman)
register_cell("relu", gated.elman, activation="relu")
register_cell("lstm", gated.lstm)
register_cell("lstmp", gated.lstmp)
register_cell("gru", gated.gru)
register_cell("mgu", gated.mgu)
register_cell("slstm", gated.slstm, output_norm="layer")
register_cell("mingru", minimal.mingru)
register_cell("minlstm", minimal.minlstm)
register_cell("qrnn", minimal.qrnn)
register_cell("sru", minimal.sru)
register_cell("indrnn", minimal.indrnn)
register_cell("rglru", diagonal.rglru, output_gate="gelu")
register_cell("hgrn", diagonal.hgrn, output_gate="sigmoid", output_norm="layer")
register_cell("lru", diagonal.lru, output_gate="gelu")
register_cell("s5", diagonal.s5, output_gate="gelu")
register_cell("s6", diagonal.s6, output_gate="silu")
register_cell("linattn", linear_attention.linattn)
register_cell("retnet", linear_attention.retnet, output_norm="layer", output_gate="silu")
register_cell("gla", linear_attention.gla, output_norm="layer", output_gate="silu")
register_cell("hgrn2", linear_attention.hgrn2, output_norm="rms")
register_cell("ssd", linear_attention.ssd, output_norm="rms", output_gate="silu")
register_cell("mlstm", linear_attention.mlstm, output_norm="layer", output_gate="sigmoid")
register_cell("deltanet", delta.deltanet, output_norm="rms")
register_cell("gdn", delta.gdn, output_norm="rms", output_gate="silu")
register_cell("rwkv7", delta.rwkv7, output_norm="layer")
register_mixer("conv", conv)
register_mixer("attn", attention.attention)
register_mixer("swa", attention.attention, window=64)
register_mixer("tanhdot", attention.tanhdot)
register_mixer("sink", attention.attention, window=64, sinks=4)
register_mixer("alibi", attention.attention, position="alibi")
register_mixer("chunked", attention.attention, chunk=128)
register_mixer("sha", attention.sha)
register_mixer("blockrec", blockwise.blockrec)
register_mixer("xl", attention.attention, block=64, chunk=64, position="relative")
register_fusion("cascade", fusion.cascade, "lstm+attn", "mingru+swa")
register_fusion("add", fusion.add, "lstm+attn", "gru+swa")
register_fusion("gate", fusion.gate, "rglru+swa", "lstm+attn")
register_fusion("concat", fusion.concat, "gru+attn", "minlstm+swa")
register_fusion("context", fusion.context, "lstm+tanhdot", "rglru+attn")
register_fusion("bi", fusion.bi, "lstm", "attn")
register_fusion("parallel", fusion.parallel, "lstm+attn", "rglru+swa")
register_fusion("feed", fusion.feed, "attn+lstm", "swa+mingru")
register_fusion("sharnn", fusion.sharnn, "lstm", "gru")
