"""The costs of every mixer against real arrays and against XLA's count of the unrolled program."""

import jax
import jax.numpy as jnp
import pytest
from sampling import FAMILIES, sampled

from hybrid_flax.certify.subjects import narrowed
from hybrid_flax.config import ConfigError
from hybrid_flax.mixers.registry import make_mixer, registered_mixers
from hybrid_flax.report.costs import mixer_cost, write_costs
from hybrid_flax.typing import Segments

WIDTH = 64  # below that, XLA's count of cumulative sums, quadratic in the length, outweighs a mixer as small as conv


@pytest.mark.parametrize("length", [pytest.param(8, marks=pytest.mark.slow), 20])
@pytest.mark.parametrize("name", sampled(registered_mixers(), FAMILIES))
def test_forward_flops_within_five_percent_of_the_unrolled_program(name, length, monkeypatch):
    mixer = make_mixer(name, WIDTH, **narrowed(name))
    ours = mixer_cost(mixer, WIDTH, length).forward_flops
    scan = jax.lax.scan

    def unrolled(f, init, xs=None, length=None, **options):
        steps = length if xs is None else jax.tree.leaves(xs)[0].shape[0]
        return scan(f, init, xs, length, **options | {"unroll": max(steps, 1)})

    monkeypatch.setattr(jax.lax, "scan", unrolled)
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: unrolled(lambda _, x: ((), f(x)), (), xs)[1])
    params = jax.eval_shape(mixer.init, jax.random.key(0))
    x, ids = jnp.zeros((1, length, WIDTH)), jnp.ones((1, length), jnp.int32)
    forward = jax.jit(lambda p, x, *segments: mixer.apply(p, x, Segments(*segments))[0])
    assert ours * length == pytest.approx(forward.lower(params, x, ids, ids).cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize("name", sampled(registered_mixers(), FAMILIES))
def test_sizes_are_those_of_real_arrays(name):
    mixer = make_mixer(name, WIDTH, **narrowed(name))
    cost = mixer_cost(mixer, WIDTH, 24)
    params = jax.eval_shape(mixer.init, jax.random.key(0))
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost.train_flops > 2 * cost.forward_flops > 0
    if not mixer.traits.causal:
        assert cost.state_bytes is cost.cache_bytes is cost.decode_flops is None
        return
    fixed, whole = (sum(leaf.nbytes for leaf in jax.tree.leaves(mixer.init_state(1, size))) for size in (0, 24))
    assert (cost.state_bytes, cost.cache_bytes) == (fixed, whole - fixed)


def test_table(capsys, tmp_path):
    write_costs(["lstm", "attn", "gate:bi:gru+swa@window=5"], 32, 64, tmp_path / "costs")
    text = (tmp_path / "costs" / "costs.md").read_text()
    assert text == capsys.readouterr().out
    assert len([line for line in text.splitlines() if line.startswith("| `")]) == 3
    for names, width in ((["lsmt"], 32), (["swa@windw=5"], 32), ([], 0)):
        with pytest.raises(ConfigError):
            write_costs(names, width, 64, None)
