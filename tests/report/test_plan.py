"""The plan against real arrays and against XLA's count of the unrolled program."""

import io

import jax
import jax.numpy as jnp
import pytest
import tiny
from rich.console import Console

from hybrid_flax.models.build import init_params
from hybrid_flax.models.model import layer_mixer
from hybrid_flax.report.plan import make_plan, print_plan
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import init_train_state
from hybrid_flax.typing import Segments

PATTERNS = {
    "lstm": {},
    "gru": {"model__depth": 2},
    "cascade:lstm+attn": {"model__depth": 2, "mixers__attn__num_heads": 2},
    "rglru,rglru,swa": {"model__depth": 4, "model__mlp": "swiglu", "model__mlp_ratio": 2.0},
}


def make(pattern, text, **changes):
    return make_setup(tiny.tiny_config(text, model__pattern=pattern, **PATTERNS.get(pattern, {}), **changes))


@pytest.fixture(scope="module", params=PATTERNS)
def setup(request, text):
    return make(request.param, text, data__length=16)


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_sizes_are_those_of_real_arrays(setup):
    model, length = setup.model, 16
    plan = make_plan(setup, 10)
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    assert plan.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    state = init_train_state(params, setup.hparams, setup.traits, jax.random.key(0))
    assert plan.optimizer_bytes == nbytes((state.params, state.opt_state, state.ema))
    assert plan.gradient_bytes == nbytes(params)
    assert sum(row.state_bytes + row.cache_bytes for row in plan.layers) == nbytes(model.init_state(1, length))
    for row, layer in zip(plan.layers, model.design.layers):
        mixer = layer_mixer(model.design, layer)
        assert row.state_bytes == nbytes(mixer.init_state(1, 0))
        assert row.state_bytes + row.cache_bytes == nbytes(mixer.init_state(1, length))


def test_rows_sum_to_the_whole(setup):
    plan = make_plan(setup, 10)
    assert sum(row.parameters for row in plan.layers) == plan.parameters
    assert sum(row.forward_flops for row in plan.layers) == pytest.approx(plan.forward_flops)
    assert len(plan.layers) == len(setup.model.design.layers) + 1
    assert all(row.forward_flops > 0 and row.decode_flops > 0 for row in plan.layers)
    assert plan.train_flops > 2 * plan.forward_flops
    assert plan.tokens_per_step == 4 * 16
    printed = io.StringIO()
    print_plan(plan, Console(file=printed, width=120))
    assert f"{plan.parameters:,}" in printed.getvalue() and setup.model.design.layers[0] in printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("length", [8, 20])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_forward_flops_within_five_percent_of_the_unrolled_program(pattern, length, text, monkeypatch):
    setup = make(pattern, text, data__length=length)
    model = setup.model
    ours = make_plan(setup, 10).forward_flops
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    scan = jax.lax.scan

    def unrolled(f, init, xs=None, length=None, **options):
        steps = length if xs is None else jax.tree.leaves(xs)[0].shape[0]
        return scan(f, init, xs, length, **options | {"unroll": steps})

    monkeypatch.setattr(jax.lax, "scan", unrolled)
    forward = jax.jit(lambda p, tokens, *segments: model.apply({"params": p}, tokens, Segments(*segments))[0])
    xla = forward.lower(params, ids, ids, ids).cost_analysis()["flops"]
    assert ours == pytest.approx(xla / length, rel=0.05)


def test_decoding_costs_do_not_depend_on_the_length_where_the_state_does_not(text):
    def layer(pattern, length, **changes):
        return make_plan(make(pattern, text, data__length=length, **changes), 10).layers[0]

    short, long = (layer("lstm", length) for length in (8, 64))
    assert short == long._replace(forward_flops=short.forward_flops)
    short, long = (layer("attn", length, mixers__attn__num_heads=2) for length in (8, 64))
    assert long.cache_bytes == 8 * short.cache_bytes and long.decode_flops > short.decode_flops
    assert long.forward_flops > short.forward_flops


def test_too_little_memory_is_a_warning_in_one_line(text, monkeypatch, capsys):
    found = make_plan(make_setup(tiny.tiny_config(text)), 6)
    assert found.device_bytes == found.optimizer_bytes + found.gradient_bytes + found.activation_bytes
    for available, warns in ((found.device_bytes, 0), (found.device_bytes - 1, 1)):
        monkeypatch.setattr("hybrid_flax.report.plan.device_memory", lambda available=available: available)
        print_plan(found)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        assert len(lines) == warns and all("data.batch_size" in line for line in lines)


def test_a_plan_of_more_than_there_is_holds_nothing(text):
    """A batch of gigabytes is planned from its shapes."""
    config = tiny.tiny_config(text, data__batch_size=2**19, model__width=2**14, model__pattern="gru", model__depth=3)
    assert make_plan(make_setup(config), 6).device_bytes > 2**40


def test_accumulation_keeps_fewer_activations(text):
    plans = [make_plan(make_setup(tiny.tiny_config(text, optim__accumulate=k)), 10) for k in (1, 4)]
    assert plans[1].activation_bytes < 0.5 * plans[0].activation_bytes
    assert plans[1].parameters == plans[0].parameters
