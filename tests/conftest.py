"""The harness: the test runner checks shapes, nothing persists between runs, failures say how to repeat them."""

import gc
import os
import platform
import sys
import tempfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import jaxtyping

# Programs of tests take seconds to compile and milliseconds to run, so XLA is told not to try, also in the processes
# that tests start. `XLA_FLAGS= pytest` compiles as users do.
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):  # later ones know no other emitter, and refuse the flag
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
elif platform.machine() == "x86_64":  # a fused multiply-add would round by the length of a call
    _FLAGS += " --xla_cpu_max_isa=AVX"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

# Before the package is first imported: every annotated function is checked while it is traced.
jaxtyping.install_import_hook("hybrid_flax", "beartype.beartype")
sys.path.insert(0, str(Path(__file__).parent))

import engines  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from jobs import postgres, slurm_cluster  # noqa: E402

from hybrid_flax import registration  # noqa: E402
from hybrid_flax.certify import subjects  # noqa: E402
from hybrid_flax.cli import main  # noqa: E402
from hybrid_flax.mixers import registry  # noqa: E402
from hybrid_flax.training import hooks  # noqa: E402

jax.config.update("jax_enable_compilation_cache", False)
gc.set_threshold(100_000, 50, 100)  # tracing makes many small objects and few cycles: this takes 7 % off
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


def pytest_addoption(parser):
    parser.addoption("--engines", default="", help="engines that are here, so that no test may skip for want of them")


def pytest_configure(config):
    engines.require(config.getoption("engines"))


@pytest.fixture(autouse=True, scope="session")
def _processes_share_a_compile_cache(tmp_path_factory):
    """One folder for the processes that this session starts, whichever worker starts them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "popen-" in base.name else base) / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


@contextmanager
def _given_back():
    """What is registered meanwhile is not, afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for table in (*registration.SECTIONS.values(), registration.METRICS, registration.READERS):
            patch.setattr(table, "_entries", {name: table[name] for name in table})
        patch.setattr(hooks, "_hooks", dict(hooks._hooks))
        for table in ("_primitives", "_fusions"):
            patch.setattr(registry, table, dict(getattr(registry, table)))
        yield


@pytest.fixture(autouse=True, scope="module")
def _what_a_file_registers_is_given_back():
    with _given_back():
        yield


@pytest.fixture(autouse=True)
def _what_is_registered_is_given_back(_what_a_file_registers_is_given_back):
    """No test has what another has registered, nor takes an experiment for one that has run already."""
    before = set(sys.modules)
    with _given_back():
        yield
    for name in set(sys.modules) - before:
        if name.startswith("experiment_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """The text that tiny runs learn from."""
    return tiny.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def experiment(text, tmp_path_factory) -> Path:
    """The experiment file of the tiny run as it stands."""
    return tiny.write_experiment(tmp_path_factory.mktemp("experiment"), text)


@pytest.fixture(scope="session")
def finished(experiment, tmp_path_factory) -> Path:
    """A finished run of `experiment`, to be read; whoever changes it makes a copy."""
    folder = tmp_path_factory.mktemp("finished") / "runs" / "RUN"
    assert main(["train", f"--config={experiment}", f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(autouse=True, scope="module")
def _programs_are_dropped():
    """A compiled program holds some tens of memory maps, of which a process may have 65,530: thousands are too many."""
    yield
    subjects.forget()


@pytest.fixture(scope="module")
def no_pauses():
    """A worker in this process does not wait before it looks again at what runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_PAUSE", "_PAUSE_IDLE"):
            patch.setattr(f"hybrid_flax.jobs.worker.{name}", 0.0)
        yield


@pytest.fixture(scope="module")
def slurm():
    """SLURM's commands reach a cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder,
        slurm_cluster.cluster(Path(folder)) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def database():
    """The URL of a PostgreSQL server."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder, postgres.server(Path(folder)) as url:
        yield url
