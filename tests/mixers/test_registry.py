"""What names stand for: mixers by their layers, the options of names, and mixers that a user brings."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax import (
    Cell,
    Mixer,
    Traits,
    fuse,
    make_mixer,
    parse_pattern,
    register_cell,
    register_fusion,
    register_mixer,
    registered_mixers,
)
from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import linear
from hybrid_flax.certify.mixer_properties import any_split, causality, initial_parameters, packing
from hybrid_flax.certify.subjects import make_subject
from hybrid_flax.config import base_config, validate
from hybrid_flax.mixers import registry
from hybrid_flax.mixers.registry import make_cell, mixer_options, parse_layer
from hybrid_flax.ranges import Range
from hybrid_flax.typing import LEAF_KINDS, Segments

WIDTH = 16


@pytest.fixture
def scratch(monkeypatch):
    """A registry whose additions are gone after the test."""
    for table in ("_primitives", "_fusions"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    known = dict(LEAF_KINDS)
    yield
    LEAF_KINDS.clear()
    LEAF_KINDS.update(known)


def decaying(width: int, *, memory: float = 0.5, state_width: int | None = None) -> Cell:
    """h_t = memory h_tm1 + W x_t: a user's cell in a few lines."""
    state_width = state_width or width
    return make_affine_cell(
        linear(width, (state_width,)), lambda params, u: (jnp.full_like(u, memory), u), (state_width,)
    )


def scaled(width: int, *, factor: float = 2.0) -> Mixer:
    """A user's mixer: y = factor gain x."""

    def apply(params, x, segments, state=None):
        return jnp.where((segments.ids > 0)[..., None], factor * params["gain"][None, None] * x, 0), state

    return Mixer(lambda key: {"gain": jnp.ones(width)}, lambda batch, capacity: (), apply, Traits())


def message_of(attempt):
    """The message of the ValueError that `attempt` raises, which is one line."""
    with pytest.raises(ValueError) as caught:
        attempt()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_every_registered_name_makes_a_mixer():
    names = registered_mixers()
    assert len(names) == len(set(names))
    assert {"tanh", "relu", "lstm", "lstmp", "gru", "attn", "swa", "tanhdot", "context:lstm+tanhdot"} <= set(names)
    for name in names:
        mixer = make_mixer(name, WIDTH)
        assert isinstance(mixer, Mixer) and mixer is make_mixer(name, WIDTH)
        assert str(parse_layer(name)) == name


def test_patterns_repeat_to_the_depth():
    assert parse_pattern("rglru, rglru,swa", 5) == ("rglru", "rglru", "swa", "rglru", "rglru")
    assert parse_pattern("rglru, rglru,swa") == ("rglru", "rglru", "swa")
    assert parse_pattern("cascade:lstm+attn", 1) == ("cascade:lstm+attn",)
    assert "0" in message_of(lambda: parse_pattern("lstm", 0))
    message_of(lambda: parse_pattern("lstm,", 2))
    assert "lstm" in message_of(lambda: parse_pattern("gru,lsmt", 2))


@pytest.mark.parametrize(
    "attempt,nearest",
    [
        (lambda: make_mixer("lsmt", WIDTH), "lstm"),
        (lambda: make_mixer("cascade:lstm+atn", WIDTH), "attn"),
        (lambda: make_mixer("cascad:lstm+attn", WIDTH), "cascade"),
        (lambda: make_mixer("swa", WIDTH, windw=3), "window"),
        (lambda: make_mixer("cascade:lstm+swa", WIDTH, **{"swa.windw": 3}), "window"),
        (lambda: make_mixer("cascade:lstm+swa", WIDTH, **{"attn.window": 3}), "swa"),
        (lambda: make_mixer("lstm", WIDTH, **{"lstm.forget": 3.0}), "forget_bias"),
        (lambda: make_mixer("zzzz", WIDTH), "lstm"),
        (lambda: make_mixer("lstm", WIDTH, form="parallel"), "deferred"),
        (lambda: make_mixer("lstm", WIDTH, output_gate="mish"), "gelu"),
        (lambda: make_mixer("attn", WIDTH, num_heads=3), "layer 'attn@num_heads=3': num_heads=3"),
        (lambda: make_mixer("add:attn+bi:attn@num_heads=3", WIDTH), "layer 'attn@num_heads=3': num_heads=3"),
    ],
)
def test_errors_name_what_would_be_valid(attempt, nearest):
    assert nearest in message_of(attempt)


def test_options_bare_and_dotted():
    swa = make_mixer("swa", WIDTH, window=7)
    assert swa is make_mixer("swa", WIDTH, **{"swa.window": 7})
    assert swa is not make_mixer("swa", WIDTH)
    assert jax.eval_shape(lambda: swa.init_state(1, 100))["ids"].shape == (1, 7)
    both = make_mixer("add:lstm+gru", WIDTH, state_width=24)
    shapes = jax.eval_shape(lambda: both.init_state(1, 1))
    assert shapes["a"]["cell"]["h"].shape == shapes["b"]["cell"]["h"].shape == (1, 24)
    one = make_mixer("add:lstm+gru", WIDTH, **{"gru.state_width": 24})
    shapes = jax.eval_shape(lambda: one.init_state(1, 1))
    assert shapes["a"]["cell"]["h"].shape == (1, WIDTH) and shapes["b"]["cell"]["h"].shape == (1, 24)


def test_a_bare_option_goes_to_the_parts_that_have_it():
    mixer = make_mixer("cascade:lstm+swa", WIDTH, window=7)
    assert mixer is make_mixer("cascade:lstm+swa", WIDTH, **{"swa.window": 7})


def test_equal_arguments_give_the_identical_object():
    layer = "cascade:lstm+swa"
    mixer = make_mixer(layer, WIDTH, window=7, state_width=8)
    assert mixer is make_mixer(layer, WIDTH, state_width=8, window=7)
    assert mixer is make_mixer(f" {layer} ", WIDTH, **{"swa.window": 7, "lstm.state_width": 8})
    assert make_mixer(layer, WIDTH) is make_mixer(layer, WIDTH, window=64)
    assert make_mixer(layer, WIDTH) is not make_mixer(layer, 2 * WIDTH)


def test_an_option_in_a_layer_is_of_the_part_that_it_stands_with():
    """And counts before the keywords; at its default it is no option."""
    mixer = make_mixer("add:swa@window=5+swa@window=7", WIDTH, window=3, num_heads=2)
    parts = dict(mixer.traits.parts)
    assert parts["a"] is make_mixer("swa", WIDTH, window=5, num_heads=2)
    assert parts["b"] is make_mixer("swa@num_heads=2@window=7", WIDTH)
    assert mixer is make_mixer("add:swa@window=5@num_heads=2+swa@window=7", WIDTH, **{"swa.num_heads": 2})
    assert mixer is not make_mixer("add:swa@window=7+swa@window=5", WIDTH, window=3, num_heads=2)
    assert make_mixer("swa@window=64", WIDTH) is make_mixer("swa", WIDTH)
    assert make_mixer("swa@window=64", WIDTH, window=5) is make_mixer("swa", WIDTH)
    assert make_mixer("attn@window=none", WIDTH, window=5) is make_mixer("attn", WIDTH)


def test_fusions_have_options():
    mixer = make_mixer("sharnn@window=5:gru", WIDTH)
    assert mixer is make_mixer("sharnn:gru", WIDTH, window=5) is make_mixer("sharnn:gru", WIDTH, **{"sharnn.window": 5})
    assert mixer.traits.spec == ("sharnn", ("gru", WIDTH), ("window", 5))
    assert jax.eval_shape(lambda: mixer.init_state(1, 100))["b"]["ids"].shape == (1, 5)
    assert make_mixer("sharnn@window=256:gru", WIDTH) is make_mixer("sharnn:gru", WIDTH) is not mixer
    nested = make_mixer("add:sharnn@window=5:gru+sharnn:gru", WIDTH, **{"sharnn.window": 7})
    shapes = jax.eval_shape(lambda: nested.init_state(1, 100))
    assert [shapes[part]["b"]["ids"].shape for part in "ab"] == [(1, 5), (1, 7)]
    assert "sharnn" in message_of(lambda: make_mixer("sharnn:gru", WIDTH, **{"swa.window": 5}))
    assert "window" in message_of(lambda: make_mixer("sharnn:gru", WIDTH, **{"sharnn.windw": 5}))


def test_a_cell_has_the_options_of_its_layer():
    layer, options = "lstm@state_width=3", {"lstm.forget_bias": 2.0}
    assert jax.eval_shape(lambda: make_cell(layer, WIDTH, **options).init_state(1))["h"].shape == (1, 3)
    assert make_cell("bi:lstm", WIDTH) is make_cell("conv", WIDTH) is None


def test_options_know_their_default_and_type():
    options = mixer_options()
    assert options["swa"]["window"][:2] == (64, int)
    assert options["attn"]["window"][:2] == (None, int)
    assert options["rglru"]["output_gate"][:2] == ("gelu", str)
    assert options["relu"]["activation"][:2] == ("relu", str)
    assert options["lstm"]["forget_bias"][:2] == (1.0, float)


NASTY = {int: (-1, 10**12, 2**63), float: (math.nan, math.inf, -math.inf, 1e39), str: ("", "nosuch"), bool: ()}
WRONG = {int: (1.5, "1"), float: ("1",), str: (3,), bool: ("true", 2)}


@pytest.mark.parametrize("name", mixer_options())
def test_every_option_of_the_package_has_a_range(name):
    """In mixers that are made, and in configs, whether the pattern has the mixer or not."""
    config = base_config()
    layer = next(layer for layer in registered_mixers() if layer.partition(":")[0] == name)
    for key, option in mixer_options()[name].items():
        option.check(key, option.default)
        for value in WRONG[option.type]:
            assert f"{name}.{key}={value!r}" in message_of(lambda k=key, v=value: make_mixer(layer, WIDTH, **{k: v}))
        for value in NASTY[option.type] if key != "form" else ():  # a cell has forms of its own
            assert f"{name}.{key}={value!r}" in message_of(lambda k=key, v=value: make_mixer(layer, WIDTH, **{k: v}))
            config.mixers[name][key] = value
            assert f"mixers.{name}.{key}={value!r}" in message_of(lambda: validate(config))
        config.mixers[name][key] = option.default


@pytest.mark.parametrize(
    ("name", "option", "value", "rule"),
    [
        ("attn", "num_heads", 0, "at least 1"),
        ("swa", "window", -3, "at least 1"),
        ("attn", "rope_base", math.nan, "above 0.0"),
        ("attn", "soft_cap", 0.0, "above 0.0"),
        ("attn", "rope_fraction", 1.5, "in (0.0, 1.0]"),
        ("lstm", "state_width", -1, "in [1, 1048576]"),
        ("rglru", "blocks", 0, "at least 1"),
        ("rglru", "taps", 1, "in [2, 256]"),
        ("lru", "max_radius", 1.0, "in [0.0, 1.0)"),
        ("lstm", "forget_bias", 1e30, "in [-80.0, 80.0]"),
        ("attn", "chunk", 10**12, "at most 2147483647"),
        ("attn", "soft_cap", math.inf, "finite in float32"),
        ("attn", "position", "rop", "none of rope, alibi, relative, none"),
    ],
)
def test_ranges_of_options(name, option, value, rule):
    assert message_of(lambda: make_mixer(name, WIDTH, **{option: value})).endswith(
        f"must be {rule}".replace("must be none", "is none")
    )


def test_a_user_gives_a_range_to_an_option(scratch):
    def build(width: int, *, factor: Annotated[float, Range(above=0.0, below=2.0)] | None = None) -> Mixer:
        return scaled(width)

    register_mixer("bounded", build, leaves={"gain": "vector"})
    assert message_of(lambda: make_mixer("bounded", WIDTH, factor=2.0)) == "bounded.factor=2.0 must be in (0.0, 2.0)"
    assert make_mixer("bounded", WIDTH) is make_mixer("bounded", WIDTH, factor=None)


def test_the_spec_says_how_a_mixer_was_made():
    spec = make_mixer("cascade:lstm+swa", WIDTH, window=7).traits.spec
    assert spec == ("cascade", ("lstm", WIDTH), ("swa", WIDTH, ("window", 7)))
    assert make_mixer("swa", WIDTH).traits.spec == ("swa", WIDTH)


def test_a_user_cell_has_the_certificate(scratch):
    register_cell("decaying", decaying)
    assert "decaying" in registered_mixers()
    assert mixer_options()["decaying"]["memory"][:2] == (0.5, float)
    subject = make_subject("decaying", make_mixer("decaying", WIDTH, state_width=8))
    rows = ["..n..p..p.n....p", "pp.........n....", "................"]
    any_split(subject, rows, (8, 1, 3, 3, 1), 0)
    packing(subject, [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], [(0, 1, 2), (3, 9, 15), (7, 8, 12)], 0)
    causality(subject, rows, 9, 0)
    initial_parameters(subject)
    fused = make_mixer("cascade:decaying+attn", WIDTH, **{"decaying.memory": 0.9})
    assert fused.traits.spec[1] == ("decaying", WIDTH, ("memory", 0.9))


def test_defaults_of_a_registered_cell_can_be_replaced(scratch):
    register_cell("slow", decaying, memory=0.99, output_gate="silu")
    assert mixer_options()["slow"]["memory"].default == 0.99
    assert "gate" in jax.eval_shape(make_mixer("slow", WIDTH).init, jax.random.key(0))
    assert make_mixer("slow", WIDTH) is make_mixer("slow", WIDTH, memory=0.99)


def test_a_user_mixer_with_a_leaf_of_its_own(scratch):
    register_mixer("scaled", scaled, leaves={"gain": "vector"}, factor=3.0)
    assert "scaled" in registered_mixers() and LEAF_KINDS["gain"] == "vector"
    mixer = make_mixer("scaled", WIDTH)
    x, ids = np.ones((1, 2, WIDTH), np.float32), np.array([[1, 0]], np.int32)
    y, _ = jax.jit(mixer.apply)({"gain": np.full(WIDTH, 2.0, np.float32)}, x, Segments(ids, ids), None)
    assert np.all(np.asarray(y)[0, 0] == 6.0) and np.all(np.asarray(y)[0, 1] == 0.0)
    assert "table" in message_of(lambda: register_mixer("other", scaled, leaves={"gain": "scalar"}))
    assert "gain" in message_of(lambda: register_mixer("other", scaled, leaves={"gain": "matrix"}))


def test_a_user_fusion(scratch):
    def swapped(a: Mixer, b: Mixer, width: int) -> Mixer:
        return registry.fusion.cascade(b, a, width)

    register_fusion("swapped", swapped, "attn+gru")
    assert "swapped:attn+gru" in registered_mixers()
    parts = dict(make_mixer("swapped:attn+gru", WIDTH).traits.parts)
    assert [part.traits.spec for part in parts.values()] == [("gru", WIDTH), ("attn", WIDTH)]


def test_a_user_fusion_by_a_formula_with_options_and_leaves(scratch):
    """In a nested layer, by its canonical parts, with a state."""

    def lean(a: Mixer, b: Mixer, width: int, *, share: Annotated[float, Range(at_least=0.0, at_most=1.0)] = 0.5):
        def combine(params, x, run_a, run_b):
            return share * params["lean"]["gain"][None, None] * run_a(x) + (1 - share) * run_b(x)

        return fuse("lean", a, b, combine, lambda key: {"lean": {"gain": jnp.ones(width)}})

    register_fusion("lean", lean, "bi:lstm+attn", "gru+conv", leaves={"gain": "vector"})
    assert "lean:bi:lstm+attn" in registered_mixers() and "lean:gru+conv" in registry.registered_instances()
    assert mixer_options()["lean"]["share"].default == 0.5 and LEAF_KINDS["gain"] == "vector"
    layer = "add:lean@share=0.25:gru+conv+swa@window=5"
    mixer = make_mixer(layer, WIDTH)
    assert mixer is make_mixer("add:lean:gru+conv+swa", WIDTH, share=0.25, window=5)
    subject = make_subject(layer, mixer)
    any_split(subject, ["..n..p..p.n....p", "pp.........n....", "................"], (8, 1, 3, 3, 1), 0)
    initial_parameters(subject)
    assert message_of(lambda: make_mixer("lean@share=2:gru+conv", WIDTH)).endswith("must be in [0.0, 1.0]")
    assert "no parts" in message_of(lambda: register_fusion("other", lean, "bi:add:lstm"))


def test_registering_leaves_other_mixers_as_they_are(scratch):
    """An object that is already in use stays the identical one, or its programs would compile again."""
    before = make_mixer("gru", WIDTH)
    register_mixer("scaled", scaled, leaves={"gain": "vector"})
    assert make_mixer("gru", WIDTH) is before


def test_registering_again_replaces(scratch):
    register_mixer("scaled", scaled, leaves={"gain": "vector"}, factor=3.0)
    before = make_mixer("scaled", WIDTH)
    register_mixer("scaled", scaled, factor=4.0)
    after = make_mixer("scaled", WIDTH)
    assert after is not before and mixer_options()["scaled"]["factor"].default == 4.0


@pytest.mark.parametrize("name", ["lstm", "cascade", "attn", "bi"])
@pytest.mark.parametrize("register", [register_mixer, register_cell], ids=["mixer", "cell"])
def test_taken_names_are_refused(scratch, register, name):
    assert name in message_of(lambda: register(name, decaying))


def test_a_fusion_does_not_take_the_name_of_a_mixer(scratch):
    assert "lstm" in message_of(lambda: register_fusion("lstm", registry.fusion.add, "gru+attn"))


@pytest.mark.parametrize("name", ["", "a:b", "a+b", "a,b", "a.b", "a=b", "a b", "a/b", "a@b"])
def test_names_that_the_grammar_cannot_hold_are_refused(scratch, name):
    message_of(lambda: register_mixer(name, scaled))


def test_a_refused_registration_leaves_nothing_behind(scratch):
    message_of(lambda: register_mixer("lstm", scaled, leaves={"gain": "vector"}))
    assert "gain" not in LEAF_KINDS


def test_an_option_needs_a_default(scratch):
    def build(width: int, *, size: int) -> Mixer:
        return scaled(width)

    assert "size" in message_of(lambda: register_mixer("sized", build))


def test_a_default_that_the_builder_does_not_have_is_refused(scratch):
    assert "factr" in message_of(lambda: register_mixer("scaled", scaled, factr=3.0))
    assert "memry" in message_of(lambda: register_cell("decaying", decaying, memry=0.9))
