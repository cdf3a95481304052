"""Sixteen thousand tokens with decays near 1 and near 0: nothing overflows, forward or backward, in any form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.certify.checks import check_finite
from hybrid_flax.certify.subjects import normal
from hybrid_flax.mixers.recurrent import recurrent
from hybrid_flax.mixers.registry import make_cell
from hybrid_flax.typing import Segments

LENGTH, WIDTH = 16_384, 4

# By name: the parameter that decides about the decay, and what brings it near 1 and near 0 for every token.
LONG = {
    "mingru": (("input", "bias"), [[-20], [0]], [[20], [0]]),
    "minlstm": (("input", "bias"), [[20], [-20], [0]], [[-20], [20], [0]]),
    "rglru": (("cell", "decay"), -20, 20),
    "lru": (("cell", "timescale"), -20, 10),
    "s5": (("cell", "timescale"), -20, 10),
    "hgrn": (("input", "bias"), [[20], [0], [0]], [[-20], [0], [0]]),
    "s6": (("cell", "timescale"), -20, 20),
    "qrnn": (("input", "bias"), [[0], [20], [0]], [[0], [-20], [0]]),
    "sru": (("input", "bias"), [[0], [20], [0]], [[0], [-20], [0]]),
    "lstm": (("input", "bias"), [[0], [20], [0], [0]], [[0], [-20], [0], [0]]),
    "slstm": (("input", "bias"), [[0], [20], [0], [0]], [[0], [-20], [0], [0]]),
    "gla": (("input", "b", "b", "bias"), 20, -1e4),
    "hgrn2": (("input", "bias"), 20, -20),
    "ssd": (("cell", "decay"), -20, 20),
    "mlstm": (("input", "b", "bias"), [[0], [20]], [[0], [-20]]),
    "gdn": (("cell", "decay"), -20, 20),
    "rwkv7": (("input", "b", "up", "bias"), [[-20], [0]], [[20], [0]]),
}


def added(params, path, change):
    """`params` with `change` added to the leaf at `path`."""
    key, *rest = path
    return params | {key: added(params[key], rest, change) if rest else params[key] + np.float32(change)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_sequences_stay_finite(name):
    path, *decays = LONG[name]
    cell = make_cell(name, WIDTH)
    rng = np.random.default_rng(0)
    x, dy = normal(rng, 2, 1, LENGTH, WIDTH)
    base = jax.device_get(jax.jit(recurrent(cell, WIDTH).init)(jax.random.key(0)))
    for form in ("sequential", *cell.forms):
        mixer = recurrent(cell, WIDTH, form=form)

        def scalar(params, x, mixer=mixer):
            y, _ = mixer.apply(params, x, Segments.single(1, LENGTH))
            return jnp.vdot(y, dy), y

        program = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))
        for change in decays:
            gradients, y = program(added(base, path, change), x)
            check_finite((gradients, y))
            assert np.any(gradients[1])
