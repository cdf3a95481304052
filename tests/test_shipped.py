"""The experiments that come with the package: each can be copied, and the copy is the same experiment."""

import ast
import os
import sys

import pytest
import tiny

from hybrid_flax import cli, registration
from hybrid_flax.config import config_diff, load_config
from hybrid_flax.mixers import registry

NAMES = sorted(path.stem for path in (tiny.ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_experiment(name, capsys, monkeypatch, tmp_path):
    """In a folder of its own, with commands that name it, as they are called here."""
    monkeypatch.setattr(sys, "argv", ["bin/hybrid-flax"])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine.py", "--from", name]) == 0
    out = capsys.readouterr().out
    written = sorted(os.listdir())
    assert all(f"{file} written" in out for file in written) and len(written) <= 2
    packaged = {key: made for key, made in registry._primitives.items() if made.source.startswith("hybrid_flax.")}
    monkeypatch.setattr(registry, "_primitives", dict(packaged))
    tables = (*registration.SECTIONS.values(), registration.METRICS, registration.READERS)
    entries = [dict(table) for table in tables]
    original = load_config(f"{tiny.ROOT}/experiments/{name}.py")
    monkeypatch.setattr(registry, "_primitives", dict(packaged))  # one process refuses a name from two files
    for table, own in zip(tables, entries):
        monkeypatch.setattr(table, "_entries", own)
    assert config_diff(original, load_config("mine.py")) == []
    docstring = ast.get_docstring(ast.parse((tmp_path / "mine.py").read_text(encoding="utf-8")))
    assert "hybrid-flax --config=mine.py" in docstring or "hybrid-flax compare --config=mine.py" in docstring
    assert "launch.py" not in docstring and "experiments/" not in docstring


def test_without_a_file_it_lists_them(capsys):
    assert cli.main(["new"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    first = (tiny.ROOT / "experiments" / "griffin.py").read_text().splitlines()[0].strip('"')
    assert lines[NAMES.index("griffin")].endswith(f"  {first}")


def test_what_cannot_be_written(capsys, monkeypatch, tmp_path):
    """Nothing is written over, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "file").write_text("")
    for argv, words in (
        (["mine.py"], "mine.py is there already"),
        (["mine.txt"], "must end in .py"),
        (["m:ine.py"], "without a colon"),
        (["new.py", "--from=grifin"], "--from=grifin is no experiment of the package; nearest: griffin"),
        (["nowhere/new.py"], "nowhere/new.py cannot be written: No such file"),
        (["file/new.py"], "file/new.py cannot be written: Not a directory"),
        (["shakespeare.py", "--from=cascade"], "which loads a file of that name"),
    ):
        assert cli.main(["new", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert sorted(os.listdir()) == ["file", "mine.py"] and (tmp_path / "mine.py").read_text() == "x = 1"


def test_a_file_that_the_copy_loads_stays_as_it_is(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "shakespeare.py"]) == 0
    before = (tmp_path / "shakespeare.py").read_text()
    assert cli.main(["new", "mine.py", "--from=cascade"]) == 0
    assert "shakespeare.py is there already and stays as it is: mine.py loads it" in capsys.readouterr().out
    assert (tmp_path / "shakespeare.py").read_text() == before
