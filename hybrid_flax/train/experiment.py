"""What a config stands for: the data, the model and the step of an experiment, checked before anything runs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.config import ConfigError, mixer_option_pairs, validate
from hybrid_flax.data.corpora import Corpus, load_corpus
from hybrid_flax.data.pipeline import Batches, Tokens, make_batches, tokenize
from hybrid_flax.data.tokenizers import Tokenizer, make_tokenizer
from hybrid_flax.models.build import make_model, model_is_bounded, model_is_causal
from hybrid_flax.models.heads import LanguageModel
from hybrid_flax.tasks.base import Task
from hybrid_flax.tasks.lm import make_language_modelling
from hybrid_flax.train.optimizer import make_optimizer, make_unit_schedule
from hybrid_flax.train.parallel import Parallel, check_rows, make_parallel
from hybrid_flax.train.state import Hparams, make_hparams
from hybrid_flax.train.step import StepSpec

__all__ = ["Experiment", "has_targets", "make_experiment", "model_from_config", "read_tokens"]


class Experiment(NamedTuple):
    """Everything that a config determines. batch_size: rows a step; carried: whether states go from step to step."""

    tokens: dict[str, Tokens]
    tokenizer: Tokenizer
    model: LanguageModel
    task: Task
    spec: StepSpec
    hparams: Hparams
    parallel: Parallel
    batches: Batches
    batch_size: int
    carried: bool


def make_experiment(config: Any) -> Experiment:
    """Build all parts of an experiment; raises ConfigError in one line for whatever does not fit."""
    validate(config)
    try:
        tokenizer, tokens = read_tokens(config.data)
        batch_size = config.data.batch_size or _whole_set(len(tokens["train"].ids), config.data.length)
        model = model_from_config(config, tokenizer.vocab_size)
        task = make_language_modelling(config.loss.name)
        spec = _step_spec(config)
        hparams = _hparams(config)
        make_unit_schedule(**dict(spec.schedule))
        make_optimizer(spec.optimizer, hparams)
        parallel = make_parallel(config.train.parallel)
        check_rows(parallel, batch_size, spec.accumulate)
        check_rows(parallel, config.eval.batch_size, name="eval.batch_size")
        if config.eval.every and not has_targets(tokens["valid"]):
            raise ValueError(
                f"eval.every={config.eval.every} needs validation text and {config.data.path!r} has none at "
                f"data.valid_fraction={config.data.valid_fraction}: raise it, or set eval.every=0"
            )
        carried = config.data.mode == "stream"
        _check_model(model, carried)
        batches = make_batches(
            config.data.mode, tokens["train"], batch_size=batch_size, length=config.data.length, seed=config.seed
        )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    return Experiment(tokens, tokenizer, model, task, spec, hparams, parallel, batches, batch_size, carried)


def read_tokens(data: Any, tokenizer: Tokenizer | None = None) -> tuple[Tokenizer, dict[str, Tokens]]:
    """(tokenizer, tokens by split) of config.data; the tokenizer is made from the training text unless given."""
    corpus = load_corpus(
        data.path,
        document=data.document,
        valid_fraction=float(data.valid_fraction),
        test_fraction=float(data.test_fraction),
    )
    if tokenizer is None:
        tokenizer = make_tokenizer(data.tokenizer, corpus.train, vocab_size=data.vocab_size, min_count=data.min_count)
    return tokenizer, {split: tokenize(getattr(corpus, split), tokenizer) for split in Corpus._fields}


def model_from_config(config: Any, vocab_size: int) -> LanguageModel:
    """The model of config.model and config.mixers. Raises ValueError as `make_model` does."""
    fields = ("pattern", "depth", "width", "norm", "mlp", "mlp_ratio", "tied", "scan_layers", "remat", "dtype")
    return make_model(
        vocab_size=vocab_size,
        options=mixer_option_pairs(config.mixers),
        **{name: config.model[name] for name in fields},
    )


def has_targets(tokens: Tokens) -> bool:
    """Whether there is a token that follows another in its document."""
    return bool(np.any(tokens.document[1:] == tokens.document[:-1]))


def _step_spec(config) -> StepSpec:
    schedule: Mapping[str, Any] = {
        "name": config.schedule.name,
        "num_steps": config.train.steps,
        "warmup_steps": config.schedule.warmup_steps,
        "final_fraction": config.schedule.final_fraction,
        "decay_rate": config.schedule.decay_rate,
        "decay_every": config.schedule.decay_every,
        "decay_fraction": config.schedule.decay_fraction,
    }
    return StepSpec(
        optimizer=config.optim.name,
        nesterov=config.optim.nesterov,
        schedule=tuple(sorted(schedule.items())),
        dropout=config.train.dropout > 0.0,
        ema=config.optim.ema_decay > 0.0,
        regularised=config.loss.label_smoothing > 0.0 or config.loss.z_loss > 0.0,
        accumulate=config.optim.accumulate,
        log_every=config.train.log_every,
    )


def _hparams(config) -> Hparams:
    names = ("learning_rate", "weight_decay", "b1", "b2", "epsilon", "momentum", "clip_norm", "ema_decay")
    return make_hparams(
        **{name: config.optim[name] for name in names},
        dropout=config.train.dropout,
        label_smoothing=config.loss.label_smoothing,
        z_loss=config.loss.z_loss,
    )


def _whole_set(num_tokens, length):
    """Rows of one epoch of windows, so that a step sees them all."""
    return max(1, num_tokens // length - 1)


def _check_model(model, carried):
    if not model_is_causal(model):
        raise ValueError("language modelling needs causal mixers: take `bi:` and causal=false out of model.pattern")
    if carried and not model_is_bounded(model):
        raise ValueError(
            "data.mode=stream carries states without end, and full attention's would grow with them: "
            "use swa (or attn with mixers.attn.window) in model.pattern, or data.mode=windows"
        )
