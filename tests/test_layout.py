"""The direction of imports, and what the package costs to import."""

import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata

import engines
import pytest
import tiny
from sampling import imports

import hybrid_flax

PACKAGE = tiny.ROOT / "hybrid_flax"

# A part, which is a folder or a file at the top, may import those that stand before it, and no other.
ORDER = (
    *(
        "errors",
        "ranges",
        "spelling",
        "options",
        "registration",
        "files",
        "locks",
        "units",
        "console",
        "flags",
        "verbs",
        "shipped",
        "knobs",
        "cost",
        "typing",
        "ops",
        "cells",
        "mixers",
        "certify",
        "config",
        "models",
    ),
    *(
        "data",
        "tasks",
        "training",
        "predict",
        "generate",
        "insides",
        "jobs",
        "sweep",
        "compare",
        "report",
        "runs",
        "cli",
    ),
    *("__main__", "__init__"),
)
# What is kept apart besides: data knows no models, and two parts that stand side by side not each other.
APART = {
    "typing": {"errors", "files", "units", "knobs", "cost"},
    "config": {"certify"},
    "models": {"certify", "config"},
    "data": {"cost", "ops", "cells", "mixers", "certify", "config", "models"},
    "compare": {"sweep"},
    "__main__": set(ORDER) - {"cli"},
    "__init__": {"cli", "report", "compare", "sweep", "jobs"},
}

# Who may know a library; a place is a file or a folder of the package.
HOLDERS = {
    "orbax": {"training/checkpoint.py"},
    "optax": {"training/optimizer.py", "training/step.py", "ops/losses.py"},
    "flax": {"models"},
    "matplotlib": {"report"},
    "tensorboardX": {"training/loggers.py"},
    "wandb": {"training/loggers.py"},
    "mlflow": {"training/loggers.py"},
    "safetensors": {"training/weights.py"},
    "tokenizers": {"data/bpe.py"},
    "datasets": {"data/hub.py"},
    "optuna": {"jobs/study.py", "jobs/queue.py", "sweep/search.py", "sweep/importance.py"},
    "psycopg": {"jobs/claims.py", "jobs/study.py"},
    "submitit": {"jobs/slurm.py"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def wrong_imports(place: str, source: str) -> list[str]:
    """The imports of the file at `place` that are against the direction or not its own."""
    part = place.partition("/")[0].removesuffix(".py")
    wrong = []
    for name in sorted(imports(source)):
        library, *rest = name.split(".")
        if library == "hybrid_flax" and rest and (PACKAGE / rest[0]).exists() | (PACKAGE / f"{rest[0]}.py").exists():
            before = set(ORDER[: ORDER.index(part) + 1]) - APART.get(part, set())
            if rest[0] not in before:
                wrong.append(name)
        elif library in HOLDERS and not HOLDERS[library] & {place, part}:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction_of_imports(path):
    place = path.relative_to(PACKAGE).as_posix()
    assert place.partition("/")[0].removesuffix(".py") in ORDER, "a new part: say where it stands"
    assert wrong_imports(place, path.read_text(encoding="utf-8")) == []


def test_wrong_directions_are_noticed():
    assert wrong_imports("ops/norm.py", "from hybrid_flax.cells import gated")
    assert wrong_imports("models/model.py", "import hybrid_flax.training.step")
    assert wrong_imports("training/loop.py", "from hybrid_flax import report")
    assert wrong_imports("training/loop.py", "def f():\n    from orbax.checkpoint import v1")
    assert wrong_imports("mixers/fusion.py", "import flax.linen as nn")
    assert not wrong_imports("training/loop.py", "from hybrid_flax.models.build import make_model\nimport jax")


def test_launch_holds_no_logic():
    assert imports((tiny.ROOT / "launch.py").read_text()) == {"sys", "hybrid_flax.cli", "hybrid_flax.cli.main"}


def test_file_names_say_what_is_inside():
    assert not {"utils", "helpers", "common", "misc"} & {path.stem for path in FILES}


def test_one_word_has_one_meaning():
    """No two classes of one name; files share a name where they hold the same concept, a part or a table each."""
    classes = [found for path in FILES for found in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE)]
    assert [name for name, count in Counter(classes).items() if count > 1] == []
    names = Counter(path.stem for path in FILES if path.stem != "__init__")
    assert {name for name, count in names.items() if count > 1} == {"attention", "definition", "registry"}


def test_import_is_quick_and_light():
    """In seconds of processor time, which other tests do not stretch; flax and orbax wait until they are needed."""
    code = (
        "import time; since = time.process_time(); import hybrid_flax; seconds = time.process_time() - since\n"
        "import sys; print(seconds, *({'flax', 'orbax', 'matplotlib', 'optax'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    seconds, *heavy = subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert heavy == []
    assert float(seconds) < 1.5


def test_workflows_call_steps_that_there_are():
    """What .github runs is what `.ci/run` runs by itself."""
    steps = set(re.findall(r"^(\w+)\(\) *\{", (tiny.ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    called = []
    for path in (tiny.ROOT / ".github" / "workflows").glob("*.yml"):
        for line in re.findall(r"run: \.ci/run (.+)", path.read_text()):
            called += line.split()[:1] if line.startswith("slow") else line.split()
    assert {"lint", "types", "docs", "fast", "slow", "newest", "nightly"} <= set(called) <= steps


def test_engines_are_spelt_right():
    with pytest.raises(pytest.UsageError, match=r"slrum is none of .*slurm"):
        engines.require("torch,slrum")
    named = re.search(r"^engines=(.+)$", (tiny.ROOT / ".ci" / "run").read_text(), re.MULTILINE).group(1)
    assert {*named.split(",")} <= {*engines.KNOWN}


def test_the_version_stands_once():
    assert tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert hybrid_flax.__version__ == metadata.version("hybrid_flax")
