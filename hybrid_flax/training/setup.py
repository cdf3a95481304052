"""What a config stands for: its data, its model and its step, checked before anything runs."""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

from hybrid_flax.config import ConfigError, validate
from hybrid_flax.data.hub import HUB
from hybrid_flax.data.pipeline import Batches
from hybrid_flax.data.sources import SYNTHETIC, Source, labelled_source, language_source, text_source
from hybrid_flax.data.text_files import file_versions, find_path, regular_file
from hybrid_flax.data.tokenizers import Tokenizer
from hybrid_flax.models.build import abstract_params, model_is_bounded, model_is_causal
from hybrid_flax.models.model import Dropout, LockedDropout, SequenceModel
from hybrid_flax.registration import (
    OPTIMIZERS,
    READERS,
    TASKS,
    TOKENIZERS,
    chosen,
    options_without_effect,
)
from hybrid_flax.tasks.base import Metric, Task, find_metric
from hybrid_flax.tasks.registry import check_task, make_task, task_traits
from hybrid_flax.training.config_model import model_from_config
from hybrid_flax.training.course import schedule_pairs
from hybrid_flax.training.frozen import find_frozen
from hybrid_flax.training.noise import Noise, has_recurrent_weights
from hybrid_flax.training.optimizer import make_optimizer, make_unit_schedule
from hybrid_flax.training.parallel import Parallel, check_rows, make_parallel
from hybrid_flax.training.state import Hparams, OwnHparams, make_hparams
from hybrid_flax.training.step import StepTraits
from hybrid_flax.training.warm_start import WarmStart, read_warm_start

__all__ = [
    "Setup",
    "make_setup",
    "missing_split",
    "read_source",
    "step_program",
]


class Setup(NamedTuple):
    """Everything that a config determines.

    metric: what the run is judged by. batch_size: rows a step. carried: whether states go from step to step.
    notes: what to tell whoever trains it. start: what a run that starts takes from another.
    """

    source: Source
    model: SequenceModel
    task: Task
    metric: Metric
    traits: StepTraits
    hparams: Hparams | OwnHparams
    parallel: Parallel
    batches: Batches
    batch_size: int
    carried: bool
    notes: tuple[str, ...] = ()
    start: WarmStart | None = None


def make_setup(
    config: Any,
    tokenizer: Tokenizer | None = None,
    labels: tuple[str, ...] | None = None,
    *,
    starts: bool = True,
) -> Setup:
    """Build all that a config determines; raises ConfigError in one line for whatever does not fit.

    tokenizer, labels: those of a run, as in `read_source`. starts: whether a run starts, for which config.model.vectors
    and config.train.init_from must be there; one that goes on needs them no more.
    """
    validate(config)
    check_task(config)
    try:
        source = read_source(config, tokenizer, labels)
        if config.model.vectors and starts:
            regular_file(find_path(config.model.vectors))
        batches = source.train(config.data.mode, config.data.batch_size, config.data.length, config.seed)
        batch_size = batches.batch_size
        task = make_task(config, source.labels, source.unseen)
        notes = _notes(config, task, source.tokenizer)
        model = model_from_config(config, source.tokenizer.vocab_size, source.labels, source.tokenizer.num_characters)
        frozen = find_frozen(config.model.freeze, abstract_params(model)) if config.model.freeze else ()
        traits = _step_traits(config, source.tokenizer, frozen)
        hparams = _hparams(config)
        make_unit_schedule(**dict(traits.schedule))
        make_optimizer(traits.optimizer, hparams)
        parallel = make_parallel(config.train.parallel)
        check_rows(parallel, batch_size, traits.accumulate)
        check_rows(parallel, config.eval.batch_size, name="eval.batch_size")
        if config.eval.every and "valid" not in source.splits:
            raise ValueError(f"eval.every={config.eval.every} (0: never): {missing_split(config, 'valid')}")
        carried = config.data.mode == "stream"
        _check_model(model, task, carried)
        if traits.noise.recurrent and not has_recurrent_weights(abstract_params(model)):
            raise ValueError(
                f"train.recurrent_dropout={config.train.recurrent_dropout} drops entries of recurrent matrices and "
                f"{config.model.pattern!r} has none: set it to 0, or put lstm, gru or the like into model.pattern"
            )
        metric = find_metric(task, config.eval.metric)
        start = read_warm_start(config, model, source.tokenizer, source.labels) if starts else None
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    return Setup(source, model, task, metric, traits, hparams, parallel, batches, batch_size, carried, notes, start)


def step_program(setup: Setup, config: Any) -> Hashable:
    """What runs have in common that train by one compiled step: equal values are equal programs."""
    shape = (config.data.mode, config.data.length, setup.batch_size)
    return setup.model, setup.task, setup.traits, setup.parallel, shape


def read_source(config: Any, tokenizer: Tokenizer | None = None, labels: tuple[str, ...] | None = None) -> Source:
    """The data of config.data; tokenizer and labels are made from its training part unless those of a run are given.

    Sources are kept: another run on the same files neither reads nor tokenises them again.
    Raises ValueError and FileNotFoundError in one line.
    """
    data, task, traits = config.data, config.task.name, task_traits(config.task.name)
    synthetic = data.path.startswith(SYNTHETIC)
    if synthetic != (traits.reads == "language"):
        takers = " or ".join(name for name in TASKS if task_traits(name).reads == "language")
        raise ValueError(
            f"task.name={task} and data.path={data.path!r}: synthetic languages go with {takers}, and only they"
        )
    if config.model.characters != "none" and (traits.label_kind is None or data.tokenizer != "word"):
        raise ValueError(
            f"model.characters={config.model.characters} needs labelled examples and data.tokenizer=word, "
            f"not task.name={task} and data.tokenizer={data.tokenizer}"
        )
    if synthetic:
        test_length = config.eval.length or data.length
        lengths = {"length": data.length, "test_length": test_length}
        return _kept(language_source, data.path.removeprefix(SYNTHETIC), (), **lengths)
    given = {
        "valid_fraction": float(data.valid_fraction),
        "test_fraction": float(data.test_fraction),
        "tokenizer": tokenizer or chosen(TOKENIZERS, config),
        "vocab_size": data.vocab_size,
        "min_count": data.min_count,
        "lowercase": data.lowercase,
        "encoding": data.encoding,
        "text": data.text,
        "files": data.splits,
    }
    versions = (file_versions(data.path, HUB), tuple(READERS.values()))
    if traits.reads == "text":
        return _kept(text_source, data.path, versions, document=data.document, **given)
    given |= {"label": data.label, "split_seed": data.split_seed, "folds": data.folds, "fold": data.fold}
    word_length = 0 if config.model.characters == "none" else data.word_length
    options = {"kind": traits.label_kind, "labels": labels, "word_length": word_length}
    return _kept(labelled_source, data.path, versions, **options, **given)


def missing_split(config: Any, split: str) -> str:
    """What to say where there is no such split; a larger fraction cuts one also from data that has other splits."""
    key = f"{split}_fraction"
    return f"{config.data.path!r} has no {split} split at data.{key}={config.data[key]}: raise it"


@functools.lru_cache(maxsize=4)
def _kept(source, path, versions, **options):
    """source(path, **options), for files that have not changed."""
    del versions
    return source(path, **options)


def _step_traits(config, tokenizer, frozen) -> StepTraits:
    return StepTraits(
        optimizer=chosen(OPTIMIZERS, config).split(float)[0],
        nesterov=config.optim.nesterov,
        schedule=schedule_pairs(config),
        noise=_noise(config.train, tokenizer),
        ema=config.optim.ema_decay > 0.0,
        regularised=config.loss.label_smoothing > 0.0 or config.loss.z_loss > 0.0,
        accumulate=config.optim.accumulate,
        log_every=config.train.log_every,
        frozen=frozen,
    )


def _noise(train, tokenizer) -> Noise:
    if train.word_dropout and tokenizer.unknown_id is None:
        raise ValueError(
            f"train.word_dropout={train.word_dropout} needs an unknown token and the {tokenizer.name} tokenizer has "
            "none: set it to 0, or choose another data.tokenizer"
        )
    kind = LockedDropout if train.locked_dropout else Dropout
    return Noise(
        dropout=kind if train.dropout else None,
        word_types=train.embedding_dropout > 0.0,
        recurrent=train.recurrent_dropout > 0.0,
        unknown_id=tokenizer.unknown_id if train.word_dropout else None,
    )


def _hparams(config) -> Hparams | OwnHparams:
    rates = ("dropout", "embedding_dropout", "word_dropout", "recurrent_dropout")
    names = ("learning_rate", "weight_decay", "table_decay", "b1", "b2", "epsilon", "momentum", "clip_norm")
    return make_hparams(
        chosen(OPTIMIZERS, config).split(float)[1],
        **{name: config.optim[name] for name in names},
        **{name: config.train[name] for name in rates},
        ema_decay=config.optim.ema_decay,
        label_smoothing=config.loss.label_smoothing,
        z_loss=config.loss.z_loss,
    )


def _notes(config, task, tokenizer):
    """What to say of options and of the prompt. Raises ValueError for a prompt without a token."""
    unread = options_without_effect(config)
    notes = (f"note: set without effect, as nothing here is made with it: {', '.join(unread)}",) if unread else ()
    if not task.generates:
        return notes
    prompt = config.sample.prompt
    if not len(tokenizer.encode(prompt)):
        raise ValueError(f"sample.prompt={prompt!r} is empty: the sample needs at least one token to go on from")
    return (*notes, *filter(None, (tokenizer.note_unknown("sample.prompt", prompt),)))


def _check_model(model, task, carried):
    if task.generates and not model_is_causal(model):
        raise ValueError("language modelling needs causal mixers: take `bi:` and causal=false out of model.pattern")
    if carried and not model_is_bounded(model):
        raise ValueError(
            "data.mode=stream carries states without end, and full attention's would grow with them: "
            "use swa (or attn with mixers.attn.window) in model.pattern, or data.mode=windows"
        )
