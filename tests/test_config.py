"""The config: every knob, read, overridden, compared and named."""

import json
import os

import pytest
from ml_collections import ConfigDict

from hybrid_flax.config import (
    ConfigError,
    apply_overrides,
    base_config,
    config_diff,
    config_hash,
    flatten,
    load_config,
    load_module,
    mixer_option_pairs,
    unregistered,
    validate,
)
from hybrid_flax.mixers.registry import mixer_options
from hybrid_flax.spelling import ABBREVIATIONS


def test_base_config_is_valid_and_closed():
    config = base_config()
    validate(config)
    with pytest.raises(AttributeError):
        config.model.widht = 3
    assert {name: set(options) for name, options in config.mixers.items()} == {
        name: set(options) for name, options in mixer_options().items()
    }


def test_overrides_take_the_type_of_what_they_replace():
    texts = ["model.width=1_024", "optim.learning_rate=1", "model.tied=true", "mixers.attn.window=7"]
    texts += ["mixers.gru.reset_after=false", "mixers.lstm.forget_bias=0"]
    texts += ["model.pattern=rglru,rglru,swa", "optim.clip_norm=inf", "data.path=a=b.txt", "log.tensorboard=0"]
    config = apply_overrides(base_config(), texts)
    assert (config.model.width, config.optim.learning_rate, config.model.tied) == (1024, 1.0, True)
    assert isinstance(config.optim.learning_rate, float)
    assert (config.mixers.attn.window, config.model.pattern) == (7, "rglru,rglru,swa")
    assert (config.optim.clip_norm, config.data.path, config.log.tensorboard) == (float("inf"), "a=b.txt", False)
    pairs = (("attn.window", 7), ("gru.reset_after", False), ("lstm.forget_bias", 0.0))
    assert mixer_option_pairs(config.mixers) == pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.learning_rat=1", "nearest: optim.learning_rate"),
        ("dropout=0.1", "train.dropout"),
        ("optim", "has no value"),
        ("optim=1", "unknown key 'optim'"),
        ("model.depth=2.5", "'2.5' is no int"),
        ("model.depth=", "'' is no int"),
    ],
)
def test_wrong_overrides(text, words):
    with pytest.raises(ConfigError) as error:
        apply_overrides(base_config(), [text])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e3", 1000), ("2E+2", 200), ("10_000", 10_000), ("1.5e3", 1500), ("1_0e1", 100), ("+7", 7), ("-2", -2)],
)
def test_whole_numbers_as_people_write_them(text, value):
    config = apply_overrides(base_config(), [f"train.steps={text}"])
    assert config.train.steps == value and isinstance(config.train.steps, int)


@pytest.mark.parametrize("text", ["1.0", "1.5e0", "1e-1", "1e", "e3", "1e1000", "0x10", "--2", "_1", "nan", "inf", "²"])
def test_no_whole_numbers(text):
    with pytest.raises(ConfigError, match=f"'{text}' is no int"):
        apply_overrides(base_config(), [f"train.steps={text}"])


def test_mixers_that_are_not_registered_are_told_from_options():
    saved = base_config().to_dict() | {"mixers": {"swa": {}, "window": {}, "rms": {}, "own": {}}}
    for pattern, unknown in (
        ("swa@window=3,lstm@output_norm=rms", []),
        ("add:own@size=2+swa@window=3", ["mixer own"]),
        ("gate:add:window+swa+rms", ["mixer rms", "mixer window"]),
        ("outer@own=3:bi:lstm+swa, outer:lstm+swa", ["fusion outer"]),
        ("::,+@", []),
    ):
        saved["model"]["pattern"] = pattern
        assert unregistered(saved) == unknown
    assert unregistered({"model": {"pattern": 3}, "mixers": {}}) == unregistered({}) == []


def test_abbreviations_name_knobs():
    """Every one leads to keys that there are, by what is said of it alone and in a part that has it not."""
    known = flatten(base_config())
    for short, keys in ABBREVIATIONS.items():
        assert short not in known and set(keys) <= known.keys()
        for text in (f"{short}=1", f"optim.{short}=1"):
            with pytest.raises(ConfigError, match=f"nearest: {keys[0]}"):
                apply_overrides(base_config(), [text])


def test_hash_and_difference():
    one, other = base_config(), apply_overrides(base_config(), ["model.width=64", "data.mode=stream"])
    assert config_hash(one) == config_hash(base_config()) != config_hash(other)
    assert config_diff(one, base_config()) == []
    assert config_diff(one, other) == ["data.mode: 'windows' -> 'stream'", "model.width: 128 -> 64"]
    saved = json.loads(json.dumps(one.to_dict()))
    assert config_diff(saved, one) == [] and config_hash(saved) == config_hash(one)
    del saved["seed"]
    assert config_diff(saved, one) == ["seed: '(none)' -> 0"]


def test_flatten():
    nested = ConfigDict({"a": {"b": {"c": 1}}, "d": (1, 2)})
    assert flatten(nested) == {"a.b.c": 1, "d": [1, 2]}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["data.folds=1"], "at least 2 folds"),
        (["data.folds=10", "data.fold=10"], "counted from 0"),
        (["data.fold=1"], "want 0 and 0"),
        (["data.folds=10", "data.test_fraction=0.1"], "data.test_fraction must be 0"),
        (["data.word_length=0"], r"must be in \[1, 1024\]"),
        (["model.embedding_width=-1"], r"must be in \[0, 1048576\]"),
        (["train.patience=3"], "train.patience=3 .* eval.best=true"),
    ],
)
def test_values_that_do_not_go_together(overrides, wanted):
    with pytest.raises(ConfigError, match=wanted):
        validate(apply_overrides(base_config(), overrides))


def test_an_experiment_takes_an_argument(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from hybrid_flax.config import base_config\n"
        "def get_config(arg=''):\n"
        "    config = base_config()\n"
        "    config.model.pattern = arg or 'gru'\n"
        "    return config\n"
    )
    assert load_config(f"{path}:cascade:lstm+attn").model.pattern == "cascade:lstm+attn"
    assert load_config(str(path)).model.pattern == "gru"


BAD_FILES = {
    "import os\n\ndef get_config(:\n": "does not load, line 3: invalid syntax",
    "x = '\udce9'\n": "does not load",
    "\0": "does not load",
    "import sys\nsys.exit(3)\n": "does not load, line 2: it calls sys.exit",
    "def get_config(arg=''):\n    raise SystemExit": "fails in get_config, line 2: it calls sys.exit",
    "def get_config(arg=''):\n    return {}['a']": "fails in get_config, line 2: a",
}


@pytest.mark.parametrize("code", BAD_FILES)
def test_a_file_that_does_not_run_is_named_with_its_line(code, tmp_path):
    path = tmp_path / "x.py"
    path.write_bytes(code.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=f"x.py' {BAD_FILES[code]}") as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    for path in ("README.md", tmp_path / "folder.py", tmp_path / "pipe.py", "/dev/zero", tmp_path, "none.py"):
        with pytest.raises(ConfigError) as error:
            load_config(str(path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_has_not_changed_is_run_once(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text("runs = []\n")
    first, _ = load_module(str(path))
    assert load_module(f"{path}:arg") == (first, "arg")
    path.write_text("runs = [1]\n")
    assert load_module(str(path))[0].runs == [1]


def test_a_config_file_is_a_python_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("model.width=64")
    with pytest.raises(ConfigError, match=r"notes\.txt' does not load: its name does not end in \.py"):
        load_config(str(path))
