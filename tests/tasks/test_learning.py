"""Every task of labelled examples is learnt, from its file to the metrics of the run."""

import json
import random

import pytest
import tiny
from rich.console import Console

from hybrid_flax.training.loop import train

NAMES, PLACES, WORDS = ("ann", "bo", "cy"), ("rome", "oslo"), ("a", "film", "to", "sing", "at", "night")


def classified(words, good, bad):
    return [*words, "good" if good else "bad"], "yes" if good else "no"


def many(words, good, bad):
    return words + ["good"] * good + ["bad"] * bad, ["+"] * good + ["-"] * bad


def rated(words, good, bad):
    return words + ["good"] * good + ["bad"] * bad, 1 + 2 * good - 2 * bad


def tagged(words, good, bad):
    """A name of one or two words, perhaps a place, and words that are neither."""
    person = ["ann", "bo"] if good else ["cy"]
    marks = ["B-PER", "I-PER"][: len(person)]
    place = ["rome"] if bad else []
    return [*words, *person, "at", *place], ["O"] * len(words) + marks + ["O"] + ["B-LOC"] * len(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "rule", "metric", "above"),
    [
        ("classify", classified, "f1_macro", 0.9),
        ("multilabel", many, "accuracy", 0.8),
        ("regress", rated, "r", 0.9),
        ("tag", tagged, "f1", 0.8),
    ],
)
def test_an_easy_rule(task, rule, metric, above, tmp_path):
    rng = random.Random(0)
    lines = []
    for _ in range(120):
        words, label = rule(rng.choices(WORDS, k=rng.randint(1, 4)), rng.random() < 0.5, rng.random() < 0.5)
        lines.append(json.dumps({"text": words if task == "tag" else " ".join(words), "label": label}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    config = tiny.tiny_config(
        tmp_path / "data.jsonl",
        **{"task__name": task, "task__crf": task == "tag", "data__mode": "padded", "data__tokenizer": "word"},
        **{"data__batch_size": 16, "model__pattern": "bi:mingru", "optim__learning_rate": 0.03},
        **{"train__steps": 60, "train__checkpoint_every": 60},
    )
    _, results = train(config, tmp_path / "run", console=Console(quiet=True))
    assert results["valid"][metric] > above
