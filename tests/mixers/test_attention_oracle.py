"""Attention against loops over rows, heads, queries and keys in float64, and the behaviour of its cache."""

import jax
import numpy as np
import pytest

from hybrid_flax.certify.compare import check_close, check_same
from hybrid_flax.certify.subjects import cut, noise, normal, segments_of
from hybrid_flax.mixers.attention import attention, tanhdot

LENGTH, WIDTH = 9, 16
ROWS = ["....n....", "pp.p...p.", "........."]


def prepare(mixer, seed=0):
    rng = np.random.default_rng(seed)
    params = noise(mixer.init, rng)
    return params, normal(rng, len(ROWS), LENGTH, WIDTH)


def softmax_average(scores, values):
    weights = np.exp(np.asarray(scores) - max(scores))
    return sum(w * v for w, v in zip(weights, values)) / weights.sum()


def readable(segments, b, t, causal, window):
    """Places that token t of row b may read, from the words: own document, not later, nearer than the window."""
    ids, positions = segments
    for s in range(LENGTH):
        apart = int(positions[b, t]) - int(positions[b, s])
        if ids[b, s] == ids[b, t] and not (causal and apart < 0) and (window is None or abs(apart) < window):
            yield s


def rotate(x, position, base):
    """Su et al. 2021: the pair (i, i + K/2) is a complex number, turned by position * base^(-2i/K)."""
    half = len(x) // 2
    angle = position * base ** (-2.0 * np.arange(half) / len(x))
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def normalise(x, scale):
    return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def attention_loop(params, x, segments, num_heads, groups, *, causal, window, position, qk_norm, base):
    kernel = params["input"]["kernel"]
    y = np.zeros(x.shape)
    for b, t in np.argwhere(segments.ids > 0):
        heads = []
        for head in range(num_heads):
            group = head // (num_heads // groups)
            w_q, w_k, w_v = (kernel[:, h] for h in (head, num_heads + group, num_heads + groups + group))

            def turn(vector, place, name, b=b):
                if qk_norm:
                    vector = normalise(vector, params[name]["scale"])
                return rotate(vector, segments.positions[b, place], base) if position == "rope" else vector

            query = turn(x[b, t] @ w_q, t, "query_norm")
            places = list(readable(segments, b, t, causal, window))
            scores = [query @ turn(x[b, s] @ w_k, s, "key_norm") / np.sqrt(kernel.shape[-1]) for s in places]
            heads.append(softmax_average(scores, [x[b, s] @ w_v for s in places]))
        y[b, t] = np.concatenate(heads) @ params["output"]["kernel"]
    return y


CASES = {
    "multi_head": {},
    "grouped": {"num_kv_heads": 2},
    "multi_query": {"num_kv_heads": 1},
    "head_width": {"num_heads": 3, "head_width": 6},
    "window": {"window": 3},
    "no_position": {"position": "none"},
    "rope_base": {"rope_base": 50.0},
    "qk_norm": {"qk_norm": True},
    "not_causal": {"causal": False},
    "not_causal_window": {"causal": False, "window": 2},
    "einsum": {"implementation": "einsum", "num_kv_heads": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_attention_equals_its_paper(case):
    options = {"num_heads": 4} | CASES[case]
    mixer = attention(WIDTH, **options)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    wanted = attention_loop(
        wide,
        x.astype(np.float64),
        segments,
        options["num_heads"],
        options.get("num_kv_heads", options["num_heads"]),
        causal=options.get("causal", True),
        window=options.get("window"),
        position=options.get("position", "rope"),
        qk_norm=options.get("qk_norm", False),
        base=options.get("rope_base", 10_000.0),
    )
    check_close(y, wanted)


@pytest.mark.parametrize("causal", [True, False])
def test_tanhdot_equals_its_formula(causal):
    mixer = tanhdot(WIDTH, causal=causal)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    kernel, wide = params["kernel"].astype(np.float64), x.astype(np.float64)
    wanted = np.zeros(x.shape)
    for b, t in np.argwhere(segments.ids > 0):
        places = list(readable(segments, b, t, causal, None))
        query = np.tanh(wide[b, t] @ kernel)
        wanted[b, t] = softmax_average([query @ wide[b, s] for s in places], [wide[b, s] for s in places])
    check_close(y, wanted)


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
    ],
    ids=str,
)
def test_wrong_choices_are_refused(options):
    with pytest.raises(ValueError) as caught:
        attention(WIDTH, **options)
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
