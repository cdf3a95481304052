"""Programs and libraries that some tests need and a machine may lack: SLURM, PostgreSQL, torch, data sets.

Such a test skips, and the end of every run counts and names what was skipped. `pytest --engines=slurm,postgresql` says
that these are here: a test that misses one of them then fails.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

__all__ = ["KNOWN", "absent", "data_sets", "library", "require"]

KNOWN = (
    "data",
    "datasets",
    "mlflow",
    "postgresql",
    "psycopg",
    "pyarrow",
    "safetensors",
    "slurm",
    "submitit",
    "tokenizers",
    "torch",
    "wandb",
)

_required: set[str] = set()  # by --engines


def require(names: str) -> None:
    """Let tests fail that miss one of `names`, separated by commas. Raises pytest.UsageError for an unknown one."""
    given = set(filter(None, names.lower().split(",")))
    if unknown := given - {*KNOWN}:
        raise pytest.UsageError(f"--engines: {', '.join(sorted(unknown))} is none of {', '.join(KNOWN)}")
    _required.update(given)


def absent(engine: str, why: str) -> NoReturn:
    """Skip what needs `engine`, or fail where --engines says that it is here."""
    assert engine.lower() in KNOWN
    if engine.lower() in _required:
        pytest.fail(f"--engines names {engine}, and {why}", pytrace=False)
    pytest.skip(f"{engine} is absent: {why}", allow_module_level=True)


def library(name: str) -> ModuleType:
    """The module `name`, as an engine."""
    try:
        return importlib.import_module(name)
    except ImportError:
        absent(name, f"the library {name} is not installed")


def data_sets(name: str = "") -> Path:
    """The folder (or one in it) that HYBRID_FLAX_DATA names, as the engine "data"."""
    if "HYBRID_FLAX_DATA" not in os.environ:
        absent("data", "HYBRID_FLAX_DATA does not name the folder of data sets")
    folder = Path(os.environ["HYBRID_FLAX_DATA"]) / name
    if not folder.is_dir():
        absent("data", f"{folder} is no folder")
    return folder
