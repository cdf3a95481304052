"""Every experiment loads, fits together, and says how to launch it."""

import ast
import json
import random
import re
import signal
import time
from functools import partial

import jax
import pytest
import tiny

import hybrid_flax
from hybrid_flax.config import base_config, flatten, load_config, load_experiment, validate
from hybrid_flax.models.build import init_params
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.space import has_spaces
from hybrid_flax.training.setup import make_setup

FILES = sorted((tiny.ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment(path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config = load_config(str(path.relative_to(tiny.ROOT)))
    assert flatten(config).keys() == flatten(base_config()).keys()
    validate(config)
    if config.data.path.startswith(("shakespeare", "synthetic:")):
        assert len(make_setup(config).model.design.layers) == config.model.depth
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"python launch\.py --config=experiments/{path.name}\b", docstring)


@pytest.mark.parametrize("task", ["mqar", "mqar512"])
def test_rows_of_recall_are_equal_in_parameters(task):
    sizes = {}
    for layers in ("attn,attn", "lstm", "lstm,lstm", "cascade:lstm+attn", "lstm,attn"):
        model = make_setup(load_config(f"{tiny.ROOT}/experiments/recall.py:{layers}@{task}")).model
        params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
        sizes[layers] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert max(sizes.values()) < 1.02 * min(sizes.values()), sizes


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sweeps(path, monkeypatch):
    """Every sweep of an experiment can be run, at a size that says so quickly."""
    monkeypatch.chdir(tiny.ROOT)
    module, _ = load_experiment(str(path.relative_to(tiny.ROOT)))
    small = ["model.width=16", "model.characters=none", "data.length=16", "train.steps=60"]
    for name in (name for name in vars(module) if name == "sweep" or name.startswith("sweep_")):
        names = [name.removeprefix("sweep_")] if name != "sweep" else []
        searched = any(map(has_spaces, getattr(module, name)()))
        plan = read_sweep(str(path), small, names, "random" if searched else "grid", 4 if searched else None)
        assert plan.num_trials == (4 if searched else {"sweep_folds": 10, "sweep_momenta": 2}.get(name, 24))


OWN = tiny.ROOT / "experiments" / "own_parts.py"


def test_own_parts_are_short():
    """At most 20 lines each, and one of every kind."""
    tree = ast.parse(OWN.read_text(encoding="utf-8"))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if hasattr(node, "name")}
    assert {name: length for name, length in lengths.items() if length > 20} == {}
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    doors = {name for name in hybrid_flax.__all__ if name.startswith("register_")}
    assert doors - called == {"register_mixer", "register_fusion"}, "a cell stands for the three kinds of mixers"


@pytest.mark.slow
def test_own_parts_do_what_those_of_the_package_do(tmp_path):
    """Killed and gone on with bit for bit, swept in processes and in lanes, evaluated, asked, and compared."""

    def launch(verb, *flags, code=0):
        ended, out, err = tiny.python(tiny.ROOT / "launch.py", verb, *flags)
        assert ended == code, (verb, out, err)
        return out + err

    config = f"--config={OWN}:{tmp_path / 'own.ballots'}"
    rng = random.Random(1)
    rows = [[rng.choice("abAB") for _ in range(9)] for _ in range(300)]
    winners = [max("ab", key="".join(row).lower().count) for row in rows]
    lines = [f"{' '.join(row)} > {winner}\n" for row, winner in zip(rows, winners)]
    (tmp_path / "own.ballots").write_text("".join(lines))
    long = [config, "--config.train.steps=1500", "--config.train.checkpoint_every=100", "--config.eval.every=500"]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch("train", *long, f"--workdir={whole}")
    process = tiny.start(tiny.ROOT / "launch.py", "train", *long, f"--workdir={cut}")
    while process.poll() is None and len(list((cut / "checkpoints").glob("[1-9]*"))) < 3:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "going on from the checkpoint of step" in launch("train", *long, f"--workdir={cut}")
    for name in ("metrics.jsonl", "results.json", "tokenizer.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()

    needed = "needs mixer leaky, task majority, loss focal, tokenizer letters"
    assert needed in launch("eval", f"--workdir={cut}", code=2)
    assert "sure" in launch("eval", f"--workdir={cut}", "--trust")
    answer = launch("predict", f"--workdir={cut}", f"--config={OWN}", "--text=a b A b a b a a b")
    assert answer.startswith("a\t")

    found = {}
    for executor in ("local", "lanes"):
        folder, flags = tmp_path / executor, ("--sweep=momenta", f"--executor={executor}", "--jobs=2")
        assert "2/2 trials" in launch("sweep", config, f"--workdir={folder}", *flags)
        names = [path.parent for path in folder.glob("*/results.json")]
        found[executor] = {
            path.name: json.loads((path / "results.json").read_text())["valid"]["sure"] for path in names
        }
    assert found["local"].keys() == found["lanes"].keys() and len({*found["local"].values()}) == 2
    assert all(found["lanes"][name] == pytest.approx(value, abs=1e-4) for name, value in found["local"].items())

    said = launch("compare", config, f"--workdir={tmp_path / 'compared'}")
    assert "leaky,attn" in said and (tmp_path / "compared" / "compare.json").exists()
