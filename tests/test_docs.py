"""Every block of Python in the README and in docs/ runs, and does what the text around it says."""

import re
import runpy

import jax
import pytest
import tiny

from hybrid_flax import registered_mixers
from hybrid_flax.certify import certify
from hybrid_flax.config import apply_overrides
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.training.loop import train

PAGES = [tiny.ROOT / "README.md", tiny.ROOT / "CONTRIBUTING.md", *sorted((tiny.ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[str]:
    """The sources of the blocks of Python in a page of Markdown."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = {
    f"{page.relative_to(tiny.ROOT)}:{number}": source
    for page in PAGES
    for number, source in enumerate(blocks(page.read_text(encoding="utf-8")), 1)
}


@pytest.fixture(autouse=True)
def _promotion_is_what_users_have():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("place", BLOCKS)
def test_block_runs(place, finished, text, monkeypatch, tmp_path):
    """Where a finished run lies in runs/RUN."""
    known = set(registered_mixers())
    path = tmp_path / "block.py"
    path.write_text(BLOCKS[place], encoding="utf-8")
    monkeypatch.chdir(finished.parents[1])
    found = runpy.run_path(str(path))
    if "get_config" in found:
        config = found["get_config"]()
        train(apply_overrides(config, tiny.overrides_of(text, model__pattern=config.model.pattern)), tmp_path / "run")
    if "sweep" in found or "sweep_search" in found:
        experiment = str(tiny.write_experiment(tmp_path, text, head=BLOCKS[place]))
        assert "sweep" not in found or read_sweep(experiment, []).trials
        assert "sweep_search" not in found or read_sweep(experiment, [], ["search"], "random", 3).num_trials == 3
    for name in sorted(set(registered_mixers()) - known):
        (findings,) = certify([name], cases=40)
        assert [finding for finding in findings if finding.counterexample is not None] == []


def test_blocks_are_found():
    text = "a\n```python\nx = 1\n\ny = 2\n```\n```\nno\n```\n```python\nz = 3\n```\n"
    assert blocks(text) == ["x = 1\n\ny = 2\n", "z = 3\n"]
    assert sum(place.startswith("README") for place in BLOCKS) >= 3
