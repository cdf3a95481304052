"""Every experiment loads, fits together, and says how to launch it."""

import ast
import re
from functools import partial

import jax
import pytest
import tiny

from hybrid_flax.config import base_config, flatten, load_config, validate
from hybrid_flax.models.build import init_params
from hybrid_flax.train.experiment import make_experiment

FILES = sorted((tiny.ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment(path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config = load_config(str(path.relative_to(tiny.ROOT)))
    assert flatten(config).keys() == flatten(base_config()).keys()
    validate(config)
    if config.data.path.startswith(("shakespeare", "synthetic:")):
        experiment = make_experiment(config)
        assert len(experiment.model.layers) == config.model.depth
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"python launch\.py --config=experiments/{path.name}\b", docstring)


@pytest.mark.parametrize("task", ["mqar", "mqar512"])
def test_rows_of_recall_are_equal_in_parameters(task):
    sizes = {}
    for layers in ("attn,attn", "lstm", "lstm,lstm", "cascade:lstm+attn", "lstm,attn"):
        model = make_experiment(load_config(f"{tiny.ROOT}/experiments/recall.py:{layers}@{task}")).model
        params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        sizes[layers] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert max(sizes.values()) < 1.02 * min(sizes.values()), sizes
