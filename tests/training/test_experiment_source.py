"""The source of an experiment in the folder of its run."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

import hybrid_flax
from hybrid_flax import cli
from hybrid_flax.errors import ConfigError
from hybrid_flax.mixers import registry
from hybrid_flax.training.experiment_source import own_modules, register_own
from hybrid_flax.training.folder import RunFolder

CELL = tiny.own_cell("kept_leaky")


@pytest.fixture
def imports(monkeypatch):
    """What the test imports is forgotten afterwards."""
    before = {*sys.modules}
    yield monkeypatch
    for name in {*sys.modules} - before:
        if name.startswith(("kept_", "experiment_")):
            del sys.modules[name]


def test_the_file_and_its_modules_are_kept(text, tmp_path, imports, capsys):
    (tmp_path / "kept_parts").mkdir()
    (tmp_path / "kept_parts" / "__init__.py").write_text("from kept_parts import deep\n")
    (tmp_path / "kept_parts" / "deep.py").write_text("import kept_more\n")
    (tmp_path / "kept_more.py").write_text("import json, jax\n")
    (tmp_path / "kept_other.py").write_text("raise RuntimeError\n")
    imports.syspath_prepend(str(tmp_path))
    experiment = tiny.write_experiment(tmp_path, text, head="import numpy\nimport kept_parts", train__steps=2)
    folder = RunFolder(tmp_path / "run")
    call = [f"--config={experiment}", f"--workdir={folder.path}"]
    assert cli.main(call) == 0
    assert folder.experiment.read_bytes() == experiment.read_bytes()
    kept = {str(path.relative_to(folder.modules)) for path in folder.modules.rglob("*.py")}
    assert kept == {"kept_parts/__init__.py", "kept_parts/deep.py", "kept_more.py"}
    assert set(own_modules(experiment.read_bytes())) == {"kept_parts", "kept_parts.deep", "kept_more"}

    experiment.write_text(experiment.read_text() + "\n# changed\n")
    (folder.results).unlink()
    capsys.readouterr()
    assert cli.main(call) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{experiment} is not what it was when the run began: {folder.experiment} is" in shown
    assert b"# changed" not in folder.experiment.read_bytes()


def test_a_changed_module_is_not_run(text, tmp_path, imports, capsys):
    """Of two runs of one experiment each has the module that it was trained with, also where a function imports it."""
    imports.syspath_prepend(str(tmp_path))
    head = "import kept_numbers\ndef number():\n    import kept_numbers\n    return kept_numbers.NUMBER"
    experiment = tiny.write_experiment(tmp_path, text, head=head, train__steps=1)
    for number in (1, 2):
        (tmp_path / "kept_numbers.py").write_text(f"NUMBER = {number}\n" + "#" * number)
        sys.modules.pop("kept_numbers", None)
        sys.modules.pop(f"experiment_{experiment.stem}", None)
        assert cli.main([f"--config={experiment}", f"--workdir={tmp_path / str(number)}"]) == 0
    (tmp_path / "kept_numbers.py").write_text("NUMBER = 3")
    sys.modules.pop("kept_numbers")
    for number in (1, 2, 1):
        capsys.readouterr()
        register_own(tmp_path / str(number), trust=True)
        assert f"{tmp_path / str(number) / 'experiment.py'}, its source then, is run" in capsys.readouterr().err
        assert sys.modules["experiment_experiment"].number() == number


def test_a_notebook_says_what_registers_its_parts(text, tmp_path, imports):
    """What `docs/notebook.md` says of the source of a run of `hf.train`."""
    experiment = tiny.write_experiment(tmp_path, text, head=CELL, model__pattern="kept_leaky", train__steps=1)
    config = hybrid_flax.load_config(str(experiment))
    run = hybrid_flax.train(config, tmp_path / "run", experiment=str(experiment), quiet=True)
    experiment.unlink()
    del registry._primitives["kept_leaky"]
    with pytest.raises(ConfigError, match=r"needs mixer kept_leaky, of .*: give that file by --config, or add --trust"):
        hybrid_flax.load_run(tmp_path / "run")
    again = hybrid_flax.load_run(tmp_path / "run", trust=True)
    assert again.evaluate() == run.evaluate()


def test_run_json_says_what_made_it(finished):
    about = json.loads((finished / "run.json").read_text())
    assert {"hybrid_flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections"} == {
        *about["versions"]
    }
    assert about["driver"] and about["python"]


@pytest.fixture(scope="module")
def copied(text, tmp_path_factory):
    """A run folder on another machine, where neither its experiment nor the module of its cell is."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "kept_cells.py").write_text(CELL)
    changes = {"model__pattern": "kept_leaky", "train__steps": 2}
    experiment = tiny.write_experiment(folder, text, head="import kept_cells", **changes)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{tiny.ROOT}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, tiny.ROOT / "launch.py", f"--config={experiment}", f"--workdir={folder / 'run'}"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    copy = shutil.copytree(folder / "run", tmp_path_factory.mktemp("copied") / "run")
    experiment.unlink()
    (folder / "kept_cells.py").unlink()
    return copy


@pytest.mark.slow
def test_a_folder_that_was_copied_is_evaluated_with_trust_alone(copied):
    launch = tiny.ROOT / "launch.py"
    code, _, err = tiny.python(launch, "eval", f"--workdir={copied}")
    assert code == 2 and err.count("\n") == 1 and "add --trust" in err
    code, out, err = tiny.python(launch, "eval", f"--workdir={copied}", "--trust")
    assert code == 0, err
    assert "is not there: " in err and str(copied / "experiment.py") in err and err.count("\n") == 1
    results = json.loads((copied / "results.json").read_text())
    assert f"loss {results['valid']['loss']:.4f}" in out


@pytest.mark.slow
def test_a_file_that_is_given_is_run_and_named_where_it_is_another(copied, tmp_path):
    given = tmp_path / "other.py"
    given.write_text(CELL + "# another\n")
    code, _, err = tiny.python(tiny.ROOT / "launch.py", "eval", f"--workdir={copied}", f"--config={given}")
    assert code == 0 and err == f"{given} is run, which is not as {copied / 'experiment.py'} keeps it\n"


@pytest.mark.slow
def test_its_weights_go_out_and_come_in_with_their_source(copied, tmp_path):
    launch = tiny.ROOT / "launch.py"
    for call in (["export", copied, tmp_path / "out"], ["import", tmp_path / "out", tmp_path / "run"]):
        code, _, err = tiny.python(launch, *call, "--trust")
        assert code == 0, err
    code, out, err = tiny.python(launch, "eval", f"--workdir={tmp_path / 'run'}", "--trust")
    results = json.loads((copied / "results.json").read_text())
    assert code == 0 and f"loss {results['valid']['loss']:.4f}" in out, err


def test_damaged_sources_are_a_line(text, tmp_path, capsys, imports):
    experiment = tiny.write_experiment(tmp_path, text, head=CELL, model__pattern="lstm", train__steps=2)
    folder = RunFolder(tmp_path / "run")
    assert cli.main([f"--config={experiment}", f"--workdir={folder.path}"]) == 0
    config = json.loads(folder.config.read_text())
    config["model"]["pattern"], config["mixers"]["kept_gone"] = "kept_gone", {}
    folder.config.write_text(json.dumps(config))
    experiment.unlink()
    for content, words in (("x = ", "does not load"), ("\0", "does not load"), ("", "kept_gone")):
        folder.experiment.write_text(content)
        capsys.readouterr()
        assert cli.main(["eval", f"--workdir={folder.path}", "--trust"]) == 2
        *lines, last = capsys.readouterr().err.splitlines()
        assert words in last and len(lines) == 1 and str(folder.experiment) in lines[0]
