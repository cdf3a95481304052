"""Every benchmark loads, with whatever it takes from the package; what they are to find is found.

Lost rows and tracebacks of killed jobs, and layers that are not what they should be.
"""

import importlib.util
import random
import sys

import jax.numpy as jnp
import pytest
import tiny
from fuzz.grammar import NAMES, Tree, draw_layer

from hybrid_flax.certify.subjects import WIDTH
from hybrid_flax.mixers import registry
from hybrid_flax.mixers.registry import make_mixer, mixer_options, parse_layer, registered_mixers


def load(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((tiny.ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_loads(path):
    module = load(path)
    assert module.__doc__ and callable(module.main)


FAKE_JOB = """
import json, signal, sys, time
from pathlib import Path
fault, folder = sys.argv[1], Path(sys.argv[2].removeprefix("--workdir="))
folder.mkdir(exist_ok=True)
rows = folder / "metrics.jsonl"
done = rows.read_text().count("\\n") if rows.exists() else 0
if fault == "page":
    signal.signal(signal.SIGTERM, lambda *_: 1 / 0)
if 0 < done < 6 and fault == "row":  # it forgets one where it goes on
    done += 1
for step in range(done, 6):
    time.sleep(0.02)
    with rows.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
(folder / "results.json").write_text("{}")
"""


@pytest.mark.parametrize(
    ("fault", "kind", "ending"),
    [("none", "SIGKILL", "identical"), ("row", "SIGKILL", "lost"), ("page", "SIGTERM", "traceback")],
)
def test_kills_are_counted(fault, kind, ending, tmp_path, capsys):
    kills = load(tiny.ROOT / "benchmarks" / "kills.py")
    (tmp_path / "job.py").write_text(FAKE_JOB)
    job = kills.Job("fake", (sys.executable, "-S", str(tmp_path / "job.py"), fault))
    results = []
    for result in kills.run_all([(job, kind)] * 20, tmp_path, 0, 1):  # some come before it has done anything
        results.append(result)
        if result.ending == ending:
            break
    assert {result.ending for result in results} <= {"identical", ending} and result.ending == ending
    kills.print_table(results)
    assert f"│ {len(results)} " in capsys.readouterr().out


@pytest.fixture(scope="module")
def compositions():
    return load(tiny.ROOT / "benchmarks" / "compositions.py")


# Mixers whose programs compile soon; the benchmark draws of all.
QUICK = {name: NAMES[name] for name in ("tanh", "mingru", "conv", "swa", "tanhdot")}


@pytest.mark.parametrize("number", range(12))
def test_random_layers_have_the_certificate(number, compositions, monkeypatch):
    monkeypatch.setattr(compositions, "draw_layer", lambda rng, levels: draw_layer(rng, 2, QUICK))
    depth, proofs, faults = compositions.check_layer((0, number))
    assert (depth, faults) == (2, []) and proofs >= 8


def test_wrong_layers_have_one_line(compositions):
    kinds, faults = compositions.check_wrong(0, 60)
    assert faults == [] and len(kinds) > 12


def test_the_smallest_layer_that_fails_is_found(compositions, monkeypatch):
    """One whose second part reads the token that comes."""
    for table in ("_primitives", "_fusions"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    conv = make_mixer("conv", WIDTH)

    def ahead(width):
        def apply(params, x, segments, state=None):
            return conv.apply(params, jnp.roll(x, -1, axis=1), segments, state)

        return conv._replace(apply=apply)

    registry.register_mixer("ahead", ahead)
    gate = Tree("gate", (Tree("conv", (), (("taps", "3"),)), Tree("ahead")))
    monkeypatch.setattr(compositions, "make_layer", lambda seed, number: Tree("add", (Tree("conv"), gate)))
    _, proofs, faults = compositions.check_layer((0, 0))
    found = {fault.asked: fault for fault in faults}
    assert {"causal", "split"} <= found.keys() and proofs == len(compositions.FAST) - 1
    assert compositions.shrink(0, found["causal"]) == "ahead"


def test_a_wrong_layer_that_is_accepted_is_found(compositions, monkeypatch):
    monkeypatch.setattr(compositions, "make_mixer", lambda layer, width: None)
    assert len(compositions.check_wrong(0, 30)[1]) == 30
    monkeypatch.setattr(compositions, "make_mixer", lambda layer, width: [][0])
    assert "IndexError" in compositions.check_wrong(0, 1)[1][0].said


def test_layers_that_are_drawn_are_those_of_the_package():
    """Every mixer and every fusion of it, with options that it has and that change something; nothing is refused."""
    assert {*NAMES} == {name for name in registered_mixers() if ":" not in name}
    for name, options in NAMES.items():
        for key, values in options.items():
            default = mixer_options()[name][key].default
            assert {dict(parse_layer(f"{name}@{key}={value}").options)[key] for value in values} - {default}
    rng = random.Random(0)
    trees = [draw_layer(rng, rng.randrange(1, 5)) for _ in range(400)]
    drawn = {node.name for tree in trees for node in tree.nodes()}
    assert drawn == {name.partition(":")[0] for name in registered_mixers()}
    assert all(make_mixer(str(tree), WIDTH).init for tree in trees[:100])
