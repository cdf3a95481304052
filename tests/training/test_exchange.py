"""Export and import: the same bits back, and a run that every verb reads."""

import json
import shutil

import engines
import jax
import numpy as np
import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.runs import load_run
from hybrid_flax.training.folder import RunFolder

engines.library("safetensors")
CHANGES = {"model__pattern": "gru", "model__depth": 4, "train__steps": 4, "eval__every": 2, "eval__best": True}


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    experiment = tiny.write_experiment(folder, text, **CHANGES, optim__ema_decay=0.5)
    assert cli.main([f"--config={experiment}", f"--workdir={folder / 'RUN'}"]) == 0
    return folder / "RUN"


@pytest.fixture(scope="module")
def exported(run):
    """What is exported of it."""
    assert cli.main(["export", str(run), str(run.parent / "exported")]) == 0
    return run.parent / "exported"


@pytest.fixture(scope="module")
def imported(exported):
    """What is imported of that."""
    assert cli.main(["import", str(exported), str(exported.parent / "imported")]) == 0
    return exported.parent / "imported"


def test_the_same_bits_come_back(run, exported, imported):
    wanted = load_run(run)
    for folder in (exported, imported):
        found = load_run(folder)
        assert (found.step, found.labels, found.tokenizer) == (wanted.step, wanted.labels, wanted.tokenizer)
        assert found.config.to_dict() == wanted.config.to_dict() and found.model is wanted.model
        for one, other in zip(jax.tree.leaves(wanted.params), jax.tree.leaves(found.params), strict=True):
            assert one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_what_an_export_holds(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "labels.json", "README.md", "results.json"} <= names
    assert not {"checkpoints", "metrics.jsonl", "writer.lock"} & names
    assert [path.name for path in run.parent.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("name", ["exported", "imported"])
def test_every_verb_reads_it(name, run, exported, imported, capsys):
    folder = {"exported": exported, "imported": imported}[name]
    results = json.loads((run / "results.json").read_text())["valid"]
    assert cli.main(["eval", f"--workdir={folder}"]) == 0
    assert f"loss {results['loss']:.4f}" in capsys.readouterr().out
    assert cli.main(["generate", f"--workdir={folder}", "--tokens=3"]) == 0
    assert cli.main(["diff", str(run), str(folder)]) == 0
    assert "config: the same" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["exported", "imported"])
def test_it_cannot_be_gone_on_with_but_started_from(name, run, exported, imported, capsys, tmp_path):
    folder = {"exported": exported, "imported": imported}[name]
    experiment = run.parent / "tiny_experiment.py"
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert cli.main([f"--config={experiment}", f"--workdir={folder}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"--config.train.init_from={folder}" in err
    assert {path.name for path in folder.iterdir()} - {*before} <= {"writer.lock"}
    call = [f"--config={experiment}", f"--config.train.init_from={folder}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(call) == 0
    record = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert record["anew"] == {} and record["left"] == {}


def test_wrong_folders_are_a_line(run, exported, imported, tmp_path, capsys):
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-9])
    bare = shutil.copytree(exported, tmp_path / "bare")
    (bare / "run.json").unlink()
    capsys.readouterr()
    for call, words in (
        (["export", tmp_path / "none", tmp_path / "new"], "is no run"),
        (["export", run, exported], "is there already"),
        (["import", exported, imported], "is there already"),
        (["import", run, tmp_path / "new"], "is no exported folder"),
        (["import", broken, tmp_path / "new"], "model.safetensors is damaged"),
        (["import", bare, tmp_path / "new"], "run.json cannot be read"),
        (["eval", f"--workdir={broken}"], "model.safetensors is damaged"),
    ):
        assert cli.main([str(word) for word in call]) == 2, call
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err, (call, err)
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "bare"}


def test_an_imported_folder_is_a_run_folder(imported):
    folder = RunFolder(imported)
    assert not folder.is_exported() and folder.read_results()
    assert folder.read_about()["imported"].endswith("exported")
