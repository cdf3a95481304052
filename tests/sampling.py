"""What the fast suite takes of many alike: a sample, and mixers that a change touches. The others are slow tests."""

import ast
import functools
import subprocess
from collections.abc import Collection, Iterable

import pytest
import tiny

from hybrid_flax.mixers import registry

__all__ = ["FAMILIES", "changed_files", "imports", "sampled", "sources", "touched"]

# A mixer of every family of the registry.
FAMILIES = (
    "lstm", "slstm", "mingru", "sru", "rglru", "lru", "gla", "mlstm", "gdn", "conv", "swa", "xl", "sha", "blockrec",
    "gate:lstm+attn", "bi:attn", "feed:swa+mingru",
)  # fmt: skip


def sampled(cases: Iterable, sample: Collection) -> list:
    """The cases as parameters of a test, slow ones but for `sample` and for mixers that the working tree touches."""
    fast = {*sample, *touched()}
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]


@functools.cache
def touched() -> set[str]:
    """The registered instances with a source that differs from the last commit."""
    changed = changed_files()
    return {name for name in registry.registered_instances() if changed & sources(name)} if changed else set()


def changed_files() -> set[str]:
    """Files that differ from the last commit, by their paths from the root; none where there is no git."""
    command = ["git", "diff", "--name-only", "HEAD", "--", "hybrid_flax"]
    try:
        done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return set()
    return set(done.stdout.splitlines())


def sources(name: str) -> set[str]:
    """The source files of the mixer `name`: its parts, its fusion, and all that they import."""
    layer = registry.parse_layer(name)
    modules = [registry._known()[part].source.rpartition(".")[0] for part in layer.names]
    if any(registry._primitives[part].build_cell for part in layer.mixers):
        modules.append("hybrid_flax.mixers.recurrent")
    return {file for module in modules for file in _closure(module)}


def imports(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def _closure(module):
    found, waiting = set(), [module]
    while waiting:
        path = f"{waiting.pop().replace('.', '/')}.py"
        if path not in found and (tiny.ROOT / path).is_file():
            found.add(path)
            waiting += imports((tiny.ROOT / path).read_text(encoding="utf-8"))
    return frozenset(found)
