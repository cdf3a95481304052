"""Weights as safetensors: the same bits back, and a line for every file that is not what it should be."""

import random

import engines
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_flax.errors import ConfigError
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.models.places import by_place
from hybrid_flax.training.weights import read_weights, write_weights

engines.library("safetensors")


def params_of(scan_layers=True, **fields):
    fields = {"pattern": "gru", "depth": 4, "width": 4, "scan_layers": scan_layers} | fields
    return init_params(make_model(vocab_size=5, **fields), jax.random.key(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
def test_the_same_bits_come_back(dtype, tmp_path):
    """In their dtypes, whether or not the layers are scanned there."""
    params = params_of()
    if dtype != "float32":
        chosen = random.Random(0)
        params = jax.tree.map(
            lambda leaf: leaf.astype("bfloat16") if dtype == "bfloat16" or chosen.random() < 0.5 else leaf, params
        )
    from safetensors.numpy import load_file

    write_weights(tmp_path / "w.safetensors", params, 7)
    found, step = read_weights(tmp_path / "w.safetensors", params_of())
    assert step == 7
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    plain = by_place(read_weights(tmp_path / "w.safetensors", params_of(scan_layers=False))[0])
    for place, leaf in by_place(params).items():
        assert np.asarray(leaf).tobytes() == np.asarray(plain[place]).tobytes()
    assert set(load_file(tmp_path / "w.safetensors")) == set(plain)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "header", "bit", "folder"])
def test_a_damaged_file_is_a_line(damage, tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, params_of(), 7)
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data = b""
    elif damage == "cut":
        data = data[:-5]
    elif damage == "text":
        data = b"no weights at all\n" * 9
    elif damage == "header":
        data[9] ^= 4
    else:
        data[-3] ^= 1
    path.write_bytes(data)
    if damage == "folder":
        path = tmp_path
    with pytest.raises(ConfigError, match=r"is damaged|is no file") as error:
        read_weights(path, params_of())
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_no_flipped_bit_is_read(tmp_path):
    path, rng = tmp_path / "w.safetensors", random.Random(1)
    write_weights(path, params_of(), 7)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(20):
        data = bytearray(whole)
        data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="its arrays are not what was saved"):
            read_weights(path, params_of())


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"depth": 5}, "it has no backbone.layer_4."),
        ({"depth": 3}, "it has backbone.layer_3."),
        ({"width": 6}, "has shape"),
        ({"pattern": "lstm"}, "it has "),
    ],
)
def test_weights_of_another_model(fields, problem, tmp_path):
    write_weights(tmp_path / "w.safetensors", params_of(), 7)
    with pytest.raises(ConfigError, match="does not fit this model: ") as error:
        read_weights(tmp_path / "w.safetensors", params_of(**fields))
    assert problem in str(error.value)


def test_files_of_others(tmp_path):
    """Without what this package notes in them; numbers that are no weights are refused."""
    from safetensors.numpy import save_file

    arrays = {place: np.asarray(leaf) for place, leaf in by_place(params_of()).items()}
    save_file(arrays, tmp_path / "w.safetensors")
    found, step = read_weights(tmp_path / "w.safetensors", params_of())
    jax.tree.map(np.testing.assert_array_equal, found, params_of())
    assert step == 0
    arrays["head.bias"] = np.zeros(5, np.int32)
    save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"head\.bias is int32, the model wants float32"):
        read_weights(tmp_path / "w.safetensors", params_of())


def test_a_dtype_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"w\.safetensors cannot be written"):
        write_weights(tmp_path / "w.safetensors", {"embed": {"embedding": jnp.zeros(3, jnp.int4)}}, 0)
