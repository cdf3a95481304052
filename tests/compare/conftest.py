"""What the tests of comparisons share."""

import sys
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent))

import comparisons


@pytest.fixture(scope="session")
def comparison_file(tmp_path_factory) -> Path:
    """The experiment file of a comparison of seconds."""
    folder = tmp_path_factory.mktemp("comparison")
    return comparisons.write_comparison_file(folder, tiny.write_text(folder))
