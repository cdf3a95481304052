"""Every fusion against its formula, composed by hand of the parts' own apply."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells.oracle import sigmoid
from mixers import loops

from hybrid_flax import Segments, make_mixer
from hybrid_flax.certify.checks import check_close, check_same
from hybrid_flax.certify.mixer_properties import (
    any_split,
    causality,
    initial_parameters,
    left_padding,
    packing,
    reach,
    refuses_state,
)
from hybrid_flax.certify.subjects import BATCH, LENGTH, WIDTH, draw, make_subject, noise, normal, segments_of
from hybrid_flax.mixers import fusion

ROWS = ["..n..p..p.n....p", "pp.........n....", "................"]
PARTS = "gru+tanhdot"


def prepare(mixer):
    rng = np.random.default_rng(0)
    params = noise(mixer.init, rng)
    return params, normal(rng, BATCH, LENGTH, WIDTH)


@functools.cache
def program_of(name):
    """A registered mixer compiled."""
    return jax.jit(make_mixer(name, WIDTH).apply)


def rms_normalise(x, scale):
    return np.apply_along_axis(loops.rms_normalise, -1, x, scale)


def layer_normalise(x, scale, bias):
    return np.apply_along_axis(loops.layer_normalise, -1, x, scale, bias)


def by_hand(name, params, x, run_a, run_b):
    """The formula in the docstring of the fusion, in numpy."""
    if name == "cascade":
        h = run_a(x)
        return h + run_b(h)
    if name == "add":
        return run_a(x) + run_b(x)
    if name == "gate":
        g = sigmoid(x @ params["gate"]["kernel"] + params["gate"]["bias"])
        return g * run_a(x) + (1.0 - g) * run_b(x)
    if name == "parallel":
        branches = zip((run_a(x), run_b(x)), (params["a_norm"]["scale"], params["b_norm"]["scale"]))
        return sum(rms_normalise(h, scale) for h, scale in branches) / 2.0
    if name == "feed":
        return run_b(layer_normalise(x + params["residual"]["scale"] * run_a(x), **params["norm"]))
    if name == "sharnn":
        h = run_a(x)
        return layer_normalise(h, **params["b"]["state_norm"]) + run_b(h)
    if name == "concat":
        return np.concatenate([run_a(x), run_b(x)], axis=-1) @ params["output"]["kernel"]
    return run_b(run_a(x))


@pytest.mark.parametrize("name", ["cascade", "add", "gate", "concat", "context", "parallel", "feed"])
def test_fusion_equals_its_formula(name):
    """With state and without; the state of a fusion is that of its parts."""
    mixer = make_mixer(f"{name}:{PARTS}", WIDTH)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    program = jax.jit(mixer.apply)
    parts = dict(mixer.traits.parts)
    assert [part.traits.spec[0] for part in parts.values()] == PARTS.split("+")
    for state in (None, jax.device_get(mixer.init_state(BATCH, LENGTH))):
        y, after = program(params, x, segments, state)
        parts_after = {}

        def run(key, x, state=state, parts_after=parts_after):
            part_state = None if state is None else state[key]
            program = program_of(parts[key].traits.spec[0])
            y, parts_after[key] = program(params[key], np.asarray(x), segments, part_state)
            return np.asarray(y)

        wanted = by_hand(name, params, x, functools.partial(run, "a"), functools.partial(run, "b"))
        check_close(y, wanted)
        if state is None:
            assert after is None
        else:
            check_close(after, parts_after)


@pytest.mark.parametrize("name", ["cascade", "add", "gate", "concat", "context", "parallel", "feed", "sharnn", "bi"])
def test_gradients_equal_finite_differences(name):
    """Of the whole fusion in numpy, with a tanh network and the tanh query for parts, values as well."""
    a, b = make_mixer("tanh", WIDTH), make_mixer("tanhdot", WIDTH)
    mixer = fusion.sharnn(a, WIDTH, window=3) if name == "sharnn" else make_mixer("bi:tanh", WIDTH)
    if name not in ("sharnn", "bi"):
        mixer = getattr(fusion, name)(a, b, WIDTH)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)

    def loop(params, x, segments):
        def run_a(x):
            return loops.elman_loop(params["a"], x, segments)

        def run_b(x):
            if name == "sharnn":
                return loops.sha_loop(params["b"], x, segments, {"window": 3})
            if name == "bi":
                back = Segments(segments.ids[:, ::-1], segments.positions)
                return loops.elman_loop(params["b"], x[:, ::-1], back)[:, ::-1]
            return loops.tanhdot_loop(params["b"], x, segments)

        y = by_hand("concat" if name == "bi" else name, params, x, run_a, run_b)
        return np.where((segments.ids > 0)[..., None], y, 0.0)

    loops.check_values(mixer, loop, params, x, segments)
    loops.check_gradients(mixer, loop, params, x, segments)


@pytest.mark.parametrize("shut,open", ["ab", "ba"])
def test_a_parallel_branch_of_scale_zero_leaves_the_other_alone(shut, open):
    mixer = make_mixer("parallel:mingru+swa", WIDTH, window=5)
    params, x = prepare(mixer)
    params[f"{shut}_norm"]["scale"] = np.zeros_like(params[f"{shut}_norm"]["scale"])
    segments = segments_of(ROWS)
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    alone, _ = jax.jit(dict(mixer.traits.parts)[open].apply)(params[open], x, segments, None)
    check_close(2.0 * y, rms_normalise(np.asarray(alone, np.float64), params[f"{open}_norm"]["scale"]), 1e-6)


def test_a_feed_of_scale_zero_is_the_recurrence_of_a_norm():
    """SRU++ starts from the recurrence alone."""
    mixer = make_mixer("feed:swa+mingru", WIDTH, window=5)
    params = jax.jit(mixer.init)(jax.random.key(0))
    assert not np.any(params["residual"]["scale"])
    _, x = prepare(mixer)
    segments = segments_of(ROWS)
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    normal_x = layer_normalise(x.astype(np.float64), 1.0, 0.0).astype(np.float32)
    alone, _ = program_of("mingru")(params["b"], normal_x, segments, None)
    check_close(y, alone)


@pytest.mark.slow
def test_a_recurrence_over_its_own_states_forgets_beyond_its_window():
    mixer = fusion.sharnn(make_mixer("gru", WIDTH), WIDTH, window=5)
    subject = make_subject("sharnn", mixer, noise(mixer.init, np.random.default_rng(0)))
    assert subject.fresh["b"]["ids"].shape == (BATCH, 5)
    any_split(subject, ROWS, (8, 1, 3, 3, 1), 0)


def test_bi_equals_two_directions_turned_by_hand():
    """Each document alone is turned around, run forward and turned back."""
    mixer = make_mixer("bi:gru", WIDTH)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)
    program = program_of("gru")
    forward, _ = program(params["a"], x, segments, None)
    turned_x, places = x.copy(), []
    for b, row in enumerate(segments.ids):
        order = np.arange(LENGTH)
        for document in set(row) - {0}:
            where = np.flatnonzero(row == document)
            order[where] = where[::-1]
        places.append(order)
        turned_x[b] = x[b, order]
    turned, _ = program(params["b"], turned_x, segments, None)
    backward = np.stack([np.asarray(turned)[b, order] for b, order in enumerate(places)])
    y, after = jax.jit(mixer.apply)(params, x, segments, None)
    wanted = np.concatenate([forward, backward], axis=-1) @ params["output"]["kernel"]
    assert after is None
    check_close(y, wanted)


def test_reversed_attention_reads_the_future_alone():
    """With reversed positions too, causal attention from the end is a mask of the future."""
    part = make_mixer("attn", WIDTH)
    subject = make_subject("reversed", fusion.reverse(part), noise(part.init, np.random.default_rng(0)))
    params, x, _ = draw(subject, 0)
    segments = segments_of(ROWS)
    dy = np.zeros_like(x)
    dy[:, 8] = 1.0
    _, _, dx, _ = subject.pull(params, x, segments, None, dy)
    reached = np.max(np.abs(dx), axis=-1) > 0
    same = (segments.ids == segments.ids[:, [8]]) & (segments.ids > 0)
    assert np.array_equal(reached, same & (np.arange(LENGTH) >= 8))


@pytest.mark.parametrize("bias,branch", [(1e4, "a"), (-1e4, "b")])
def test_a_shut_gate_is_one_branch_alone(bias, branch):
    mixer = make_mixer("gate:mingru+swa", WIDTH, window=5)
    params, x = prepare(mixer)
    params["gate"]["bias"] = np.full_like(params["gate"]["bias"], bias)
    segments = segments_of(ROWS)
    y, _ = jax.jit(mixer.apply)(params, x, segments, None)
    alone, _ = jax.jit(dict(mixer.traits.parts)[branch].apply)(params[branch], x, segments, None)
    check_close(y, alone, 1e-6)


def test_traits_of_fusions():
    mixer = make_mixer("cascade:gru+attn", WIDTH)
    assert mixer.traits.causal and [name for name, _ in mixer.traits.parts] == ["a", "b"]
    bi = make_mixer("bi:gru", WIDTH)
    assert not bi.traits.causal
    assert not make_mixer("add:gru+attn", WIDTH, causal=False).traits.causal


def test_branches_of_equal_names_have_parameters_of_their_own():
    mixer = make_mixer("add:gru+gru", WIDTH)
    params = jax.jit(mixer.init)(jax.random.key(0))
    assert not np.array_equal(params["a"]["input"]["kernel"], params["b"]["input"]["kernel"])


NESTED = (
    "gate:cascade:tanh+conv+swa@window=5",
    "context:add:conv+tanh+concat:conv+tanh",
    "sharnn@window=3:feed:conv+tanh",
)


@pytest.mark.parametrize("layer", NESTED)
def test_a_fusion_of_fusions_has_the_certificate(layer):
    """The combinators are closed under composition."""
    mixer = make_mixer(layer, WIDTH)
    subject = make_subject(layer, mixer, noise(mixer.init, np.random.default_rng(0)))
    any_split(subject, ROWS, (8, 8), 0)
    left_padding(subject, 0)
    causality(subject, ROWS, 9, 0)
    initial_parameters(subject)


def test_a_nested_fusion_equals_its_parts_fused_by_hand():
    """Prefix notation: add(cascade(gru, tanhdot), tanh)."""
    mixer = make_mixer("add:cascade:gru+tanhdot+tanh", WIDTH)
    params, x = prepare(mixer)
    segments = segments_of(ROWS)

    def run(name, params, x):
        return np.asarray(program_of(name)(params, x, segments, None)[0])

    h = run("gru", params["a"]["a"], x)
    wanted = h + run("tanhdot", params["a"]["b"], h) + run("tanh", params["b"], x)
    check_close(jax.jit(mixer.apply)(params, x, segments, None)[0], wanted)


@pytest.mark.parametrize("layer", ["bi:gate:gru+conv", "bi:bi:gru", "gate:bi:gru+conv", "context:bi:gru+conv"])
def test_both_directions_may_stand_anywhere(layer):
    """Packed documents are each alone; the future is read; the same rows turned around give the other direction."""
    mixer = make_mixer(layer, WIDTH)
    subject = make_subject(layer, mixer, noise(mixer.init, np.random.default_rng(0)))
    assert not mixer.traits.causal and subject.fresh is None
    packing(subject, [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)], [(0, 1, 2), (3, 9, 15), (7, 8, 12)], 0)
    causality(subject, ROWS, 9, 0)
    reach(subject, 0)
    refuses_state(subject)


def test_a_reversed_fusion_is_one_of_reversed_parts():
    """Which its traits say, so that whoever looks into a fusion looks into a reversed one."""
    gate = make_mixer("gate:gru+attn", WIDTH)
    turned = fusion.reverse(gate)
    params, x = prepare(turned)
    segments = segments_of(ROWS)
    parts = dict(turned.traits.parts)
    assert [part.traits.spec[1][0] for part in parts.values()] == ["gru", "attn"]
    assert parts["a"].traits.watched is None and parts["b"].traits.watched is not None
    wanted, _ = jax.jit(turned.apply)(params, x, segments, None)
    y, _ = jax.jit(turned.traits.rebuild(*parts.values()).apply)(params, x, segments, None)
    check_close(y, wanted)
    g = sigmoid(x @ params["gate"]["kernel"] + params["gate"]["bias"])
    a, b = (np.asarray(jax.jit(parts[key].apply)(params[key], x, segments, None)[0]) for key in "ab")
    check_close(y, np.where((segments.ids > 0)[..., None], g * a + (1 - g) * b, 0))


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda params, x, run_a, run_b: run_a(run_a(x)), "runs its part a twice"),
        (lambda params, x, run_a, run_b: run_b(x), "must run both of its parts, and runs b"),
        (lambda params, x, run_a, run_b: x, "must run both of its parts, and runs none"),
    ],
)
def test_a_formula_that_does_not_run_its_parts_once_is_refused(combine, message):
    part = make_mixer("conv", WIDTH)
    mixer = fusion.fuse("own", part, part, combine)
    params, x = prepare(mixer)
    with pytest.raises(ValueError, match=f"^fusion own {message}"):
        jax.eval_shape(mixer.apply, params, x, segments_of(ROWS))


def test_parameters_of_a_fusion_and_of_its_parts_have_names_apart():
    part = make_mixer("conv", WIDTH)
    mixer = fusion.fuse("own", part, part, lambda params, x, run_a, run_b: run_a(x), lambda key: {"b": {}, "c": {}})
    with pytest.raises(ValueError, match=r"^fusion own: parameters b are those of its parts"):
        mixer.init(jax.random.key(0))


@pytest.mark.parametrize("layer", ["bi:gru", "bi:attn", "gate:bi:gru+conv", "context:conv+bi:gru", "bi:add:gru+conv"])
def test_what_reads_the_future_refuses_a_state(layer):
    mixer = make_mixer(layer, WIDTH)
    params, x = prepare(mixer)
    part_state = make_mixer("gru", WIDTH).init_state(BATCH, LENGTH)
    segments = Segments(*map(jnp.asarray, segments_of(ROWS)))
    for attempt in (
        lambda: mixer.init_state(BATCH, LENGTH),
        lambda: jax.jit(mixer.apply)(params, x, segments, {"a": part_state, "b": part_state}),
        lambda: jax.jit(mixer.apply)(params, x, segments, {"a": part_state}),
        lambda: jax.jit(mixer.apply)(params, x, segments, ()),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_outputs_at_padding_are_exactly_zero_in_every_fusion():
    for name in ("concat", "gate"):
        mixer = make_mixer(f"{name}:conv+tanhdot", WIDTH)
        params, x = prepare(mixer)
        segments = segments_of(ROWS)
        y, _ = jax.jit(mixer.apply)(params, x, segments, None)
        check_same(np.asarray(y)[segments.ids == 0], np.zeros((np.sum(segments.ids == 0), WIDTH), np.float32))
