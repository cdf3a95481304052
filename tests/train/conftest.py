"""What the tests of training share."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A compile cache on disk for the processes of this session, whichever worker starts them."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "popen-" in base.name else base) / "compiled"


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """The text that tiny runs learn from."""
    return tiny.write_text(tmp_path_factory.mktemp("text"))
