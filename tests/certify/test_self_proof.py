"""The certificate is seen to fail: every property refuses a mixer that is broken in the way it looks for."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax import Segments
from hybrid_flax.cells.diagonal import lru
from hybrid_flax.cells.gated import elman
from hybrid_flax.cells.inputs import conv
from hybrid_flax.cells.minimal import mingru
from hybrid_flax.certify import cell_properties, certify, checks, mixer_properties, subjects
from hybrid_flax.certify.subjects import BATCH, LENGTH, WIDTH, WINDOW, make_cell_subject, make_subject
from hybrid_flax.mixers import registry
from hybrid_flax.mixers.attention import attention
from hybrid_flax.mixers.recurrent import recurrent, run_cell
from hybrid_flax.ops.segments import previous_ids

ONE_DOCUMENT = ["." * LENGTH] * BATCH
DOCUMENTS = ["..n..p..p.n....p", "pp.........n....", "n....p.....ppp.."]
SPLIT = (8, 1, 3, 1, 1, 1, 1)
ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
PADS = [(0, 1, 2), (3, 9, 15), (7, 8, 12)]

TANH = recurrent(elman(WIDTH), WIDTH)
LRU = recurrent(lru(WIDTH), WIDTH)
CONV = conv(WIDTH)
ATTENTION = attention(WIDTH)
WINDOWED = attention(WIDTH, window=WINDOW)
WIDER = attention(WIDTH, window=WINDOW + 1)


def broken(mixer, change):
    """`mixer` with change(apply, params, x, segments, state) in place of its apply."""

    def apply(params, x, segments, state=None):
        return change(mixer.apply, params, x, segments, state)

    base = subjects.noise(mixer.init, np.random.default_rng(0))
    return make_subject("broken", mixer._replace(apply=apply), base)


def one_document(apply, params, x, segments, state):
    """A state that is not reset where a document begins."""
    return apply(params, x, Segments((segments.ids > 0).astype(jnp.int32), segments.positions), state)


def lost_tail(apply, params, x, segments, state):
    """A convolution that starts from nothing in every call."""
    y, after = apply(params, x, segments, state)
    return y, None if state is None else CONV.init_state(x.shape[0], 0) | {"ids": after["ids"]}


def wider_decode(apply, params, x, segments, state):
    """A window that is one token too wide where one token is decoded."""
    return (WIDER.apply if x.shape[1] == 1 else apply)(params, x, segments, state)


def restarted_positions(apply, params, x, segments, state):
    """Positions counted from the start of the call."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), segments.ids.shape)
    return apply(params, x, Segments(segments.ids, positions), state)


def no_hold(apply, params, x, segments, state):
    """Padding that is a token of the document around it, and zero only in the output."""
    carried = jnp.ones_like(segments.ids[:, 0])
    ids = jnp.where(segments.ids > 0, segments.ids, previous_ids(segments.ids, carried))
    y, after = apply(params, x, Segments(ids, segments.positions), state)
    return jnp.where((segments.ids > 0)[..., None], y, 0), after


def loud_padding(apply, params, x, segments, state):
    """Padding whose output is not zero."""
    y, after = apply(params, x, segments, state)
    return y + 1.0, after


def oracle(apply, params, x, segments, state):
    """A look at the next token."""
    y, after = apply(params, x, segments, state)
    return y + jnp.concatenate([x[:, 1:], x[:, :1]], axis=1), after


def shared_rows(apply, params, x, segments, state):
    """A mean over the batch."""
    y, after = apply(params, x, segments, state)
    return y + jnp.mean(x, axis=0, keepdims=True), after


def blind(apply, params, x, segments, state):
    """No look at any other token."""
    return jnp.where((segments.ids > 0)[..., None], x, 0), state


def open_state(apply, params, x, segments, state):
    """A gradient into the state that came from outside."""
    y, after = apply(params, x, segments, state)
    return (y if state is None else y + state["cell"]["h"][:, None].astype(y.dtype)), after


def open_imaginary_part(apply, params, x, segments, state):
    """The same, through one part of a complex state."""
    y, after = apply(params, x, segments, state)
    return (y if state is None else y + state["cell"]["h"].imag[:, None]), after


def narrow_state(apply, params, x, segments, state):
    """A state in the compute dtype."""
    y, after = apply(params, x, segments, state)
    return y, after | {"cell": jax.tree.map(lambda leaf: leaf.astype(x.dtype), after["cell"])}


def wide_output(apply, params, x, segments, state):
    """An output in float32, whatever comes in."""
    y, after = apply(params, x, segments, state)
    return y.astype(jnp.float32), after


def growing_state(apply, params, x, segments, state):
    """A state that is longer after every call."""
    y, after = apply(params, x, segments, state)
    return y, None if after is None else jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=-1), after)


def not_a_number(apply, params, x, segments, state):
    """A norm over live tokens, whose gradient has no value where there are none."""
    y, after = apply(params, x, segments, state)
    live = (segments.ids > 0)[..., None].astype(x.dtype)
    return y * jnp.linalg.norm(x * live, axis=1, keepdims=True), after


def counted():
    """A mixer that remembers how often it was called."""
    calls = []

    def change(apply, params, x, segments, state):
        calls.append(None)
        y, after = apply(params, x, segments, state)
        return y * len(calls), after

    return change


FAULTS = [
    ("state not reset", TANH, one_document, mixer_properties.packing, (ORDERS, PADS, 0)),
    ("state not reset", TANH, one_document, mixer_properties.causality, (DOCUMENTS, 10, 0)),
    ("tail lost", CONV, lost_tail, mixer_properties.any_split, (ONE_DOCUMENT, SPLIT, 0)),
    ("window off by one", WINDOWED, wider_decode, mixer_properties.any_split, (ONE_DOCUMENT, SPLIT, 0)),
    ("position not carried", ATTENTION, restarted_positions, mixer_properties.any_split, (ONE_DOCUMENT, SPLIT, 0)),
    ("hold ignored", TANH, no_hold, mixer_properties.left_padding, (0,)),
    ("hold ignored", TANH, no_hold, mixer_properties.garbage_in_padding, (DOCUMENTS, 0)),
    ("hold ignored", TANH, no_hold, mixer_properties.packing, (ORDERS, PADS, 0)),
    ("padding not zero", TANH, loud_padding, mixer_properties.garbage_in_padding, (DOCUMENTS, 0)),
    ("padding not zero", TANH, loud_padding, mixer_properties.left_padding, (0,)),
    ("reads the future", TANH, oracle, mixer_properties.causality, (ONE_DOCUMENT, 3, 0)),
    ("reads the future", TANH, oracle, mixer_properties.reach, (0,)),
    ("reads nothing", TANH, blind, mixer_properties.reach, (0,)),
    ("rows mixed", TANH, shared_rows, mixer_properties.rows_independent, (DOCUMENTS, (2, 0, 1), 0)),
    ("state not cut", TANH, open_state, mixer_properties.state_is_cut, (0,)),
    ("complex state not cut", LRU, open_imaginary_part, mixer_properties.state_is_cut, (0,)),
    ("state ignored", TANH, blind, mixer_properties.state_is_cut, (0,)),
    ("state in bfloat16", TANH, narrow_state, mixer_properties.bfloat16, (0,)),
    ("output in float32", TANH, wide_output, mixer_properties.bfloat16, (0,)),
    ("state grows", TANH, growing_state, mixer_properties.state_contract, ()),
    ("state grows", CONV, growing_state, mixer_properties.state_contract, ()),
    ("jit is not eager", CONV, counted(), mixer_properties.jit_equals_eager, (0,)),
    ("not a number", CONV, not_a_number, mixer_properties.finite_gradients, (0,)),
    ("takes a state", CONV, blind, mixer_properties.refuses_state, ()),
]


@pytest.mark.parametrize("mixer,change,prove,arguments", [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_broken_mixer_has_no_certificate(mixer, change, prove, arguments):
    with pytest.raises(AssertionError):
        prove(broken(mixer, change), *arguments)


def test_rows_see_each_other_only_where_contents_differ():
    """A leak that a permutation alone does not show."""
    with pytest.raises(AssertionError):
        mixer_properties.rows_independent(broken(TANH, shared_rows), DOCUMENTS, (0, 1, 2), 0)


def test_a_state_of_another_dtype_compiles_again():
    def change(apply, params, x, segments, state):
        y, after = apply(params, x, segments, state)
        return y, after | {"cell": {"h": after["cell"]["h"].astype(jnp.float16)}}

    with pytest.raises(AssertionError):
        mixer_properties.compiles_once(broken(TANH, change), 0)


def test_a_state_whose_first_axis_is_not_the_batch():
    mixer = CONV._replace(init_state=lambda batch, capacity: {"ids": jnp.zeros((3, batch))})
    with pytest.raises(AssertionError):
        mixer_properties.state_contract(make_subject("broken", mixer, base={}))


@pytest.mark.parametrize(
    "init",
    [
        lambda key: {"weights": jax.random.normal(key, (2, 2))},
        lambda key: {"kernel": jax.random.normal(key, (2, 2)).astype(jnp.bfloat16)},
        lambda key: {"kernel": jnp.full((2, 2), jnp.nan)},
    ],
    ids=["name", "dtype", "nan"],
)
def test_broken_parameters(init):
    with pytest.raises(AssertionError):
        mixer_properties.initial_parameters(make_subject("broken", CONV._replace(init=init)))


def decayed_twice(width):
    """minGRU whose parallel form decays the state that is passed in once more."""
    cell = mingru(width)

    def associative(params, u, reset, hold, state):
        decay = jax.nn.sigmoid(-u[:, 0, 0].astype(state["h"].dtype))
        return cell.forms["associative"](params, u, reset, hold, {"h": decay * state["h"]})

    return cell._replace(forms={"associative": associative})


REGISTERED = {
    "state not reset": (TANH, one_document, {"packed", "causal"}),
    "tail lost": (CONV, lost_tail, {"split"}),
    "window off by one": (WINDOWED, wider_decode, {"split"}),
    "position not carried": (ATTENTION, restarted_positions, {"split"}),
    "decay applied twice": (decayed_twice, None, {"forms"}),
    "gradient not stopped": (TANH, open_state, {"cut"}),
}


@pytest.mark.parametrize("fault", REGISTERED)
def test_the_certificate_catches(fault, monkeypatch):
    """Random cases over a registered name, as anybody's own mixer is certified, and nothing known of the fault."""
    sound, change, wanted = REGISTERED[fault]
    monkeypatch.setattr(registry, "_primitives", dict(registry._primitives))
    name = fault.replace(" ", "_")
    if change is None:
        registry.register_cell(name, sound)
    else:
        registry.register_mixer(name, lambda width: broken(sound, change).mixer)
    (row,) = certify([name], cases=60, seed=1)
    failed = {finding.property for finding in row if finding.counterexample is not None}
    assert wanted <= failed


@pytest.fixture(scope="module")
def broken_cell():
    """A cell with forms that forget resets, forget holds, or cut the gradient of the recurrent product."""
    cell = elman(WIDTH)

    def sequential(params, u, reset, hold, state):
        return run_cell(cell, "sequential", params, u, reset, hold, state)

    def cut_gradient(params, u, reset, hold, state):
        return sequential(jax.lax.stop_gradient(params), u, reset, hold, state)

    def by_length(params, u, reset, hold, state):
        y, state = sequential(params, u, reset, hold, state)
        return y, jax.tree.map(lambda h: h * (1.0 + 1e-6 / u.shape[1]), state)

    forms = {
        "no_reset": lambda params, u, reset, hold, state: sequential(params, u, reset & False, hold, state),
        "no_hold": lambda params, u, reset, hold, state: sequential(params, u, reset, hold & False, state),
        "cut_gradient": cut_gradient,
        "by_length": by_length,
    }
    return make_cell_subject(cell._replace(forms=MappingProxyType(forms)))


@pytest.mark.parametrize("form", ["no_reset", "no_hold", "cut_gradient"])
def test_a_broken_form_does_not_agree(broken_cell, form):
    with pytest.raises(AssertionError):
        cell_properties.forms_agree(broken_cell, form, DOCUMENTS, 0)


def test_a_rounding_by_length_is_not_bit_for_bit(broken_cell):
    with pytest.raises(AssertionError):
        cell_properties.recurrence_bits(broken_cell, "by_length", DOCUMENTS, SPLIT, 0)
    cell_properties.recurrence_bits(broken_cell, "sequential", DOCUMENTS, SPLIT, 0)


@pytest.mark.parametrize("a,b", [([1.0, float("nan")], [1.0, 2.0]), ([1.0], [1.0, 1.0]), ([1e-9], [0.0])])
def test_comparison_refuses(a, b):
    with pytest.raises(AssertionError):
        checks.check_close(jnp.asarray(a), jnp.asarray(b))
