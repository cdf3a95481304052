"""Predictions of new texts are those of the same texts as a labelled split, however they are batched."""

import io
import json

import jax
import numpy as np
import pytest
import tiny

from hybrid_flax import cli, runs
from hybrid_flax.config import ConfigError
from hybrid_flax.models.build import init_params
from hybrid_flax.predict import predict
from hybrid_flax.report.disagreement import _words
from hybrid_flax.report.predictions import print_predictions
from hybrid_flax.training.folder import Run
from hybrid_flax.training.setup import make_setup

ROWS = {
    "classify": [("a good film", "yes"), ("a bad film", "no"), ("bad , bad", "no"), ("good one it is", "yes")] * 6,
    "multilabel": [("a good film", ["good"]), ("a bad film", ["bad"]), ("good and bad", ["good", "bad"])] * 6,
    "regress": [("a good film", "2.5"), ("a bad film", "-1.5"), ("good", "3"), ("bad bad", "-3")] * 6,
    "tag": [(["Ann", "Bo", "sings"], ["B-PER", "I-PER", "O"]), (["in", "Rome"], ["O", "B-LOC"])] * 6,
}


@pytest.fixture(scope="module", params=ROWS)
def run(request, tmp_path_factory):
    return untrained(tmp_path_factory.mktemp(request.param), request.param, ROWS[request.param])


def untrained(folder, task, rows, **changes):
    """A run before its first step."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    changes |= {"task__name": task, "data__mode": "padded", "data__tokenizer": "word"}
    changes = {"task__crf": task == "tag", "model__pattern": "bi:mingru"} | changes
    config = tiny.tiny_config(folder / "data.jsonl", **changes)
    experiment = make_setup(config)
    source, params = experiment.source, init_params(experiment.model, jax.random.key(0))
    shaken = jax.tree.map(lambda leaf: leaf + np.random.default_rng(0).standard_normal(leaf.shape), params)
    return Run(experiment.model, shaken, source.tokenizer, config, 0, source.labels)


def test_predictions(run):
    task = run.config.task.name
    texts = [text if isinstance(text, str) else " ".join(text) for text, _ in ROWS[task]]
    found = predict(run, texts)
    assert [p.text for p in found] == texts
    again = predict(run, texts[:5], batch_size=2)  # other batches, and the same answers
    assert [p.label for p in again] == (
        pytest.approx([p.label for p in found[:5]], rel=1e-4) if task == "regress" else [p.label for p in found[:5]]
    )
    long = predict(run, [" ".join(["bad"] * 99)])[0]
    kinds = {"classify": str, "multilabel": tuple, "regress": float, "tag": tuple}
    assert isinstance(long.label, kinds[task])
    if task == "classify":
        assert {p.label for p in found} <= set(run.labels) and all(0.5 <= p.confidence <= 1 for p in found)
    if task == "tag":
        assert len(long.label) == 99 and all(len(p.label) == len(p.text.split()) for p in found)
        assert {tag for p in found for tag in p.label} <= set(run.labels)


@pytest.mark.parametrize("crf", [False, True])
def test_plain_tags(crf, tmp_path, capsys):
    """Parts of speech come out a word a line, their metrics are those of classes and not of spans."""
    rows = [(["Ann", "sings"], ["NOUN", "VERB"]), (["in", "Rome"], ["ADP", "NOUN"])] * 6
    run = untrained(tmp_path, "tag", rows, task__crf=crf, eval__metric="f1_macro")
    assert run.labels == ("ADP", "NOUN", "VERB")
    print_predictions(run, ["Ann sings in Paris"])
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert [line.split("\t")[0] for line in lines] == ["Ann", "sings", "in", "Paris"]
    assert {line.split("\t")[1] for line in lines} <= set(run.labels)
    batch = make_setup(run.config).source.splits["train"].batches(12, 8, False)[0]
    assert _words(run, batch, 0, batch.targets[0]) == ("Ann/NOUN sings/VERB", True)
    with pytest.raises(ConfigError, match=r"eval.metric='f1' is none of loss, accuracy, f1_macro"):
        untrained(tmp_path, "tag", rows, task__crf=crf, eval__metric="f1")


def test_every_line_has_its_answer(run, tmp_path, monkeypatch, capsys):
    """Only a line feed ends a line; a blank one says so in its place, and a byte order mark is no part of a word."""
    monkeypatch.setattr(runs, "load_run", lambda workdir, checkpoint, **given: run)
    odd = "a\u2028good\x85 film\x0c\u00a0bad"
    raw = f"\N{BYTE ORDER MARK}a good film\n{odd}\r\n\n \nbad".encode()
    (tmp_path / "texts").write_bytes(raw)
    assert cli.main(["predict", "--workdir=w", f"--input={tmp_path / 'texts'}"]) == 0
    out = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert cli.main(["predict", "--workdir=w", "--input=-"]) == 0 and capsys.readouterr().out == out
    if run.config.task.name == "tag":
        blocks = [[line.split("\t")[0] for line in block.split("\n")] for block in out.split("\n\n")]
        assert blocks == [["a", "good", "film"], odd.split(" "), ["(blank)"], ["(blank)"], ["bad"], [""]]
    else:
        lines = [line.split("\t") for line in out.split("\n")]
        assert [line[-1] for line in lines] == ["a good film", odd, "", "", "bad", ""]
        assert [line[0] == "(blank)" for line in lines] == [False, False, True, True, False, False]
        assert len(set(map(len, lines[:5]))) == 1
    found = predict(run, ["a good film", " ", "bad"])
    assert found[1] == (" ", None, None) and found[::2] == predict(run, ["a good film", "bad"])
    for texts, wanted in (
        ([" ", "\n"], "all of 2 texts are blank"),
        (["a", "b\udcff"], "text 2: 'text' has half"),
    ):
        with pytest.raises(ValueError, match=wanted):
            predict(run, texts)


def test_it_answers_from_parameters(run):
    """Other parameters say something else: what is returned is not the stand-in for a label."""
    texts = ["a good film", "bad", "Ann in Rome"]
    shaken = jax.tree.map(lambda leaf: leaf + 3 * np.random.default_rng(0).standard_normal(leaf.shape), run.params)
    assert [p[1:] for p in predict(run._replace(params=shaken), texts)] != [p[1:] for p in predict(run, texts)]


def test_command(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_run", lambda workdir, checkpoint, **given: run)
    workdir = tmp_path
    (tmp_path / "texts").write_text("a good film\n\nbad\n")
    assert cli.main(["predict", f"--workdir={workdir}", f"--input={tmp_path / 'texts'}"]) == 0
    out = capsys.readouterr().out
    if run.config.task.name == "tag":
        assert [line.split("\t")[0] for line in out.split("\n")] == [
            *("a", "good", "film", "", "(blank)", "", "bad", "", "")
        ]
    else:
        assert [line.split("\t")[-1] for line in out.splitlines()] == ["a good film", "", "bad"]
    assert cli.main(["predict", f"--workdir={workdir}"]) == 2
    assert cli.main(["predict", f"--workdir={workdir}", "--text= "]) == 2
    assert cli.main(["predict", f"--workdir={workdir}", f"--input={tmp_path / 'nothing'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
