"""Every benchmark loads, with whatever it takes from the package."""

import importlib.util

import pytest
import tiny


@pytest.mark.parametrize("path", sorted((tiny.ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_loads(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and callable(module.main)
