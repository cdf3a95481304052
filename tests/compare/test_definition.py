"""Comparisons that cannot run are refused in one line before anything trains."""

import shutil

import pytest
import tiny

from hybrid_flax import cli
from hybrid_flax.compare import definition as definition_module
from hybrid_flax.compare.definition import ComparedTask, Definition, make_contenders
from hybrid_flax.config import ConfigError


def definition(text, **changes):
    """A definition of one row and one task; task__x changes the config of the task."""
    config = {key.removeprefix("task__"): value for key, value in changes.items() if key.startswith("task__")}
    fixed = {"eval__every": 3, "data__test_fraction": 0.2}
    fields = {
        "title": "t",
        "rows": {"tanh": {"model.pattern": "tanh"}},
        "tasks": {"text": ComparedTask(tiny.tiny_config(text, **fixed | config))},
        "budget": {"parameters": 4_000},
        "learning_rates": (1e-3,),
        "seeds": 2,
    }
    return Definition(**fields | {key: value for key, value in changes.items() if not key.startswith("task__")})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny.write_text(tmp_path_factory.mktemp("text"))


def test_a_contender_is_complete(text):
    config = tiny.tiny_config(text, eval__every=3, data__test_fraction=0.2, eval__metric="accuracy", seed=5)
    rows = {"tanh": {"model.pattern": "tanh"}, "two": {"model.pattern": "add:tanh+conv"}}
    task = ComparedTask(config, {"flops": 90_000}, {"two": {"model.pattern": "bi:tanh"}})
    made = definition(text, rows=rows, tasks={"text": ComparedTask(config)}, learning_rates=(1e-3, 1e-2))
    tanh, two = make_contenders(made, ["train.steps=9"])
    assert (tanh.row, tanh.seeds, tanh.learning_rates) == ("tanh", (5, 6), (1e-3, 1e-2))
    assert tanh.config.train.steps == tanh.column.steps == 9 and tanh.config.eval.best
    assert tanh.column.metric.name == "accuracy" and tanh.column.metric.share and tanh.column.length == 8
    assert (tanh.mechanisms, two.mechanisms) == ({"tanh"}, {"tanh", "conv"})
    assert tanh.config.model.width != two.config.model.width and config.model.width == 8
    assert abs(tanh.cost.parameters - 4_000) <= 80 and abs(two.cost.parameters - 4_000) <= 80
    assert definition_module._mechanisms(("bi:lstm", "lstm")) == {"lstm"}
    assert definition_module._mechanisms(("sharnn:lstm",)) == {"lstm", "sharnn"}
    assert definition_module._mechanisms(("rglru", "rglru", "swa")) == {"rglru", "swa"}
    nested = ("gate:cascade:bi:lstm+swa@window=5+sharnn@window=3:gru",)
    assert definition_module._mechanisms(nested) == {"lstm", "swa", "sharnn", "gru"}
    with pytest.raises(ConfigError, match=r"row 'two' on task 'text': .*causal"):
        list(make_contenders(made._replace(tasks={"text": task})))


def test_another_grid_or_more_seeds_keep_the_runs_there_are(text):
    def name(**changes):
        (contender,) = make_contenders(definition(text, **changes))
        return contender.name

    assert name() == name(learning_rates=(3e-3, 1e-3), seeds=5) == name(task__optim__learning_rate=1.0)
    assert name() != name(task__optim__weight_decay=0.1)


HOSTILE = {
    "no rows": ({"rows": {}}, "rows must be a dict with something in it"),
    "no tasks": ({"tasks": {}}, "tasks must be a dict"),
    "rows in a list": ({"rows": ["lstm"]}, "rows must be a dict"),
    "row that is a pattern": ({"rows": {"a": "lstm"}}, "row 'a': must be"),
    "task that is a config": ({"tasks": {"a": {}}}, "task 'a': must be a ComparedTask"),
    "unnamed row": ({"rows": {" ": {"model.pattern": "tanh"}}}, "' ' is no name"),
    "unknown mixer": ({"rows": {"a": {"model.pattern": "lsmt"}}}, "row 'a' on task 'text': unknown mixer 'lsmt'"),
    "unknown key": ({"rows": {"a": {"model.patern": "tanh"}}}, "nearest: model.pattern"),
    "value of another type": ({"rows": {"a": {"model.depth": "two"}}}, "model.depth='two' is no int"),
    "value out of range": ({"rows": {"a": {"train.dropout": 1.5}}}, "train.dropout=1.5"),
    "not a number": ({"rows": {"a": {"train.dropout": float("nan")}}}, "is not a number"),
    "width": ({"rows": {"a": {"model.width": 8}}}, "sets model.width, but the budget gives"),
    "learning rate": ({"rows": {"a": {"optim.learning_rate": 8.0}}}, "the search gives"),
    "seed": ({"rows": {"a": {"seed": 1}}}, "every row has the same seeds"),
    "no budget": ({"budget": {}}, "budget must be a dict"),
    "two budgets": ({"budget": {"parameters": 1e4, "flops": 1e4}}, "must be"),
    "unknown budget": ({"budget": {"params": 1e4}}, "must be"),
    "budget below zero": ({"budget": {"parameters": -1}}, "must be"),
    "budget without solution": ({"budget": {"parameters": 10}}, "the nearest are"),
    "no learning rate": ({"learning_rates": ()}, "learning_rates=()"),
    "equal rates": ({"learning_rates": (1e-3, 1e-3)}, "must be different numbers"),
    "rate that is a text": ({"learning_rates": ("fast",)}, "numbers above 0"),
    "a rate by itself": ({"learning_rates": 0.01}, "learning_rates=0.01 must be a list"),
    "a budget without its kind": ({"budget": 1000}, "budget must be a dict"),
    "no seeds": ({"seeds": 0}, "seeds=0"),
    "seeds in a list": ({"seeds": [0, 1]}, "seeds=[0, 1]"),
    "no test split": ({"task__data__test_fraction": 0.0}, "no test split at data.test_fraction=0.0: raise it"),
    "no evaluation": ({"task__eval__every": 0}, "eval.every=0"),
    "unknown metric": ({"task__eval__metric": "f1"}, "eval.metric='f1' is none of loss"),
    "unknown task": ({"task__task__name": "tagg"}, "task.name='tagg' is none of lm"),
    "no such file": ({"task__data__path": "nowhere.txt"}, "nowhere.txt"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_definitions(name, text):
    changes, words = HOSTILE[name]
    with pytest.raises(ConfigError) as caught:
        list(make_contenders(definition(text, **changes)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_advice_on_a_split_that_is_missing(text, tmp_path):
    """What is said helps also with data that has splits of its own."""
    for name in ("train", "valid"):
        shutil.copy(text, tmp_path / f"{name}.txt")
    with pytest.raises(ConfigError, match=r"no test split at data\.test_fraction=0\.0: raise it$"):
        list(make_contenders(definition(text, task__data__path=tmp_path, task__data__test_fraction=0.0)))
    assert list(make_contenders(definition(text, task__data__path=tmp_path, task__data__test_fraction=0.2)))


def test_rows_of_a_task_must_be_rows(text):
    task = definition(text).tasks["text"]._replace(rows={"tahn": {"model.pattern": "tanh"}})
    with pytest.raises(ConfigError, match="'tahn' is none of the rows tanh"):
        list(make_contenders(definition(text, tasks={"text": task})))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config.model.width=8",), "the budget gives the width"),
        (("--config.optim.learning_rate=8",), "the search gives"),
        (("--config.model.widht=8",), "nearest: model.width"),
        (("--jobs=0",), "--jobs=0 must be at least 1"),
        ((), "no --config given"),
    ],
)
def test_mistakes_in_the_call(arguments, words, comparison_file, capsys):
    config = () if words == "no --config given" else (f"--config={comparison_file}",)
    assert cli.main(["compare", *config, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_file_without_a_comparison(text, tmp_path, capsys):
    path = tiny.write_experiment(tmp_path, text)
    assert cli.main(["compare", f"--config={path}"]) == 2
    assert "has no get_compare(arg='')" in capsys.readouterr().err
    path.write_text("def get_compare(arg=''):\n    return {}\n")
    assert cli.main(["compare", f"--config={path}"]) == 2
    assert "returned dict, not a Definition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 1000}, "task 'text': budget=1000 must be"),
        ({"rows": ["tanh"]}, "task 'text': rows=['tanh'] must be"),
    ],
)
def test_hostile_tasks(changes, words, text):
    sound = definition(text)
    task = sound.tasks["text"]._replace(**changes)
    with pytest.raises(ConfigError) as caught:
        list(make_contenders(sound._replace(tasks={"text": task})))
    assert words in str(caught.value)
