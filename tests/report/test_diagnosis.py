"""What a diagnosis says of a model is what its parts do, computed by hand or by other models."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from hybrid_flax.data.pipeline import eval_windows, tokenize
from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.mixers.registry import make_mixer, registered_mixers
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.swap import swapped, unscanned
from hybrid_flax.report.diagnosis import diagnose, print_diagnosis
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.typing import Segments

TEXTS = ["she sells sea shells", "by", "the sea shore, he does not"]
TASK = make_language_modelling()
WIDTH, LENGTH = 8, 12
OPTIONS = (("attn.num_heads", 2), ("attn.position", "none"))


def model_of(pattern, depth=1, seed=0):
    """(model, random parameters)."""
    model = make_model(vocab_size=TOKENIZER.vocab_size, width=WIDTH, depth=depth, pattern=pattern, options=OPTIONS)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


TOKENIZER = make_tokenizer("char", TEXTS)
_ALL = eval_windows(tokenize(TEXTS, TOKENIZER), batch_size=3, length=LENGTH)
BATCHES = [jax.tree.map(jnp.asarray, _ALL[index]) for index in range(2)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens, segments):
    return model.apply({"params": params}, tokens, segments)[0]


def mean_loss(model, params):
    nats = count = 0.0
    for batch in BATCHES:
        segments = batch.segments
        logits = _apply(model, params, batch.tokens, segments)
        sums = TASK.loss(logits, batch)
        nats, count = nats + sums["loss"], count + sums["count"]
    return nats / count


def layer_input(model, params, batch):
    """What the mixer of the first layer reads, (x, segments)."""
    x = params["embed"]["embedding"][batch.tokens]
    x = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6)
    return x * layer(params)["mixer_norm"]["scale"][None, None], batch.segments


def layer(params):
    return params["backbone"]["rest"]["layer_0"]


@pytest.fixture(scope="module")
def gated():
    """(model, parameters, its diagnosis) of a gate over a tanh network and attention."""
    model, params = model_of("gate:tanh+attn")
    return model, params, diagnose(model, TASK, params, BATCHES)


def test_names_and_places(gated):
    parts = gated[2].parts
    assert [(part.layer, part.path, part.name) for part in parts] == [
        (0, (), "gate:tanh+attn"),
        (0, ("a",), "tanh"),
        (0, ("b",), "attn"),
    ]
    assert gated[2].rows == sum(int((batch.segments.ids > 0).any(axis=1).sum()) for batch in BATCHES)


def test_loss_and_gradients_are_those_of_the_model(gated):
    model, params, found = gated
    loss, gradient = jax.jit(jax.value_and_grad(lambda params: mean_loss(model, params)))(params)
    assert found.loss == pytest.approx(float(loss), rel=1e-5)

    def norm(tree):
        return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))

    whole, a, b = (part.gradient_norm for part in found.parts)
    mixer = layer(gradient)["mixer"]
    assert (whole, a, b) == pytest.approx((norm(mixer), norm(mixer["a"]), norm(mixer["b"])), rel=1e-4)
    assert found.gradients["layer 0"] == pytest.approx(norm(layer(gradient)), rel=1e-4)
    assert sum(value**2 for value in found.gradients.values()) == pytest.approx(norm(gradient) ** 2, rel=1e-4)


def test_norms_and_gate_are_those_of_the_outputs(gated):
    model, params, found = gated
    own = layer(params)["mixer"]
    outputs, gates = {"a": [], "b": []}, []
    parts = {"a": make_mixer("tanh", WIDTH), "b": make_mixer("attn", WIDTH, num_heads=2, position="none")}
    runs = {name: jax.jit(mixer.apply) for name, mixer in parts.items()}
    for batch in BATCHES:
        x, segments = layer_input(model, params, batch)
        live = np.asarray(segments.ids > 0)
        for name, run in runs.items():
            outputs[name].append(np.asarray(run(own[name], x, segments)[0])[live])
        pre = np.asarray(x, np.float64)[live] @ np.asarray(own["gate"]["kernel"]) + np.asarray(own["gate"]["bias"])
        gates.append(1 / (1 + np.exp(-pre)))
    a, b = (np.sqrt(np.mean(np.square(np.concatenate(outputs[name])))) for name in "ab")
    whole, first, second = found.parts
    assert (first.rms, second.rms) == pytest.approx((a, b), rel=1e-4)
    assert whole.ratio is None and (first.ratio, second.ratio) == pytest.approx((a / b, b / a), rel=1e-4)
    g = np.concatenate(gates)
    assert (whole.gate.mean, whole.gate.std) == pytest.approx((g.mean(), g.std()), rel=1e-4)
    assert whole.gate.histogram == pytest.approx(np.histogram(g, 10, (0, 1))[0] / g.size, abs=1e-6)
    assert first.gate is None and second.gate is None


def test_distance_is_that_of_the_softmax(gated):
    """A loop over queries, in float64."""
    model, params, found = gated
    kernel = np.asarray(layer(params)["mixer"]["b"]["input"]["kernel"], np.float64)
    distances = []
    for batch in BATCHES:
        x, segments = layer_input(model, params, batch)
        heads = np.einsum("btd,dhk->bthk", np.asarray(x, np.float64), kernel)
        query, key = heads[:, :, :2], heads[:, :, 2:4]
        for row, t in np.argwhere(segments.ids > 0):
            seen = [s for s in range(t + 1) if segments.ids[row, s] == segments.ids[row, t]]
            scores = np.einsum("hk,shk->hs", query[row, t], key[row, seen]) / np.sqrt(WIDTH / 2)
            weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            distances.append(weights @ (t - np.array(seen)))
    assert found.parts[2].distance == pytest.approx(np.mean(distances, axis=0), rel=1e-4)
    assert found.parts[0].distance is None and found.parts[1].distance is None


def test_a_gate_that_is_shut_needs_nothing_of_the_other_part(gated):
    """b alone is what is left; without b nothing is, which is the loss without the layer."""
    model, params, _ = gated
    own = layer(params)["mixer"]
    shut = own | {"gate": {"kernel": jnp.zeros((WIDTH, WIDTH)), "bias": jnp.full(WIDTH, -100.0, jnp.float32)}}
    params = jax.tree.map(lambda leaf: leaf, params)
    params["backbone"]["rest"]["layer_0"]["mixer"] = shut
    found = diagnose(model, TASK, params, BATCHES)
    whole, a, b = found.parts
    assert a.loss_without == pytest.approx(found.loss, rel=1e-6)
    assert b.loss_without == pytest.approx(whole.loss_without, rel=1e-6) and b.loss_without != found.loss
    assert whole.gate.mean == pytest.approx(0.0, abs=1e-6) and whole.gate.histogram[0] == 1.0


def test_without_its_second_part_a_cascade_is_its_first():
    """And without the layer, the norm and the head read the embedding."""
    model, params = model_of("cascade:tanh+conv")
    rest = params["backbone"] | {"rest": {"layer_0": layer(params) | {"mixer": layer(params)["mixer"]["a"]}}}
    wanted = mean_loss(model_of("tanh")[0], params | {"backbone": rest})
    found = {part.path: part.loss_without for part in diagnose(model, TASK, params, BATCHES).parts}
    assert found["b",] == pytest.approx(float(wanted), rel=1e-5)
    nats = count = 0.0
    for batch in BATCHES:
        x = params["embed"]["embedding"][batch.tokens]
        scale = params["backbone"]["norm"]["scale"][None, None]
        x = x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale
        head = params["head"].get("kernel", params["embed"]["embedding"].T)
        sums = TASK.loss(x @ head + params["head"]["bias"][None, None], batch)
        nats, count = nats + sums["loss"], count + sums["count"]
    assert found[()] == pytest.approx(float(nats / count), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in registered_mixers() if ":" in name])
def test_a_fusion_is_rebuilt_from_its_parts(name):
    """The same parts give the same function, so that a knocked-out part is all that differs."""
    mixer = make_mixer(name, WIDTH)
    parts = [part for _, part in mixer.traits.parts]
    again = mixer.traits.rebuild(*parts)
    assert [part for _, part in again.traits.parts] == parts
    params = jax.eval_shape(mixer.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, 3, WIDTH), jnp.float32)

    def program(mixer):
        return str(jax.make_jaxpr(lambda params, x: mixer.apply(params, x, Segments.single(1, 3))[0])(params, x))

    assert program(again) == program(mixer)
    silent = [part._replace(apply=lambda params, x, segments, state=None: (0 * x, None)) for part in parts]
    assert program(mixer.traits.rebuild(*silent)) != program(mixer)


def test_gates_and_heads_are_found_in_every_fusion():
    """Also in a reversed one, whose gate and heads are those of the same rows turned around by hand."""
    model, params = model_of("add:bi:gate:conv+attn+swa@window=3")
    found = {"".join(part.path): part for part in diagnose(model, TASK, params, BATCHES).parts}
    names = {path: part.name for path, part in found.items()}
    assert names == {
        "": "add:bi:gate:conv+attn+swa@window=3",
        "a": "bi",
        "aa": "gate",
        "aaa": "conv",
        "aab": "attn",
        "ab": "reverse gate",
        "aba": "reverse conv",
        "abb": "reverse attn",
        "b": "swa",
    }
    assert {path for path, part in found.items() if part.gate} == {"aa", "ab"}
    assert {path for path, part in found.items() if part.distance} == {"aab", "abb", "b"}
    own = layer(params)["mixer"]["a"]["b"]
    gates, distances = [], []
    for batch in BATCHES:
        x, segments = layer_input(model, params, batch)
        live = np.asarray(segments.ids > 0)
        pre = np.asarray(x, np.float64)[live] @ np.asarray(own["gate"]["kernel"]) + np.asarray(own["gate"]["bias"])
        gates.append(1 / (1 + np.exp(-pre)))
        heads = np.einsum("btd,dhk->bthk", np.asarray(x), np.asarray(own["b"]["input"]["kernel"]))
        query, key = heads[:, :, :2], heads[:, :, 2:4]
        for row, t in np.argwhere(live):
            seen = [s for s in range(t, LENGTH) if segments.ids[row, s] == segments.ids[row, t]]
            scores = np.exp(np.einsum("hk,shk->hs", query[row, t], key[row, seen]) / np.sqrt(WIDTH / 2))
            distances.append(scores / scores.sum(axis=1, keepdims=True) @ (np.array(seen) - t))
    assert found["ab"].gate.mean == pytest.approx(np.concatenate(gates).mean(), rel=1e-4)
    assert found["abb"].distance == pytest.approx(np.mean(distances, axis=0), rel=1e-4)
    assert len({part.loss_without for part in found.values()}) == len(found)
    assert all(part.loss_without != found[""].loss_without for path, part in found.items() if path)


def test_layers_that_are_scanned_are_taken_apart_in_order():
    model, params = model_of("conv,sru", depth=9)
    assert "repeats" in params["backbone"] and "rest" in params["backbone"]
    single, own = unscanned(model, params)
    batch = BATCHES[0]
    arguments = batch.tokens, batch.segments
    wanted = jax.jit(lambda params: model.apply({"params": params}, *arguments)[0])(params)
    seen = []

    def swap(layer, mixer):
        seen.append((layer, mixer.traits.spec[0]))
        return mixer

    with swapped(swap):
        found = jax.jit(lambda params: single.apply({"params": params}, *arguments)[0])(own)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    assert seen == [(index, ("conv", "sru")[index % 2]) for index in range(9)]


def test_what_is_printed(gated):
    text = io.StringIO()
    print_diagnosis(gated[2], "title", Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text.getvalue()
    gate = gated[2].parts[0].gate
    assert f"{gate.mean:.2f}±{gate.std:.2f}" in text.getvalue() and f"loss {gated[2].loss:.4f}" in text.getvalue()
