"""What a task and its loss do not read is refused where it is set."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax import load_run, register_metric, register_task
from hybrid_flax.config import apply_overrides, base_config, validate
from hybrid_flax.errors import ConfigError
from hybrid_flax.generate import generate
from hybrid_flax.registration import METRICS
from hybrid_flax.report.finish import finish_run
from hybrid_flax.tasks.base import Metric, Task, describe, find_metric
from hybrid_flax.tasks.classify import make_classification
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.tasks.registry import check_task, make_task
from hybrid_flax.training.loop import train


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


def test_a_metric_of_ones_own_stands_in_every_evaluation():
    """Its sums are kept apart from those of the task, which have the same names."""
    register_metric("top", ("classify",), top_sums, lambda sums: sums["loss"] / sums["count"], unit="logits")
    task = make_task(classify(), ("a", "b", "c"))
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    batch = tiny.asked(
        jnp.asarray(rng.integers(3, size=8), jnp.int32), jnp.asarray(rng.integers(2, size=8), jnp.float32)
    )
    sums = {name: np.asarray(value, np.float64) for name, value in task.evaluate(logits, batch).items()}
    values, plain = task.measure(sums), make_classification().measure(sums)
    wanted = (np.asarray(logits).max(1) * batch.weights).sum() / np.asarray(batch.weights).sum()
    assert values.pop("top") == pytest.approx(float(wanted), rel=1e-6) and values == plain
    assert find_metric(task, "top") == Metric("top", "logits", text="  top {:.4f} logits")
    assert describe(task, values | {"top": 2.0}).endswith("  top 2.0000 logits")
    assert task is make_task(classify(), ("a", "b", "c")) and task is not make_classification()
    lm = classify()
    lm.task.name = "lm"
    assert "top" not in [metric.name for metric in make_task(lm, ()).metrics]


def top_sums(logits, batch):
    return {"loss": jnp.sum(jnp.max(logits, axis=-1) * batch.weights), "count": jnp.sum(batch.weights)}


def classify():
    return apply_overrides(base_config(), ["task.name=classify", "data.mode=padded"])


def test_a_metric_registered_again_takes_effect_at_once():
    tasks = []
    for factor in (1.0, 2.0, 2.0):
        register_metric("top", ("classify",), top_sums, _times(factor))
        tasks.append(make_task(classify(), ("a", "b")))
    sums = {name: np.ones(()) for name in ("top/loss", "top/count")} | _SUMS
    assert [task.measure(sums)["top"] for task in tasks] == [1.0, 2.0, 2.0]


_SUMS = dict.fromkeys(("right", "scored", "loss", "count"), np.ones(())) | dict.fromkeys(
    ("true_positive", "predicted", "actual"), np.ones(2)
)


def _times(factor):
    def measure(sums):
        return factor * sums["loss"] / sums["count"]

    return measure


def test_metrics_that_cannot_be():
    register_metric("accuracy", ("classify",), top_sums, lambda sums: 0.0)
    with pytest.raises(ConfigError, match="metric 'accuracy' is one of the task already: register it under another"):
        make_task(classify(), ("a", "b"))
    del METRICS._entries["accuracy"]
    register_metric("top", "classify", lambda logits, batch: 3.0, lambda sums: 1 // 0)
    task = make_task(classify(), ("a", "b"))
    batch = tiny.asked(jnp.zeros(2, jnp.int32), jnp.ones(2))
    with pytest.raises(ConfigError, match="metric top: its sums are float, no arrays by name"):
        task.evaluate(jnp.zeros((2, 2)), batch)
    with pytest.raises(ConfigError, match=r"^top \(.*\) fails: ZeroDivisionError"):
        task.measure(_SUMS)


def distance(labels, unseen, *, power: float = 1.0):
    """A task of one's own, on numbers: their distance."""

    def loss(outputs, batch):
        losses = jnp.abs(outputs[:, 0] - batch.targets) ** power
        return {"loss": jnp.sum(losses * batch.weights), "count": jnp.sum(batch.weights)}

    def measure(sums):
        return {"loss": sums["loss"] / sums["count"]}

    return Task(loss, loss, measure, (Metric("loss", lower_is_better=True),), lambda outputs, live: outputs[:, 0])


def test_a_task_of_ones_own_is_made_once_for_equal_options():
    register_task("distance", distance, "number")
    config = apply_overrides(base_config(), ["task.name=distance", "data.mode=padded"])
    check_task(config)
    first = make_task(config, ())
    assert first is make_task(config, ())
    config.tasks.distance.power = 2.0
    second = make_task(config, ())
    assert second is not first
    batch = tiny.asked(jnp.asarray([1.0, 5.0]), jnp.ones(2))
    assert [task.loss(jnp.asarray([[3.0], [4.0]]), batch)["loss"] for task in (first, second)] == [3.0, 5.0]
    register_task("distance", functools.partial(distance, power=3.0), "number")
    assert make_task(apply_overrides(base_config(), ["task.name=distance"]), ()) not in (first, second)
    for key in ("loss.label_smoothing=0.1", "data.mode=windows", "loss.name=squared_error", "task.crf=true"):
        with pytest.raises(ConfigError, match=r"task.name=(distance|tag)"):
            check_task(apply_overrides(base_config(), ["task.name=distance", "data.mode=padded", key]))


def test_tasks_that_cannot_be():
    with pytest.raises(ValueError, match="label_kind='klass' is none of None, 'class', 'classes', 'number', 'tags'"):
        register_task("own", distance, "klass")
    with pytest.raises(ValueError, match="reads='text' must be 'examples' with a label_kind"):
        register_task("own", distance, "class", reads="text")
    with pytest.raises(ValueError, match="factor 'smoothing' is none of label_smoothing, z_loss"):
        register_task("own", distance, "class", factors=("smoothing",))
    register_task("own", lambda labels, unseen: 3)
    with pytest.raises(ConfigError, match=r"task own made int, no hybrid_flax.tasks.base.Task"):
        make_task(apply_overrides(base_config(), ["task.name=own"]), ())


def test_a_task_of_text_without_samples(text, tmp_path):
    """Every second token counts, and nothing is generated; the loss stands in no one's way."""

    def second(labels, unseen):
        task = make_language_modelling()

        def thinned(batch):
            return batch._replace(weights=jnp.where(batch.targets % 2 == 0, batch.weights, 0.0))

        return task._replace(
            loss=lambda logits, batch: task.loss(logits, thinned(batch)),
            evaluate=lambda logits, batch: task.evaluate(logits, thinned(batch)),
            generates=False,
        )

    register_task("second", second)
    run, results = train(tiny.tiny_config(text, task__name="second"), tmp_path)
    assert results["valid"]["loss"] > 0 and not (tmp_path / "sample.txt").exists()
    finish_run(tmp_path, run, results)
    assert not (tmp_path / "sample.txt").exists()
    with pytest.raises(ValueError, match=r"task.name=second has no next token to generate"):
        generate(load_run(tmp_path), "a", num_tokens=1)
