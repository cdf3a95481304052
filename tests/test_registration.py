"""Tables of what is registered: names, options, and what a config makes of them."""

from typing import Annotated

import pytest

from hybrid_flax import register_logger, register_loss, register_optimizer, register_schedule, register_task
from hybrid_flax.config import apply_overrides, base_config, config_hash, flatten, read_config, unregistered, validate
from hybrid_flax.errors import ConfigError
from hybrid_flax.files import write_json
from hybrid_flax.ranges import Range, Share
from hybrid_flax.registration import (
    OPTIMIZERS,
    SECTIONS,
    Option,
    Table,
    calling,
    chosen,
    options_in_use,
    options_of,
    options_without_effect,
)


def maker(*, beta: Share = 0.5, turns: Annotated[int, Range(at_least=1)] = 2, kind: Annotated[str, ("a", "b")] = "a"):
    """With one option of every type but a bool."""


def another(*, flag: bool = False):
    """Of another place."""


def test_options_are_keyword_only_arguments():
    found = options_of(lambda x, y=1, *, z=True: None, {})
    assert found == {"z": Option(True, bool)}
    assert options_of(maker, {"turns": 7})["turns"] == Option(7, int, Range(at_least=1))
    assert options_of(maker, {})["kind"].choices == ("a", "b")

    class Built:
        def __init__(self, folder, *, digits: Share = 0.25):
            pass

        def __call__(self, folder, *, size: int = 3):
            pass

    assert options_of(Built, {}) == {"digits": Option(0.25, float, Range(at_least=0.0, below=1.0))}
    assert options_of(Built(0), {}) == {"size": Option(3, int)}


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a:b", "a,b", "a/b", "a=b", "a+b", "a@b", " a"])
def test_names_that_cannot_stand_in_a_config(name):
    with pytest.raises(ValueError, match=r"optimizer .*: a name must be free of spaces"):
        register_optimizer(name, maker)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="option 'sizes' must be an int, a float, a str or a bool"):
        register_optimizer("mine", lambda h, *, sizes=(1, 2): None)
    with pytest.raises(ValueError, match="option 'beta' needs a default"):
        register_optimizer("mine", lambda h, *, beta: None)
    with pytest.raises(ValueError, match=r"'adamw' is already registered for hybrid_flax.training.optimizer._adam"):
        register_optimizer("adamw", maker)
    assert "mine" not in OPTIMIZERS


def test_the_same_again_is_the_same_and_the_new_one_takes_its_place():
    table = Table("thing", "", "hybrid_flax.errors")

    def made(size):
        def make(*, rate=0.5):
            return size

        return make

    table.register("mine", first := made(1))
    before = table["mine"]
    table.register("mine", first)
    assert table["mine"] is before
    table.register("mine", made(2))
    assert table["mine"] != before and table.choose("mine").make() == 2
    with pytest.raises(ValueError, match=r"thing 'mine' is already registered for .*made.<locals>.make"):
        table.register("mine", another)


def test_a_choice_has_all_options_and_says_what_is_wrong():
    table = Table("thing", "part.name", "hybrid_flax.errors")
    table.register("mine", maker)
    assert dict(table.choose("mine", {"turns": 3}).values) == {"beta": 0.5, "turns": 3, "kind": "a"}
    kept, apart = table.choose("mine").split(float)
    assert dict(kept.values) == {"turns": 2, "kind": "a"} and apart == {"beta": 0.5}
    with pytest.raises(ConfigError, match=r"part.name='mien' is none of mine; nearest: mine"):
        table.choose("mien")
    with pytest.raises(ConfigError, match="unknown option 'turn' of thing mine; nearest: turns"):
        table.choose("mine", {"turn": 3})
    with pytest.raises(ConfigError, match=r"turns=0 must be at least 1"):
        table.choose("mine", {"turns": 0})
    assert repr(table["mine"]) == f"mine ({__name__}.maker, None)", "alike in every process: no address"


def test_a_fault_is_one_line_with_its_place():
    def fails(x):
        return {}["missing"]

    table = Table("thing", "", "hybrid_flax.errors")
    table.register("mine", fails)
    with pytest.raises(ConfigError, match=r"^mine \(.*fails\) fails: KeyError: missing \(.*n.py, line \d+"):
        table.choose("mine").make(1)
    with pytest.raises(ZeroDivisionError), calling("mine", fails, passes=ArithmeticError):
        raise ZeroDivisionError


def test_options_stand_in_the_config():
    before = base_config()
    assert "optimizers" not in before and "hidden" not in before.log
    register_optimizer("mine", maker)
    register_optimizer("plain", another)
    register_schedule("steps", lambda course, *, every=3: None)
    register_logger("hidden", lambda folder, config, start: None)
    config = base_config()
    assert config.optimizers.mine.to_dict() == {"beta": 0.5, "turns": 2, "kind": "a"}
    assert config.schedules.steps.every == 3 and config.log.hidden is False
    assert config_hash(config) == config_hash(before)
    changed = apply_overrides(config, ["optimizers.mine.beta=0.25", "optimizers.mine.turns=1e2", "log.hidden=true"])
    assert (changed.optimizers.mine.beta, changed.optimizers.mine.turns) == (0.25, 100)
    assert config_hash(changed) != config_hash(before)
    changed.optim.name = "mine"
    assert dict(chosen(OPTIMIZERS, changed).values)["beta"] == 0.25
    validate(changed)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("optimizers.mine.bet=0.5", "nearest: optimizers.mine.beta"),
        ("optimizers.mine.beta=1.5", r"optimizers.mine.beta=1.5 must be in \[0.0, 1.0\)"),
        ("optimizers.mine.turns=0", "optimizers.mine.turns=0 must be at least 1"),
        ("optimizers.mine.turns=1.5", "'1.5' is no int"),
        ("optimizers.mine.kind=c", "optimizers.mine.kind='c' is none of a, b"),
    ],
)
def test_options_are_checked_when_the_config_is_read(override, wanted):
    register_optimizer("mine", maker)
    with pytest.raises(ConfigError, match=wanted):
        validate(apply_overrides(base_config(), [override]))


def test_options_of_what_is_not_chosen_are_named():
    register_optimizer("mine", maker)
    config = apply_overrides(base_config(), ["optimizers.mine.beta=0.25", "loggers.wandb.project=x"])
    assert options_without_effect(config) == ["optimizers.mine.beta=0.25", "loggers.wandb.project=x"]
    assert options_in_use(config) == []
    config.optim.name, config.log.wandb = "mine", True
    assert options_in_use(config)[:2] == ["optimizers.mine.beta=0.25", "optimizers.mine.turns=2"]
    assert options_without_effect(config) == []


def test_a_config_that_is_older_than_an_option(tmp_path):
    write_json(tmp_path / "config.json", base_config().to_dict())
    register_optimizer("mine", maker)
    assert flatten(read_config(tmp_path / "config.json")) == flatten(base_config())


def test_what_a_saved_config_needs():
    register_optimizer("mine", maker)
    register_schedule("steps", lambda course: None)
    register_task("own", lambda labels, unseen: None)
    register_loss("soft", lambda: None)
    register_logger("hidden", lambda folder, config, start: None)
    config = base_config()
    assert unregistered(config.to_dict()) == []
    config.optim.name, config.schedule.name, config.task.name, config.loss.name = "mine", "steps", "own", "soft"
    config.log.hidden, config.eval.metric, config.data.tokenizer = True, "whatever", "runes"
    assert unregistered(config.to_dict()) == ["tokenizer runes"]
    for section, name in (("optimizers", "mine"), ("schedules", "steps"), ("tasks", "own"), ("losses", "soft")):
        del SECTIONS[section]._entries[name]
    del SECTIONS["loggers"]._entries["hidden"]
    assert unregistered(config.to_dict()) == ["task own", "loss soft", "tokenizer runes"], "all that reading needs"
    assert unregistered(config.to_dict(), trains=True) == [
        *("optimizer mine", "schedule steps", "task own", "loss soft", "tokenizer runes", "logger hidden"),
    ]
    config.task.name = "lm"
    assert "metric whatever" in unregistered(config.to_dict())
    assert unregistered({}) == unregistered({"model": 3}) == []
