"""Mixers as loops over rows, tokens and keys in float64 numpy, written from the equations of their papers.

Each loop is (params, x[B,T,D], segments, options) -> y[B,T,D]; padding gives zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cells.oracle import compare_gradients, sigmoid, standardise, widen

from hybrid_flax.certify.checks import check_close


def check_values(mixer, loop, params, x, segments):
    """Outputs without a state."""
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    check_close(y, loop(*widen((params, x)), segments))


def check_gradients(mixer, loop, params, x, segments, frozen=False):
    """Gradients with respect to parameters and inputs. frozen: the loop takes constants beside them (XL memory)."""
    rng = np.random.default_rng(1)
    dy = rng.standard_normal(x.shape)
    constants = {"frozen": widen((params, x))} if frozen else {}

    def ours(params, x):
        return jnp.vdot(mixer.apply(params, x, jax.tree.map(jnp.asarray, segments))[0], dy)

    def total(params, x):
        return np.vdot(loop(params, x, segments, **constants), dy)

    compare_gradients(ours, total, (params, x), rng)


def softmax_average(scores, values):
    weights = np.exp(np.asarray(scores) - max(scores))
    return sum(w * v for w, v in zip(weights, values)) / weights.sum()


def rms_normalise(x, scale):
    return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def layer_normalise(x, scale, bias):
    return standardise(x) * scale + bias


def rotate(x, position, base=10_000.0):
    """Su et al. 2021: the pair (i, i + K/2) is a complex number, turned by position * base^(-2i/K)."""
    half = len(x) // 2
    angle = position * base ** (-2.0 * np.arange(half) / len(x))
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def readable(segments, b, t, *, causal=True, window=None, sinks=0, block=None, memory_blocks=1):
    """Places that token t of row b may read, from the words of the options."""
    ids, positions = segments
    for s in range(ids.shape[1]):
        here, there = int(positions[b, t]), int(positions[b, s])
        near = window is None or abs(here - there) < window or there < sinks
        if block is not None:
            near = there // block >= here // block - memory_blocks
        if ids[b, s] == ids[b, t] and not (causal and there > here) and near:
            yield s


def attention_loop(params, x, segments, options, frozen=None):
    """Vaswani et al. 2017, with what `options` of `attention` ask for.

    frozen: (params, x) of which earlier blocks make their keys and values, by default those of the call.
    """
    heads_of = options["num_heads"]
    groups = options.get("num_kv_heads", heads_of)
    position, base = options.get("position", "rope"), options.get("rope_base", 10_000.0)
    width = params["input"]["kernel"].shape[-1]
    turned = int(options.get("rope_fraction", 1.0) * width)
    reach = {key: options[key] for key in ("causal", "window", "sinks", "block", "memory_blocks") if key in options}
    old_params, old_x = frozen or (params, x)
    places_of = segments.positions
    y = np.zeros(x.shape)

    def head_of(params, x, place, head, norm):
        vector = x[place] @ params["input"]["kernel"][:, head]
        if norm and options.get("qk_norm"):
            vector = rms_normalise(vector, params[norm]["scale"])
        if norm and position == "rope":
            return np.concatenate([rotate(vector[:turned], places_of[place], base), vector[turned:]])
        return vector

    for b, t in np.argwhere(segments.ids > 0):
        contexts = []
        for head in range(heads_of):
            group = head // (heads_of // groups)
            query = head_of(params, x, (b, t), head, "query_norm")
            scores, values = [], []
            for s in readable(segments, b, t, **reach):
                distance = places_of[b, t] - places_of[b, s]
                block = options.get("block")
                earlier = block is not None and places_of[b, s] // block < places_of[b, t] // block
                source = (old_params, old_x) if earlier else (params, x)
                key = head_of(*source, (b, s), heads_of + group, "key_norm")
                score = query @ key
                if position == "relative":  # Dai et al. 2019, section 3.3: (a) + (b) + (c) + (d)
                    angles = distance * base ** (-2.0 * np.arange(width // 2) / width)
                    sinusoid = np.concatenate([np.cos(angles), np.sin(angles)])
                    offset = sinusoid @ params["relative"]["kernel"][:, head]
                    score = score + query @ offset
                    score = score + params["content"]["bias"][head] @ key + params["relative"]["bias"][head] @ offset
                score = score / np.sqrt(width)
                cap = options.get("soft_cap")
                if cap is not None:
                    score = cap * np.tanh(score / cap)
                if position == "alibi":
                    score = score - 2.0 ** (-8.0 * (head + 1) / heads_of) * abs(distance)
                scores.append(score)
                values.append(head_of(*source, (b, s), heads_of + groups + group, None))
            contexts.append(softmax_average(scores, values))
        y[b, t] = np.concatenate(contexts) @ params["output"]["kernel"]
    return y


def tanhdot_loop(params, x, segments, options=()):
    y = np.zeros(x.shape)
    for b, t in np.argwhere(segments.ids > 0):
        places = list(readable(segments, b, t, **dict(options)))
        query = np.tanh(x[b, t] @ params["kernel"])
        y[b, t] = softmax_average([query @ x[b, s] for s in places], [x[b, s] for s in places])
    return y


def sha_loop(params, x, segments, options):
    """Merity 2019: the attention of a SHA-RNN, gates of one vector each, the value's over-parameterised."""
    query_gate, key_gate, value_gate = sigmoid(params["gates"]["bias"])
    candidate = value_gate @ params["value"]["kernel"][:, 0] + params["value"]["bias"][0]
    forget = value_gate @ params["value"]["kernel"][:, 1] + params["value"]["bias"][1]
    value_gate = sigmoid(forget) * np.tanh(candidate)
    y = np.zeros(x.shape)
    for b, t in np.argwhere(segments.ids > 0):
        state = layer_normalise(x[b, t], **params["state_norm"])
        query = state @ params["query"]["kernel"] + params["query"]["bias"]
        query = query_gate * layer_normalise(query, **params["query_norm"])
        memory = [layer_normalise(x[b, s], **params["memory_norm"]) for s in readable(segments, b, t, **options)]
        scores = [query @ (key_gate * m) / np.sqrt(len(m)) for m in memory]
        y[b, t] = softmax_average(scores, [value_gate * m for m in memory])
    return y


def elman_loop(params, x, segments):
    """Elman 1990, every document from a state of zero."""
    kernel, bias = params["input"]["kernel"][:, 0], params["input"]["bias"][0]
    y = np.zeros(x.shape)
    for b, row in enumerate(segments.ids):
        for document in sorted(set(row) - {0}):
            h = np.zeros(kernel.shape[1])
            for t in np.flatnonzero(row == document):
                h = np.tanh(x[b, t] @ kernel + bias + h @ params["cell"]["recurrent_kernel"][:, 0])
                y[b, t] = h
    return y
