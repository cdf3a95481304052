"""Finished runs: loaded in a fresh process, with their running mean, their best step, and mixers of one's own."""

import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.config import ConfigError
from hybrid_flax.generate import generate
from hybrid_flax.runs import load_run
from hybrid_flax.runs import train as train_run
from hybrid_flax.training.loop import train
from hybrid_flax.training.writers import read_jsonl


@pytest.fixture(scope="module")
def workdir(text, tmp_path_factory):
    """A finished run with a running mean; its learning rate makes it worse in the end."""
    folder = tmp_path_factory.mktemp("runs") / "ema"
    changes = {"train__steps": 8, "eval__every": 2, "optim__ema_decay": 0.3, "schedule__name": "constant"}
    train(tiny.tiny_config(text, **changes, optim__name="sgd", optim__learning_rate=8.0), folder)
    return folder


@pytest.mark.slow
def test_parameters_are_the_running_mean(workdir, tmp_path):
    """And those of the best step where that is asked for; the same in a fresh process without flags."""
    latest, best = load_run(workdir), load_run(workdir, "best")
    losses = {row["step"]: row["eval/loss"] for row in read_jsonl(workdir / "metrics.jsonl") if "eval/loss" in row}
    assert set(losses) == {2, 4, 6, 8}
    assert best.step == min(losses, key=losses.get) and latest.step == 8
    assert best.step != 8, "the run must get worse, or best and latest are one"
    code = (
        "import json, sys, jax, hybrid_flax\n"
        "run = hybrid_flax.load_run(sys.argv[1])\n"
        "print(json.dumps([float(abs(leaf).sum()) for leaf in jax.tree.leaves(run.params)]))\n"
    )
    code_path = tmp_path / "load.py"
    code_path.write_text(code)
    status, out, err = tiny.python(code_path, workdir)
    assert status == 0, err
    sums = [float(abs(leaf).sum()) for leaf in jax.tree.leaves(latest.params)]
    np.testing.assert_allclose(json.loads(out), sums, rtol=1e-6)


def test_a_run_answers_in_a_notebook(text, tmp_path, capsys):
    """Training, evaluation, text and weights in one call each, as the commands have them."""
    config = tiny.tiny_config(text, train__steps=3, model__pattern="gate:lstm+swa")
    run = train_run(config, tmp_path / "run", quiet=True)
    assert capsys.readouterr().out == ""
    assert run.step == 3
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert run.evaluate() == pytest.approx(saved["valid"], rel=1e-6)
    again = load_run(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, run.params))
    said = again.generate("ab", tokens=7, temperature=0.0)
    assert said == "".join(generate(run, "ab", num_tokens=7, temperature=0.0))
    assert cli.main(["generate", f"--workdir={tmp_path / 'run'}", "--prompt=ab", "--tokens=7", "--temperature=0"]) == 0
    assert capsys.readouterr().out == f"ab{said}\n"
    assert again.attention("ab ab").at["0.b"].shape[1:] == (5, 5) and again.gates("ab ab").at["0"].shape == (5, 8)
    with pytest.raises(ConfigError, match=r"split 'tests' of .* has nothing to evaluate; one of train, valid"):
        again.evaluate("tests")
    with pytest.raises(ValueError, match="predict takes a list of texts, not 'ab' alone"):
        again.predict("ab")
    with pytest.raises(ValueError, match=r"a run of task\.name=lm gives no labels"):
        again.predict(["ab"])


def test_evaluation_of_a_loaded_run_is_that_of_training(workdir, capsys):
    """The final figures of the run, from the checkpoint alone: so the running mean is what was loaded."""
    from hybrid_flax.report.evaluation import evaluate_run

    saved = json.loads((workdir / "results.json").read_text())
    found = evaluate_run(workdir, "valid", "latest")
    assert found["windows"] == pytest.approx(saved["valid"], rel=1e-6)
    assert set(found) == {"windows", "carried"}
    best = evaluate_run(workdir, "valid", "best")["windows"]["loss"]
    assert best < found["windows"]["loss"]
    assert "after 8 steps" in capsys.readouterr().out


def test_runs_that_are_not_there(workdir, tmp_path):
    with pytest.raises(ConfigError, match=f"is no run.*runs here: {workdir}"):
        load_run(workdir.parent / "emma")
    with pytest.raises(ConfigError, match="none of latest, best"):
        load_run(workdir, "last")


def test_a_config_of_an_older_version(workdir, tmp_path):
    """Knobs that a saved config does not have yet take their defaults."""
    config = json.loads((workdir / "config.json").read_text())
    removed = config["sample"].pop("top_p")
    (workdir / "config.json").write_text(json.dumps(config))
    assert load_run(workdir).config.sample.top_p == removed
    (workdir / "config.json").write_text(json.dumps(config | {"sample": config["sample"] | {"top_p": removed}}))


def test_parameters_keep_their_dtype_under_x64(workdir):
    plain = load_run(workdir)
    with jax.enable_x64(True):
        run = load_run(workdir)
        for one, other in zip(jax.tree.leaves(plain.params), jax.tree.leaves(run.params), strict=True):
            assert one.dtype == other.dtype == np.float32 and np.array_equal(one, other)
        assert "".join(generate(run, "ab", num_tokens=5)) == "".join(generate(plain, "ab", num_tokens=5))


def test_a_config_that_names_no_task(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"task": config["task"] | {"name": "tagg"}}))
    with pytest.raises(ConfigError, match=r"copy needs task tagg, and run\.json names no experiment: add --config"):
        load_run(copy)


OWN_CELL = tiny.own_cell("leaky")


@pytest.mark.slow
def test_a_cell_of_ones_own_from_config_to_text(text, tmp_path):
    """An experiment file registers it; training, evaluation and text need no more than the run folder."""
    changes = {"model__pattern": "cascade:leaky+swa", "data__mode": "stream", "train__steps": 4}
    experiment = tiny.write_experiment(tmp_path, text, head=OWN_CELL, **changes)
    workdir = tmp_path / "run"
    launch = tiny.ROOT / "launch.py"
    override = "--config.mixers.leaky.rate=0.25"
    status, out, err = tiny.python(launch, f"--config={experiment}", override, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    status, out, err = tiny.python(launch, "generate", f"--workdir={workdir}", "--tokens=5", f"--config={experiment}")
    assert (status, err) == (0, "")
    status, out, err = tiny.python(launch, "eval", f"--workdir={workdir}", "--trust")
    assert (status, err) == (0, "") and "carried" in out
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["mixers"]["leaky"]["rate"] == 0.25


@pytest.fixture
def strange(workdir, tmp_path):
    """A run folder that came from somewhere: it has an unknown mixer, and names a file in itself that leaves a mark."""
    folder = shutil.copytree(workdir, tmp_path / "strange")
    (folder / "payload.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    config, about = (json.loads((folder / name).read_text()) for name in ("config.json", "run.json"))
    config["model"]["pattern"], config["mixers"]["foreign"] = "foreign", {"rate": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps(about | {"experiment": str(folder / "payload.py")}))
    trial = {"experiment": str(folder / "payload.py"), "values": {}, "config": config}
    (folder / "trial.json").write_text(json.dumps(trial))
    return folder


READS = ("eval", "generate", "diagnose", "predict --text=a", "reproduce", "train", "plan", "preview")


@pytest.mark.parametrize("call", READS)
def test_a_folder_is_not_run_as_code(call, strange, capsys):
    """Not without --trust; nobody is asked to trust where nothing is missing."""
    verb, *flags = call.split()
    where = f"--workdir={strange}" if verb in ("eval", "generate", "diagnose", "predict") else str(strange)
    where = f"--config={strange / 'trial.json'}" if verb in ("train", "plan", "preview") else where
    assert cli.main([verb, where, *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{strange / 'payload.py'}: give that file by --config, or add --trust" in err
    assert not (strange.parent / "mark").exists()
    assert cli.main([verb, where, *flags, "--trust"]) == 2, "it registers nothing"
    assert (strange.parent / "mark").exists(), "and with --trust it is run"


def test_what_reproduce_prints_can_be_pasted(workdir, text, tmp_path, capsys):
    """Whatever run.json says, no shell runs it."""
    folder = shutil.copytree(workdir, tmp_path / "a run; touch x")
    about = json.loads((folder / "run.json").read_text())
    about |= {"git_revision": "abc; touch mark", "devices": "1 x cpu\ntouch mark", "python": "$(touch mark)"}
    (folder / "run.json").write_text(json.dumps(about))
    experiment = tiny.write_experiment(tmp_path, text)
    assert cli.main(["reproduce", str(folder), f"--config={experiment}"]) == 0
    checkout, command, comment = capsys.readouterr().out.splitlines()
    assert checkout == "git checkout 'abc; touch mark'" and comment.startswith("# 1 x cpu touch mark, ")
    assert shlex.split(command)[-1] == f"--workdir={folder}-again"


def test_a_mixer_that_is_not_registered_is_named(text, tmp_path, capsys):
    train(tiny.tiny_config(text, train__steps=1), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["pattern"] = "leaky"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["generate", f"--workdir={tmp_path}"]) == 2
    assert "unknown mixer 'leaky'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tagger_that_reads_characters_and_starts_from_vectors(tmp_path, capsys):
    """It is evaluated as it was trained, goes on without the file of its vectors, and can be planned."""
    from hybrid_flax.report.evaluation import evaluate_run
    from hybrid_flax.report.plan import make_plan, print_plan
    from hybrid_flax.training.setup import make_setup

    data, vectors = tmp_path / "data.conll", tmp_path / "vectors.txt"
    data.write_text("\n\n".join(["U.N. B-ORG\nofficial O\nEkeus B-PER", "a O\nofficial O\nU.N. B-ORG"] * 6))
    vectors.write_text("official 1 2 3\na 4 5 6\nzebra 0 0 0\n")
    changes = {
        "task__name": "tag", "data__mode": "padded", "data__length": 4, "data__word_length": 5,
        "data__tokenizer": "word", "model__pattern": "bi:lstm", "model__width": 4, "model__embedding_width": 3,
        "model__characters": "rnn", "model__character_width": 4, "model__vectors": vectors,
        "train__steps": 3, "train__word_dropout": 0.1, "optim__accumulate": 2,
    }  # fmt: skip
    config = tiny.tiny_config(data, **changes)
    experiment = make_setup(config)
    assert experiment.batches.batch(0).tokens.shape == (4, 4, 6)
    print_plan(make_plan(experiment, 3))
    train(config, tmp_path / "run")
    assert "vectors of 2 of 4 words (50.0 %), 0 of them by lower case" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert evaluate_run(tmp_path / "run", "valid", "latest")["windows"] == pytest.approx(saved["valid"], rel=1e-5)
    assert re.search(r"type +spans +precision % +recall % +F1 %\s[^a-z]+ ORG +\d", capsys.readouterr().out)
    vectors.unlink()
    (tmp_path / "run" / "results.json").unlink()
    train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == saved
