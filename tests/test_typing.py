"""The contracts of mixers and cells, and the named shapes, as a type checker and the test runner see them."""

import inspect
from functools import partial
from typing import get_type_hints

import jax.numpy as jnp
import pytest
import tiny

from hybrid_flax import typing as contracts
from hybrid_flax.cells.affine import make_affine_cell
from hybrid_flax.cells.inputs import linear
from hybrid_flax.mixers.registry import make_cell, make_mixer, registered_mixers
from hybrid_flax.ops.rope import rope
from hybrid_flax.typing import (
    Cell,
    CellFinish,
    CellForm,
    CellInitState,
    CellStep,
    Init,
    Mixer,
    MixerApply,
    MixerInitState,
)

PROTOCOLS = [Init, MixerInitState, MixerApply, CellInitState, CellStep, CellForm, CellFinish]


def plain(key):
    return {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_function_may_be_a_field(protocol):
    for given in (plain, lambda key: {}, partial(plain, None), plain.__call__):
        assert isinstance(given, protocol)
    assert not isinstance(3, protocol)


def arguments(function):
    return [parameter.name for parameter in inspect.signature(function).parameters.values()]


def wanted(protocol):
    return arguments(protocol.__call__)[1:]


@pytest.mark.parametrize("name", registered_mixers())
def test_registered_names_keep_the_contract(name):
    """What the package itself builds calls its arguments as the protocols do."""
    mixer = make_mixer(name, 16)
    fields = get_type_hints(Mixer)
    for field in ("init", "init_state", "apply"):
        assert isinstance(getattr(mixer, field), fields[field])
        assert arguments(getattr(mixer, field)) == wanted(fields[field])
    cell = None if ":" in name else make_cell(name, 16)
    if cell is None:
        return
    fields = get_type_hints(Cell)
    for field in ("init", "init_state", "step"):
        assert arguments(getattr(cell, field)) == wanted(fields[field])
    for form in cell.forms.values():
        assert isinstance(form, CellForm)
        assert arguments(form)[-5:] == wanted(CellForm)
    if cell.finish is not None:
        assert arguments(cell.finish) == wanted(CellFinish)


def test_what_is_no_function_is_refused_where_a_cell_is_made():
    def coefficients(params, u):
        return u, u

    assert isinstance(make_affine_cell(linear(4, (4,)), coefficients, (4,)).init, Init)
    with pytest.raises(Exception, match="init"):
        make_affine_cell(linear(4, (4,)), coefficients, (4,), init=3)


def test_named_shapes_are_checked():
    heads, positions = jnp.zeros((2, 3, 4, 6)), jnp.zeros((2, 3), jnp.int32)
    assert rope(heads, positions).shape == heads.shape
    for wrong in (positions[:, :2], positions[0], positions.astype(jnp.float32)):
        with pytest.raises(Exception, match="positions"):
            rope(heads, wrong)


def test_every_name_of_the_vocabulary_is_there():
    assert sorted(contracts.__all__) == sorted(set(contracts.__all__))
    assert all(hasattr(contracts, name) for name in contracts.__all__)


def test_the_package_says_that_it_is_typed():
    assert (tiny.ROOT / "hybrid_flax/py.typed").exists()
