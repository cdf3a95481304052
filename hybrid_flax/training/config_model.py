"""The model that a config stands for."""

from typing import Any

from hybrid_flax.config import mixer_option_pairs
from hybrid_flax.models.build import FIELDS, make_model
from hybrid_flax.models.model import SequenceModel
from hybrid_flax.tasks.registry import is_pooled, task_traits

__all__ = ["model_from_config"]


def model_from_config(config: Any, vocab_size: int, labels: tuple[str, ...], num_characters: int = 0) -> SequenceModel:
    """The model of config.model, config.mixers and config.task. Raises ValueError as `make_model` does."""
    task, traits = config.task.name, task_traits(config.task.name)
    outputs = traits.num_outputs(labels) if traits.num_outputs else len(labels) or 1
    return make_model(
        vocab_size=vocab_size,
        options=mixer_option_pairs(config.mixers),
        num_outputs=outputs if traits.num_outputs or traits.label_kind else None,
        pooling=config.task.pooling if is_pooled(task) else "none",
        crf=traits.crf and config.task.crf,
        num_characters=num_characters,
        word_length=config.data.word_length,
        **{name: config.model[name] for name in FIELDS},
    )
