"""What attention remembers: rings, sinks and blocks under any split; memory that grows with T where it is chunked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

from hybrid_flax import Segments
from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.mixer_properties import any_split, causality, garbage_in_padding, packing
from hybrid_flax.certify.subjects import LENGTH, WIDTH, cut, make_subject, noise, normal, plain, segments_of
from hybrid_flax.mixers.attention import attention

ROWS = ["..n..p..p.n....p", "pp.........n....", "................"]
SPLIT = (8, 1, 3, 3, 1)
ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
PADS = [(0, 1, 2), (3, 9, 15), (7, 8, 12)]

KINDS = {
    "a window shorter than a chunk": {"window": 2, "chunk": 4},
    "a window of several chunks": {"window": 7, "chunk": 2},
    "a window of whole chunks": {"window": 5, "chunk": 4},
    "itself alone": {"block": 1, "chunk": 2, "position": "none"},
    "sinks in chunks": {"window": 3, "sinks": 2, "chunk": 4},
    "two blocks back": {"block": 2, "memory_blocks": 2, "chunk": 3, "position": "relative"},
    "blocks at once": {"block": 4, "position": "relative"},
}


@functools.cache
def subject_of(kind):
    mixer = attention(WIDTH, **KINDS[kind])
    return make_subject(kind, mixer, noise(mixer.init, np.random.default_rng(0)))


@pytest.mark.parametrize("kind", sampled(KINDS, ("a window of several chunks", "sinks in chunks", "two blocks back")))
def test_kinds_that_no_name_stands_for_have_the_certificate(kind):
    subject = subject_of(kind)
    any_split(subject, ROWS, SPLIT, 0)
    packing(subject, ORDERS, PADS, 0)
    garbage_in_padding(subject, ROWS, 0)
    for t in (4, 15):
        causality(subject, ROWS, t, 0)


def temporaries(length, **options):
    """Bytes that the compiled gradient needs besides its arguments and results."""
    mixer = attention(WIDTH, num_heads=2, **options)
    params = jax.eval_shape(mixer.init, jax.eval_shape(lambda: jax.random.key(0)))
    x = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(params, x, segments):
        return jnp.sum(mixer.apply(params, x, segments)[0])

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x, Segments(ids, ids)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options", [{}, {"window": 48}, {"window": 48, "sinks": 2}, {"block": 32}], ids=str)
def test_memory_grows_with_the_length_where_attention_is_chunked(options):
    """Four times the length: four times the memory in chunks, forward and backward, sixteen times without."""
    short, long = (temporaries(length, chunk=32, **options) for length in (512, 2048))
    assert long < 4.5 * short
    if not options:
        assert temporaries(2048) > 10 * temporaries(512)


@pytest.mark.parametrize("options", [{"window": 5}, {"block": 4}, {}], ids=str)
def test_chunks_do_not_change_the_numbers(options):
    """float32, values and gradients, a length that no chunk divides."""
    segments = jax.tree.map(jnp.asarray, segments_of(ROWS))
    results = []
    for chunk in (None, 3):
        mixer = attention(WIDTH, chunk=chunk, **options)
        rng = np.random.default_rng(0)
        params, x, dy = noise(mixer.init, rng), normal(rng, 3, LENGTH, WIDTH), normal(rng, 3, LENGTH, WIDTH)

        def pull(params, x, dy, mixer=mixer):
            y, pullback = jax.vjp(lambda params, x: mixer.apply(params, x, segments)[0], params, x)
            return y, pullback(dy)

        results.append(jax.jit(pull)(params, x, dy))
    check_close(*results)


@pytest.mark.slow
def test_gradients_of_xl_are_those_of_its_blocks():
    """One call has the gradient of a call per block with the state carried between them: memory is cut by position."""
    mixer = attention(WIDTH, block=4, memory_blocks=2, position="relative")
    rng = np.random.default_rng(0)
    params, x, dy = noise(mixer.init, rng), normal(rng, 3, LENGTH, WIDTH), normal(rng, 3, LENGTH, WIDTH)
    segments = jax.tree.map(jnp.asarray, plain(LENGTH))

    def in_calls(params, x, length):
        state, total = mixer.init_state(3, LENGTH), 0.0
        for start in range(0, LENGTH, length):
            stop = start + length
            y, state = mixer.apply(params, x[:, start:stop], cut(segments, start, stop), state)
            total = total + jnp.vdot(y, dy[:, start:stop])
        return total

    whole, blocks, other = (
        jax.jit(jax.grad(functools.partial(in_calls, length=length), (0, 1)))(params, x) for length in (LENGTH, 4, 2)
    )
    check_close(blocks, whole)
    assert not np.allclose(other[1], whole[1], atol=1e-3)


def test_a_state_holds_what_can_be_read():
    def slots(capacity, **options):
        return jax.eval_shape(lambda: attention(WIDTH, **options).init_state(2, capacity))["ids"].shape

    assert slots(100, block=4) == (2, 8)
    assert slots(100, block=4, memory_blocks=3) == (2, 16)
    assert slots(6, block=4) == (2, 6)
    state = jax.eval_shape(lambda: attention(WIDTH, window=3, sinks=2).init_state(2, 100))
    assert state["ids"].shape == (2, 3) and state["sinks"]["memory"]["key"].shape == (2, 2, 4, 4)


def test_sinks_are_the_first_tokens_of_the_last_document():
    mixer = attention(WIDTH, window=2, sinks=3, position="none")
    rng = np.random.default_rng(0)
    params, x = noise(mixer.init, rng), normal(rng, 3, LENGTH, WIDTH)
    segments = segments_of([".p......n..n.pp.", "................", "......p......n.."])
    _, state = jax.jit(mixer.apply)(params, x, segments, mixer.init_state(3, LENGTH))
    sinks = jax.device_get(state["sinks"])
    values = np.einsum("btd,dhk->bthk", x.astype(np.float64), params["input"]["kernel"][:, 8:])
    for b, places in enumerate([[11, 12, 15], [0, 1, 2], [13, 14, 15]]):
        assert np.all(sinks["ids"][b] == segments.ids[b, places])
        check_close(sinks["memory"]["value"][b], values[b, places])
    _, state = jax.jit(mixer.apply)(params, x[:, :1], segments_of(["p"] * 3), state)
    check_same(state["sinks"], sinks)
    _, state = jax.jit(mixer.apply)(
        params, x[:, :1], Segments(np.full((3, 1), 9, np.int32), np.zeros((3, 1), np.int32)), state
    )
    assert np.all(np.asarray(state["sinks"]["ids"]) == [9, -1, -1])


@pytest.mark.parametrize("options", [{"block": 4}, {"block": 4, "chunk": 2}, {"window": 8, "chunk": 3}], ids=str)
def test_a_reach_longer_than_the_capacity_overflows_to_nan(options):
    mixer = attention(WIDTH, **options)
    rng = np.random.default_rng(0)
    params, x = noise(mixer.init, rng), normal(rng, 3, LENGTH, WIDTH)
    y, _ = jax.jit(mixer.apply)(params, x, segments_of(["p" * 8 + "." * 8] * 2 + ["." * 16]), mixer.init_state(3, 6))
    assert np.all(np.isnan(np.asarray(y)[:2, 8:])) and not np.any(np.asarray(y)[:2, :8])
    y, _ = jax.jit(mixer.apply)(params, x[:, :6], segments_of(["......"] * 3), mixer.init_state(3, 6))
    wanted, _ = jax.jit(mixer.apply)(params, x[:, :6], segments_of(["......"] * 3), None)
    check_close(y, wanted)
