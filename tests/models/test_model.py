"""The Flax shell: scanning, recomputing, splitting and narrowing do not change what a model computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.models.build import (
    init_params,
    is_bounded,
    make_model,
    model_is_bounded,
    model_is_causal,
)
from hybrid_flax.models.model import Dropout, layer_mixer
from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.typing import Segments

V, D, B, T = 7, 8, 2, 12
OPTIONS = (("attn.num_heads", 2), ("swa.num_heads", 2), ("swa.window", 3))


def make(pattern, depth, **changes):
    return make_model(vocab_size=V, width=D, depth=depth, pattern=pattern, options=OPTIONS, **changes)


def random_params(model, seed=0):
    """Parameters away from zero and one, so that no bias or scale hides."""
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), params)


def tokens_and_segments(seed=0):
    """Two packed documents a row and padding inside."""
    rng = np.random.default_rng(seed)
    ids = np.array([[1] * 5 + [0] + [2] * 6, [1] * 9 + [2] * 3], np.int32)
    positions = np.array([[0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5], [*range(9), 0, 1, 2]], np.int32)
    return jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32), Segments(jnp.asarray(ids), jnp.asarray(positions))


def assert_near(one, other, bound=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.max(np.abs(a - b)) <= bound * max(np.max(np.abs(b)), 1e-6)


def unstack(params, model):
    """The parameters of scanned layers as those of layers side by side."""
    period = len(params["backbone"]["repeats"])
    repeats = len(model.design.layers) // period
    layers = {
        f"layer_{repeat * period + place}": jax.tree.map(
            lambda leaf, r=repeat: leaf[r], params["backbone"]["repeats"][f"layer_{place}"]
        )
        for repeat in range(repeats)
        for place in range(period)
    }
    for place, name in enumerate(params["backbone"].get("rest", {})):
        layers[f"layer_{repeats * period + place}"] = params["backbone"]["rest"][name]
    backbone = {"rest": layers, "norm": params["backbone"]["norm"]}
    return params | {"backbone": backbone}


def loss_and_grads(model, params):
    tokens, segments = tokens_and_segments()

    def loss(params):
        logits, _ = model.apply({"params": params}, tokens, segments)
        return jnp.sum(cross_entropy(logits, tokens), where=segments.ids > 0)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def scanned():
    """(model, params, loss and gradients) of four scanned repeats and a rest."""
    model = make("mingru,swa", 9, mlp="relu2", mlp_ratio=1.5)
    params = random_params(model)
    assert set(params["backbone"]) == {"repeats", "rest", "norm"}
    return model, params, loss_and_grads(model, params)


@pytest.mark.slow
def test_scanned_layers_are_layers(scanned):
    model, params, (loss, grads) = scanned
    plain = make("mingru,swa", 9, mlp="relu2", mlp_ratio=1.5, scan_layers=False)
    plain_loss, plain_grads = loss_and_grads(plain, unstack(params, model))
    assert_near(loss, plain_loss)
    assert_near(unstack(grads, model), plain_grads)
    with pytest.raises(AssertionError):
        swapped = unstack(params, model)
        rest = swapped["backbone"]["rest"]
        rest["layer_0"], rest["layer_2"] = rest["layer_2"], rest["layer_0"]
        assert_near(loss, loss_and_grads(plain, swapped)[0])


def test_scanned_layers_have_dropout_of_their_own():
    """Scanned layers have the same masks as the same layers without a scan."""
    model = make("conv", 4)
    params, (tokens, segments) = random_params(model), tokens_and_segments()
    dropout = Dropout(jax.random.split(jax.random.key(1), B), jnp.float32(0.5))
    y, _ = model.apply({"params": params}, tokens, segments, dropout=dropout)
    plain = make("conv", 4, scan_layers=False)
    z, _ = plain.apply({"params": unstack(params, model)}, tokens, segments, dropout=dropout)
    assert_near(y, z)


@pytest.mark.slow
def test_scanned_states_are_states(scanned):
    model, params, _ = scanned
    plain = make("mingru,swa", 9, mlp="relu2", mlp_ratio=1.5, scan_layers=False)
    tokens, segments = tokens_and_segments()
    y, _ = model.apply({"params": params}, tokens, segments, model.init_state(B, 16))
    z, _ = plain.apply({"params": unstack(params, model)}, tokens, segments, plain.init_state(B, 16))
    assert_near(y, z)


@pytest.mark.slow
def test_recomputing_changes_nothing(scanned):
    _, params, (loss, grads) = scanned
    again, again_grads = loss_and_grads(make("mingru,swa", 9, mlp="relu2", mlp_ratio=1.5, remat=True), params)
    assert_near(again, loss)
    assert_near(again_grads, grads)


CARRIED = [
    ("rglru,rglru,swa", 7),
    ("mingru,swa", 9),
    ("lru,s6", 9),
    ("cascade:lstm+attn", 1),
    ("context:gru+tanhdot,conv", 2),
    ("gate:cascade:gru+swa+swa@window=5,sharnn@window=4:conv", 9),
]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "depth"), CARRIED)
def test_state_carried_through_the_model(pattern, depth):
    """One call, two calls of unequal length, and token by token: the same outputs, and the same last state."""
    model = make(pattern, depth)
    params = random_params(model)
    tokens, segments = tokens_and_segments()
    apply = jax.jit(lambda tokens, segments, state: model.apply({"params": params}, tokens, segments, state))
    whole, nothing = model.apply({"params": params}, tokens, segments)
    assert nothing is None
    for cuts in ([T], [5, T], [*range(1, T + 1)]):
        state, outputs, start = model.init_state(B, T), [], 0
        for end in cuts:
            part = jax.tree.map(lambda leaf, s=slice(start, end): leaf[:, s], (tokens, segments))
            y, state = apply(*part, state)
            outputs.append(y)
            start = end
        y = jnp.concatenate(outputs, axis=1)
        live = np.asarray(segments.ids > 0)
        assert_near(y[live], whole[live])
        if len(cuts) == 1:
            last = state
        assert_near(jax.tree.map(jnp.asarray, state), last)


def test_mixed_precision():
    """bfloat16 inside; parameters, states, gradients and logits stay float32, and the numbers are near."""
    model, wide = make("gru,swa", 2, dtype="bfloat16", tied=False), make("gru,swa", 2, tied=False)
    params = random_params(model)
    tokens, segments = tokens_and_segments()
    logits, state = model.apply({"params": params}, tokens, segments, model.init_state(B, 16))
    exact, _ = wide.apply({"params": params}, tokens, segments, wide.init_state(B, 16))
    with jax.numpy_dtype_promotion("standard"):  # JAX asks for it when it compiles the gradient of its own attention
        loss, grads = loss_and_grads(model, params)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, logits, grads, loss))}
    assert dtypes == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    difference = float(jnp.max(jnp.abs(logits - exact)) / jnp.max(jnp.abs(exact)))
    assert 1e-5 < difference < 0.05


def test_tied_and_untied_heads():
    tokens, segments = tokens_and_segments()
    tied, untied = make("conv", 1, tied=True), make("conv", 1, tied=False)
    params = random_params(tied)
    assert set(params["head"]) == {"bias"}
    both = params | {"head": params["head"] | {"kernel": params["embed"]["embedding"].T}}
    y, _ = tied.apply({"params": params}, tokens, segments)
    z, _ = untied.apply({"params": both}, tokens, segments)
    assert_near(y, z)
    assert random_params(untied)["head"]["kernel"].shape == (D, V)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("mlp", ["none", "relu2", "gelu", "swiglu"])
def test_names_of_parameters(norm, mlp):
    model = make("conv", 1, norm=norm, mlp=mlp, mlp_ratio=2.0)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    layer = params["backbone"]["rest"]["layer_0"]
    names = {"none": set(), "swiglu": {"up", "gate", "down"}}.get(mlp, {"up", "down"})
    assert set(layer.get("mlp", {})) == names
    assert set(layer) == {"mixer", "mixer_norm"} | ({"mlp", "mlp_norm"} if names else set())
    assert set(layer["mixer_norm"]) == ({"scale"} if norm == "rms" else {"scale", "bias"})
    if names:
        assert layer["mlp"]["up"]["kernel"].shape == (D, 2 * D)


def test_maps_into_the_stream_start_smaller():
    """By the square root of the number of branches; nothing else depends on the depth."""
    key = jax.random.key(0)
    deep, flat = make("attn", 3, mlp="gelu"), make("attn", 1)
    deep_layer, flat_layer = (init_params(m, key)["backbone"]["rest"]["layer_0"] for m in (deep, flat))
    spread = [float(jnp.std(layer["mixer"]["output"]["kernel"])) for layer in (deep_layer, flat_layer)]
    assert spread[0] * 6**0.5 == pytest.approx(spread[1], rel=0.35)
    spread = [float(jnp.std(layer["mixer"]["input"]["kernel"])) for layer in (deep_layer, flat_layer)]
    assert spread[0] == pytest.approx(spread[1], rel=0.35)


def test_equal_arguments_give_the_identical_model():
    assert make("gru,swa", 5) is make("gru,swa", 5)
    assert make("gru,swa", 5) is not make("gru,swa", 6)
    unused = (*OPTIONS, ("lstm.state_width", 3))
    assert make_model(vocab_size=V, width=D, depth=5, pattern="gru,swa", options=unused) is make("gru,swa", 5)
    assert make("gru,swa", 5, norm="rms", tied=False, word_length=3) is make("gru,swa", 5)


def test_options_in_a_pattern_count_before_the_others():
    """However the pattern spells them; those of a fusion are options as any other."""
    model = make("add:swa@window=5@num_heads=1+swa, sharnn:gru", 2)
    assert model.design.layers == ("add:swa@num_heads=1@window=5+swa", "sharnn:gru")
    (a, b), (_, memory) = (dict(mixer.traits.parts).values() for mixer in model.design.mixers)
    sizes = [jax.eval_shape(lambda m=mixer: m.init_state(1, 999))["ids"].shape[1] for mixer in (a, b, memory)]
    assert sizes == [5, 3, 256]
    assert make("add:swa@num_heads=1@window=5+swa,sharnn:gru", 2) is model
    short = make_model(vocab_size=V, width=D, depth=1, pattern="sharnn:gru", options=(("sharnn.window", 9),))
    assert short.design.mixers == make("sharnn@window=9:gru", 1).design.mixers
    assert model_is_bounded(model) and not model_is_bounded(make("add:swa+gate:gru+attn", 1))


def test_what_is_not_given_is_as_the_knobs_have_it():
    design = make_model(vocab_size=V).design
    layers = ("cascade:lstm+attn",) * 2
    assert (design.width, design.layers, design.tied, design.mlp_ratio) == (128, layers, False, 4.0)
    assert len(design.mixers) == 1
    assert (design.num_outputs, design.pooling, design.crf, design.spelling) == (None, "none", False, None)


def test_the_program_does_not_grow_with_the_depth():
    tokens, segments = tokens_and_segments()

    def size(depth):
        model = make("cascade:lstm+swa", depth, mlp="gelu")
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        grad = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, tokens, segments)[0]))
        return str(jax.make_jaxpr(grad)(params)).count("\n")

    three, twelve = size(3), size(12)
    assert twelve < 1.5 * three
    assert size(24) < 1.1 * twelve


def test_what_a_model_is():
    assert model_is_causal(make("gru,attn", 2)) and not model_is_causal(make("gru,bi:gru", 2))
    assert not model_is_causal(make("gate:cascade:bi:gru+swa+conv", 2))
    assert model_is_bounded(make("gru,swa", 2)) and not model_is_bounded(make("gru,attn", 2))
    assert is_bounded(layer_mixer(make("cascade:lstm+swa", 1).design, "cascade:lstm+swa"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": "batch"}, "model.norm='batch' is none of rms, layer"),
        ({"mlp": "relu"}, "none, relu2, gelu, swiglu"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"pattern": "gru,lsmt"}, "nearest: lstm"),
        ({"pattern": "gru,add:gru+swa@windw=3"}, "layer 'add:gru+swa@windw=3' has an unknown option 'windw' of swa"),
        ({"pattern": "add:gru+swa@num_heads=3"}, "must divide the width 8"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"mlp_ration": 2.0}, "a model has no 'mlp_ration'; nearest: mlp_ratio"),
        ({"options": (("gru.heads", 3),)}, "unknown option 'heads'"),
        ({"pattern": "attn", "options": (("attn.num_heads", 3),)}, "must divide the width 8"),
    ],
)
def test_models_that_do_not_fit(changes, words):
    with pytest.raises(ValueError) as error:
        make_model(**{"vocab_size": V, "width": D, "depth": 2, "pattern": "gru"} | changes)
    assert words in str(error.value)
