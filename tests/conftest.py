"""The harness: the test runner checks shapes, nothing persists between runs, failures say how to repeat them."""

import os
import sys
from importlib import metadata
from pathlib import Path

import jaxtyping

# Programs of tests take seconds to compile and milliseconds to run, so XLA is told not to try. The processes that
# `tiny.start` starts compile as users do, and `XLA_FLAGS= pytest` makes every test do so.
_FLAGS = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):  # later ones know no other emitter, and refuse the flag
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

# Before the package is first imported: every annotated function is checked while it is traced.
jaxtyping.install_import_hook("hybrid_flax", "beartype.beartype")
sys.path.insert(0, str(Path(__file__).parent))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from hybrid_flax.certify import subjects  # noqa: E402

jax.config.update("jax_enable_compilation_cache", False)
# What is cast or broadcast is written out: an array of a wrong dtype or rank fails in place of spreading.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "house",
    deadline=None,
    max_examples=5,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_dropped():
    """A compiled program holds some tens of memory maps, of which a process may have 65,530: thousands are too many."""
    yield
    subjects.forget()
