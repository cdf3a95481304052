"""Every experiment loads, fits together, and says how to launch it."""

import ast
import re

import pytest
import tiny

from hybrid_flax.config import base_config, flatten, load_config, validate
from hybrid_flax.train.experiment import make_experiment

FILES = sorted((tiny.ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment(path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config = load_config(str(path.relative_to(tiny.ROOT)))
    assert flatten(config).keys() == flatten(base_config()).keys()
    validate(config)
    if config.data.path == "shakespeare":
        experiment = make_experiment(config)
        assert len(experiment.model.layers) == config.model.depth
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"python launch\.py --config=experiments/{path.name}\b", docstring)
