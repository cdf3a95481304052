"""What a sweep may not be: every wrong definition is one line that names the trial, before anything trains."""

import copy
import json
import math
import random
import time

import pytest
import tiny

from hybrid_flax.config import ConfigError, apply_overrides, config_hash, flatten, load_config, with_values
from hybrid_flax.jobs.status import read_status
from hybrid_flax.jobs.trial import TrialFolder, values_text
from hybrid_flax.locks import FileLock
from hybrid_flax.sweep.definition import read_sweep
from hybrid_flax.sweep.space import axis, product
from hybrid_flax.sweep.trials import make_trial, make_trials


@pytest.fixture
def experiment(text, tmp_path):
    """body -> the path of a tiny experiment with this code beside its get_config."""

    def write(body: str):
        head = f"from hybrid_flax.sweep.space import *\nnan, inf = float('nan'), float('inf')\n{body}\n"
        return str(tiny.write_experiment(tmp_path, text, head))

    return write


def rows(source: str) -> str:
    return f"def sweep():\n    yield from {source}"


# (code, method, what the line must say)
HOSTILE = [
    (rows('axis("optim.learning_rat", [1e-3])'), "grid", r"trial 0 .*nearest: optim.learning_rate"),
    (rows('axis("learning_rate", [1e-3])'), "grid", r"trial 0 .*optim.learning_rate"),
    (rows('axis("model.width.x", [8])'), "grid", r"trial 0 .*unknown key 'model.width.x'"),
    (rows('axis("model", [8])'), "grid", r"unknown key 'model'"),
    (rows('axis("", [8])'), "grid", r"unknown key ''"),
    (rows('axis("model.width", [8, "wide"])'), "grid", r"trial 1 .*'wide' is no int"),
    (rows('axis("model.width", [8.0])'), "grid", r"8.0 is no int"),
    (rows('axis("model.width", [True])'), "grid", r"True is no int"),
    (rows('axis("model.tied", [1])'), "grid", r"1 is no bool"),
    (rows('axis("model.pattern", [3])'), "grid", r"3 is no str"),
    (rows('axis("optim.learning_rate", ["1e-3"])'), "grid", r"'1e-3' is no float"),
    (rows('axis("optim.learning_rate", [None])'), "grid", r"None is no float"),
    (rows('axis("optim.learning_rate", [1e-3, nan])'), "grid", r"trial 1 .*nan is not a number"),
    (rows('axis("optim.learning_rate", [-1.0])'), "grid", r"trial 0 .*must be at least 0"),
    (rows('axis("train.dropout", [0.1, 1.0])'), "grid", r"trial 1 .*must be in \[0.0, 1.0\)"),
    (rows('axis("train.steps", [0])'), "grid", r"must be at least 1"),
    (rows('axis("model.pattern", ["lstm", "lsmt"])'), "grid", r"trial 1 .*nearest: lstm"),
    (rows('axis("model.pattern", ["cascad:lstm+attn"])'), "grid", r"trial 0 .*nearest: cascade"),
    (rows('axis("model.pattern", ["lstm", "bi:swa@windw=3"])'), "grid", r"trial 1 .*option 'windw' of swa; nearest"),
    (rows('axis("model.pattern", ["add:lstm+swa@num_heads=3"])'), "grid", r"layer 'swa@num_heads=3@window=4': .* 8"),
    (rows('axis("mixers.swa.num_heads", [2, 3])'), "grid", r"trial 1 .*must divide the width 8"),
    (rows('product(axis("model.width", [8, 9]), axis("seed", [0]))'), "grid", r"trial 1 .*must divide the width 9"),
    (rows('axis("data.path", ["no/such.txt"])'), "grid", r"trial 0 .*no/such.txt"),
    (rows('axis("data.length", [8, 10**7])'), "grid", r"trial 1 "),
    (rows('axis("optim.name", ["adamm"])'), "grid", r"trial 0 .*adamw"),
    (rows('axis("schedule.warmup_steps", [100])'), "grid", r"trial 0 .*number of steps"),
    (rows('axis("eval.metric", ["loss", "accuracy"])'), "grid", r"trial 0: eval.metric is what trials are compared by"),
    (rows('axis("data.valid_fraction", [0.0])'), "grid", r"trial 0 .*validation"),
    (rows('[{"data.mode": "stream", "model.pattern": "attn"}]'), "grid", r"trial 0 .*without end"),
    (rows('axis("seed", [1, 2, 1])'), "grid", r"trials 0 and 2 \(seed=1\) are the same run"),
    (rows('axis("optim.b1", [0.5, 0.9]) + [{}]'), "grid", r"trials 1 and 2 .*the same run"),
    (rows('axis("optim.clip_norm", [1, 1.0])'), "grid", r"trials 0 and 1 .*the same run"),
    (rows("[]"), "grid", r"empty sweep"),
    ("def sweep():\n    return None", "grid", r"'NoneType' object is not iterable"),
    ("def sweep():\n    return [('seed', 1)]", "grid", r"setting 0 is no"),
    ("def sweep():\n    return {'seed': 1}", "grid", r"setting 0 is no"),
    ("def sweep():\n    return [{1: 2}]", "grid", r"setting 0 is no"),
    ("def sweep():\n    yield {'seed': 1}\n    raise RuntimeError('in\\ntwo')", "grid", r"in two"),
    ("def sweep(option):\n    yield {}", "grid", r"missing 1 required positional argument"),
    ("sweep = 3", "grid", r"not callable"),
    ("", "grid", r"no sweep\(\)"),
    (rows("axis('seed', range(10**6))"), "grid", r"more than 10,000 trials"),
    ("def sweep():\n    while True:\n        yield {'seed': 1}", "grid", r"more than 10,000 trials"),
    (rows("[{f'optim.{n}': int_range(0, 10**9) for n in ('b1', 'b2')}]"), "grid", r"more than 10,000 trials"),
    (rows("product(axis('seed', [1]), axis('seed', [2]))"), "grid", r"'seed' is in two parts of product"),
    (rows("[{'optim.learning_rate': float_range(1e-4, 1e-2)}]"), "grid", r"--search=random"),
    (rows("[{'optim.learning_rate': float_range(1e-2, 1e-4)}]"), "tpe", r"must be below"),
    (rows("[{'optim.learning_rate': float_range(0, 1e-4, log=True)}]"), "tpe", r"above 0"),
    (rows("[{'optim.learning_rat': float_range(1e-4, 1e-2)}]"), "tpe", r"nearest: optim.learning_rate"),
    (rows("[{'model.width': float_range(1.0, 8.0)}]"), "tpe", r"1.0 is no int"),
    (rows("[{'mixers.swa.num_heads': int_range(1, 3)}]"), "random", r"must divide the width 8"),
    (rows("[{'model.pattern': choice('lstm', 'lsmt')}]"), "random", r"nearest: lstm"),
    (rows("[{'seed': 1}]"), "random", r"needs a setting with spaces"),
    (rows("[{'seed': 1}, {'optim.b1': 0.5}]"), "random", r"no full product"),
    (rows("[{'seed': choice(1, 2)}, {'seed': 3}]"), "random", r"takes one setting"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "method", "message"), HOSTILE)
def test_hostile_definitions(code, method, message, experiment):
    with pytest.raises(ConfigError, match=message) as caught:
        read_sweep(experiment(code), [], (), method, 4 if method != "grid" else None)
    assert "\n" not in str(caught.value)


def test_hostile_commands(experiment):
    path = experiment(rows("axis('seed', [1, 2])") + "\ndef sweep_other():\n    yield {'seed': 3}")
    for given, message in (
        ({"method": "gird"}, "none of grid, random, tpe"),
        ({"method": "tpe"}, "needs --trials"),
        ({"num_trials": 0}, "at least 1"),
        ({"names": ["othr"]}, r"sweep_othr\(\): there is none; .*--sweep=other"),
        ({"overrides": ["seed=1"]}, "seed is set by the sweep and by --config.seed"),
        ({"overrides": ["sed=1"]}, "nearest: seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_sweep(path, **({"overrides": []} | given))
    assert [trial.values for trial in read_sweep(path, [], ["other"]).trials] == [{"seed": 3}]
    assert [trial.values for trial in read_sweep(path, [], num_trials=1).trials] == [{"seed": 1}]


def test_a_trial_is_the_config_with_its_values(text):
    base = tiny.tiny_config(text)
    values = {"mixers.swa.window": 6, "optim.clip_norm": 2, "model.pattern": "lstm"}
    trial = make_trial(base, values)
    expected = {**flatten(base), **values}
    assert flatten(trial.config) == expected and flatten(base) != expected
    assert trial.name == config_hash(trial.config) == make_trial(base, values | {"optim.clip_norm": 2.0}).name
    assert values_text(trial.values) == "mixers.swa.window=6 optim.clip_norm=2 model.pattern=lstm"


def test_references_follow_a_value_whoever_sets_it(text, tmp_path):
    """On the command line, by a trial, and by a trial of a trial, as compare makes them."""
    base = tiny.tiny_config(text, train__steps=100)
    base.schedule.warmup_steps = base.train.get_ref("steps") // 10
    by_flag = apply_overrides(copy.deepcopy(base), ["train.steps=40"])
    trial = make_trial(base, {"train.steps": 40})
    again = with_values(with_values(base, {"seed": 1}), {"train.steps": 40, "seed": 0})
    assert flatten(by_flag) == flatten(trial.config) == flatten(again)
    assert by_flag.schedule.warmup_steps == 4 and base.schedule.warmup_steps == 10
    assert trial.name == config_hash(by_flag)
    folder = TrialFolder(tmp_path / "trial")
    folder.prepare(trial, "x.py")
    assert json.loads(folder.trial.read_text())["config"]["schedule"]["warmup_steps"] == 4


def test_values_that_differ_print_apart(text):
    base = tiny.tiny_config(text)
    rates = (0.3, 0.1 + 0.2, 1e-3, math.nextafter(1e-3, 1), 2.0, 1 / 3)
    trials = make_trials(base, axis("optim.learning_rate", rates))
    texts = {values_text(trial.values) for trial in trials}
    assert len(texts) == len(rates) and {"optim.learning_rate=0.3", "optim.learning_rate=2"} < texts
    for trial in trials:
        made = apply_overrides(copy.deepcopy(base), values_text(trial.values).split())
        assert config_hash(made) == trial.name
    assert values_text({"sample.prompt": "a\nb\u2028"}) == "sample.prompt=a\\nb\\u2028"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample.prompt": ""}, "sample.prompt='' is empty"),
        ({"sample.top_p": 0.0}, r"sample.top_p=0.0 must be in \(0.0, 1.0\]"),
        ({"optim.clip_norm": 0.0}, "optim.clip_norm=0.0 must be above 0.0"),
        ({"model.depth": 10**12}, r"model.depth=1000000000000 must be in \[1, 10000\]"),
        ({"train.steps": 10**12}, "train.steps=1000000000000 must be at most 2147483647"),
        ({"seed": 2**63}, r"seed=9223372036854775808 must be in \[0, 9223372036854775808\)"),
    ],
)
def test_what_would_be_found_late_or_never_is_refused_first(text, values, message):
    with pytest.raises(ConfigError, match=message):
        make_trials(tiny.tiny_config(text), [values])


def test_names_follow_values(text):
    """Different rows have different folders, equal ones the same, in whatever order their keys are."""
    base, rng = tiny.tiny_config(text), random.Random(0)
    items = [("seed", 3), ("optim.b1", 0.5), ("mixers.attn.window", 7), ("model.tied", True)]
    names = set()
    for _ in range(5):
        rng.shuffle(items)
        names.add(make_trial(base, dict(items)).name)
    assert len(names) == 1
    assert make_trial(base, {"seed": 4}).name not in names


def test_many_trials_are_checked_quickly(text):
    grid = list(product(axis("optim.learning_rate", [i / 1000 for i in range(1, 26)]), axis("seed", range(4))))
    since = time.process_time()
    assert len(make_trials(tiny.tiny_config(text), grid)) == 100
    assert time.process_time() - since < 10


def test_trial_json_is_a_config(text, tmp_path):
    """What the trial's process reads is the trial's config, the mixers of its experiment registered."""
    path = tiny.write_experiment(tmp_path, text)
    folder = TrialFolder(tmp_path / "trial")
    trial = make_trial(load_config(str(path)), {"optim.clip_norm": float("inf"), "mixers.attn.window": 5})
    folder.prepare(trial, str(path))
    assert config_hash(load_config(str(folder.trial))) == trial.name
    folder.trial.write_text("{}")
    with pytest.raises(ConfigError, match=r"trial\.json' is no trial"):
        load_config(str(folder.trial))


def test_status(tmp_path):
    folder = TrialFolder(tmp_path / "trial")
    assert read_status(folder.path, "loss").state == "waiting"
    folder.path.mkdir()
    folder.metrics.write_text('{"step": 2, "eval/loss": 1.5}\n{"step": 4, "train/loss": 1.0}\n{"step": 4, "eval')
    assert read_status(folder.path, "loss")[:3] == ("waiting", 2, 1.5)
    lock = FileLock(folder.launched)
    lock.acquire()
    assert read_status(folder.path, "loss")[:3] == ("running", 2, 1.5)
    lock.release()
    folder.write_outcome("failed", 3, "broken")
    assert read_status(folder.path, "loss") == ("failed", 3, 1.5, "broken")
    folder.write_results({"valid": {"loss": 1.25, "accuracy": 0.5}}, 4, last_step=6, stopped_early=True)
    assert read_status(folder.path, "loss")[:3] == ("done", 6, 1.25)
    assert read_status(folder.path, "accuracy")[:3] == ("done", 6, 0.5)


def test_layers_with_options_of_their_parts_are_trials(experiment):
    patterns = ["add:swa@window=3+swa@window=5", "gate:add:lstm+swa+sharnn@window=3:gru"]
    sweep = read_sweep(experiment(rows(f'axis("model.pattern", {patterns})')), [], (), "grid", None)
    assert [trial.values["model.pattern"] for trial in sweep.trials] == patterns
    assert len({trial.name for trial in sweep.trials}) == 2
