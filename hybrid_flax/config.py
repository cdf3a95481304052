"""Configs, which hold a value for every knob: reading, overriding, checking, hashing and comparing them."""

import copy
import difflib
import functools
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hybrid_flax.errors import ConfigError, running
from hybrid_flax.files import read_json
from hybrid_flax.knobs import KNOBS, check_range
from hybrid_flax.mixers.grammar import names_in
from hybrid_flax.mixers.registry import known_fusions, mixer_options
from hybrid_flax.ranges import fits
from hybrid_flax.registration import LOGGERS, METRICS, SECTIONS, TASKS, registered_options
from hybrid_flax.spelling import ABBREVIATIONS, read_value

__all__ = [
    "ConfigError",
    "apply_overrides",
    "base_config",
    "call_experiment",
    "check_trust",
    "config_diff",
    "config_hash",
    "experiment_name",
    "few_of",
    "flatten",
    "load_config",
    "load_experiment",
    "load_module",
    "mixer_option_pairs",
    "read_config",
    "read_values",
    "unregistered",
    "validate",
    "value_at",
    "with_new_knobs",
    "with_values",
]


T = TypeVar("T")
Values: TypeAlias = Mapping[str, Any] | ConfigDict  # nested, by name


def base_config() -> ConfigDict:
    """All knobs with their defaults, and the options of all that is registered: config.mixers.attn.num_heads, ...

    Those of other kinds stand in sections of their own, as config.optimizers.NAME.OPTION, and log.NAME switches a
    logger on. An experiment changes values; it adds no names.
    """
    values: dict[str, Any] = {}
    for key, knob in KNOBS.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = knob.default

    values["log"] |= {name: False for name in LOGGERS if name not in values["log"]}
    for section, entries in _all_options().items():
        values[section] = {
            name: {
                key: placeholder(option.type) if option.default is None else option.default
                for key, option in options.items()
            }
            for name, options in entries.items()
        }
    return ConfigDict(values).lock()


def load_config(experiment: str, *, trust: bool = False) -> ConfigDict:
    """The config of `path.py` or `path.py:arg`, from its get_config(arg=""), or of the `trial.json` of a trial.

    trust: whether the experiment file that a trial.json names is run, for what it registers.
    Raises ConfigError in one line for a file that is missing, does not run, or has no get_config.
    """
    if Path(experiment).suffix == ".json":
        saved = _read_saved(experiment)
        if own := unregistered(saved["config"], trains=True):
            check_trust(f"{experiment} needs {', '.join(own)}", saved["experiment"], trust)
        if trust:
            load_module(saved["experiment"])
        return _merge_saved(saved["config"], experiment)
    return load_experiment(experiment)[1]


def load_experiment(experiment: str) -> tuple[ModuleType, ConfigDict]:
    """The module of `path.py` or `path.py:arg`, and its config. Raises ConfigError as `load_config`."""
    module, arg = load_module(experiment)
    return module, call_experiment(module, "get_config", arg, ConfigDict)


def load_module(experiment: str) -> tuple[ModuleType, str]:
    """The module of `path.py` or `path.py:arg`, run for what it registers, and the arg.

    A file that was run last under its name, and has not changed, is not run again: what it registers is known.
    Raises ConfigError in one line for a file that is missing or does not run.
    """
    name, _, arg = experiment.partition(":")
    path = Path(name)
    if not path.is_file():
        what = "no config file" if not path.exists() else "no file but a folder or a device:"
        raise ConfigError(f"{what} {name!r}; {_nearest_files(path)}")
    if path.suffix != ".py":
        raise ConfigError(f"config file {name!r} does not load: its name does not end in .py; {_nearest_files(path)}")
    module = ModuleType(f"experiment_{path.stem}")
    known = sys.modules.get(module.__name__)
    module.__file__ = str(path)
    with running(path, "does not load"):
        vars(module)["__source__"] = source = path.read_bytes()
        if known is not None and known.__file__ == module.__file__ and vars(known).get("__source__") == source:
            return known, arg
        code = compile(source, module.__file__, "exec")
        sys.modules[module.__name__] = module
        try:
            exec(code, vars(module))
        except BaseException:
            del sys.modules[module.__name__]
            raise
    return module, arg


def check_trust(what: str, file: str, trust: bool) -> None:
    """Raise ConfigError where `what` needs a Python file that a folder names, and nobody said that it may be run."""
    if not trust:
        raise ConfigError(f"{what}, of {file}: give that file by --config, or add --trust to run what the folder names")


def unregistered(saved: Mapping[str, Any], *, trains: bool = False) -> list[str]:
    """What a saved config names and nothing in this process has registered: "mixer leaky", "task mine", ...

    trains: whether what only training needs is named too: optimizer, schedule and loggers.
    """
    try:
        mixers, fusions = names_in(saved["model"]["pattern"])
        found = [f"mixer {name}" for name in sorted(mixers & saved["mixers"].keys() - mixer_options().keys())]
        found += [f"fusion {name}" for name in sorted(fusions - {*known_fusions()})]
        for section, table in SECTIONS.items():
            if section in ("optimizers", "schedules") and not trains:
                continue
            name = value_at(saved, table.knob) if table.knob else None
            found += [f"{table.kind} {name}"] if name is not None and name not in table else []
        on = [name for name, value in saved.get("log", {}).items() if value] if trains else []
        found += [f"logger {name}" for name in on if name not in LOGGERS]
        metric, task = saved["eval"]["metric"], TASKS.get(saved["task"]["name"])
        if task is not None and task.traits.metrics and metric not in (*task.traits.metrics, *METRICS):
            found += [f"metric {metric}"] if "/" not in metric else []
        return found
    except (KeyError, TypeError, AttributeError):
        return []  # whoever reads the config says what is wrong with it


def call_experiment(module: ModuleType, function: str, arg: str, kind: type[T]) -> T:
    """function(arg) of an experiment's module. Raises ConfigError in one line where that is no `kind`."""
    name = module.__file__
    if not hasattr(module, function):
        raise ConfigError(f"config file {name!r} has no {function}(arg='')")
    with running(str(name), f"fails in {function}"):
        made = getattr(module, function)(arg)
    if not isinstance(made, kind):
        raise ConfigError(f"config file {name!r}, {function}: returned {type(made).__name__}, not a {kind.__name__}")
    return made


def experiment_name(experiment: str) -> str:
    """The `path.py[:arg]` behind an experiment of `load_config`."""
    return _read_saved(experiment)["experiment"] if Path(experiment).suffix == ".json" else experiment


def read_config(path: str | Path) -> ConfigDict:
    """The config in a JSON file of a run, at the default where an older version had no such knob.

    Raises ConfigError in one line where the file is damaged.
    """
    return _merge_saved(read_values(path), path)


def read_values(path: str | Path) -> dict[str, Any]:
    """The nested values in a JSON file of a run, as they stand there. Raises ConfigError where sections are missing."""
    values = read_json(path, dict)
    missing = {key.partition(".")[0] for key, knob in KNOBS.items() if knob.since == "0.1"} - values.keys()
    if missing:
        raise ConfigError(f"{path} is damaged: it has no {min(missing)}")
    return values


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Set `a.b=value` texts in config, each parsed as the type of the value it replaces, and return it.

    Raises ConfigError for an unknown key (naming the nearest) and for a value of another type.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r} has no value: write {text}=VALUE")
        target, leaf = _find(config, key, f"--config.{text}")
        kind = target.get_type(leaf)
        try:
            target[leaf] = read_value(value, kind)
        except ValueError:
            raise ConfigError(f"--config.{text}: {value!r} is no {kind.__name__}") from None
    return config


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of config with {"a.b": value} set, each of the type of the value it replaces.

    References in it stay: `config.train.get_ref("steps") // 10` follows another `train.steps`, as on the command line.
    Raises ConfigError for an unknown key (naming the nearest), a value of another type, and not-a-number.
    """
    changed = copy.deepcopy(config)
    for key, value in values.items():
        target, leaf = _find(changed, key, f"{key}={value!r}")
        target[leaf] = _cast(key, value, target.get_type(leaf), target[leaf])
    return changed


def flatten(config: Values, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def value_at(config: Values, key: str) -> Any:
    """The value of "a.b"."""
    return functools.reduce(lambda part, name: part[name], key.split("."), config)


def config_hash(config: Values) -> str:
    """Eight hexadecimal digits of the resolved values.

    What version 0.1 did not know, such as a later knob, counts only where it is not at its default: no hash changes
    with the version.
    """
    flat = {key: value for key, value in flatten(config).items() if not _is_new(key, value)}
    text = json.dumps(flat, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def with_new_knobs(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values that an earlier version saved, with what it did not know: at its default, or else as given."""
    return {key: _default(key, value) for key, value in given.items()} | dict(saved)


def config_diff(old: Values, new: Values) -> list[str]:
    """Lines "key: old -> new" of the values that differ."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key}: {old.get(key, '(none)')!r} -> {new.get(key, '(none)')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


def few_of(changes: Sequence[str]) -> str:
    """The first three lines of a difference, and how many there are besides."""
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    return "; ".join(changes[:3]) + more


def mixer_option_pairs(mixers: Values) -> tuple[tuple[str, Any], ...]:
    """config.mixers as sorted ("name.option", value) pairs, those at their default left out."""
    pairs = []
    for name, options in mixer_options().items():
        for key, option in options.items():
            value = mixers.get(name, {}).get(key, option.default)
            if value != option.default:
                pairs.append((f"{name}.{key}", tuple(value) if isinstance(value, list) else value))
    return tuple(sorted(pairs))


def validate(config: ConfigDict) -> None:
    """Raise ConfigError for values out of their range; names are checked by what they name."""
    flat = flatten(config)
    for key in KNOBS:
        check_range(key, flat[key])
    for section, entries in _all_options().items():
        for name, options in entries.items():
            for key, option in options.items():
                option.check(f"{section}.{name}.{key}", flat.get(f"{section}.{name}.{key}", option.default))
    if flat["data.folds"] == 1 or flat["data.fold"] >= max(flat["data.folds"], 1):
        raise ConfigError(
            f"data.folds={flat['data.folds']}, data.fold={flat['data.fold']}: want 0 and 0, or at least 2 folds "
            "and one of them, counted from 0"
        )
    if flat["data.folds"] and flat["data.test_fraction"]:
        raise ConfigError(
            f"data.folds={flat['data.folds']} makes a test split of its own: data.test_fraction must be 0, "
            f"not {flat['data.test_fraction']}"
        )
    if flat["data.batch_size"] == 0 and flat["data.mode"] not in ("windows", "padded"):
        raise ConfigError("data.batch_size=0 (the whole training set) needs data.mode=windows or padded")
    for key in ("train.patience", "eval.best"):
        if flat[key] and not flat["eval.every"]:
            raise ConfigError(f"{key}={flat[key]} goes by evaluations on the way and eval.every=0 makes none: raise it")
    if flat["train.patience"] and not flat["eval.best"]:
        raise ConfigError(
            f"train.patience={flat['train.patience']} trains on after the best evaluation, and the end of that is no "
            "result: set eval.best=true"
        )
    if flat["train.init_from"] and flat["model.vectors"]:
        raise ConfigError(
            f"model.vectors={flat['model.vectors']} and train.init_from={flat['train.init_from']} both say what the "
            "embedding starts from: set one of them to ''"
        )
    if flat["loss.name"] != "cross_entropy" and (flat["loss.label_smoothing"] or flat["loss.z_loss"]):
        raise ConfigError(
            f"loss.label_smoothing and loss.z_loss go with loss.name=cross_entropy, not {flat['loss.name']}"
        )


def _all_options():
    """{section: {name: {option: ...}}} of all that is registered."""
    return {"mixers": mixer_options()} | registered_options()


def _merge_saved(saved, path):
    def merge(base, saved, prefix=""):
        merged = dict(base)
        for key, value in saved.items():
            old = base.get(key)
            if old is not None and not fits(value, type(old)):
                raise ConfigError(f"{path} is damaged: {prefix}{key}={value!r} is no {type(old).__name__}")
            merged[key] = merge(old or {}, value, f"{prefix}{key}.") if isinstance(value, dict) else value
        return merged

    return ConfigDict(merge(base_config().to_dict(), saved))


def _is_new(key, value):
    """Whether a value says nothing that a config of version 0.1, or one without what is registered, does not say."""
    if key in KNOBS:
        return KNOBS[key].since > "0.1" and value == KNOBS[key].default
    mixer = key.split(".")[1] if key.startswith("mixers.") else None
    return (mixer is None or mixer in known_fusions()) and value == _default(key, ...)


def _default(key, otherwise):
    """The default of a knob, or of an option of what is registered but no mixer; `otherwise` of what is neither."""
    section, _, rest = key.partition(".")
    if key in KNOBS:
        return KNOBS[key].default
    if section == "log" and rest in LOGGERS:
        return False
    name, _, option = rest.partition(".")
    known = section != "mixers" or name in known_fusions()
    options = _all_options().get(section, {}).get(name, {}) if known else {}
    return options[option].default if option in options else otherwise


def _read_saved(path):
    """{"experiment": experiment, "config": values} of a trial.json."""
    saved = read_json(path, dict)
    if not isinstance(saved.get("experiment"), str) or not isinstance(saved.get("config"), dict):
        raise ConfigError(f"config file {path!r} is no trial: it wants an experiment and a config")
    return saved


def _nearest_files(path):
    """The Python files beside a path that is none, and in experiments/, whose names are the nearest."""
    files = [
        file
        for folder in dict.fromkeys((path.parent, Path("experiments")))
        for file in sorted(folder.glob("*.py"))
        if file.is_file()
    ]
    by_stem = {file.stem: str(file) for file in files}
    near = difflib.get_close_matches(path.stem, by_stem, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(by_stem[stem] for stem in near)}"
    known = sorted(by_stem.values())
    more = f" and {len(known) - 16} more" if len(known) > 16 else ""
    return f"known: {', '.join(known[:16]) or 'none, and `new` writes one'}{more}"


def _find(config, key, shown):
    """(the part of config that holds `key`, its last name)."""
    target, (*parents, leaf) = config, key.split(".")
    for name in parents:
        target = target.get(name) if isinstance(target, ConfigDict) else None
    if isinstance(target, ConfigDict) and leaf in target and not isinstance(target[leaf], ConfigDict):
        return target, leaf
    known = flatten(config)
    short = key.rpartition(".")[2]
    near = [name for name in ABBREVIATIONS.get(short, ()) if name in known]
    near = near or difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near += [name for name in known if name.rpartition(".")[2] == short and name not in near]
    hint = "training is counted in steps; " if short == "epochs" else ""
    raise ConfigError(f"unknown key {key!r} in {shown}; {hint}nearest: {', '.join(near[:4]) or 'none'}")


def _cast(key, value, kind, old):
    """`value` as the config holds it: 1 and 1.0 of a float are one value, and of one hash."""
    if hasattr(value, "item"):
        value = value.item()  # of numpy
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{key}={value!r} is not a number")
    if value is None and old is None:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1023 else math.inf
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if not fits(value, kind):
        raise ConfigError(f"{key}={value!r} is no {kind.__name__}")
    return value
