"""Every knob of an experiment in one place; reading, overriding, checking, hashing and comparing configs."""

import difflib
import functools
import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hybrid_flax.errors import ConfigError, one_line
from hybrid_flax.mixers.registry import mixer_options
from hybrid_flax.spelling import ABBREVIATIONS, read_whole

__all__ = [
    "ConfigError",
    "apply_overrides",
    "base_config",
    "call_experiment",
    "config_diff",
    "config_hash",
    "experiment_name",
    "flatten",
    "load_config",
    "load_experiment",
    "load_module",
    "merge_saved",
    "mixer_option_pairs",
    "validate",
    "value_at",
    "with_values",
]


T = TypeVar("T")
Values: TypeAlias = Mapping[str, Any] | ConfigDict  # nested, by name


def base_config() -> ConfigDict:
    """All knobs with their defaults. An experiment changes values; it adds no names."""
    config = ConfigDict()
    config.seed = 0  # of parameters, dropout and the order of data

    config.task = ConfigDict()
    config.task.name = "lm"  # lm | answer (synthetic languages) | classify | multilabel | regress | tag
    config.task.pooling = "mean"  # of rows to one vector: last | mean | max | attention (classify, multilabel, regress)
    config.task.crf = False  # a linear-chain CRF over the tags (tag)

    config.data = ConfigDict()
    # lm: "shakespeare" (embedded), a text file, or a folder of *.txt files. answer: "synthetic:LANGUAGE". Others:
    # "vader" (embedded), a csv, tsv, jsonl, parquet or CoNLL file, a folder of them by split, a folder of folders by
    # label, or "LABEL=FILE,LABEL=FILE" with an example a line. All but answer: "hub:NAME" or "hub:NAME,CONFIG".
    config.data.path = "shakespeare"
    config.data.encoding = "utf-8"  # of text files: utf-8 | latin-1 | utf-16 | any that Python knows
    # Column or key of the text; a number, counted from 0, where a table has no header. Of CoNLL files as they come the
    # token is the first column and the tag the last; numbers pick others, such as label 1 for the part of speech.
    config.data.text = "text"
    config.data.label = "label"  # likewise; a text with commas between them is several labels (multilabel)
    config.data.split_seed = 0  # of the random split of labelled examples
    config.data.folds = 0  # parts of labelled examples for cross-validation; 0: none
    config.data.fold = 0  # the part that is the test split
    config.data.document = "file"  # what a document is: file | paragraph | line
    config.data.valid_fraction = (
        0.1  # of a file's characters, taken from its end (the embedded text has its own splits)
    )
    config.data.test_fraction = 0.0  # likewise, after the validation part; 0 where the data has a test split
    # byte | char | word | whitespace (text that is cut into words already) | bpe. A word of lm has the space before it;
    # labelled sentences are cut into words and signs alone, and tagged ones as the file has them.
    config.data.tokenizer = "char"
    config.data.lowercase = False  # word, bpe; `model.characters` sees the case all the same
    config.data.vocab_size = 10_000  # ids at most, for words and bpe
    config.data.min_count = 1  # rarer words are unknown
    # lm: windows | stream (carried state, truncated backpropagation) | packed (documents). Others: padded (examples).
    config.data.mode = "windows"
    config.data.length = 256  # tokens a row
    config.data.word_length = (
        16  # characters of a word that `model.characters` sees; it skips the middle of longer ones
    )
    config.data.batch_size = 32  # rows a step, over all devices; 0: the whole training set (modes "windows", "padded")

    config.model = ConfigDict()
    config.model.pattern = "cascade:lstm+attn"  # layers, comma-separated, repeated to the depth
    config.model.depth = 2  # number of layers
    config.model.width = 128  # D
    config.model.embedding_width = 0  # of a token, projected to the model width; 0: that width, without projection
    config.model.vectors = ""  # a file of word vectors (GloVe or word2vec as text) that known words start from
    config.model.characters = "none"  # none | cnn | rnn | ngrams: what a word is spelt like, beside its embedding
    config.model.character_width = 32  # of what they say of a word
    config.model.norm = "rms"  # rms | layer
    config.model.mlp = "none"  # none | relu2 | gelu | swiglu
    config.model.mlp_ratio = 4.0  # hidden width of the MLP / width
    config.model.init_scale = 1.0  # initial matrices are multiplied by it; tables, biases and scales are not
    config.model.tied = False  # output weights are the embedding
    config.model.scan_layers = True  # repeats of the pattern are one scan: compile time does not grow with depth
    config.model.remat = False  # compute activations again in the backward pass instead of keeping them
    config.model.dtype = "float32"  # compute dtype: float32 | bfloat16

    # Options of every registered mixer, as documented by its builder: config.mixers.attn.num_heads, ...
    config.mixers = ConfigDict()
    for name, options in mixer_options().items():
        config.mixers[name] = ConfigDict()
        for key, option in options.items():
            config.mixers[name][key] = placeholder(option.type) if option.default is None else option.default

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # adam | adamw | rmsprop | sgd | lion | adafactor | muon
    config.optim.learning_rate = 3e-3  # peak
    config.optim.weight_decay = 0.0  # decoupled, of matrices
    config.optim.table_decay = 0.0  # likewise, of tables of embeddings: of words, characters and n-grams
    config.optim.b1 = 0.9  # adam, adamw, lion, muon's vectors
    config.optim.b2 = 0.99  # adam, adamw, lion; rmsprop's decay
    config.optim.epsilon = 1e-8
    config.optim.momentum = 0.95  # sgd, muon
    config.optim.nesterov = True  # sgd, muon
    config.optim.clip_norm = 1.0  # of the global gradient; inf: never
    config.optim.accumulate = 1  # parts in which a device works off its rows
    config.optim.ema_decay = 0.0  # running mean of the parameters, used for evaluation; 0: none

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # constant | exponential | step | linear | cosine | wsd | rsqrt
    config.schedule.warmup_steps = 0
    config.schedule.final_fraction = 0.0  # of the peak at the end: linear, cosine, wsd
    config.schedule.decay_rate = 0.5  # exponential, step
    config.schedule.decay_every = 1000  # steps: exponential, step
    config.schedule.decay_fraction = 0.2  # of all steps: wsd

    config.loss = ConfigDict()
    config.loss.name = "cross_entropy"  # lm: cross_entropy | squared_error (of probabilities); others have their own
    config.loss.label_smoothing = 0.0  # cross_entropy; not regress, and not tag with a CRF
    config.loss.z_loss = 0.0  # likewise, and not multilabel

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.dropout = 0.0  # of embeddings and of every branch of the residual stream
    config.train.locked_dropout = False  # its mask is the same for all time steps of a row: variational dropout
    config.train.embedding_dropout = 0.0  # of word types: all tokens of one lose their embedding for a step
    config.train.word_dropout = 0.0  # of input tokens, which become the unknown one
    config.train.recurrent_dropout = 0.0  # of the entries of recurrent matrices, for a step: DropConnect
    # Evaluations without a better eval.metric after which training stops, 0: never. It goes with eval.best.
    config.train.patience = 0
    config.train.parallel = "auto"  # auto | jit | pmap | shard_map
    config.train.log_every = 20  # steps
    config.train.checkpoint_every = 500  # steps

    config.eval = ConfigDict()
    config.eval.every = 250  # steps between evaluations of the validation split; 0: only at the end
    config.eval.batch_size = 32  # rows
    config.eval.length = 0  # tokens a row; 0: that of training, and for tags that of the longest example
    config.eval.max_batches = 0  # of the evaluations on the way; 0: the whole split
    # What the best checkpoint is best in: the lowest loss, mse, perplexity or bits_*, the highest of any other metric.
    config.eval.metric = "loss"
    config.eval.best = False  # final metrics, sample and parameters are those of the best checkpoint

    config.sample = ConfigDict()
    config.sample.prompt = "\n"  # of the sample at the end of training and of `generate`
    config.sample.tokens = 400
    config.sample.temperature = 0.8
    config.sample.top_k = 0  # 0: all
    config.sample.top_p = 1.0

    config.log = ConfigDict()
    config.log.tensorboard = False  # needs the extra: pip install 'hybrid_flax[tensorboard]'
    return config.lock()


def load_config(spec: str) -> ConfigDict:
    """The config of `path.py` or `path.py:arg`, from its get_config(arg=""), or of the `trial.json` of a sweep.

    Raises ConfigError in one line for a file that is missing, does not run, or has no get_config.
    """
    if Path(spec).suffix == ".json":
        saved = _read_saved(spec)
        load_experiment(saved["experiment"])  # for the mixers that it registers
        return merge_saved(saved["config"])
    return load_experiment(spec)[1]


def load_experiment(spec: str) -> tuple[ModuleType, ConfigDict]:
    """The module of `path.py` or `path.py:arg`, and its config. Raises ConfigError as `load_config`."""
    module, arg = load_module(spec)
    return module, call_experiment(module, "get_config", arg, ConfigDict)


def load_module(spec: str) -> tuple[ModuleType, str]:
    """The module of `path.py` or `path.py:arg`, run for the mixers that it registers, and the arg.

    Raises ConfigError in one line for a file that is missing or does not run.
    """
    name, _, arg = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no config file {name!r}; {_nearest_files(path)}")
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config file {name!r} does not load: its name does not end in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"config file {name!r} does not load: {one_line(error)}") from error
    return module, arg


def call_experiment(module: ModuleType, function: str, arg: str, kind: type[T]) -> T:
    """function(arg) of an experiment's module. Raises ConfigError in one line where that is no `kind`."""
    name = module.__file__
    if not hasattr(module, function):
        raise ConfigError(f"config file {name!r} has no {function}(arg='')")
    try:
        made = getattr(module, function)(arg)
    except Exception as error:
        raise ConfigError(f"config file {name!r}, {function}: {one_line(error)}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"config file {name!r}, {function}: returned {type(made).__name__}, not a {kind.__name__}")
    return made


def experiment_name(spec: str) -> str:
    """The `path.py[:arg]` behind a spec of `load_config`."""
    return _read_saved(spec)["experiment"] if Path(spec).suffix == ".json" else spec


def merge_saved(saved: Mapping[str, Any]) -> ConfigDict:
    """The config of saved values, at the default where an older version had no such knob."""

    def merge(base, saved):
        merged = dict(base)
        for key, value in saved.items():
            merged[key] = merge(base.get(key, {}), value) if isinstance(value, dict) else value
        return merged

    return ConfigDict(merge(base_config().to_dict(), saved))


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
            target[leaf] = _parse(value, kind)
        except ValueError:
            raise ConfigError(f"--config.{text}: {value!r} is no {kind.__name__}") from None
    return config


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of config with {"a.b": value} set, each of the type of the value it replaces.

    Raises ConfigError for an unknown key (naming the nearest), a value of another type, and not-a-number.
    """
    changed = config.copy_and_resolve_references()
    for key, value in values.items():
        typed, leaf = _find(config, key, f"{key}={value!r}")  # the copy of a placeholder has no type
        target, _ = _find(changed, key, key)
        target[leaf] = _cast(key, value, typed.get_type(leaf), typed[leaf])
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
    """Eight hexadecimal digits of the resolved values."""
    text = json.dumps(flatten(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def config_diff(old: Values, new: Values) -> list[str]:
    """Lines "key: old -> new" of the values that differ."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key}: {old.get(key, '(none)')!r} -> {new.get(key, '(none)')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


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
    for key, low in _AT_LEAST.items():
        if not flat[key] >= low:
            raise ConfigError(f"{key}={flat[key]} must be at least {low}")
    for key, (low, high) in _WITHIN.items():
        if not low <= flat[key] < high:
            raise ConfigError(f"{key}={flat[key]} must be in [{low}, {high})")
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
    if flat["data.folds"] and flat["task.name"] in ("lm", "answer"):
        raise ConfigError(f"data.folds={flat['data.folds']} needs labelled examples, not task.name={flat['task.name']}")
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
    if flat["loss.name"] != "cross_entropy" and (flat["loss.label_smoothing"] or flat["loss.z_loss"]):
        raise ConfigError(
            f"loss.label_smoothing and loss.z_loss go with loss.name=cross_entropy, not {flat['loss.name']}"
        )
    if flat["task.name"] not in TASKS:
        raise ConfigError(f"task.name={flat['task.name']!r} is none of {', '.join(TASKS)}")
    _check_task(flat)
    modes = ("windows", "stream", "packed") if flat["task.name"] == "lm" else ("padded",)
    if flat["data.mode"] not in modes:
        raise ConfigError(
            f"data.mode={flat['data.mode']!r} is none of {', '.join(modes)}, for task.name={flat['task.name']}"
        )


def _check_task(flat):
    """What a task and its loss do not read must be left alone."""
    task = flat["task.name"]
    for key, default, readers in (
        ("task.crf", False, ("tag",)),
        ("task.pooling", "mean", ("classify", "multilabel", "regress")),
    ):
        if flat[key] != default and task not in readers:
            raise ConfigError(
                f"{key}={flat[key]} goes with task.name={' or '.join(readers)}, not {task}: leave it at {default}"
            )
    if task != "lm" and flat["loss.name"] != "cross_entropy":
        raise ConfigError(
            f"loss.name={flat['loss.name']!r} goes with task.name=lm, and task.name={task} has a loss of its own: "
            "leave it at cross_entropy"
        )
    crf = task == "tag" and flat["task.crf"]
    shown = f"task.name={task}{' with a CRF' if crf else ''}"
    for key, others in (("loss.label_smoothing", ("regress",)), ("loss.z_loss", ("regress", "multilabel"))):
        if flat[key] and (crf or task in others):
            raise ConfigError(f"{key}={flat[key]} is no part of the loss of {shown}: set it to 0")


TASKS = ("lm", "answer", "classify", "multilabel", "regress", "tag")
_AT_LEAST = {
    "seed": 0,
    "data.length": 1,
    "data.split_seed": 0,
    "data.folds": 0,
    "data.fold": 0,
    "data.word_length": 1,
    "data.batch_size": 0,
    "model.depth": 1,
    "model.width": 1,
    "model.embedding_width": 0,
    "model.character_width": 1,
    "model.mlp_ratio": 0.01,
    "model.init_scale": 0.0,
    "optim.learning_rate": 0.0,
    "optim.weight_decay": 0.0,
    "optim.table_decay": 0.0,
    "optim.epsilon": 0.0,
    "optim.clip_norm": 0.0,
    "optim.accumulate": 1,
    "schedule.warmup_steps": 0,
    "schedule.decay_every": 1,
    "train.steps": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.patience": 0,
    "eval.every": 0,
    "eval.batch_size": 1,
    "eval.length": 0,
    "eval.max_batches": 0,
    "sample.tokens": 0,
    "sample.temperature": 0.0,
    "sample.top_k": 0,
    "loss.z_loss": 0.0,
}
_WITHIN = {
    "optim.b1": (0.0, 1.0),
    "optim.b2": (0.0, 1.0),
    "optim.momentum": (0.0, 1.0),
    "optim.ema_decay": (0.0, 1.0),
    "train.dropout": (0.0, 1.0),
    "train.embedding_dropout": (0.0, 1.0),
    "train.word_dropout": (0.0, 1.0),
    "train.recurrent_dropout": (0.0, 1.0),
    "loss.label_smoothing": (0.0, 1.0),
    "schedule.final_fraction": (0.0, 1.0001),
    "schedule.decay_fraction": (0.0, 1.0001),
    "sample.top_p": (0.0, 1.0001),
}


def _read_saved(path):
    """{"experiment": spec, "config": values} of a trial.json."""
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return {"experiment": saved["experiment"], "config": saved["config"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"config file {path!r} is no trial of a sweep: {one_line(error)}") from error


def _nearest_files(path):
    """The Python files beside a path that is none, and in experiments/, whose names are the nearest."""
    files = [
        file for folder in dict.fromkeys((path.parent, Path("experiments"))) for file in sorted(folder.glob("*.py"))
    ]
    by_stem = {file.stem: str(file) for file in files}
    near = difflib.get_close_matches(path.stem, by_stem, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(by_stem[stem] for stem in near)}"
    return f"known: {', '.join(sorted(by_stem.values())) or 'none, and `new` writes one'}"


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
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{key}={value!r} is no {kind.__name__}")
    return value


def _parse(text, kind):
    if kind is bool:
        values = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in values:
            raise ValueError(text)
        return values[text.lower()]
    if kind is int:
        return read_whole(text)
    if kind is float:
        return float(text)
    if kind is tuple:
        return tuple(json.loads(text))
    if kind is str:
        return text
    raise ValueError(text)
