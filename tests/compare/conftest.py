"""What the tests of comparisons share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import comparisons


@pytest.fixture(scope="session")
def comparison_file(tmp_path_factory) -> Path:
    """The experiment file of a comparison of seconds."""
    return comparisons.write_comparison_file(tmp_path_factory.mktemp("comparison"))
