"""Places: one name for a parameter, whether or not its layer is scanned."""

import jax
import numpy as np
import pytest

from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.places import by_place, find_places, leaf_places, replace_places


def params_of(depth, *, scan_layers, pattern="gru,swa"):
    options = (("swa.num_heads", 2),)
    fields = {"pattern": pattern, "depth": depth, "width": 4, "scan_layers": scan_layers, "mlp": "relu2"}
    return init_params(make_model(vocab_size=5, options=options, **fields), jax.random.key(depth))


@pytest.mark.parametrize("depth", [1, 9])
def test_places_do_not_know_of_the_scan(depth):
    """Nine layers are four scanned repeats of two, and one that is left over."""
    scanned, plain = (by_place(params_of(depth, scan_layers=scan)) for scan in (True, False))
    assert scanned.keys() == plain.keys()
    assert {place: leaf.shape for place, leaf in scanned.items()} == {
        place: leaf.shape for place, leaf in plain.items()
    }
    layers = {place.split(".")[1] for place in scanned if place.startswith("backbone.layer")}
    assert layers == {f"layer_{index}" for index in range(depth)}
    shapes = by_place(jax.eval_shape(lambda: params_of(depth, scan_layers=True)))
    assert {place: leaf.shape for place, leaf in shapes.items()} == {p: leaf.shape for p, leaf in scanned.items()}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_what_is_replaced_is_found_again(scan_layers):
    params = params_of(9, scan_layers=scan_layers)
    rng = np.random.default_rng(0)
    given = {p: rng.normal(size=leaf.shape) for p, leaf in by_place(params).items() if rng.random() < 0.5}
    found = by_place(replace_places(params, given))
    for place, leaf in by_place(params).items():
        np.testing.assert_array_equal(found[place], given.get(place, leaf))
    jax.tree.map(np.testing.assert_array_equal, replace_places(params, {}), params)


def test_chosen_places_are_whole_leaves_or_entries_of_stacks():
    params = params_of(9, scan_layers=True)
    places = leaf_places(params)
    chosen = {p for all_of in places for p in all_of if ".layer_2." in p or p.startswith("head") or "swa" in p}
    for leaf, names, mask in zip(jax.tree.leaves(params), places, find_places(params, chosen), strict=True):
        wanted = [name in chosen for name in names]
        if isinstance(mask, bool):
            assert set(wanted) == {mask}
        else:
            assert mask.ndim == leaf.ndim and mask.reshape(-1).tolist() == wanted and len(set(wanted)) == 2
