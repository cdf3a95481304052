"""Cells against loops over time in float64: values and gradients, by one harness for every family.

An oracle file holds a table of `Oracle` and two tests, which call `check_values` and `check_gradients` for each entry.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_flax.certify.checks import check_close, require
from hybrid_flax.certify.subjects import noise, normal
from hybrid_flax.mixers.recurrent import recurrent
from hybrid_flax.typing import Cell, Segments

BATCH, LENGTH, WIDTH = 2, 9, 6
DIRECTIONS, STEP = 3, 1e-5  # central differences: how many directions per leaf, how far


class Oracle(NamedTuple):
    """A cell and its paper.

    loop: (params of the mixer, x[T, D], state of the cell) -> ([y_1, ...], state after the last step), for one row,
        in numpy; y_t stands before the output map, behind norm and gate where `options` ask for them.
    options: those of `recurrent`. prepare: (params, state) -> (params, state), for what noise alone cannot be.
    """

    cell: Cell
    loop: Callable
    options: Mapping[str, Any] = MappingProxyType({})
    prepare: Callable = lambda params, state: (params, state)


def check_values(oracle: Oracle, seed: int = 0) -> None:
    """Outputs and the last state, from a state that was given: a fresh one that is not zero counts."""
    mixer = recurrent(oracle.cell, WIDTH, **oracle.options)
    params, x, cell_state, _ = _draw(oracle, seed)
    state = jax.device_get(mixer.init_state(BATCH, LENGTH)) | {"cell": cell_state}
    y, after = jax.jit(mixer.apply)(params, x, _segments(), state)
    outputs, last = _run(oracle, *widen((params, x, cell_state)))
    check_close(np.asarray(y), outputs)
    check_close(jax.device_get(after["cell"]), last)


def check_gradients(oracle: Oracle, seed: int = 0) -> None:
    """Gradients with respect to every parameter, the inputs and the initial state."""
    params, x, state, rng = _draw(oracle, seed)
    dy = rng.standard_normal(x.shape)

    def ours(params, x, state):
        # The gradient stops at a state that is passed in, not at the one that a cell starts from.
        cell = oracle.cell._replace(init_state=lambda batch_size: state)
        y, _ = recurrent(cell, WIDTH, **oracle.options).apply(params, x, _segments())
        return jnp.vdot(y, dy)

    def loop(params, x, state):
        return np.vdot(_run(oracle, params, x, state)[0], dy)

    compare_gradients(ours, loop, (params, x, state), rng)


def compare_gradients(ours: Callable, loop: Callable, arguments: tuple, rng: np.random.Generator) -> None:
    """jax.grad of ours(*arguments) against central differences of loop(*arguments), leaf by leaf, in float64.

    Both give one real number; `ours` is jax and `loop` is numpy.
    """
    arguments = widen(arguments)
    with jax.enable_x64(True):
        program = jax.jit(jax.value_and_grad(ours, tuple(range(len(arguments)))))
        value, gradients = jax.device_get(program(*arguments))
    check_close(value, np.asarray(loop(*arguments)), 1e-9)
    leaves, structure = jax.tree.flatten(arguments)
    for place, (path, gradient) in enumerate(jax.tree.leaves_with_path(gradients)):
        wanted, found = [], []
        for _ in range(DIRECTIONS):
            direction = noisy(leaves[place], rng)
            ends = []
            for sign in (1.0, -1.0):
                moved = [*leaves[:place], leaves[place] + sign * STEP * direction, *leaves[place + 1 :]]
                ends.append(loop(*jax.tree.unflatten(structure, moved)))
            wanted.append((ends[0] - ends[1]) / (2.0 * STEP))
            found.append(np.sum(gradient * direction).real)
        where = jax.tree_util.keystr(path)
        require(np.any(wanted), f"{where}: the loop does not depend on it")
        check_close({where: np.stack(found)}, {where: np.stack(wanted)})


def noisy(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """Standard normal in the shape and dtype of `leaf`."""
    values = rng.standard_normal(leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(leaf.shape)
    return values.astype(leaf.dtype)


def widen(tree: Any) -> Any:
    """Every leaf in float64 or complex128."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.promote_types(leaf.dtype, np.float64)), tree)


def _draw(oracle, seed):
    rng = np.random.default_rng(seed)
    params = noise(recurrent(oracle.cell, WIDTH, **oracle.options).init, rng)
    shapes = jax.eval_shape(lambda: oracle.cell.init_state(BATCH))
    params, state = oracle.prepare(params, jax.tree.map(lambda leaf: noisy(leaf, rng), shapes))
    return params, normal(rng, BATCH, LENGTH, WIDTH), state, rng


def _run(oracle, params, x, state):
    """The loop over every row, its outputs mapped back to the width as `recurrent` does."""
    rows = [oracle.loop(params, x[b], jax.tree.map(lambda leaf, b=b: leaf[b], state)) for b in range(BATCH)]
    y = np.stack([np.stack(ys) for ys, _ in rows])
    if "output" in params:
        y = y @ params["output"]["kernel"]
    return y, jax.tree.map(lambda *leaves: np.stack(leaves), *(last for _, last in rows))


def _segments():
    return jax.device_get(Segments.single(BATCH, LENGTH))


# What the loops of several families need


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0.0, x)


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    """The tanh approximation of Hendrycks & Gimpel 2016."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def standardise(x):
    """Ba et al. 2016, equation 4, without gain and bias."""
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def gates_of(params):
    """Per gate, its W [D, N] and b [N], as a list."""
    kernel, bias = params["input"]["kernel"], params["input"]["bias"]
    return [(kernel[:, gate], bias[gate]) for gate in range(bias.shape[0])]


def recurrent_gates(params):
    """Per gate, its R [N, N], as a list."""
    kernel = params["cell"]["recurrent_kernel"]
    return [kernel[:, gate] for gate in range(kernel.shape[1])]


def block_diagonal(kernel):
    """[D / blocks, blocks, N / blocks] as the full matrix [D, N]."""
    rows, blocks, columns = kernel.shape
    full = np.zeros((blocks * rows, blocks * columns))
    for k in range(blocks):
        full[k * rows : (k + 1) * rows, k * columns : (k + 1) * columns] = kernel[:, k]
    return full
