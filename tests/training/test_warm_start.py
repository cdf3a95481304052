"""Runs that start from the weights of others."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.errors import ConfigError
from hybrid_flax.models.places import by_place
from hybrid_flax.runs import load_run
from hybrid_flax.training.evaluate import evaluate_split
from hybrid_flax.training.loop import train
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup

DEEP = {"model__pattern": "gru", "model__depth": 5, "train__steps": 4}


@pytest.fixture(scope="module")
def source(text, tmp_path_factory):
    """A run of five scanned layers with a running mean."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train(tiny.tiny_config(text, **DEEP, optim__ema_decay=0.5), folder)
    return folder


def started(config):
    setup = make_setup(config)
    return setup, fresh_position(setup, config).state.params


@pytest.mark.parametrize("scan_layers", [True, False])
def test_evaluation_before_the_first_step_is_that_of_the_source(scan_layers, source, text):
    config = tiny.tiny_config(text, **DEEP, train__init_from=source, model__scan_layers=scan_layers)
    setup, params = started(config)
    wanted = json.loads((source / "results.json").read_text())["valid"]
    assert evaluate_split(setup, config, params, "valid") == pytest.approx(wanted, rel=1e-6)
    there, here = by_place(load_run(source).params), by_place(params)
    assert there.keys() == here.keys() == setup.start.taken.keys()
    for place, leaf in there.items():
        np.testing.assert_array_equal(leaf, here[place])


@pytest.mark.parametrize("depth", [2, 7])
def test_another_depth_takes_the_layers_that_both_have(depth, source, text):
    config = tiny.tiny_config(text, **DEEP | {"model__depth": depth}, train__init_from=source)
    setup, params = started(config)
    there, here = by_place(load_run(source).params), by_place(params)
    assert setup.start.taken.keys() == there.keys() & here.keys()
    for place in setup.start.taken:
        np.testing.assert_array_equal(there[place], here[place])
    named = setup.start.left if depth == 2 else setup.start.anew
    layers = range(*sorted((depth, 5)))
    assert {place.split(".")[1] for place in named} == {f"layer_{index}" for index in layers}
    sums = [sum(leaf.size for leaf in leaves.values()) for leaves in (here, there)]
    taken, anew, left = (int(word.replace(",", "")) for word in setup.start.lines()[2].split()[1:4])
    assert (taken + anew, taken + left) == tuple(sums)
    fresh = by_place(started(tiny.tiny_config(text, **DEEP | {"model__depth": depth}))[1])
    for place in setup.start.anew:
        np.testing.assert_array_equal(here[place], fresh[place])


def test_rows_go_by_token(source, text, tmp_path):
    """Another vocabulary, one of the same size included: a row is that of its token."""
    data = tmp_path / "text.txt"
    data.write_text(text.read_text().replace("a", "Z").replace("b", "ya"))
    config = tiny.tiny_config(data, **DEEP, train__init_from=source)
    setup, params = started(config)
    run = load_run(source)
    fresh = started(tiny.tiny_config(data, **DEEP))[1]
    known = {token: place for place, token in enumerate(run.tokenizer.tokens())}
    assert "Z" not in known and None in known
    shared = 0
    for place, token in enumerate(setup.source.tokenizer.tokens()):
        from_source = token in known
        shared += from_source
        wanted, there = (run.params, known[token]) if from_source else (fresh, place)
        np.testing.assert_array_equal(params["embed"]["embedding"][place], wanted["embed"]["embedding"][there])
        np.testing.assert_array_equal(params["head"]["kernel"][:, place], wanted["head"]["kernel"][:, there])
        np.testing.assert_array_equal(params["head"]["bias"][place], wanted["head"]["bias"][there])
    assert 2 < shared < len(known)
    assert setup.start.taken["head.bias"] == f"{shared} of {setup.source.tokenizer.vocab_size} names"


@pytest.mark.parametrize("labels", ["ba", "cad", "xy"])
def test_outputs_go_by_label(labels, tmp_path):
    def config(name, letters, **changes):
        data = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"w{n % 7} w{n % 3}", "label": letters[n % len(letters)]} for n in range(40)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {"task__name": "classify", "data__mode": "padded", "data__tokenizer": "word", "train__steps": 2}
        return tiny.tiny_config(data, **task, **changes)

    run, _ = train(config("one", "ab"), tmp_path / "run")
    other = config("other", labels, train__init_from=tmp_path / "run")
    setup, params = started(other)
    for place, label in enumerate(setup.source.labels):
        if label in run.labels:
            there = run.labels.index(label)
            np.testing.assert_array_equal(params["head"]["kernel"][:, place], run.params["head"]["kernel"][:, there])
    assert ("head.kernel" in setup.start.anew) == (labels == "xy")


def test_the_source_is_read_once(source, text, tmp_path, monkeypatch, capsys):
    """A run that was cut off before its first checkpoint, too, goes on without it, and as if it had not stopped."""
    copy = shutil.copytree(source, tmp_path / "source")
    changes = DEEP | {"model__depth": 6, "eval__every": 2, "train__log_every": 1}
    config = tiny.tiny_config(text, **changes, train__init_from=copy)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        tiny.at_step(patch, 1, tiny.crash)
        with pytest.raises(tiny.Crash):
            train(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert f"weights of {copy} after 4 steps" in shown and "backbone.layer_5" in shown
    shutil.rmtree(copy)
    train(config, tmp_path / "run")
    for name in ("metrics.jsonl", "results.json", "init_from.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    one, other = (load_run(tmp_path / name, "latest").params for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    record = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert (record["source"], record["step"]) == (str(copy), 4)
    assert all("layer_5" in place for place in record["anew"]) and record["left"] == {}


def test_plan_shows_what_is_taken(source, text, tmp_path, capsys):
    experiment = tiny.write_experiment(tmp_path, text, **DEEP)
    call = ["plan", f"--config={experiment}", f"--config.train.init_from={source}"]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert f"weights of {source} after 4 steps" in out and "starts anew" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [experiment.name]


def test_sources_that_give_nothing(source, text, tmp_path, capsys):
    """One line each, before anything is written."""
    own = shutil.copytree(source, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config["model"]["pattern"], config["mixers"]["foreign"] = "foreign", {"rate": 0.5}
    (own / "config.json").write_text(json.dumps(config))
    experiment = tiny.write_experiment(tmp_path, text, **DEEP)
    run = tmp_path / "run"
    for given, changes, words in (
        (tmp_path / "nothing", [], "is no run"),
        (own, [], "unknown mixer 'foreign'"),
        (source, ["--config.model.width=6"], "no matrix and no embedding of it"),
        (source, ["--config.model.vectors=glove.txt"], "both say what the embedding starts from"),
        (run, [], "is the run's own folder"),
    ):
        if given == run:
            assert cli.main([f"--config={experiment}", f"--workdir={run}"]) == 0
        capsys.readouterr()
        assert (
            cli.main([f"--config={experiment}", f"--workdir={run}", f"--config.train.init_from={given}", *changes]) == 2
        )
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err and "init_from=" in err, err
        assert given == run or not run.exists()


def test_the_folder_of_a_run_is_no_source_of_it(text, tmp_path):
    with pytest.raises(ConfigError, match="is no run"):
        train(tiny.tiny_config(text, train__init_from=tmp_path / "run"), tmp_path / "run")
