"""Nothing of a run is lost, mixed or taken for another: data, writers, checkpoints and small files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from tiny import at_step

from hybrid_flax import cli
from hybrid_flax.errors import ConfigError
from hybrid_flax.locks import FileLock
from hybrid_flax.report.evaluation import evaluate_run
from hybrid_flax.report.finish import finish_run
from hybrid_flax.runs import load_run
from hybrid_flax.training import checkpoint, evaluate, loop, position, session
from hybrid_flax.training.folder import RunFolder
from hybrid_flax.training.loop import train
from hybrid_flax.training.signals import Interrupt, Interrupted
from hybrid_flax.training.writers import read_jsonl

CHANGES = {"train__steps": 8, "train__checkpoint_every": 2, "eval__every": 4, "eval__best": True, "train__log_every": 1}


@pytest.fixture(scope="module")
def config(text):
    return tiny.tiny_config(text, **CHANGES)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def assert_same(one, other):
    for name in ("metrics.jsonl", "results.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    a, b = (jax.tree.leaves(load_run(folder, "latest").params) for folder in (one, other))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class StopAt(Interrupt):
    def at(self, step):
        return signal.SIGTERM if step == 3 else None


def cut_off(config, folder, step, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, step, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(config, folder)


# ---- a run is its data, too ----


@pytest.mark.parametrize("change", [lambda text: text + " once more\n", lambda text: text.replace("e", "E")])
def test_other_data_are_refused_and_go_on_only_when_asked(change, tmp_path, monkeypatch, capsys):
    data = tiny.write_text(tmp_path)
    config = tiny.tiny_config(data, **CHANGES)
    cut_off(config, tmp_path / "run", 5, monkeypatch)
    before = (tmp_path / "run" / "tokenizer.json").read_bytes()
    original = data.read_text()
    data.write_text(change(original))
    evaluate_run(tmp_path / "run", "valid", None)
    assert "these are not the data that it was trained on: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"run was trained on other data: .*tokens, [0-9a-f]{16}.*--changed_data"):
        train(config, tmp_path / "run")
    train(config, tmp_path / "run", changed_data=True)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last_step"] == 8
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == before
    shown = capsys.readouterr().out
    evaluate_run(tmp_path / "run", "valid", None)
    assert "not the data" not in capsys.readouterr().out
    assert "going on with other data: " in " ".join(shown.split())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(about["earlier_data"]) == 1 and about["data"] != about["earlier_data"][0]
    train(config, tmp_path / "run", changed_data=True)  # they are the run's now
    data.write_text(original)
    capsys.readouterr()
    train(config, tmp_path / "run", changed_data=True)
    assert "nothing is trained on other data, as the run is finished: " in " ".join(capsys.readouterr().out.split())


def test_data_that_came_back_go_on(tmp_path, monkeypatch):
    data = tiny.write_text(tmp_path)
    config, text = tiny.tiny_config(data, **CHANGES), data.read_text()
    train(config, tmp_path / "whole")
    cut_off(config, tmp_path / "run", 5, monkeypatch)
    data.write_text("another text\n" * 99)
    with pytest.raises(ConfigError, match="another tokenizer"):
        train(config, tmp_path / "run")
    data.write_text(text)
    train(config, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_other_labels_are_named(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"w{n % 7} w{n % 3}", "label": "ab"[n % 2]} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"task__name": "classify", "data__mode": "padded", "data__tokenizer": "word", "data__test_fraction": 0.2}
    config = tiny.tiny_config(data, **CHANGES | changes)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", interrupt=StopAt())
    data.write_text(data.read_text().replace('"b"', '"c"'))
    with pytest.raises(ConfigError, match="other data: labels: a, b -> a, c;"):
        train(config, tmp_path / "run")


def test_a_run_of_version_0_1_has_no_digest_of_its_data(copy, config):
    """Its tokenizer still tells where they are others."""
    about = json.loads((copy / "run.json").read_text())
    del about["data"]
    (copy / "run.json").write_text(json.dumps(about))
    train(config, copy)
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(tokenizer.replace('h"', 'i"'))
    with pytest.raises(ConfigError, match="other data: another tokenizer comes of them"):
        train(config, copy)


def test_a_finished_run_was_not_trained_on_what_came_later(tmp_path, capsys):
    data = tiny.write_text(tmp_path)
    config = tiny.tiny_config(data, **CHANGES)
    train(config, tmp_path / "run")
    data.write_text(data.read_text() + "more\n")
    train(config, tmp_path / "run", changed_data=True)
    capsys.readouterr()
    evaluate_run(tmp_path / "run", "valid", None)
    assert "these are not the data that it was trained on" in capsys.readouterr().out


def test_a_config_that_is_gone(copy, config):
    (copy / "config.json").unlink()
    before = (copy / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match=r"has checkpoints and no config\.json"):
        train(config, copy)
    assert (copy / "tokenizer.json").read_bytes() == before


# ---- one writer a folder ----


def test_a_second_writer_is_refused_until_the_first_is_dead(copy, config, monkeypatch):
    monkeypatch.setattr("hybrid_flax.training.folder._PATIENCE", 0.1)
    code = (
        "import sys, time\nfrom hybrid_flax.locks import FileLock\nFileLock(sys.argv[1]).acquire()\nprint(flush=True)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(99)", str(copy / "writer.lock")],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
    )
    with holder:
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=rf"process {holder.pid} on .* trains in {copy}: wait"):
            train(config, copy)
        load_run(copy)  # who reads does not wait
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    train(config, copy)
    assert FileLock(copy / "writer.lock").acquire(wait=0.0), "the lock ends with the run"


def test_a_run_is_locked_while_it_trains(config, tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_flax.training.folder._PATIENCE", 0.0)
    at_step(monkeypatch, 3, lambda: train(config, tmp_path / "run"))
    with pytest.raises(ConfigError, match="trains in"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("act", ["removed", "moved", "replaced"])
def test_a_folder_that_goes_away_ends_the_run(act, config, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def go_away():
        while any("tmp" in path.name for path in (folder / "checkpoints").iterdir()):
            time.sleep(0.01)  # a tree in which somebody writes cannot be removed
        shutil.rmtree(folder) if act == "removed" else folder.rename(tmp_path / "elsewhere")
        if act == "replaced":
            shutil.copytree(tmp_path / "elsewhere", folder)

    at_step(monkeypatch, 5, go_away)
    with pytest.raises(FileNotFoundError, match=rf"{folder} was removed or moved while"):
        train(config, folder)


@pytest.mark.parametrize("finishes", [True, False])
def test_checkpoints_that_are_gone(finishes, copy, config):
    shutil.rmtree(copy / "checkpoints")
    if not finishes:
        (copy / "results.json").unlink()
    rows = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="has metrics up to step 8 and no checkpoint in checkpoints/"):
        train(config, copy)
    assert (copy / "metrics.jsonl").read_bytes() == rows
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        load_run(copy)


def test_a_run_that_was_cut_off_before_its_first_checkpoint(config, finished, tmp_path, monkeypatch):
    cut_off(config, tmp_path / "run", 1, monkeypatch)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")
    train(config, tmp_path / "run")
    assert_same(finished, tmp_path / "run")


def test_a_finished_run_in_a_folder_that_cannot_be_written(copy, config, monkeypatch, capsys):
    """It is shown again, and nothing is written."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(FileLock, "acquire", lambda self, wait: pytest.fail("it would write"))
    run, results = train(config, copy)
    assert results == RunFolder(copy).read_results()
    before = sorted(copy.rglob("*"))
    finish_run(copy, run, results)
    assert f"{copy} cannot be written: no plot" in " ".join(capsys.readouterr().out.split())
    assert sorted(copy.rglob("*")) == before


# ---- damage is found and survived ----


def flip(path, rng):
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_of_an_array_is_restored(seed, finished, copy):
    """Whatever bit of the latest checkpoint's arrays: the one before is taken, or nothing has changed."""
    rng = random.Random(seed)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(load_run(finished, "latest").params)]
    for path in sorted((copy / "checkpoints" / "8").rglob("d/*")):
        original = path.read_bytes()
        flip(path, rng)
        run = load_run(copy, "latest")
        if run.step == 8:
            assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(run.params), strict=True))
        path.write_bytes(original)


@pytest.mark.parametrize("size", [1, 7, 8 * 8191 - 1, 8 * 8191, 3 * 8 * 8191 + 5])
def test_a_checksum_sees_every_bit_and_every_place(size):
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, dtype=np.uint8)
    right = checkpoint._checksum(data)
    for place in {0, size - 1, *rng.integers(0, size, 20)}:
        changed = data.copy()
        changed[place] ^= np.uint8(1 << rng.integers(8))
        assert checkpoint._checksum(changed) != right
    assert size < 4096 * 8 or checkpoint._checksum(np.roll(data, 4096)) != right
    assert checkpoint._checksum(data.copy()) == right


def test_a_changed_array_is_named(config, finished, monkeypatch):
    """The checksum is of the array, wherever it was changed; seen to fail without it."""
    right = checkpoint._checksum
    monkeypatch.setattr(checkpoint, "_checksum", lambda array: right(array) ^ 1)
    with pytest.raises(ConfigError, match=r"checkpoints/8 is damaged: state/params/\S+ is not what was saved"):
        load_run(finished)


@pytest.mark.parametrize("damage", ["flipped", "empty", "later", "renamed", "rows", "digit", "record", "shape"])
def test_damage_of_the_latest_checkpoint(damage, copy, finished, config, capsys):
    """Training goes on from the one before, says so, and ends where it ended."""
    latest = copy / "checkpoints" / "8"
    name = "8"
    if damage == "flipped":
        for path in latest.rglob("d/*"):
            path.write_bytes(path.read_bytes()[::-1])
    elif damage == "empty":
        shutil.rmtree(latest)
        latest.mkdir()
    elif damage == "later":
        name = "9"
        (copy / "checkpoints" / name).mkdir()
    elif damage == "renamed":
        name = "9"
        latest.rename(copy / "checkpoints" / name)
    elif damage == "rows":
        rows = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (copy / "metrics.jsonl").write_bytes(b"".join(rows[:-2]))
    elif damage == "digit":
        rows = (copy / "metrics.jsonl").read_bytes()
        (copy / "metrics.jsonl").write_bytes(rows[:-10] + bytes([rows[-10] ^ 1]) + rows[-9:])
    elif damage == "record":
        (latest / "_CHECKPOINT_METADATA").write_text("[1]")
    else:
        (latest / "_CHECKPOINT_METADATA").write_text('{"custom_metadata": {"checksums": 1}}')
    if damage not in ("rows", "digit"):  # which who reads does not need
        run = load_run(copy, "latest")
        err = capsys.readouterr().err
        assert run.step == (8 if damage == "later" else 6) and f"checkpoints/{name} " in err and err.count("\n") == 1
    train(config, copy)
    shown = " ".join(capsys.readouterr().out.split())
    assert (f"checkpoints/{name} " in shown and f"set aside in {copy / 'damaged'}" in shown) or damage == "later"
    assert_same(finished, copy)


def test_the_best_checkpoint_is_lost(text, tmp_path):
    """What is judged by it cannot be had any more: one line, and nothing is put in its place."""
    worse = {"schedule__name": "constant", "optim__name": "sgd", "optim__learning_rate": 8.0, "eval__every": 2}
    config = tiny.tiny_config(text, **CHANGES | worse)
    best = train(config, tmp_path)[0].step
    assert best < 6, "it is neither of the two latest"
    shutil.rmtree(tmp_path / "checkpoints" / str(best))
    (tmp_path / "results.json").unlink()
    with pytest.raises(ConfigError, match=rf"checkpoints/{best}, the best checkpoint, .* is missing: put it back"):
        train(config, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "run.json", "tokenizer.json", "labels.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "7", "[]", "{}", '{"name": 3}', '[1, {"a": 2}]', '"text"', "\x00", "[" * 9999])
def test_a_damaged_small_file_is_named(name, content, copy, config, capsys):
    """Or it is no damage: an empty object of a config is the defaults, an empty list no labels."""
    (copy / name).write_text(content + ("\n{}\n" if name == "metrics.jsonl" else ""))
    for act in (lambda: train(config, copy), lambda: load_run(copy)):
        try:
            act()
        except ConfigError as error:
            text = str(error)
            assert "\n" not in text and str(copy) in text
    capsys.readouterr()


# ---- ends ----


def test_a_signal_in_an_evaluation_stops_there_and_the_evaluation_is_made_up(config, finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    right = evaluate.add_up
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "add_up", lambda *a, **k: (os.kill(os.getpid(), signal.SIGTERM), right(*a, **k))[1])
        for _ in range(2):  # the second time it is the evaluation that was to be made up
            with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4, which is saved"):
                train(config, folder)
        assert not any("eval/loss" in row for row in read_jsonl(folder / "metrics.jsonl"))
    train(config, folder)
    assert_same(finished, folder)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_signal_in_the_final_evaluation(split, finished, text, tmp_path, monkeypatch):
    config = tiny.tiny_config(text, **CHANGES | {"data__test_fraction": 0.2})
    train(config, tmp_path / "whole")
    right = loop.evaluate_split

    def evaluate_split(setup, config, params, name, **options):
        if name == split and options["max_batches"] == config.eval.final_batches and evaluate_split.final:
            os.kill(os.getpid(), signal.SIGTERM)
        return right(setup, config, params, name, **options)

    evaluate_split.final = False
    judged = session.Session.judged_state
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_split", evaluate_split)
        patch.setattr(
            session.Session,
            "judged_state",
            lambda self, position: (setattr(evaluate_split, "final", True), judged(self, position))[1],
        )
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 8, which is saved"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    train(config, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_signal_before_the_first_step_is_a_line(text, tmp_path, monkeypatch, capsys):
    experiment = tiny.write_experiment(tmp_path, text)
    monkeypatch.setattr(position, "fresh_position", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main([f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_full_disk_is_a_line(what, text, tmp_path, monkeypatch, capsys):
    experiment = tiny.write_experiment(tmp_path, text, **CHANGES)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "/somewhere")

    if what == "checkpoint":
        monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "save_async", full)
    else:
        monkeypatch.setattr(session.JsonlWriter, "write", full)
    assert cli.main([f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "no space left on device" in err.lower()
