"""The command line: what cannot run is one line and exit code 2, and the verbs do what they say."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.config import apply_overrides, load_config
from hybrid_flax.training.folder import default_folder


def mistake(capsys, *argv) -> str:
    """The one line on stderr that a wrong call prints."""
    capsys.readouterr()
    assert cli.main([str(text) for text in argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in out + err
    return err


OVERRIDES = {
    "model.widht=16": "nearest: model.width",
    "optim.lr=1": "unknown key 'optim.lr' in --config.optim.lr=1; nearest: optim.learning_rate",
    "train.epochs=3": "training is counted in steps; nearest: train.steps",
    "heads=2": "nearest: mixers.attn.num_heads, mixers.swa.num_heads",
    "widht=16": "unknown key 'widht'",
    "width=16": "model.width",
    "optim.learning_rates=1": "optim.learning_rate",
    "model=16": "unknown key 'model'",
    "mixers.swa.windw=3": "mixers.swa.window",
    "model.width=sixteen": "'sixteen' is no int",
    "model.width=16.5": "'16.5' is no int",
    "model.width=1.5e0": "'1.5e0' is no int",
    "model.width=1e-3": "'1e-3' is no int",
    "model.width=1e999999": "'1e999999' is no int",
    "optim.learning_rate=fast": "'fast' is no float",
    "model.tied=perhaps": "'perhaps' is no bool",
    "mixers.attn.window=wide": "'wide' is no int",
    "model.width": "has no value",
    "train.steps=0": "must be at least 1",
    "optim.learning_rate=-1": "must be at least 0",
    "optim.learning_rate=nan": "must be at least 0",
    "train.dropout=1.0": "must be in [0.0, 1.0)",
    "train.recurrent_dropout=1.0": "must be in [0.0, 1.0)",
    "train.patience=-1": "must be at least 0",
    "optim.b1=1.0": "must be in [0.0, 1.0)",
    "data.mode=window": "windows, stream, packed",
    "data.tokenizer=chars": "nearest: char",
    "data.document=chapter": "file, paragraph, line",
    "data.path=synthetic:parity": "go with answer",
    "task.name=classification": "classify, multilabel",
    "task.name=classify": "none of padded",
    "optim.name=adamm": "adam, adamw, rmsprop, sgd, lion, adafactor, muon",
    "schedule.name=cosinus": "constant, exponential, step, linear, cosine, wsd, rsqrt",
    "model.norm=batch": "rms, layer",
    "model.mlp=relu": "none, relu2, gelu, swiglu",
    "model.dtype=float16": "float32, bfloat16",
    "train.parallel=tpu": "auto, jit, pmap, shard_map",
    "model.pattern=lsmt": "nearest: lstm",
    "model.pattern=cascad:lstm+attn": "nearest: cascade",
    "model.pattern=cascade:lstm": "has 1 of the 2 parts of cascade: write cascade:layer+layer",
    "model.pattern=": "layer '' has an empty name",
    "model.pattern=lstm,": "layer '' has an empty name",
    "mixers.swa.num_heads=3": "must divide the width 8",
    "mixers.swa.num_heads=8": "even head width",
    "mixers.swa.window=0": "must be at least 1",
    "mixers.swa.causal=false": "causal",
    "mixers.lstm.form=parallel": "none of auto, sequential",
    "model.pattern=bi:lstm": "needs causal mixers",
    "schedule.warmup_steps=6": "must be in [0, 6)",
    "optim.accumulate=3": "use 3 or 6",
    "data.batch_size=1000000": "need",
    "data.length=100000": "need",
    "data.valid_fraction=0.9999": "training text",
    "data.valid_fraction=1.5": "must be in [0.0, 1.0)",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_wrong_override(override, experiment, capsys, tmp_path):
    changes = [f"--config.{override}"]
    if override.startswith("data.batch_size"):
        changes.append("--config.data.mode=stream")
    err = mistake(capsys, f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *changes)
    assert OVERRIDES[override] in err
    assert not (tmp_path / "run").exists()


def test_attention_in_stream_mode(experiment, capsys, tmp_path):
    changes = ("--config.data.mode=stream", "--config.model.pattern=cascade:lstm+attn")
    assert "use swa" in mistake(capsys, "plan", f"--config={experiment}", *changes)
    assert "windows" in mistake(
        capsys, "plan", f"--config={experiment}", "--config.data.mode=packed", "--config.data.batch_size=0"
    )


CALLS = {
    ("train", "--config=nowhere.py"): "no config file 'nowhere.py'",
    ("generate", "--workdir=nowhere"): "is no run",
    ("eval", "--workdir=nowhere"): "is no run",
    ("train", "--config=shakespeare"): "nearest: experiments/shakespeare.py",
    ("plan", "--config=griffon.py"): "nearest: experiments/griffin.py",
    ("plan", "--config=x/y.py"): "known: experiments/attention_only.py",
    ("plan", "--mixers=lstm,lsmt"): "nearest: lstm",
    ("sweep", "--config=experiments/griffin.py"): "no sweep()",
    ("sweep", "--config=experiments/shakespeare.py", "--sweep=serch"): "--sweep=search",
    ("diff", "one", "two"): "one is no run",
    ("reproduce", "nowhere"): "nowhere is no run",
}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_wrong_call(call, capsys, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    assert CALLS[call] in mistake(capsys, *call)


def test_missing_config_file_names_the_nearest(experiment, capsys):
    err = mistake(capsys, f"--config={experiment.parent / 'tiny_experimnt.py'}")
    assert f"nearest: {experiment}" in err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def get_config(arg=''):\n    return x\n", "get_config, line 2: name 'x' is not defined"),
        ("def get_config(:\n", "does not load"),
        ("import missing_package\n", "No module named 'missing_package'"),
        ("1 / 0\n", "division by zero"),
        ("config = 1\n", "has no get_config"),
        ("def get_config():\n    return 1\n", "get_config"),
        ("def get_config(arg=''):\n    return 1\n", "returned int"),
        (
            "from hybrid_flax.config import base_config\n"
            "def get_config(arg=''):\n    config = base_config()\n    config.model.widht = 3\n    return config\n",
            "width",
        ),
        (
            "from hybrid_flax.config import base_config\n"
            "def get_config(arg=''):\n    config = base_config()\n    config.model.width = 'wide'\n    return config\n",
            "width",
        ),
    ],
)
def test_config_file_that_does_not_work(code, words, tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text(code)
    err = mistake(capsys, f"--config={path}")
    assert words in err and "broken.py" in err


def test_data_that_does_not_read(experiment, tmp_path, capsys):
    def with_path(path):
        return mistake(capsys, f"--config={experiment}", f"--workdir={tmp_path / 'run'}", f"--config.data.path={path}")

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    assert "is empty" in with_path(tmp_path / "empty.txt")
    assert "is not UTF-8: byte 0xe9" in with_path(tmp_path / "latin.txt")
    assert f"nearest: {tmp_path / 'empty.txt'}" in with_path(tmp_path / "emty.txt")
    assert "without any *.txt" in with_path(tmp_path / "folder")
    assert "is empty" in with_path("")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_changed_config_in_an_existing_workdir(finished, experiment, capsys):
    err = mistake(capsys, f"--config={experiment}", f"--workdir={finished}", "--config.model.width=16")
    assert "model.width: 8 -> 16" in err and "another --workdir" in err


def test_workdir_that_is_a_file(experiment, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "file" in mistake(capsys, f"--config={experiment}", f"--workdir={tmp_path / 'file'}")


def test_evaluation_of_a_split_that_is_not_there(finished, capsys):
    assert "one of train, valid" in mistake(capsys, "eval", f"--workdir={finished}", "--split=test")
    assert "no evaluated checkpoint" in mistake(capsys, "eval", f"--workdir={finished}", "--checkpoint=best")


def test_no_validation_text_where_there_are_evaluations(experiment, tmp_path, capsys):
    err = mistake(
        capsys,
        f"--config={experiment}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.valid_fraction=0",
        "--config.eval.every=2",
    )
    assert "eval.every" in err


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_missing_checkpoint(copy, experiment, capsys):
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint yet" in mistake(capsys, "generate", f"--workdir={copy}")


@pytest.mark.parametrize("what", ["contents", "metadata", "everything", "other"])
def test_corrupted_checkpoint(what, copy, experiment, capsys):
    """Where none is whole, reading and going on both say in one line which cannot be read; else the one before is."""
    spoil(copy / "checkpoints" / "6", what)
    before = copy / "checkpoints" / "3"
    before.rename(copy / "3")
    for call in (("generate", f"--workdir={copy}"), (f"--config={experiment}", f"--workdir={copy}")):
        err = mistake(capsys, *call)
        assert str(copy / "checkpoints" / "6") in err
    (copy / "3").rename(before)
    assert cli.main(["generate", f"--workdir={copy}"]) == 0
    err = capsys.readouterr().err
    assert f"{copy}/checkpoints/6 cannot be read: " in err and err.endswith("; step 3 is taken instead\n")
    assert cli.main([f"--config={experiment}", f"--workdir={copy}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"it is set aside in {copy}/damaged" in out and "going on from the checkpoint of step 3" in out
    assert {path.name for path in (copy / "damaged").iterdir()} == {"6"}


def spoil(checkpoint, what):
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert files
    for path in files:
        is_metadata = path.name.startswith(("_", "."))
        if what == "everything" or ((what == "metadata") == is_metadata and what != "other"):
            path.write_bytes(b"spoilt")
    if what == "other":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()


def test_corrupted_arrays_leave_one_line_on_the_screen(copy, tmp_path):
    """In a process of its own, where loggers and warnings would show."""
    for path in (copy / "checkpoints" / "6").rglob("d/*"):
        path.write_bytes(b"spoilt")
    shutil.rmtree(copy / "checkpoints" / "3")
    code, out, err = tiny.python(tiny.ROOT / "launch.py", "generate", f"--workdir={copy}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: checkpoint ") and "cannot be read" in err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_corrupted_run_folder(name, copy, experiment, capsys):
    (copy / name).write_text("{")
    assert name in mistake(capsys, "generate", f"--workdir={copy}")


def test_the_verbs(finished, experiment, capsys):
    capsys.readouterr()
    assert cli.main(["eval", f"--workdir={finished}"]) == 0
    assert "bits/char" in capsys.readouterr().out
    assert cli.main(["generate", f"--workdir={finished}", "--prompt=abc", "--tokens=5", "--temperature=0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("abc") and len(out) == len("abc") + 5 + 1
    assert cli.main(["generate", f"--workdir={finished}", "--prompt=a§§", "--tokens=5"]) == 0
    assert "prompt='a§§' has 2 tokens unseen in training" in capsys.readouterr().err
    assert cli.main(["plan", f"--config={experiment}"]) == 0
    assert "0 cascade:lstm+swa" in capsys.readouterr().out
    assert cli.main(["preview", f"--config={experiment}"]) == 0
    assert "the first rows of the first of" in capsys.readouterr().out
    assert cli.main(["diagnose", f"--workdir={finished}", "--split=train"]) == 0
    out = capsys.readouterr().out
    assert f"{finished}, train split" in " ".join(out.split()) and "0 cascade:lstm+swa" in out


def test_second_start_of_a_finished_run(finished, experiment, capsys):
    rows = (finished / "metrics.jsonl").read_bytes()
    results = json.loads((finished / "results.json").read_text())
    capsys.readouterr()
    assert cli.main([f"--config={experiment}", f"--workdir={finished}"]) == 0
    out = capsys.readouterr().out
    assert f"{results['valid']['loss']:.4f}" in out and "step 2/6" not in out
    assert (finished / "metrics.jsonl").read_bytes() == rows


def test_default_workdir_follows_the_config(experiment, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([f"--config={experiment}", "--config.train.steps=1", "--config.sample.tokens=1"]) == 0
    first = re.search(r"run folder: (\S+)", capsys.readouterr().out)[1]
    assert re.fullmatch(r"runs/tiny_experiment-[0-9a-f]{8}", first) and Path(first, "results.json").exists()
    one, two = (apply_overrides(load_config(str(experiment)), [f"train.steps={steps}"]) for steps in (1, 2))
    assert default_folder(str(experiment), two) != default_folder(str(experiment), one)
    assert f"runs here: {first}" in mistake(capsys, "generate")


def test_diff(finished, copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["width"] = 16
    (copy / "config.json").write_text(json.dumps(config))
    results = json.loads((copy / "results.json").read_text())
    results["valid"]["loss"] += 0.25
    (copy / "results.json").write_text(json.dumps(results))
    assert cli.main(["diff", str(finished), str(copy)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "model.width 8 16" in out and "run: the same" in out and "+0.25" in out
    assert "model.depth" not in out
    (copy / "results.json").unlink()
    (copy / "run.json").unlink()
    assert cli.main(["diff", str(copy), str(copy)]) == 0
    out, err = capsys.readouterr()
    assert "train/loss" in out and f"{copy} has no run.json" in err
    (copy / "metrics.jsonl").write_bytes(bytes(99))
    assert cli.main(["diff", str(finished), str(copy)]) == 0
    assert f"{copy} has no figures in metrics.jsonl" in capsys.readouterr().err
    (copy / "config.json").write_text("{}")
    for verb in (["diff", str(finished), str(copy)], ["eval", f"--workdir={copy}"]):
        assert f"{copy / 'config.json'} is damaged: it has no data" in mistake(capsys, *verb)


@pytest.mark.slow
def test_reproduce(finished, experiment, copy, capsys, tmp_path):
    """The printed command is run, and makes the run again, bit for bit."""
    changes = ["--config.model.pattern=gate:lstm+swa", "--config.optim.clip_norm=inf", "--config.model.tied=true"]
    assert cli.main([f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *changes]) == 0
    capsys.readouterr()
    assert cli.main(["reproduce", str(tmp_path / "run"), "--trust"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = next(shlex.split(line) for line in lines if line.startswith("hybrid-flax"))
    assert words[1] == "train" and set(changes) < set(words) and len(words) == 7
    again = (f"--workdir={tmp_path / 'again'}", f"--config={experiment}", "--run")
    assert cli.main(["reproduce", str(tmp_path / "run"), *again]) == 0
    for name in ("config.json", "metrics.jsonl", "results.json", "sample.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    capsys.readouterr()
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(about | {"experiment": ""}))
    assert "not launched from an experiment file" in mistake(capsys, "reproduce", copy)
