"""What a task and its loss do not read is refused where it is set."""

import pytest

from hybrid_flax.config import apply_overrides, base_config, validate
from hybrid_flax.errors import ConfigError
from hybrid_flax.tasks.registry import check_task


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["task.name=tagg"], "none of lm, .*; nearest: tag"),
        (["task.name=classify", "loss.name=squared_error"], "'squared_error' .* task.name=classify .* cross_entropy$"),
        (["task.name=regress", "loss.name=squared_eror"], "'squared_eror' .* task.name=regress .* cross_entropy$"),
        (["task.name=regress", "loss.label_smoothing=0.1"], "label_smoothing=0.1 .* task.name=regress: set it to 0"),
        (["task.name=tag", "task.crf=true", "loss.label_smoothing=0.1"], "task.name=tag with a CRF: set it to 0"),
        (
            ["task.name=tag", "task.crf=true", "loss.z_loss=0.1"],
            "z_loss=0.1 .* task.name=tag with a CRF: set it to 0",
        ),
        (["task.name=regress", "loss.z_loss=0.1"], "z_loss=0.1 .* task.name=regress: set it to 0"),
        (["task.name=multilabel", "loss.z_loss=0.1"], "z_loss=0.1 .* task.name=multilabel: set it to 0"),
        (["data.folds=10"], "data.folds=10 needs labelled examples, not task.name=lm"),
        (
            ["task.name=answer", "data.splits=train=a"],
            "data.splits='train=a' .* task.name=answer reads none: set it to ''",
        ),
        (["task.crf=true"], "task.crf=True .* task.name=tag, not lm: leave it at False"),
        (["task.name=tag", "task.pooling=max"], "pooling=max .*=classify or multilabel or regress, not tag: .* mean"),
    ],
)
def test_values_that_a_task_does_not_read(overrides, wanted):
    with pytest.raises(ConfigError, match=wanted):
        check_task(apply_overrides(base_config(), overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.name=squared_error"],
        ["loss.label_smoothing=0.1", "loss.z_loss=0.1"],
        *(
            [f"task.name={name}", "data.mode=padded", "loss.label_smoothing=0.1", f"loss.z_loss={z_loss}"]
            for name, z_loss in (("answer", 0.1), ("classify", 0.1), ("tag", 0.1), ("multilabel", 0))
        ),
        ["train.patience=3", "eval.best=true"],
    ],
    ids=" ".join,
)
def test_values_that_go_together(overrides):
    config = apply_overrides(base_config(), overrides)
    validate(config)
    check_task(config)
