"""Attention against loops over rows, heads, queries and keys in float64, and the behaviour of its cache."""

import jax
import numpy as np
import pytest
from mixers.loops import attention_loop, check_gradients, check_values, sha_loop, tanhdot_loop
from sampling import sampled

from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.subjects import cut, noise, normal, segments_of
from hybrid_flax.mixers.attention import attention, sha, tanhdot
from hybrid_flax.mixers.registry import make_mixer

LENGTH, WIDTH = 9, 16
ROWS = ["....n....", "pp.p...p.", "........."]


def prepare(mixer, seed=0):
    rng = np.random.default_rng(seed)
    params = noise(mixer.init, rng)
    return params, normal(rng, len(ROWS), LENGTH, WIDTH)


CASES = {
    "multi_head": {},
    "grouped": {"num_kv_heads": 2},
    "multi_query": {"num_kv_heads": 1},
    "head_width": {"num_heads": 3, "head_width": 6},
    "window": {"window": 3},
    "no_position": {"position": "none"},
    "rope_base": {"rope_base": 50.0},
    "rope_fraction": {"rope_fraction": 0.5, "rope_base": 50.0},
    "qk_norm": {"qk_norm": True},
    "not_causal": {"causal": False},
    "not_causal_window": {"causal": False, "window": 2},
    "einsum": {"implementation": "einsum", "num_kv_heads": 2},
    "sinks": {"window": 3, "sinks": 2},
    "one_sink": {"window": 1, "sinks": 1},
    "alibi": {"position": "alibi", "num_kv_heads": 2},
    "alibi_not_causal": {"position": "alibi", "causal": False},
    "soft_cap": {"soft_cap": 0.8},
    "relative": {"position": "relative", "rope_base": 50.0, "num_kv_heads": 2},
    "everything": {"position": "alibi", "soft_cap": 0.8, "qk_norm": True, "window": 4, "sinks": 1, "chunk": 2},
    "chunk": {"chunk": 4, "num_kv_heads": 2},
    "chunk_of_a_window": {"chunk": 2, "window": 4},
    "chunk_longer_than_the_window": {"chunk": 4, "window": 2},
    "chunk_of_one": {"chunk": 1, "window": 1},
    "chunk_with_sinks": {"chunk": 2, "window": 3, "sinks": 2},
    "chunk_not_causal": {"chunk": 4, "window": 2, "causal": False},
    "xl": {"block": 3, "position": "relative"},
    "xl_rope": {"block": 3, "qk_norm": True},
    "xl_two_blocks": {"block": 2, "memory_blocks": 2, "position": "relative", "soft_cap": 0.8},
    "xl_chunk": {"block": 3, "chunk": 2, "position": "relative"},
}


def case_of(name):
    options = {"num_heads": 4} | CASES[name]

    def loop(params, x, segments, frozen=None):
        return attention_loop(params, x, segments, options, frozen)

    mixer = attention(WIDTH, **options)
    return mixer, loop, *prepare(mixer), segments_of(ROWS)


@pytest.mark.parametrize("case", CASES)
def test_attention_equals_its_paper(case):
    mixer, loop, params, x, segments = case_of(case)
    check_values(mixer, loop, params, x, segments)


@pytest.mark.parametrize("case", sampled(CASES, ("grouped", "window", "everything", "chunk_with_sinks", "xl_chunk")))
def test_gradients_equal_finite_differences(case):
    """What XL reads from earlier blocks is constant in the loop."""
    mixer, loop, params, x, segments = case_of(case)
    check_gradients(mixer, loop, params, x, segments, frozen="block" in CASES[case])


def test_memory_with_a_gradient_is_noticed():
    """The loop of XL, with earlier blocks that are not constant, has another gradient."""
    mixer, loop, params, x, segments = case_of("xl_rope")
    with pytest.raises(AssertionError):
        check_gradients(mixer, loop, params, x, segments)


@pytest.mark.parametrize("causal", [True, False])
def test_tanhdot_equals_its_formula(causal):
    mixer = tanhdot(WIDTH, causal=causal)

    def loop(params, x, segments):
        return tanhdot_loop(params, x, segments, {"causal": causal})

    params, x = prepare(mixer)
    check_values(mixer, loop, params, x, segments_of(ROWS))
    check_gradients(mixer, loop, params, x, segments_of(ROWS))


@pytest.mark.parametrize("window", [3, 100])
def test_sha_equals_its_paper(window):
    mixer = sha(WIDTH, window=window)

    def loop(params, x, segments):
        return sha_loop(params, x, segments, {"window": window})

    params, x = prepare(mixer)
    check_values(mixer, loop, params, x, segments_of(ROWS))
    check_gradients(mixer, loop, params, x, segments_of(ROWS))


def test_a_window_as_long_as_the_row_is_full_attention():
    full = attention(WIDTH)
    params, x = prepare(full)
    segments = segments_of(ROWS)
    wanted, _ = jax.jit(full.apply)(params, x, segments, None)
    for window in (LENGTH, 10 * LENGTH):
        y, _ = jax.jit(attention(WIDTH, window=window).apply)(params, x, segments, None)
        check_close(y, wanted, 1e-6)
    shorter, _ = jax.jit(attention(WIDTH, window=LENGTH - 1).apply)(params, x, segments, None)
    assert not np.allclose(shorter, wanted, atol=1e-3)


@pytest.mark.parametrize(
    "plain,special",
    [
        ({"window": 3}, {"window": 3, "sinks": 0}),
        ({}, {"window": 3, "sinks": LENGTH}),
        ({}, {"rope_fraction": 1.0}),
        ({}, {"soft_cap": 1e4}),
        ({}, {"memory_blocks": LENGTH, "block": 1}),
        ({}, {"chunk": LENGTH}),
    ],
    ids=str,
)
def test_special_cases(plain, special):
    """No sinks are a window, enough of them full attention; nothing left to rotate, to cap or to cut is none of it."""
    mixer = attention(WIDTH, **plain)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    wanted, _ = jax.jit(mixer.apply)(params, x, segments, None)
    y, _ = jax.jit(attention(WIDTH, **special).apply)(params, x, segments, None)
    check_close(y, wanted, 1e-6)
    other = {"sinks": {"sinks": 1}, "rope_fraction": {"rope_fraction": 0.5}, "soft_cap": {"soft_cap": 1.0}}
    for option, value in other.items():
        if option in special:
            changed, _ = jax.jit(attention(WIDTH, **(special | value)).apply)(params, x, segments, None)
            assert not np.allclose(changed, wanted, atol=1e-3)


def test_a_window_of_one_reads_itself():
    """softmax over one key is 1: y = v W_o."""
    mixer = attention(WIDTH, window=1)
    params, x = prepare(mixer)
    y, _ = jax.jit(mixer.apply)(params, x, segments_of(["." * LENGTH] * 3), None)
    values = np.einsum("btd,dhk->bthk", x.astype(np.float64), params["input"]["kernel"][:, 8:])
    check_close(y, values.reshape(*x.shape[:2], -1) @ params["output"]["kernel"])


def test_the_cache_of_a_window_is_a_ring_of_its_slots():
    """Slot `count % window` holds the newest live token; padding takes none; the capacity asked for does not matter."""
    window = 3
    mixer = tanhdot(WIDTH)  # no window here: one slot a token
    assert jax.eval_shape(lambda: mixer.init_state(2, 5))["ids"].shape == (2, 5)
    mixer = attention(WIDTH, window=window, position="none")
    state = jax.device_get(mixer.init_state(3, 100))
    assert state["ids"].shape == (3, window)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    _, state = jax.jit(mixer.apply)(params, x, segments, state)
    keys = np.einsum("btd,dhk->bthk", x.astype(np.float64), params["input"]["kernel"][:, 4:8])
    for b in range(3):
        live = np.flatnonzero(segments.ids[b])
        assert state["count"][b] == len(live)
        for rank in range(len(live) - window, len(live)):
            slot, place = rank % window, live[rank]
            assert state["ids"][b, slot] == segments.ids[b, place]
            assert state["positions"][b, slot] == segments.positions[b, place]
            check_close(np.asarray(state["memory"]["key"])[b, slot], keys[b, place])


@pytest.mark.parametrize("window", [None, 6])
def test_more_tokens_than_the_cache_holds_give_nan(window):
    """Row 1 has padding in its first calls and still fits when the others do not."""
    mixer = attention(WIDTH, window=window)
    params, x = prepare(mixer)
    program = jax.jit(mixer.apply)
    segments = segments_of(["." * LENGTH, "pp.p...p.", "." * LENGTH])
    state = jax.device_get(mixer.init_state(3, 4))
    y, state = program(params, x[:, :4], cut(segments, 0, 4), state)
    assert np.all(np.isfinite(y))
    y, state = program(params, x[:, 4:5], cut(segments, 4, 5), state)
    assert np.all(np.isnan(np.asarray(y)[[0, 2]])) and np.all(np.isfinite(np.asarray(y)[1]))
    y, state = program(params, x[:, 5:9], cut(segments, 5, 9), state)
    live = segments.ids[:, 5:9] > 0
    assert np.all(np.isnan(np.asarray(y)[[0, 2]]))
    assert np.all(np.isnan(np.asarray(y)[1][live[1]])) and np.all(np.asarray(y)[1][~live[1]] == 0)


def test_a_window_forgets_without_nan():
    """A ring of its own window overflows by design: long decoding stays finite and equal to one call."""
    mixer = attention(WIDTH, window=3)
    params, x = prepare(mixer)
    program = jax.jit(mixer.apply)
    segments = segments_of(["." * LENGTH] * 3)
    wanted, _ = program(params, x, segments, None)
    state, pieces = jax.device_get(mixer.init_state(3, 3)), []
    for t in range(LENGTH):
        y, state = program(params, x[:, t : t + 1], cut(segments, t, t + 1), state)
        pieces.append(y)
    check_close(np.concatenate(pieces, axis=1), wanted)


def test_rope_sees_only_relative_positions():
    mixer = attention(WIDTH)
    params, x = prepare(mixer)
    program = jax.jit(mixer.apply)
    segments = segments_of(ROWS)
    y, _ = program(params, x, segments, None)
    moved, _ = program(params, x, segments._replace(positions=segments.positions + 100), None)
    check_close(moved, y, 3e-5)  # angles near 100 are rounded to 1e-5
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, x))
        y, _ = program(*wide, segments, None)
        moved, _ = program(*wide, segments._replace(positions=segments.positions + 100), None)
        check_close(np.asarray(moved), np.asarray(y), 1e-12)


def test_rows_of_equal_tokens_get_that_token_back():
    """The average of equal values is the value, whatever the scores are."""
    mixer = tanhdot(WIDTH)
    params, x = prepare(mixer)
    x = np.repeat(x[:, :1], LENGTH, axis=1)
    y, _ = jax.jit(mixer.apply)(params, x, segments_of(["." * LENGTH] * 3), None)
    check_close(y, x, 1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_state_needs_causality(causal):
    mixer = attention(WIDTH, causal=causal)
    if causal:
        assert mixer.init_state(1, 2)["count"].shape == (1,)
        return
    state = attention(WIDTH).init_state(1, 2)
    params, x = prepare(mixer)
    for attempt in (
        lambda: mixer.init_state(1, 2),
        lambda: jax.jit(mixer.apply)(params, x[:1, :1], segments_of(["."]), state),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 3},
        {"num_kv_heads": 3},
        {"window": 0},
        {"position": "absolute"},
        {"implementation": "fast"},
        {"num_heads": 16},
        {"sinks": 2},
        {"sinks": -1, "window": 3},
        {"sinks": 1, "window": 3, "causal": False},
        {"block": 0},
        {"block": 4, "window": 3},
        {"block": 4, "causal": False},
        {"memory_blocks": 0, "block": 4},
        {"chunk": 0},
        {"rope_fraction": 0.0},
        {"rope_fraction": 0.1},
        {"rope_fraction": 1.5},
        {"soft_cap": 0.0},
        {"soft_cap": 5.0, "implementation": "cudnn"},
    ],
    ids=str,
)
def test_wrong_choices_are_refused(options):
    with pytest.raises(ValueError) as caught:
        make_mixer("attn", WIDTH, **options)
    message = str(caught.value)
    assert "\n" not in message and str(next(iter(options.values()))) in message


def test_padding_in_the_cache_of_one_step():
    """A decoded padding token takes no slot and gives zero."""
    mixer = attention(WIDTH)
    params, x = prepare(mixer)
    program = jax.jit(mixer.apply)
    state = jax.device_get(mixer.init_state(3, 4))
    _, state = program(params, x[:, :1], segments_of(["."] * 3), state)
    y, after = program(params, x[:, 1:2], segments_of(["p"] * 3), state)
    assert not np.any(np.asarray(y))
    check_same(after, state)
