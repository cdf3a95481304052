"""What a config stands for: sources that runs share, and combinations that are refused."""

import os

import pytest
import tiny

from hybrid_flax.config import ConfigError, apply_overrides
from hybrid_flax.training.setup import make_setup, read_source


def test_runs_on_the_same_data_share_it(text):
    one, other = (
        make_setup(tiny.tiny_config(text, seed=seed, optim__learning_rate=rate)) for seed, rate in ((0, 0.1), (1, 0.2))
    )
    assert one.source is other.source
    assert one.batches.batch(0).tokens.tolist() != other.batches.batch(0).tokens.tolist()
    assert read_source(tiny.tiny_config(text, data__tokenizer="word")) is not one.source


def test_changed_data_is_read_again(tmp_path):
    for path in (tmp_path / "text.txt", tmp_path):
        (tmp_path / "text.txt").write_text("abab" * 40)
        config = tiny.tiny_config(path)
        first = read_source(config)
        os.utime(tmp_path / "text.txt", ns=(1, 1))
        assert read_source(config) is not first
        (tmp_path / "text.txt").write_text("abc" * 40)
        assert read_source(config).tokenizer.vocab_size == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.word_dropout=0.1", "data.tokenizer=byte"], "the byte tokenizer has none"),
        (["train.recurrent_dropout=0.1", "model.pattern=rglru,swa"], "'rglru,swa' has none"),
        (["eval.metric=accurcy"], "none of loss, perplexity, bits_per_char, bits_per_byte, accuracy"),
        (["train.patience=2"], "eval.every=0 makes none"),
        (["eval.best=true"], "eval.every=0 makes none"),
    ],
)
def test_refused(changes, words, text):
    with pytest.raises(ConfigError) as error:
        make_setup(apply_overrides(tiny.tiny_config(text), changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_metric_of_the_task(text):
    setup = make_setup(tiny.tiny_config(text, eval__metric="accuracy", data__mode="stream"))
    assert setup.metric in setup.task.metrics and setup.metric.name == "accuracy" and setup.carried
