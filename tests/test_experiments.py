"""Every experiment loads, fits together, and says how to launch it."""

import ast
import re
from functools import partial

import jax
import pytest
import tiny

from hybrid_flax.config import base_config, flatten, load_config, load_experiment, validate
from hybrid_flax.models.build import init_params
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.space import has_spaces
from hybrid_flax.train.setup import make_setup

FILES = sorted((tiny.ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment(path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config = load_config(str(path.relative_to(tiny.ROOT)))
    assert flatten(config).keys() == flatten(base_config()).keys()
    validate(config)
    if config.data.path.startswith(("shakespeare", "synthetic:")):
        assert len(make_setup(config).model.design.layers) == config.model.depth
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"python launch\.py --config=experiments/{path.name}\b", docstring)


@pytest.mark.parametrize("task", ["mqar", "mqar512"])
def test_rows_of_recall_are_equal_in_parameters(task):
    sizes = {}
    for layers in ("attn,attn", "lstm", "lstm,lstm", "cascade:lstm+attn", "lstm,attn"):
        model = make_setup(load_config(f"{tiny.ROOT}/experiments/recall.py:{layers}@{task}")).model
        params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        sizes[layers] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert max(sizes.values()) < 1.02 * min(sizes.values()), sizes


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sweeps(path, monkeypatch):
    """Every sweep of an experiment can be run, at a size that says so quickly."""
    monkeypatch.chdir(tiny.ROOT)
    module, _ = load_experiment(str(path.relative_to(tiny.ROOT)))
    small = ["model.width=16", "model.characters=none", "data.length=16", "train.steps=60"]
    for name in (name for name in vars(module) if name == "sweep" or name.startswith("sweep_")):
        names = [name.removeprefix("sweep_")] if name != "sweep" else []
        searched = any(map(has_spaces, getattr(module, name)()))
        plan = read_sweep(str(path), small, names, "random" if searched else "grid", 4 if searched else None)
        assert plan.num_trials == (4 if searched else {"sweep_folds": 10}.get(name, 24))
