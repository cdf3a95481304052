"""Weights of attention and gates of fusions, against loops over the parameters in float64."""

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax.data.tokenizers import make_tokenizer
from hybrid_flax.insides import read_attention, read_gates
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.training.folder import Run

TEXT = "a bad cab."


def make_run(pattern, depth=1, task="lm", **options):
    """With jittered parameters."""
    tokenizer = make_tokenizer("char", ["abcd. "])
    model = make_model(
        vocab_size=tokenizer.vocab_size, width=8, depth=depth, pattern=pattern, options=tuple(sorted(options.items()))
    )
    leaves, tree = jax.tree.flatten(jax.jit(init_params, static_argnums=0)(model, jax.random.key(0)))
    rng = np.random.default_rng(1)
    leaves = [np.asarray(leaf) + 0.5 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    config = tiny.tiny_config("text.txt")
    config.task.name = task
    return Run(model, jax.tree.unflatten(tree, leaves), tokenizer, config, 0)


def layer_of(run):
    """(the parameters of the mixer of the only layer, what it reads [T, D]) in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run.params)
    backbone = params["backbone"]
    block = (
        jax.tree.map(lambda leaf: leaf[0], backbone["repeats"]["layer_0"])
        if "repeats" in backbone
        else backbone["rest"]["layer_0"]
    )
    x = params["embed"]["embedding"][run.tokenizer.encode(TEXT)]
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * block["mixer_norm"]["scale"]
    return block["mixer"], x


def tanhdot_weights(params, x):
    scores = np.tanh(x @ params["kernel"]) @ x.T
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_weights_are_those_of_the_scores():
    run = make_run("tanhdot")
    found = read_attention(run, TEXT)
    assert found.tokens == tuple(TEXT)
    np.testing.assert_allclose(found.at["0"][0], tanhdot_weights(*layer_of(run)), atol=1e-5)


def test_a_reversed_attention_reads_what_follows():
    run = make_run("bi:tanhdot", task="classify")
    run = run._replace(labels=("x", "y"))
    params, x = layer_of(run)
    found = read_attention(run, TEXT)
    np.testing.assert_allclose(found.at["0.a"][0], tanhdot_weights(params["a"], x), atol=1e-5)
    back = tanhdot_weights(params["b"], x[::-1])[::-1, ::-1]
    np.testing.assert_allclose(found.at["0.b"][0], back, atol=1e-5)


@pytest.mark.parametrize("pattern", ["attn", "swa@window=3", "alibi", "sink@window=3@sinks=2", "xl@block=4@chunk=4"])
def test_rows_sum_to_one_and_see_no_future(pattern):
    run = make_run(f"gru,add:cascade:lstm+{pattern}+{pattern}", depth=4)
    found = read_attention(run, TEXT)
    assert set(found.at) == {"1.a.b", "1.b", "3.a.b", "3.b"}
    for weights in found.at.values():
        assert weights.shape[1:] == (len(TEXT), len(TEXT))
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-5)
        assert np.all(weights[:, ~np.tri(len(TEXT), dtype=bool)] == 0.0)
        if pattern.startswith("swa"):
            assert np.all(weights[:, np.tri(len(TEXT), k=-3, dtype=bool)] == 0.0)


def test_gates_are_those_of_the_parameters():
    run = make_run("gate:gru+swa")
    params, x = layer_of(run)
    wanted = 1 / (1 + np.exp(-(x @ params["gate"]["kernel"] + params["gate"]["bias"])))
    found = read_gates(run, TEXT)
    assert found.tokens == tuple(TEXT)
    np.testing.assert_allclose(found.at["0"], wanted, atol=1e-5)
    assert read_gates(make_run("add:gru+swa"), TEXT).at == {}


def test_nothing_to_read():
    with pytest.raises(ValueError, match="text '' has no tokens to read"):
        read_attention(make_run("attn"), "")
