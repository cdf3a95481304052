"""The preview says what the batches hold."""

import pytest
import tiny

from hybrid_flax.report.preview import print_preview
from hybrid_flax.training.setup import make_setup


def preview(capsys, path, **changes):
    config = tiny.tiny_config(path, model__pattern="tanh", **changes)
    print_preview(make_setup(config), config)
    return capsys.readouterr().out


def test_text(capsys, tmp_path):
    out = preview(capsys, tiny.write_text(tmp_path))
    assert "train: " in out and "valid: " in out and out.count("text    ") == out.count("targets ") == 3


@pytest.mark.parametrize("task", ["classify", "regress", "multilabel", "tag"])
def test_labelled(task, capsys, tmp_path):
    path = tmp_path / "data.jsonl"
    text, label = {
        "classify": ('"some words"', '"good"'),
        "regress": ('"some words"', "1.5"),
        "multilabel": ('"some words"', '["good", "odd"]'),
        "tag": ('["some", "words"]', '["O", "B-X"]'),
    }[task]
    other = {"classify": '"bad"', "regress": "-1", "multilabel": '["odd"]', "tag": '["B-X", "O"]'}[task]
    path.write_text(f'{{"text": {text}, "label": {label}}}\n{{"text": {text}, "label": {other}}}\n' * 10)
    out = preview(capsys, path, task__name=task, data__mode="padded", data__length=12)
    wanted = {
        "classify": "good 8",
        "regress": "labels from -1 to 1.5",
        "multilabel": "odd 16, good 8",
        "tag": "O 16, B-X 16",
    }
    assert "train: 16 rows of " in out and "valid: 4 rows" in out and out.count("label   ") == 3
    if task != "regress":
        assert any(name in out for name in ("good", "odd", "B-X"))
    assert wanted[task].split()[0] in out


def test_synthetic(capsys):
    out = preview(capsys, "synthetic:parity", task__name="answer", data__mode="padded", eval__length=16)
    assert "valid: 512 rows of 1 to 8 tokens" in out and "test: 512 rows of 9 to 16 tokens" in out


def test_words_and_their_characters(capsys, tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("\n\n".join(["U.N. B-ORG\nofficial O\nEkeus B-PER"] * 6))
    changes = {"task__name": "tag", "data__mode": "padded", "data__length": 4, "data__word_length": 5}
    out = preview(capsys, path, data__tokenizer="word", data__lowercase=True, model__characters="cnn", **changes)
    assert "'u.n. official ekeus'" in out and "spelt   U.N. offal Ekeus" in out and "label   B-ORG O B-PER" in out
    out = preview(capsys, path, data__tokenizer="char", **changes | {"data__length": 30})
    assert "'U.N. official Ekeus'" in out
