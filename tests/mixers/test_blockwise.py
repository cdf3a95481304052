"""Block recurrence against a loop over documents, blocks and tokens in float64."""

import jax
import numpy as np
import pytest
from cells.oracle import sigmoid
from mixers.loops import check_gradients, check_values, rms_normalise, rotate, softmax_average

from hybrid_flax.certify.checks import check_close
from hybrid_flax.certify.mixer_properties import any_split, causality, packing
from hybrid_flax.certify.subjects import make_subject, noise, normal, segments_of
from hybrid_flax.mixers.blockwise import blockrec
from hybrid_flax.mixers.registry import make_mixer

LENGTH, WIDTH, HEADS, STATES = 16, 8, 2, 3
ROWS = ["..n..p..p.n....p", "pp.........n....", "................"]


def make(block=3, gate="fixed"):
    mixer = blockrec(WIDTH, num_states=STATES, block=block, num_heads=HEADS, gate=gate)
    rng = np.random.default_rng(0)
    return mixer, noise(mixer.init, rng), normal(rng, len(ROWS), LENGTH, WIDTH)


def one_head(queries, keys, values):
    return [softmax_average([q @ k / np.sqrt(len(q)) for k in keys], values) for q in queries]


def advance(params, states, tokens, gate):
    """The states after a block, from those before it and from the (key, value) of its tokens per head."""
    own, ours, keys, values = state_heads(params, states)
    heads = []
    for h in range(HEADS):
        heads.append((one_head(ours[h], keys[h], values[h]), one_head(own[h], *zip(*tokens[h]))))
    updated = []
    for m, state in enumerate(states):
        read = np.concatenate([heads[h][kind][m] for kind in (0, 1) for h in range(HEADS)])
        maps = [read @ params["update"]["kernel"][:, j] + b for j, b in enumerate(params["update"]["bias"])]
        if gate == "fixed":
            g = sigmoid(params["gate"]["bias"])
            updated.append(g * state + (1.0 - g) * maps[0])
        else:
            updated.append(sigmoid(maps[2]) * state + sigmoid(maps[1]) * np.tanh(maps[0]))
    return updated


def state_heads(params, states):
    """Per head: queries for tokens, queries for states, keys, values."""
    named = [rms_normalise(c + e, params["states"]["scale"]) for c, e in zip(states, params["states"]["bias"])]
    kernel = params["states"]["kernel"]
    maps = [[[s @ kernel[:, kind * HEADS + h] for s in named] for h in range(HEADS)] for kind in range(4)]
    return maps[1], maps[0], maps[2], maps[3]


def loop_of(block, gate):
    """Hutchins et al. 2022, section 3: figure 2's two directions, in the order of the blocks."""

    def document(params, x):
        kernel = params["input"]["kernel"]
        states, ys, keys, values = [np.zeros(WIDTH)] * STATES, [], [], []
        for t, x_t in enumerate(x):
            maps = [[x_t @ kernel[:, kind * HEADS + h] for h in range(HEADS)] for kind in range(4)]
            keys.append(maps[2])
            values.append(maps[3])
            first = max(0, (t // block - 1) * block)
            _, _, state_keys, state_values = state_heads(params, states)
            from_tokens, from_states = [], []
            for h in range(HEADS):
                turned = [rotate(keys[s][h], s) for s in range(first, t + 1)]
                seen = [values[s][h] for s in range(first, t + 1)]
                from_tokens += one_head([rotate(maps[0][h], t)], turned, seen)
                from_states += one_head([maps[1][h]], state_keys[h], state_values[h])
            ys.append(np.concatenate(from_tokens + from_states) @ params["output"]["kernel"])
            if t % block == block - 1:
                span = range(t - block + 1, t + 1)
                tokens = [[(keys[s][h], values[s][h]) for s in span] for h in range(HEADS)]
                states = advance(params, states, tokens, gate)
        return ys

    def loop(params, x, segments):
        y = np.zeros(x.shape)
        for b, row in enumerate(segments.ids):
            for identity in sorted(set(row) - {0}):
                places = np.flatnonzero(row == identity)
                y[b, places] = document(params, x[b, places])
        return y

    return loop


@pytest.mark.parametrize("block,gate", [(3, "fixed"), (4, "lstm"), (1, "lstm"), (20, "fixed")])
def test_blockrec_equals_its_paper(block, gate):
    """Blocks within a document, blocks of one token, and documents that fill no block."""
    mixer, params, x = make(block, gate)
    check_values(mixer, loop_of(block, gate), params, x, segments_of(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["fixed", "lstm"])
def test_gradients_equal_finite_differences(gate):
    mixer, params, x = make(3, gate)
    check_gradients(mixer, loop_of(3, gate), params, x, segments_of(ROWS))


def test_the_state_after_a_block_is_that_of_the_loop():
    mixer, params, x = make(4, "lstm")
    _, state = jax.jit(mixer.apply)(params, x, segments_of(["." * LENGTH] * 3), mixer.init_state(3, 1))
    kernel = params["input"]["kernel"].astype(np.float64)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for b in range(3):
        heads = [np.einsum("td,dk->tk", x[b], kernel[:, place]) for place in range(2 * HEADS, 4 * HEADS)]
        states = [np.zeros(WIDTH)] * STATES
        for start in range(0, LENGTH, 4):
            span = slice(start, start + 4)
            tokens = [list(zip(heads[h][span], heads[HEADS + h][span])) for h in range(HEADS)]
            states = advance(wide, states, tokens, "lstm")
        check_close(np.asarray(state["states"])[b], np.stack(states))


@pytest.mark.slow
def test_the_other_gate_has_the_certificate():
    mixer = blockrec(16, num_states=STATES, block=3, gate="lstm")
    subject = make_subject("blockrec", mixer, noise(mixer.init, np.random.default_rng(0)))
    any_split(subject, ROWS, (8, 1, 3, 3, 1), 0)
    packing(subject, [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], [(0, 1, 2), (3, 9, 15), (7, 8, 12)], 0)
    causality(subject, ROWS, 12, 0)


@pytest.mark.parametrize(
    "options", [{"num_heads": 3}, {"num_heads": 8}, {"gate": "open"}, {"block": 0}, {"num_states": 0}], ids=str
)
def test_wrong_choices_are_refused(options):
    with pytest.raises(ValueError) as caught:
        make_mixer("blockrec", WIDTH, **options)
    message = str(caught.value)
    assert "\n" not in message and str(next(iter(options.values()))) in message
