"""The commands that make a run again, its experiment file committed or not."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.report.reproduce import reproduce_command
from hybrid_flax.training.folder import RunFolder

CHANGES = {"train__steps": 2, "train__log_every": 1}


@pytest.fixture
def run(text, tmp_path):
    """The folder of a run with a name that no shell should read, and its experiment file."""
    experiment = tiny.write_experiment(tmp_path, text, **CHANGES)
    folder = tmp_path / "a run; touch x"
    assert cli.main([f"--config={experiment}", f"--workdir={folder}", "--config.seed=3"]) == 0
    return folder, experiment


def test_an_untracked_file_is_restored(run, tmp_path, capsys):
    """What is printed can be pasted, and trains the same run, whatever has become of the file."""
    folder, experiment = run
    experiment.write_text("raise RuntimeError\n")
    command = reproduce_command(folder, trust=True)
    restoring = [line for line in command.text.splitlines() if line.startswith(("mkdir ", "cp "))]
    assert len(restoring) == 2
    subprocess.run("\n".join(restoring), shell=True, check=True, cwd=tmp_path)
    (arguments,) = command.arguments
    restored = next(word.removeprefix("--config=") for word in arguments if word.startswith("--config="))
    assert "raise RuntimeError" not in Path(restored).read_text() and not (tmp_path / "x").exists()
    assert shlex.join(["hybrid-flax", *arguments]) in command.text
    assert experiment.read_text() == "raise RuntimeError\n", "nothing of the user's is written over"
    shutil.rmtree(f"{folder}-again-source")
    assert cli.main(["reproduce", str(folder), "--trust", "--run"]) == 0
    again = RunFolder(f"{folder}-again")
    for name in ("metrics.jsonl", "results.json", "config.json", "experiment.py"):
        assert (folder / name).read_bytes() == (again.path / name).read_bytes()


def test_a_committed_file_is_checked_out(text, tmp_path, monkeypatch):
    """And a change of it that was not committed is restored."""
    experiment = tiny.write_experiment(tmp_path, text, **CHANGES)
    for command in ("init -q", "add tiny_experiment.py", "-c user.name=a -c user.email=b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
    monkeypatch.setattr("hybrid_flax.training.folder._git_revision", lambda: head.stdout.strip())
    for name in ("committed", "changed"):
        assert cli.main([f"--config={experiment}", f"--workdir={tmp_path / name}"]) == 0
        command = reproduce_command(tmp_path / name, trust=True)
        assert command.text.startswith(f"git checkout {head.stdout.strip()}\n")
        assert bool(command.copies) == ("cp -r" in command.text) == (name == "changed")
        experiment.write_text(experiment.read_text() + "# changed\n")


def test_a_run_that_changed_its_schedule_is_several_commands(run):
    folder, experiment = run
    call = [f"--config={experiment}", f"--workdir={folder}", "--config.seed=3", "--config.train.steps=4"]
    assert cli.main([*call, "--changed_schedule"]) == 0
    assert cli.main(["reproduce", str(folder), "--trust", "--run"]) == 0
    for name in ("metrics.jsonl", "results.json", "config.json"):
        assert (folder / name).read_bytes() == (folder.with_name(f"{folder.name}-again") / name).read_bytes()


def test_nothing_of_a_folder_is_imported_without_trust(run, monkeypatch):
    """Also where the file that is given asks for a module that is not there."""
    folder, experiment = run
    (folder / "modules").mkdir()
    (folder / "modules" / "kept_evil.py").write_text("raise SystemExit('it was run')\n")
    lines = "try:\n    import kept_evil\nexcept ImportError:\n    pass\n"
    experiment.write_text(lines + experiment.read_text())
    assert "train" in reproduce_command(folder, experiment=str(experiment)).text
